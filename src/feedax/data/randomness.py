"""Random numbers that belong to an example, not to the process that happens to load it."""

import contextlib
import hashlib
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from feedax.random_states import (
    RandomStates,
    generator_states,
    random_states,
    random_states_restored,
    set_generator_states,
    set_random_states,
)

_FOUR = struct.Struct("<4Q")
_MASK = 2**64 - 1


def seed_random(seed: int, epoch: int, position: int, index: Any) -> None:
    """Set Python's, NumPy's and torch's global random states for one example; about 9 µs.

    It is for the example at this position of the epoch; `index` is its index, or another key.
    """
    for_python, for_numpy, for_torch = _seeds(seed, epoch, position, index)
    random.seed(for_python)
    np.random.seed(for_numpy)
    torch.default_generator.manual_seed(for_torch)


def seeded_generator(seed: int, epoch: int) -> torch.Generator:
    """A generator for what belongs to a whole epoch."""
    return torch.Generator().manual_seed(_seeds(seed, epoch, 0, "epoch")[2])


def _seeds(seed: int, epoch: int, position: int, index: Any) -> tuple[int, int, int]:
    number = index if type(index) is int else _number(index)
    packed = _FOUR.pack(seed & _MASK, epoch & _MASK, position & _MASK, number & _MASK)
    digest = hashlib.blake2b(packed, digest_size=16).digest()
    return struct.unpack("<QLL", digest)


def _number(index: Any) -> int:
    try:
        return int(index)
    except (TypeError, ValueError):
        return int.from_bytes(hashlib.blake2b(repr(index).encode(), digest_size=8).digest(), "big")


class OwnStates:
    """Random states apart from the global ones, for code that knows of the global ones only.

    They begin with `states`, or with seeds as `seed_random` takes them. The generators too have
    states apart, which begin with what they have now.
    """

    def __init__(
        self, *seeds: Any, states: RandomStates | None = None, generators: Sequence[Any] = ()
    ) -> None:
        self._seeds = seeds
        self._states = states
        self._generators = generators
        self._theirs = generator_states(generators)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        with random_states_restored(self._generators):
            set_generator_states(self._generators, self._theirs)
            if self._states is None:
                seed_random(*self._seeds)
            else:
                set_random_states(self._states)
            try:
                yield
            finally:
                self._states = random_states()
                self._theirs = generator_states(self._generators)


class Apart(Iterator[Any]):
    """An iterator that draws from random states of its own and leaves all others as they are.

    So does `begin`, which makes it.
    """

    def __init__(self, begin: Callable[[], Iterator[Any]], own: OwnStates) -> None:
        self._own = own
        with own.in_use():
            self._iterator = begin()

    def __next__(self) -> Any:
        with self._own.in_use():
            return next(self._iterator)


def states_to_json(states: RandomStates) -> list[Any]:
    """Random states as JSON: about 10 kB."""
    version, words, gauss = states[0]
    name, keys, position, has_gauss, cached = states[1]
    return [
        [version, np.asarray(words[:-1], np.uint32).tobytes().hex(), words[-1], gauss],
        [name, keys.tobytes().hex(), int(position), int(has_gauss), float(cached)],
        tensor_to_json(states[2]),
    ]


def states_from_json(saved: list[Any]) -> RandomStates:
    version, words, last, gauss = saved[0]
    name, keys, position, has_gauss, cached = saved[1]
    return (
        (version, (*_words(words).tolist(), last), gauss),
        (name, _words(keys), position, has_gauss, cached),
        tensor_from_json(saved[2]),
    )


def _words(text: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(text), np.uint32).copy()


def tensor_to_json(state: torch.Tensor) -> str:
    return state.numpy().tobytes().hex()


def tensor_from_json(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
