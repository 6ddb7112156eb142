"""Which way a loader's batches take, and the proof that it does not change them."""

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from feedax.data.array_form import ArrayForm, NoArrayForm, array_form, name_of
from feedax.data.collate import numpy_collate
from feedax.errors import PlanError

PLANS = ("resident", "vectorised", "streamed")
SAMPLED = 16
"""How many examples are loaded to prove a fast plan."""


@dataclass(frozen=True)
class Plan:
    """How a loader's batches are made. ``str(plan)`` says it in words.

    Attributes:
        name: ``"resident"`` (the arrays live on the device), ``"vectorised"`` (one NumPy gather
            a batch) or ``"streamed"`` (one Python call an example).
        reason: why this plan and no faster one.
        notes: what follows from it for the loader's other arguments, a sentence each.
    """

    name: str
    reason: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}: {'. '.join((self.reason, *self.notes))}."


@dataclass(frozen=True)
class Choice:
    """A plan, and what it was chosen for.

    Attributes:
        plan: the plan.
        form: the array form of the dataset, where a fast plan reads from it.
        found: the array form that was put to the proof, or why there was none; None if nobody
            looked.
    """

    plan: Plan
    form: ArrayForm | None
    found: ArrayForm | str | None

    def is_current(self, loader: Any) -> bool:
        """Whether a look at the loader still finds the same dataset."""
        if self.found is None:
            return True
        now = _look(loader)
        if isinstance(now, str) or isinstance(self.found, str):
            return now == self.found
        return self.found.same_dataset(now)


def choose_plan(loader: Any, wanted: str, memory_budget: int) -> Choice:
    """Pick the fastest plan that gives the very batches that torch's own loader would give.

    Args:
        loader: the `NumpyLoader`.
        wanted: one of `PLANS`, or ``"auto"``.
        memory_budget: the most bytes that a resident dataset may take on the device.

    Raises:
        PlanError: the wanted plan cannot be had.
    """
    if wanted == "streamed":
        return Choice(Plan("streamed", "it was asked for", _streamed_notes(loader)), None, None)
    form = _look(loader)
    try:
        if isinstance(form, str):
            raise NoArrayForm(form)
        size = _prove(loader.dataset, form)
    except NoArrayForm as no:
        if wanted != "auto":
            raise PlanError(
                f"NumpyLoader: the {wanted} plan needs a dataset whose batches can be gathered "
                f"from arrays, and {no}; ask for plan='streamed', or leave plan out"
            ) from None
        return Choice(Plan("streamed", str(no), _streamed_notes(loader)), None, form)

    described = f"all {len(form):,} examples of {form.name} take {_megabytes(size)} as arrays"
    notes = [f"{min(SAMPLED, len(form))} sampled examples came out equal to the dataset's own, "
             "bit for bit"]  # fmt: skip
    if loader.num_workers > 0:
        notes.append(f"Its {loader.num_workers} workers are not started: there is nothing to load")
    if wanted == "vectorised":
        reason = f"it was asked for; {described}"
        return Choice(Plan("vectorised", reason, tuple(notes)), form, form)
    if size <= memory_budget or wanted == "resident":
        notes.append("Iterated by hand, it gathers each batch with NumPy, in the same order")
        reason = f"{described} and fit on the device"
        return Choice(Plan("resident", reason, tuple(notes)), form, form)
    reason = f"{described}, over the budget of {_megabytes(memory_budget)} for a device"
    return Choice(Plan("vectorised", reason, tuple(notes)), form, form)


def _look(loader: Any) -> ArrayForm | str:
    """The array form of the loader's dataset, or why there is none."""
    try:
        return _obstacle(loader) or array_form(loader.dataset)
    except NoArrayForm as no:
        return str(no)


def _obstacle(loader: Any) -> str | None:
    """What in the loader's arguments, not in its dataset, asks for a Python call per example."""
    if isinstance(loader.dataset, IterableDataset):
        return "an IterableDataset has no indices to gather by"
    if loader.batch_sampler is None:
        return "batch_size=None asks for single examples"
    if not loader.collates_itself:
        return "a collate_fn of your own wants to see the examples"
    if loader.num_workers > 0 and loader.worker_init_fn is not None:
        return "a worker_init_fn may change what the workers load"
    return None


def _streamed_notes(loader: Any) -> tuple[str, ...]:
    if loader.num_workers == 0:
        return ("Examples are loaded in this process, one Python call each",)
    how = (loader.multiprocessing_context or torch.multiprocessing).get_start_method()
    return (f"Examples are loaded by {loader.num_workers} worker processes (started by {how})",)


def _prove(dataset: Dataset[Any], form: ArrayForm) -> int:
    """Compare the form with the dataset on sampled indices; return its size in bytes.

    Raises:
        NoArrayForm: they differ, or loading an example moved a global random state.
    """
    if len(form) == 0:
        raise NoArrayForm("the dataset is empty")
    # A generator of our own: the proof must not move the user's random states.
    inner = range(1, len(form) - 1)
    some = random.Random(len(form)).sample(inner, min(SAMPLED - 2, len(inner)))
    indices = sorted({0, *some, len(form) - 1})
    with _random_states_restored() as moved:
        expected = numpy_collate([dataset[i] for i in indices])
        drew = moved()
    if drew:
        raise NoArrayForm(f"{name_of(dataset)} draws random numbers for its examples")
    batch = form.take(np.asarray(indices))
    if not _same_bits(batch, expected):
        raise NoArrayForm(f"{name_of(dataset)} yields other examples than its arrays hold")
    return sum(leaf.nbytes // len(indices) * len(form) for leaf in batch)


def _same_bits(batch: list[np.ndarray], expected: Any) -> bool:
    return (
        isinstance(expected, list)
        and len(batch) == len(expected)
        and all(
            isinstance(b, np.ndarray)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and a.tobytes() == b.tobytes()
            for a, b in zip(batch, expected, strict=True)
        )
    )


@contextlib.contextmanager
def _random_states_restored() -> Iterator[Any]:
    """Put Python's, NumPy's and torch's global random states back; yields a test for movement."""
    before = _random_states()

    def moved() -> bool:
        return not all(_equal(a, b) for a, b in zip(before, _random_states(), strict=True))

    try:
        yield moved
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _random_states() -> tuple[Any, Any, Any]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
