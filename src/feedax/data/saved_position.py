"""A loader's position as plain JSON: written, and checked before a loader resumes from it."""

import copy
import operator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterDataPipe, MapDataPipe

from feedax.data import randomness
from feedax.data.order import NoState, Order, Position, Progress, state_of
from feedax.errors import PositionError, shown

VERSION = 1


def saved_position(
    loader: DataLoader[Any], seed: int | None, position: Position, keeps_workers: bool
) -> dict[str, Any]:
    """The position of the last batch that a loader handed over, or of the next epoch's first.

    Where it has none: ``{"version": ..., "cannot_tell": why}``. The caller may be saving much else,
    which an error would lose.

    Args:
        loader: the loader.
        seed: the loader's.
        position: where it stands.
        keeps_workers: whether its next epoch is loaded by workers that exist already.
    """
    try:
        return _saved(loader, seed, position, keeps_workers)
    except PositionError as error:
        why = str(error)
    except Exception as error:
        why = (
            "NumpyLoader: a position needs everything that the loader's order comes from, and "
            f"asking for it failed ({type(error).__name__}: {str(error)[:100]}); give the loader a "
            "seed, or a sampler whose state_dict works"
        )
    return {"version": VERSION, "cannot_tell": why}


def _saved(
    loader: DataLoader[Any], seed: int | None, position: Position, keeps_workers: bool
) -> dict[str, Any]:
    if not loader.in_order:
        raise PositionError(
            "NumpyLoader: a position needs batches in the sampler's order, and this loader has "
            "in_order=False; leave it out"
        )
    if isinstance(loader.dataset, IterDataPipe | MapDataPipe):
        raise PositionError(
            "NumpyLoader: a position is that of a Dataset, and this loader has a "
            f"{type(loader.dataset).__name__}; save the data pipe's own state"
        )
    if position.resume is not None:
        return copy.deepcopy(position.resume)
    order = Order(loader, seed)
    saved: dict[str, Any] = {"version": VERSION}
    if seed is not None:
        saved["seed"] = seed
    if order.length is not None:
        saved["length"] = order.length
    if position.progress is None or position.progress.is_over:
        saved |= Progress(position.next_epoch).state()
        if order.stateful is not None:
            saved["sampler"] = state_of(order.stateful)
    else:
        saved |= position.progress.state()
    streams = [state for _, state, _ in saved.get("streams", {}).values()]
    for state in (saved.get("sampler"), *streams):
        if isinstance(state, NoState):
            raise PositionError(state)
    if "random" not in saved and order.generator is not None:
        # The state in which the generator will be when the next epoch's first index is drawn.
        ahead = torch.Generator()
        ahead.set_state(order.generator.get_state())
        is_own = order.generator is loader.generator
        if is_own and position.is_between_epochs and not keeps_workers:
            torch.empty((), dtype=torch.int64).random_(generator=ahead)  # the workers' seed
        saved["random"] = {"generator": randomness.tensor_to_json(ahead.get_state())}
    return copy.deepcopy(saved)


def _is_sound(state: Any) -> bool:
    """Whether a saved position can be read."""
    if not isinstance(state, dict):
        return False
    numbers = ("epoch", "batches", "examples", "checksum")
    if not all(type(state.get(name)) is int and 0 <= state[name] < 2**63 for name in numbers):
        return False
    random = state.get("random", {})
    try:
        for name in random:
            if name == "epoch":
                operator.index(random[name])
            elif name == "global":
                randomness.states_from_json(random[name])
            else:
                randomness.tensor_from_json(random[name])
    except (TypeError, ValueError, LookupError):
        return False
    return True


def checked_position(state: Any, seed: int | None) -> dict[str, Any]:
    """A copy of a saved position that fits a loader with this seed.

    Raises:
        PositionError: it does not, or it is no position at all.
    """
    if isinstance(state, dict) and isinstance(state.get("cannot_tell"), str):
        raise PositionError(
            "NumpyLoader: load_state_dict must get a position, and the loader that saved this one "
            f"could not tell its own ({state['cannot_tell']}); begin the epoch anew"
        )
    if not _is_sound(state):
        raise PositionError(
            "NumpyLoader: load_state_dict must get what state_dict returned, and it got "
            f"{str(state)[:60]!r}; save the whole dict, as JSON for example"
        )
    if state.get("version") != VERSION:
        raise PositionError(
            f"NumpyLoader: load_state_dict knows states of version {VERSION}, and this one is of "
            f"version {shown(state.get('version'))}; load it with the feedax that saved it"
        )
    if state.get("seed") != seed:
        raise PositionError(
            "NumpyLoader: a position belongs to the seed it was saved with, "
            f"{shown(state.get('seed'))}, and this loader has seed={seed!r}; make the loader with "
            "the same one"
        )
    return copy.deepcopy(state)
