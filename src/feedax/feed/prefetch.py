"""`prefetch_to_device`: the next batches are on their way while the device computes.

The `Pipeline` that does this brings the batches of `fit` and `evaluate` to the device, too.
"""

import contextlib
import copy
import operator
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from types import TracebackType
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from jax.experimental import multihost_utils

from feedax.errors import BatchError
from feedax.feed.batch import Masked, PyTree, length, numbers, opened, pad, without_text
from feedax.feed.source import Source, StateDict
from feedax.feed.transfer import WHO, Transfer

Last = Literal["short", "drop", "pad", "wrap"]
HAS_ONE, HAS_ENDED, HAS_FAILED = range(3)
UNKNOWN = -1
THREAD_NAME = "feedax-transfer"


def prefetch_to_device(
    batches: Iterable[Any],
    size: int | None = None,
    sharding: PyTree = None,
    *,
    last: Last = "short",
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
            1 a batch is made when it is asked for, and there is no thread. If None, it is 2; and
            1 on the CPU, which has the host's memory, so that there is nothing to wait for.
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
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise BatchError(
            f"{WHO}: size must be a whole number of batches, 1 or more, and it is {size!r}; leave "
            "it out"
        )
    source = Source.of(batches, f"{WHO}: batches")
    foreign = not source.batches_are_fresh
    transfer = Transfer(opened(sharding, WHO), foreign)
    size = size or (1 if transfer.shares_memory else 2)
    host_batches = _of_one_size(source, last)
    if transfer.spans_hosts:
        _refuse_some_hosts(transfer)
        # What is dropped is known only when it comes.
        count = None if last == "drop" else source.length
        host_batches = _in_step(host_batches, count, full=last in ("pad", "wrap"))
    put = partial(transfer.put, wait=foreign or size > 1)
    return DevicePrefetcher(host_batches, put, size, foreign, source.state_dict)


class _Pulled(NamedTuple):
    """What is handed over next: a batch under way, or the error that came in its place."""

    batch: "Future[tuple[Any, float]]"
    state: "Future[Any] | None"


class Pipeline(Iterator[Any]):
    """Pulls batches in the consumer's thread, transfers them in another, hands them over in order.

    Only `put` runs in the other thread, so a dataset, a transform or a sampler that is pulled
    here keeps its random state to itself. Their errors are raised after the batches before
    them were handed over. The thread ends with the batches, with an error, with `close`, and when
    nobody holds the pipeline any more.

    Args:
        batches: iterated from the first ``next`` on. A generator is closed at the end.
        put: brings a batch to the device and returns what is handed over. It must not hold the
            pipeline, which would then never be collected.
        size: how many batches are under way at once, the one that is handed over included. With 1
            each is pulled when it is asked for, and there is no thread.
        foreign: whether `batches` may write to a batch's memory once it is asked for the next one.
        state_dict: the source's; called after every batch that is pulled.

    Attributes:
        transfer_seconds: time spent on `put` for the batches that were handed over.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        put: Callable[[Any], Any],
        size: int,
        foreign: bool,
        state_dict: StateDict | None = None,
    ) -> None:
        self.transfer_seconds = 0.0
        self._batches = batches
        self._put = put
        self._size = size
        self._foreign = foreign
        self._state_dict = state_dict
        # After the last batch that was handed over; with size 1 the source is asked for it only
        # when someone wants to know.
        self._state: Future[Any] | None = None
        self._has_begun = self._has_ended = False
        self._ahead: deque[_Pulled] = deque()
        self._thread = ThreadPoolExecutor(1, THREAD_NAME) if size > 1 else None

    def __next__(self) -> Any:
        try:
            if not self._has_begun:
                self._state = self._asked() if self._size > 1 else None
                self._batches, self._has_begun = iter(self._batches), True
            while len(self._ahead) < self._size and not self._has_ended:
                self._pull()
            if not self._ahead:
                raise StopIteration
            pulled = self._ahead.popleft()
            self._state = pulled.state or self._state
            batch, seconds = pulled.batch.result()
        except BaseException:
            self.close()
            pulled = None  # its error's traceback would keep it, and it the error
            raise
        self.transfer_seconds += seconds
        return batch

    def close(self) -> None:
        """Release the batches under way, and end the thread."""
        self._state = self._state or self._asked()
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._has_ended = True
        self._ahead.clear()
        batches, self._batches = self._batches, ()
        if isinstance(batches, Generator):
            batches.close()

    def state(self) -> Any:
        """The source's state after the last batch that was handed over."""
        return (self._state or self._asked()).result()

    def _asked(self) -> "Future[Any]":
        """The source's state, or the error that is raised where someone asks for it."""
        state: Future[Any] = Future()
        try:
            # Copied, as the source may change it later.
            state.set_result(self._state_dict and copy.deepcopy(self._state_dict()))
        except Exception as error:
            state.set_exception(error)
        return state

    def _pull(self) -> None:
        if self._foreign and self._ahead:
            wait([self._ahead[-1].batch])
        failed: Future[tuple[Any, float]] = Future()
        try:
            batch = next(self._batches)  # type: ignore[call-overload]
        except Exception as error:
            self._has_ended = True
            failed.set_exception(error)
            state = self._asked() if isinstance(error, StopIteration) else None
            self._ahead.append(_Pulled(failed, state))
            del failed  # the error's traceback would keep it, and it the error
        else:
            state = self._asked() if self._size > 1 else None
            self._ahead.append(_Pulled(self._submitted(batch), state))

    def _submitted(self, batch: Any) -> "Future[tuple[Any, float]]":
        if self._thread is not None:
            config = jax.config
            settings = config.jax_enable_x64, config.jax_default_device  # type: ignore[attr-defined]
            return self._thread.submit(_timed, self._put, batch, *settings)
        done: Future[tuple[Any, float]] = Future()
        done.set_result(_timed(self._put, batch))
        return done


class DevicePrefetcher(Pipeline):
    """What `prefetch_to_device` returns."""

    def state_dict(self) -> Any:
        """The loader's state after the last batch that was handed over.

        Batches on their way do not count: a loader that resumes from this state makes the batch
        that this iterator would hand over next.

        Raises:
            BatchError: the source has no ``state_dict``.
        """
        if self._state_dict is None:
            raise BatchError(
                f"{WHO}: state_dict() needs batches of a loader that has a state_dict, and these "
                "have none; give a NumpyLoader"
            )
        return self.state()

    def __enter__(self) -> "DevicePrefetcher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()


def _timed(
    put: Callable[[Any], Any], batch: Any, x64: bool | None = None, device: Any = None
) -> tuple[Any, float]:
    started = time.perf_counter()
    with contextlib.ExitStack() as settings:
        # JAX's settings may be thread-local: this thread takes over the consumer's.
        if x64 is not None and x64 != jax.config.jax_enable_x64:  # type: ignore[attr-defined]
            settings.enter_context(jax.enable_x64(x64))
        if device is not None:
            settings.enter_context(jax.default_device(device))
        result = put(batch)
    return result, time.perf_counter() - started


def _of_one_size(source: Source, last: Last) -> Iterator[Any]:
    """The batches as arrays, the short ones among them treated as `last` says."""
    size = source.batch_size
    first: Any = None
    for batch in source:
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
            yield Masked(pad(arrays, count, size), np.arange(size) < count)  # type: ignore[arg-type]
            continue
        if last == "wrap" and first is None:
            first = jax.tree.map(np.array, arrays)
        if count == size:
            yield arrays
        elif last == "wrap":
            order = np.arange(size - count) % length(first, WHO)
            more = jax.tree.map(operator.itemgetter(order), first)
            yield jax.tree.map(lambda *parts: np.concatenate(parts), arrays, more)


def _refuse_some_hosts(transfer: Transfer) -> None:
    """Hosts compare their batches, which every host must take part in."""
    processes, count = sorted(transfer.processes()), jax.process_count()
    if processes != list(range(count)):
        raise BatchError(
            f"{WHO}: a sharding over several hosts must use devices of all {count} of them, and "
            f"it uses those of {processes}; make its mesh of jax.devices()"
        )


def _in_step(batches: Iterable[Any], count: int | None, full: bool) -> Iterator[Any]:
    """The batches of this host, each once all hosts have one.

    Without a batch on one host, the other hosts would wait for it forever in the middle of a step:
    where one has fewer batches, batches of other sizes, or failed, every host raises a BatchError.

    Args:
        batches: this host's.
        count: how many there are, if that is known.
        full: whether all have one size. If so, and if every host's count is known, the hosts
            compare them once; otherwise before every batch.
    """
    iterator = iter(batches)
    compare, step = True, 0
    while True:
        status, examples, error, batch = HAS_ONE, 0, None, None
        try:
            batch = next(iterator)
            examples = length(batch, WHO)
        except StopIteration:
            status = HAS_ENDED
        except Exception as raised:
            status, error = HAS_FAILED, raised
        if compare:
            mine = np.array([status, examples, UNKNOWN if count is None else count], np.int32)
            told = np.asarray(multihost_utils.process_allgather(mine)).reshape(-1, 3)
            if error is None:
                _refuse(told[:, 0], told[:, 1], told[:, 2], step)
            compare = not (full and UNKNOWN not in told[:, 2])
        if error is not None:
            raise error
        if status == HAS_ENDED:
            return
        yield batch
        step += 1


def _refuse(status: np.ndarray, examples: np.ndarray, counts: np.ndarray, step: int) -> None:
    if HAS_FAILED in status:
        raise BatchError(
            f"{WHO}: every host must yield its batches, and host "
            f"{int(np.argmax(status == HAS_FAILED))} failed at batch {step}; see the error there"
        )
    if UNKNOWN not in counts and len(set(counts)) > 1:
        raise _unequal("number of batches", [str(count) for count in counts])
    if len(set(status)) > 1:
        ended = status == HAS_ENDED
        raise _unequal("number of batches", [str(step) if e else f"over {step}" for e in ended])
    if len(set(examples)) > 1:
        raise _unequal(f"number of examples in batch {step}", [str(count) for count in examples])


def _unequal(what: str, found: list[str]) -> BatchError:
    each = ", ".join(f"host {host} has {number}" for host, number in enumerate(found))
    return BatchError(
        f"{WHO}: every host must have the same {what}, and {each}; give every host as many "
        "examples, and fill up short batches with last='pad' or 'wrap'"
    )
