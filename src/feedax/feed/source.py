"""What is trained on or evaluated: one contract, whatever the user gives."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from numbers import Integral
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from feedax.errors import BatchError, PositionError

SourcePosition = dict[str, Any]
"""Where in an epoch a source stands, as plain JSON. ``{"loader": ...}``: what the loader's
``state_dict`` returned; or ``{"batches": n}``: a source without one is iterated again, and its
first n batches are skipped."""

StateDict = Callable[[], Any]
"""Returns the position of a source, as the ``state_dict`` of a loader does."""


class LoaderPlan(Protocol):
    """How a loader makes its batches: `feedax.Plan`, which this side does not import."""

    @property
    def is_resident(self) -> bool: ...
    @property
    def is_vectorised(self) -> bool: ...
    @property
    def is_streamed(self) -> bool: ...
    @property
    def size(self) -> int: ...


@runtime_checkable
class ArrayLoader(Protocol):
    """A loader that may have its examples as arrays: `NumpyLoader` is one."""

    def plan(self) -> LoaderPlan: ...
    def arrays(self) -> Any: ...
    def index_batches(self) -> Iterator[np.ndarray]: ...
    def sequential(self) -> Any: ...
    @property
    def takes_each_once(self) -> bool: ...


class LoaderTimes(NamedTuple):
    """Seconds that a loader has spent so far: on loading, and on starting its workers."""

    loading: float
    starting: float


class Source:
    """The loader or iterable of NumPy batches that a user gave, with all that feedax asks of it.

    This is the only place that looks at the user's object, `given`. It is looked at again each
    time: a loader's attributes may be assigned, and its plan changes with its dataset. Two sources
    of one object are equal.
    """

    def __init__(self, given: Iterable[Any]) -> None:
        self.given = given
        self._loader = given if isinstance(given, ArrayLoader) else None

    @classmethod
    def of(cls, given: Any, who: str, again: bool = False) -> "Source":
        """The source of a user's object, before any time is spent on it.

        Args:
            given: a loader or another iterable, or a source already.
            who: names it in an error.
            again: whether it is to be iterated more than once.

        Raises:
            BatchError: it cannot be iterated (so often).
        """
        source = given if isinstance(given, cls) else cls(given)
        if not isinstance(source.given, Iterable):
            raise BatchError(
                f"{who} must be a loader or another iterable of NumPy batches, and it is a "
                f"{source.type_name}; give a NumpyLoader or a list"
            )
        if again and source.comes_once:
            raise BatchError(
                f"{who} must be there again in the next epoch, and it is a {source.type_name}, "
                "which ends; give a NumpyLoader or a list"
            )
        return source

    def __iter__(self) -> Iterator[Any]:
        return iter(self.given)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source) and other.given is self.given

    def __hash__(self) -> int:
        return id(self.given)

    def _ask(self, name: str, default: Any = None) -> Any:
        return getattr(self.given, name, default)

    @property
    def type_name(self) -> str:
        """The name of its type, for messages."""
        return type(self.given).__name__

    @property
    def comes_once(self) -> bool:
        """Whether it is an iterator, which ends."""
        return isinstance(self.given, Iterator)

    @property
    def length(self) -> int | None:
        """How many batches an epoch has, where that is known."""
        try:
            return len(self.given)  # type: ignore[arg-type]
        except TypeError:
            return None

    @property
    def batch_size(self) -> int | None:
        """How many examples a whole batch has, where it says so."""
        size = self._ask("batch_size")
        return size if isinstance(size, int) else None

    @property
    def sampled_batch_size(self) -> int | None:
        """The same, or that of the ``batch_sampler``: torch's loader has none where that has."""
        size = getattr(self._ask("batch_sampler"), "batch_size", None)
        return self.batch_size or (size if isinstance(size, int) else None)

    @property
    def batches_are_fresh(self) -> bool:
        """Whether nobody writes to a batch's arrays later: a device may use their memory."""
        return bool(self._ask("batches_are_fresh", False))

    # How it loads.

    @property
    def num_workers(self) -> int | None:
        """How many processes load its batches; None where it has no such number."""
        count = self._ask("num_workers")
        if count is None:
            return None
        return int(count) if isinstance(count, Integral) else 0

    @property
    def loads_in_workers(self) -> bool:
        """Whether batches are loaded by worker processes, and not by arrays or in this process."""
        plan = self.plan()
        return bool(self.num_workers) and (plan is None or plan.is_streamed)

    @property
    def persistent_workers(self) -> bool:
        """Whether its workers stay from epoch to epoch."""
        return bool(self._ask("persistent_workers", False))

    def times(self) -> LoaderTimes | None:
        """Where its time went so far, if it measures that."""
        stats = self._ask("stats")
        if not callable(stats):
            return None
        found = stats()
        return LoaderTimes(float(found.loading), float(found.starting))

    # Its examples as arrays.

    def plan(self) -> LoaderPlan | None:
        """How its batches are made, as it is now; None where it is no loader of feedax."""
        return None if self._loader is None else self._loader.plan()

    @property
    def has_arrays(self) -> bool:
        """Whether `arrays` and `index_batches` can be had now."""
        plan = self.plan()
        return plan is not None and not plan.is_streamed

    @property
    def nbytes(self) -> int:
        """Bytes of all examples as arrays; 0 where they have none."""
        plan = self.plan()
        return 0 if plan is None else plan.size

    @property
    def memory_budget(self) -> float:
        """The most bytes that its examples may take on a device, as it was given."""
        budget: float = self._ask("memory_budget", math.inf)
        return budget

    @property
    def device_budget(self) -> float:
        """The most bytes that resident examples may take, all copies together."""
        budget: float = self._ask("device_budget", math.inf)
        return budget

    @property
    def takes_each_once(self) -> bool:
        """Whether an epoch has each example of arrays once, in whatever order."""
        return self._loader is not None and self._loader.takes_each_once

    def arrays(self) -> Any:
        """All examples as one batch; where `has_arrays`."""
        assert self._loader is not None
        return self._loader.arrays()

    def index_batches(self) -> Iterator[np.ndarray]:
        """The indices of each batch of the next epoch; where `has_arrays`."""
        assert self._loader is not None
        return self._loader.index_batches()

    def sequential(self) -> "Source":
        """A loader's examples in the dataset's order, for evaluation; others as they are."""
        return self if self._loader is None else Source(self._loader.sequential())

    # Seeds, and processes that share it.

    @property
    def lacks_seed(self) -> bool:
        """Whether it takes a seed and has none."""
        return self._ask("seed", 0) is None

    def shard(self, index: int, count: int, seed: int | None) -> "Source":
        """This process's rows of every batch, of so many processes.

        A source whose batches cannot be shared so stays as it is.

        Args:
            index: of this process.
            count: of processes.
            seed: for a loader that has none.
        """
        # A data set of another library may have a method `shard`, and mean something else by it.
        shard = None if self._loader is None else self._ask("shard")
        shard = shard or self._ask("columns")  # its older name
        return Source(shard(index, count, seed=seed)) if shard else self

    @property
    def has_part(self) -> bool:
        """Whether the last batch was this process's rows of one, not all of it."""
        return bool(self._ask("has_part", False))

    # Its position in an epoch.

    @property
    def state_dict(self) -> StateDict | None:
        """Its own ``state_dict``, if it has one."""
        state_dict = self._ask("state_dict")
        return state_dict if callable(state_dict) else None

    def resumable_state(self) -> StateDict | None:
        """Its ``state_dict``, if that can be saved as JSON and loaded again.

        Raises:
            PositionError: it is a `NumpyLoader` that does not know its position.
        """
        state_dict = self.state_dict
        if state_dict is None or not callable(self._ask("load_state_dict")):
            return None
        state = position(state_dict, 0)
        try:
            json.dumps(state, allow_nan=False)
        except (TypeError, ValueError):
            return None
        return state_dict

    def resume(self, saved: SourcePosition, who: str = "fit") -> int:
        """Let the next epoch begin at a saved position; how many batches are to be skipped.

        `who` speaks, in an error.

        Raises:
            PositionError: it belongs to another loader.
            BatchError: the source has no ``load_state_dict``.
        """
        if "loader" not in saved:
            return int(saved["batches"])
        load = self._ask("load_state_dict")
        if not callable(load):
            raise BatchError(
                f"{who}: to resume, train must have the load_state_dict of the loader that the "
                f"checkpoint was saved with, and it is a {self.type_name}, which has none; give "
                "the same loader"
            )
        load(saved["loader"])
        return 0


def source_by_seed(train: Any, who: str) -> Callable[[int], Any]:
    """From a seed to what its network is trained on.

    Args:
        train: a loader with a ``with_seed``, a function of a seed, or another iterable, the same
            for all.
        who: names it in an error.

    Raises:
        BatchError: it is none of these.
    """
    with_seed = getattr(train, "with_seed", None)
    if with_seed is not None or callable(train):
        return with_seed or train
    source = Source.of(train, who)
    return lambda seed: source


def position(state_dict: StateDict | None, batches: int) -> SourcePosition:
    """The position after so many batches of an epoch.

    Raises:
        PositionError: the loader does not know it.
    """
    if state_dict is None:
        return {"batches": batches}
    state = state_dict()
    if isinstance(state, dict) and isinstance(state.get("cannot_tell"), str):
        raise PositionError(state["cannot_tell"])
    return {"loader": state}
