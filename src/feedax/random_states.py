"""The random states that a process has: Python's, NumPy's, torch's, and those of generators."""

import contextlib
import gc
import pickle
import random
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType, ModuleType, NoneType
from typing import Any

import numpy as np

RandomStates = tuple[Any, Any, Any]
"""Of Python, NumPy and torch; None where torch was never imported, so that nobody draws from it."""

LONG, MOST = 1000, 20_000
"""A longer container holds data, and no samplers or transforms; so many objects are looked at."""

_CONTAINERS = (list, tuple, dict, set, frozenset)
_NOT_LOOKED_AT = (type, ModuleType, CodeType, np.ndarray, str, bytes, int, float, NoneType)


def random_states() -> RandomStates:
    torch = sys.modules.get("torch")
    numpy: Any = np.random  # its types know one generator only
    is_legacy = isinstance(numpy.get_bit_generator(), numpy.MT19937)  # else it warns
    numpy_state = numpy.get_state(legacy=is_legacy)
    return random.getstate(), numpy_state, torch.get_rng_state() if torch else None


def set_random_states(states: RandomStates) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    if states[2] is not None:
        sys.modules["torch"].set_rng_state(states[2])


def equal_states(some: RandomStates, others: RandomStates) -> bool:
    """Whether nothing was drawn between one look at the states and the other.

    >>> before = random_states()
    >>> _ = np.random.random()
    >>> equal_states(before, before), equal_states(before, random_states())
    (True, False)
    """
    # NumPy's state is a tuple, or for another bit generator than its first one a dict.
    numpy_is_equal = pickle.dumps(some[1]) == pickle.dumps(others[1])
    return some[0] == others[0] and numpy_is_equal and np.array_equal(some[2], others[2])


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
    """The generators that objects hold: Python's, NumPy's and torch's.

    They are looked for in attributes, containers, closures, bound methods, and in what the methods
    of a class name of its module, wherever they lie; not in containers of more than `LONG` items.

    >>> class Sampler:
    ...     def __init__(self):
    ...         self.drawing = random.Random(0)
    >>> len(generators_in(Sampler(), [Sampler()], lambda: Sampler, random.Random(1), 3))
    3
    """
    torch = sys.modules.get("torch")
    kinds: tuple[type, ...] = (random.Random, np.random.Generator, np.random.RandomState)
    kinds += (torch.Generator,) if torch else ()
    found: dict[int, Any] = {}
    seen: set[int] = set()
    waiting = deque(holders)
    while waiting and len(seen) < MOST:
        holder = waiting.popleft()
        if id(holder) in seen or isinstance(holder, _NOT_LOOKED_AT):
            continue
        seen.add(id(holder))
        if isinstance(holder, kinds):
            found[id(holder)] = holder
            continue
        if not (isinstance(holder, _CONTAINERS) and len(holder) > LONG):
            waiting.extend(_held_by(holder))
        for kind in type(holder).__mro__:
            if kind.__module__ != "builtins" and id(kind) not in seen:
                seen.add(id(kind))
                waiting.extend(_of_class(kind, kinds))
    return list(found.values())


def _held_by(holder: Any) -> list[Any]:
    """What an object refers to; of a function not all of its module."""
    if not isinstance(holder, FunctionType):
        return gc.get_referents(holder)
    return [holder.__closure__, holder.__defaults__, holder.__kwdefaults__, *_named_by(holder)]


def _named_by(function: FunctionType) -> list[Any]:
    """What a function's code names of its module."""
    return [function.__globals__.get(name) for name in function.__code__.co_names]


def _of_class(kind: type, kinds: tuple[type, ...]) -> Iterator[Any]:
    """The generators that a class has, and that its methods name of their module."""
    for value in list(vars(kind).values()):
        function = getattr(value, "__func__", value)
        if isinstance(function, FunctionType):
            yield from (one for one in _named_by(function) if isinstance(one, kinds))
        elif isinstance(value, kinds):
            yield value


def generator_states(generators: Sequence[Any]) -> list[Any]:
    states: list[Any] = []
    for generator in generators:
        if isinstance(generator, random.Random):
            states.append(generator.getstate())
        elif isinstance(generator, np.random.Generator):
            states.append(generator.bit_generator.state)
        else:
            states.append(generator.get_state())
    return states


def set_generator_states(generators: Sequence[Any], states: Sequence[Any]) -> None:
    for generator, state in zip(generators, states, strict=True):
        if isinstance(generator, random.Random):
            generator.setstate(state)
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = state
        else:
            generator.set_state(state)
