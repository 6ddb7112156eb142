"""The thread beside training: it transfers batches, and does nothing else."""

import contextlib
import copy
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax

THREAD_NAME = "feedax-transfer"


class _Entry(NamedTuple):
    """What is handed over next: a batch under way, or the end, or an error."""

    transfer: "Future[tuple[Any, float]] | None"
    error: Exception | None
    state: Any


class Unknown(NamedTuple):
    """Where a source stands it does not say."""

    error: Exception


class Pipeline(Iterator[Any]):
    """Pulls batches in the consumer's thread, transfers them in another, hands them over in order.

    Only `put` runs in the other thread, so a dataset, a transform or a sampler that is pulled
    here keeps its random state to itself. An error of theirs is raised after the batches before
    it were handed over. The thread ends with the batches, with an error, with `close`, and when
    nobody holds the pipeline any more.

    Args:
        batches: what is iterated, from the first ``next`` on. Its iterator is the pipeline's
            alone: a generator is closed.
        put: brings a batch to the device and returns what is handed over. It must not hold the
            pipeline, which would then never be collected.
        size: how many batches are under way at once, the one that is handed over included. With 1
            each is pulled when it is asked for, and there is no thread.
        foreign: whether `batches` may write to a batch's memory once it is asked for the next one.
        state: says where the source stands, and is asked whenever a batch was pulled.

    Attributes:
        transfer_seconds: time spent on `put` for the batches that were handed over.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        put: Callable[[Any], Any],
        size: int,
        foreign: bool,
        state: Callable[[], Any] | None = None,
    ) -> None:
        self.transfer_seconds = 0.0
        self._batches: Iterable[Any] | None = batches
        self._iterator: Iterator[Any] | None = None
        self._put = put
        self._size = size
        self._foreign = foreign
        self.ask_state = state
        self._state: Any = None
        self._has_begun = self._has_ended = False
        self._ahead: deque[_Entry] = deque()
        self._thread = ThreadPoolExecutor(1, THREAD_NAME) if size > 1 else None

    def __next__(self) -> Any:
        try:
            if not self._has_begun:
                self._has_begun = True
                self._state = self._asked()
            while len(self._ahead) < self._size and not self._has_ended:
                self._pull()
            if not self._ahead:
                raise StopIteration
            transfer, error, state = self._ahead.popleft()
            if error is not None:
                raise error
            self._state = state
            if transfer is None:
                raise StopIteration
            batch, seconds = transfer.result()
        except BaseException:
            self.close()
            raise
        self.transfer_seconds += seconds
        return batch

    def close(self) -> None:
        """Let the batches that are still under way go, and end the thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._has_ended = True
        self._ahead.clear()
        iterator, self._iterator, self._batches = self._iterator, None, None
        if isinstance(iterator, Generator):
            iterator.close()

    def state(self) -> Any:
        """Where the source stood once the batch last handed over had been pulled."""
        state = self._state if self._has_begun else self._asked()
        if isinstance(state, Unknown):
            raise state.error
        return state

    def _asked(self) -> Any:
        if self.ask_state is None:
            return None
        try:
            return copy.deepcopy(self.ask_state())  # it may go on changing what it says
        except Exception as error:
            return Unknown(error)  # raised where someone asks

    def _pull(self) -> None:
        if self._foreign and self._ahead and self._ahead[-1].transfer is not None:
            wait([self._ahead[-1].transfer])
        transfer, error = None, None
        try:
            if self._iterator is None:
                assert self._batches is not None
                self._iterator = iter(self._batches)
            batch = next(self._iterator)
        except StopIteration:
            self._has_ended = True
        except Exception as raised:
            self._has_ended, error = True, raised
        state = None if error else self._asked()
        if not self._has_ended:
            transfer = self._submitted(batch)
        self._ahead.append(_Entry(transfer, error, state))

    def _submitted(self, batch: Any) -> "Future[tuple[Any, float]]":
        if self._thread is not None:
            config = jax.config
            settings = config.jax_enable_x64, config.jax_default_device  # type: ignore[attr-defined]
            return self._thread.submit(_timed, self._put, batch, *settings)
        done: Future[tuple[Any, float]] = Future()
        done.set_result(_timed(self._put, batch))
        return done


def _timed(
    put: Callable[[Any], Any], batch: Any, x64: bool | None = None, device: Any = None
) -> tuple[Any, float]:
    started = time.perf_counter()
    with contextlib.ExitStack() as settings:
        # JAX's settings may be those of one thread: this thread takes the consumer's.
        if x64 is not None and x64 != jax.config.jax_enable_x64:  # type: ignore[attr-defined]
            settings.enter_context(jax.enable_x64(x64))
        if device is not None:
            settings.enter_context(jax.default_device(device))
        result = put(batch)
    return result, time.perf_counter() - started
