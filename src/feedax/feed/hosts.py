"""Several hosts that train together go from batch to batch in step."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from feedax.errors import BatchError
from feedax.feed.batch import length
from feedax.feed.place import WHO, Placement

HAS_ONE, HAS_ENDED, HAS_FAILED = range(3)
UNKNOWN = -1


def refuse_a_part_of_the_hosts(placement: Placement) -> None:
    """Hosts ask each other for their counts, and each of them must be asking.

    Raises:
        BatchError: the sharding has devices of some of several hosts only.
    """
    processes, count = sorted(placement.processes()), jax.process_count()
    if processes != list(range(count)):
        raise BatchError(
            f"{WHO}: a sharding over several hosts must use devices of all {count} of them, and "
            f"it uses those of {processes}; make its mesh of jax.devices()"
        )


def in_step(batches: Iterable[Any], count: int, full: bool) -> Iterator[Any]:
    """The batches of this host, once all hosts have one too.

    A host without a batch would leave the others waiting for it forever, in the middle of a step.

    Args:
        batches: this host's.
        count: how many they are, or `UNKNOWN`.
        full: whether all of them have one size. Where that and every host's count are known, the
            hosts compare them once; otherwise before every batch.

    Raises:
        BatchError: on every host, where one has fewer batches or others sizes, or failed.
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
            mine = np.array([status, examples, count], np.int32)
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


def columns_of(sources: list[Any], part: int, parts: int, seed: int | None) -> list[Any]:
    """The same loaders, each yielding this host's columns of its batches.

    What has no columns stays as it is; a source that is there twice is one again.
    """

    def view(source: Any) -> Any:
        columns = getattr(source, "columns", None)
        return columns(part, parts, seed=seed) if columns else source

    views = {id(source): view(source) for source in sources}
    return [views[id(source)] for source in sources]
