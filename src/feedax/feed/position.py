"""Where in an epoch training stands, as plain JSON, and how to go on from there."""

import json
from collections.abc import Callable
from typing import Any

from feedax.errors import BatchError, PositionError

Position = dict[str, Any]
"""``{"loader": ...}``: what the loader's ``state_dict`` said; or ``{"batches": n}``: n batches were
trained on, and an iterable that cannot say where it stands is iterated again without them."""

Tell = Callable[[], Any]


def teller(source: Any) -> Tell | None:
    """A source's ``state_dict``, where it has one that can be saved as JSON and loaded again.

    Raises:
        PositionError: it is a `NumpyLoader` that cannot say where it stands.
    """
    tell = getattr(source, "state_dict", None)
    if not callable(tell) or not callable(getattr(source, "load_state_dict", None)):
        return None
    state = _told(tell)
    try:
        json.dumps(state, allow_nan=False)
    except (TypeError, ValueError):
        return None
    return tell


def position(tell: Tell | None, batches: int) -> Position:
    """The position after so many batches of an epoch.

    Raises:
        PositionError: the loader cannot say where it stands.
    """
    return {"batches": batches} if tell is None else {"loader": _told(tell)}


def _told(tell: Tell) -> Any:
    state = tell()
    if isinstance(state, dict) and isinstance(state.get("cannot_tell"), str):
        raise PositionError(state["cannot_tell"])
    return state


def go_on(source: Any, saved: Position) -> int:
    """Let a source's next epoch begin at a saved position; how many batches are to be skipped.

    Raises:
        PositionError: it belongs to another loader.
        BatchError: the source cannot go on from a position of its own.
    """
    if "loader" not in saved:
        return int(saved["batches"])
    if not callable(getattr(source, "load_state_dict", None)):
        raise BatchError(
            "fit: a run goes on with a loader like the one it was saved with, which could say "
            f"where it stood, and train is a {type(source).__name__}; give the same loader"
        )
    source.load_state_dict(saved["loader"])
    return 0
