"""`prefetch_to_device`: the next batches are on their way while the device computes."""

from collections.abc import Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Literal, get_args

import jax
import numpy as np

from feedax.errors import BatchError
from feedax.feed.batch import Masked, PyTree, filling, length, numbers, opened, without_text
from feedax.feed.hosts import UNKNOWN, in_step, refuse_a_part_of_the_hosts
from feedax.feed.pipeline import Pipeline
from feedax.feed.place import WHO, Placement

Last = Literal["short", "drop", "pad", "wrap"]


def prefetch_to_device(
    batches: Iterable[Any], size: int = 2, sharding: PyTree = None, *, last: Last = "short"
) -> "DevicePrefetcher":
    """Iterate batches of the host on the device, one epoch of them.

    Batches are made in the thread that asks for them, as without prefetching: datasets,
    transforms and samplers draw their random numbers there. Another thread only transfers. It
    ends with the batches, with an error, and when the loop over them is left.

    What is handed over is a batch's structure with ``jax.Array`` leaves. Its containers are those
    that JAX knows: of the others, mappings become dicts, dataclasses and attrs objects named tuples
    of their fields, and sequences lists. Text in it (``str``,
    ``bytes`` and lists of them) stays on the host: in a dict its key is left out, elsewhere None
    stands in its place.

    Args:
        batches: a `NumpyLoader`, or any iterable of PyTrees of arrays `(examples, ...)`. Arrays
            that are written to later are safe: they are copied, or read in time. A loader whose
            ``batches_are_fresh`` is true makes new arrays for every batch; on the CPU, JAX then
            uses their memory as it is.
        size: how many batches are under way at once, the one that is handed over included. With
            1 a batch is made when it is asked for, and there is no thread.
        sharding: a device, a sharding, or a PyTree of these that is a prefix of a batch without
            its text; JAX's default device if None. With a sharding over several hosts
            (``jax.distributed``) every host gives its own part of each batch, and all of them
            must have as many batches of as many examples. They compare this before every batch;
            once, where ``last`` is "pad" or "wrap" and the batches have a ``len``.
        last: what becomes of a batch shorter than ``batches.batch_size``, or than the first batch
            where there is no such number:

            - ``"short"``: it stays as it is. Code compiled for one shape is compiled again.
            - ``"drop"``: it is left out.
            - ``"pad"``: every batch becomes a `Masked` one: the batch, filled up with copies of
              its first example, and a mask `(examples,)` that is False for these.
            - ``"wrap"``: it is filled up with the first examples of the first batch that was
              made, again and again if need be; they count twice.

    Returns:
        An iterator with a ``state_dict()``, which says what the loader's own would say had the
        loop been over the loader, and a ``close()``, for loops that are left while the iterator
        is still held; ``with`` closes it too.

    Raises:
        BatchError: size, sharding or last is none of these; a batch holds what is no number, is
            longer than the first one (not with ``last="short"``), or does not divide among the
            devices of its sharding; or hosts have unequal batches, which every host says.

    >>> batches = [{"x": np.arange(3.0), "name": ["a", "b", "c"]}, {"x": np.arange(2.0)}]
    >>> for batch, mask in prefetch_to_device(batches, last="pad"):
    ...     print(batch["x"], mask, list(batch))
    [0. 1. 2.] [ True  True  True] ['x']
    [0. 1. 0.] [ True  True False] ['x']
    """
    if last not in get_args(Last):
        raise BatchError(
            f"{WHO}: last must be one of {', '.join(map(repr, get_args(Last)))}, and it is "
            f"{last!r}; leave it out to get short batches as they are"
        )
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise BatchError(
            f"{WHO}: size must be a whole number of batches, 1 or more, and it is {size!r}; leave "
            "it out for 2"
        )
    if not isinstance(batches, Iterable):
        raise BatchError(
            f"{WHO}: batches must be a loader or another iterable of NumPy batches, and it is a "
            f"{type(batches).__name__}; give a NumpyLoader or a list"
        )
    foreign = is_foreign(batches)
    placement = Placement(opened(sharding, WHO), foreign)
    host_batches = _of_one_size(batches, last)
    if placement.spans_hosts:
        refuse_a_part_of_the_hosts(placement)
        # What is dropped is known only when it comes.
        count = UNKNOWN if last == "drop" else _count(batches)
        host_batches = in_step(host_batches, count, full=last in ("pad", "wrap"))
    put = partial(placement.put, wait=foreign or size > 1)
    return DevicePrefetcher(host_batches, put, size, foreign, getattr(batches, "state_dict", None))


class DevicePrefetcher(Pipeline):
    """What `prefetch_to_device` returns."""

    def state_dict(self) -> Any:
        """Where the source stood once the batch last handed over had been made.

        Batches that are on their way do not show: a source that goes on from here makes the next
        batch that this iterator would hand over.

        Raises:
            BatchError: the source has no ``state_dict``.
        """
        if self.ask_state is None:
            raise BatchError(
                f"{WHO}: only a loader with a state_dict can say where it stands, and these "
                "batches come from one without; give a NumpyLoader"
            )
        return self.state()

    def __enter__(self) -> "DevicePrefetcher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()


def is_foreign(batches: Any) -> bool:
    """Whether somebody may write to the memory of a source's batches after they came."""
    return not getattr(batches, "batches_are_fresh", False)


def _count(batches: Any) -> int:
    try:
        return len(batches)
    except TypeError:
        return UNKNOWN


def _of_one_size(batches: Iterable[Any], last: Last) -> Iterator[Any]:
    """The batches as arrays, the short ones among them treated as `last` says."""
    given = getattr(batches, "batch_size", None)
    size = given if isinstance(given, int) else None
    first: Any = None
    for batch in batches:
        arrays = numbers(without_text(opened(batch, WHO)), WHO, keep=(jax.Array,))
        del batch  # a loader may wait for its memory
        if last == "short":
            yield arrays
            continue
        count = length(arrays, WHO)
        size = count if size is None else size
        if count > size:
            raise BatchError(
                f"{WHO}: a batch must not be longer than the first one or than batch_size, {size} "
                f"examples, and one has {count}; use last='short'"
            )
        if last == "pad":
            whole = arrays if count == size else _rows(arrays, filling(count, size))
            yield Masked(whole, np.arange(size) < count)  # type: ignore[arg-type]
            continue
        if last == "wrap" and first is None:
            first = jax.tree.map(np.array, arrays)
        if count == size:
            yield arrays
        elif last == "wrap":
            more = _rows(first, np.arange(size - count) % length(first, WHO))
            yield jax.tree.map(lambda *parts: np.concatenate(parts), arrays, more)


def _rows(examples: PyTree, order: np.ndarray) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[order], examples)
