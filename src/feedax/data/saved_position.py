"""A loader's position as plain JSON: made of a loader, and checked before one goes on from it."""

import copy
import operator
from typing import Any

import torch
from torch.utils.data import IterDataPipe, MapDataPipe

from feedax.data import randomness
from feedax.data.loading import NoState, state_of
from feedax.data.position import Progress, dataset_length, order_generator, stateful_sampler
from feedax.errors import PositionError, shown

VERSION = 1


def saved_position(loader: Any) -> dict[str, Any]:
    """The position of the last batch that a loader handed over, or of the next epoch's first.

    Where it has none: ``{"version": ..., "cannot_tell": why}``. Whoever asks may save much else
    besides, and would lose it by an error.
    """
    try:
        return _position(loader)
    except PositionError as error:
        why = str(error)
    except Exception as error:
        why = (
            "NumpyLoader: a position needs all that the loader's order comes from, and asking for "
            f"it failed ({type(error).__name__}: {str(error)[:100]}); give the loader a seed, or "
            "a sampler whose state_dict works"
        )
    return {"version": VERSION, "cannot_tell": why}


def _position(loader: Any) -> dict[str, Any]:
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
    if loader._resume is not None:
        return copy.deepcopy(loader._resume)
    saved: dict[str, Any] = {"version": VERSION}
    if loader.seed is not None:
        saved["seed"] = loader.seed
    if (length := dataset_length(loader)) is not None:
        saved["length"] = length
    if _is_between_epochs(loader):
        saved |= Progress(loader._next_epoch).state()
        if (sampler := stateful_sampler(loader._index_sampler)) is not None:
            saved["sampler"] = state_of(sampler)
    else:
        saved |= loader._progress.state()
    for state in (
        saved.get("sampler"),
        *(state for _, state, _ in saved.get("streams", {}).values()),
    ):
        if isinstance(state, NoState):
            raise PositionError(state)
    if "random" not in saved and (generator := order_generator(loader)) is not None:
        state = _at_first_index(loader, generator)
        saved["random"] = {"generator": randomness.tensor_to_json(state)}
    return copy.deepcopy(saved)


def _is_between_epochs(loader: Any) -> bool:
    return loader._progress is None or loader._progress.is_over


def _at_first_index(loader: Any, generator: torch.Generator) -> torch.Tensor:
    """The state in which the generator will be when the next epoch's first index is drawn."""
    kept = loader.persistent_workers and loader._iterator is not None
    ahead = torch.Generator()
    ahead.set_state(generator.get_state())
    if generator is loader.generator and _is_between_epochs(loader) and not kept:
        torch.empty((), dtype=torch.int64).random_(generator=ahead)  # the workers' seed
    return ahead.get_state()


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


def check_state(loader: Any, state: Any) -> dict[str, Any]:
    """A saved position that fits a loader.

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
    if state.get("seed") != loader.seed:
        raise PositionError(
            "NumpyLoader: a position belongs to the seed it was saved with, "
            f"{shown(state.get('seed'))}, and this loader has seed={loader.seed!r}; make the "
            "loader with the same one"
        )
    return state
