"""The random states that a process has: Python's, NumPy's, torch's, and those of generators."""

import contextlib
import random
import sys
import types
from collections.abc import Iterator, Sequence
from types import MemberDescriptorType
from typing import Any

import numpy as np

RandomStates = tuple[Any, Any, Any]
"""Of Python, NumPy and torch; None where torch was never imported, so that nobody draws from it."""

_DEPTH = 4
"""How deep in an object generators are looked for: a dataset's transform's, say."""

_NOT_LOOKED_AT = (type, types.ModuleType, types.FunctionType, np.ndarray)


def random_states() -> RandomStates:
    torch = sys.modules.get("torch")
    return random.getstate(), np.random.get_state(), torch.get_rng_state() if torch else None


def set_random_states(states: RandomStates) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    if states[2] is not None:
        sys.modules["torch"].set_rng_state(states[2])


@contextlib.contextmanager
def random_states_restored(generators: Sequence[Any] = ()) -> Iterator[RandomStates]:
    """Put the global random states, and these generators', back at the end; yields the global."""
    before, others = random_states(), generator_states(generators)
    try:
        yield before
    finally:
        set_random_states(before)
        set_generator_states(generators, others)


def generators_in(*holders: Any) -> list[Any]:
    """The generators that objects hold in their attributes: Python's, NumPy's and torch's.

    >>> class Sampler:
    ...     def __init__(self):
    ...         self.drawing = random.Random(0)
    >>> len(generators_in(Sampler(), [Sampler()], random.Random(1), 3))
    3
    """
    torch = sys.modules.get("torch")
    kinds = (random.Random, np.random.Generator, np.random.RandomState)
    found: dict[int, Any] = {}
    seen: set[int] = set()

    def look(holder: Any, depth: int) -> None:
        if id(holder) in seen or isinstance(holder, _NOT_LOOKED_AT):
            return
        seen.add(id(holder))
        if isinstance(holder, kinds) or (torch and isinstance(holder, torch.Generator)):
            found[id(holder)] = holder
        elif isinstance(holder, list | tuple | dict):
            # A long list holds data: only a short one may hold datasets, or transforms.
            values = list(holder.values()) if isinstance(holder, dict) else holder
            for value in values if len(values) <= 64 else ():
                look(value, depth)
        elif depth > 0:
            for value in _attributes(holder):
                look(value, depth - 1)

    for holder in holders:
        look(holder, _DEPTH)
    return list(found.values())


def _attributes(holder: Any) -> list[Any]:
    """The values of an object's attributes, those in slots too; it is not asked for any other."""
    slots = [
        slot
        for kind in type(holder).__mro__
        for slot in vars(kind).values()
        if isinstance(slot, MemberDescriptorType)
    ]
    values = list(getattr(holder, "__dict__", {}).values())
    for slot in slots:
        with contextlib.suppress(AttributeError):
            values.append(slot.__get__(holder))
    return values


def generator_states(generators: Sequence[Any]) -> list[Any]:
    return [_state(generator) for generator in generators]


def set_generator_states(generators: Sequence[Any], states: Sequence[Any]) -> None:
    for generator, state in zip(generators, states, strict=True):
        if isinstance(generator, random.Random):
            generator.setstate(state)
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = state
        else:
            generator.set_state(state)


def _state(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state()
