"""Which way a loader's batches take, and the proof that it does not change them."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset

import feedax.data.known_datasets  # noqa: F401  (registers them)
from feedax.data.array_form import ArrayForm, NoArrayForm, array_form, name_of
from feedax.data.collate import numpy_collate
from feedax.data.notes import narrowing
from feedax.data.randomness import equal_states
from feedax.data.workers.iterators import start_method
from feedax.data.workers.loading import examples_of, keeps_state
from feedax.errors import PlanError
from feedax.random_states import random_states, random_states_restored
from feedax.tree import taken_apart

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
        size: bytes that all examples take as arrays, or 0 where there are none.
    """

    name: str
    reason: str
    notes: tuple[str, ...] = ()
    size: int = field(default=0, compare=False)

    @property
    def is_resident(self) -> bool:
        return self.name == "resident"

    @property
    def is_vectorised(self) -> bool:
        return self.name == "vectorised"

    @property
    def is_streamed(self) -> bool:
        return self.name == "streamed"

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
    cache = loader._account.cache
    try:
        if isinstance(form, str):
            raise NoArrayForm(form)
        if cache is not None and cache.owns(form):
            sampled, (size, dtypes) = "A few of them are loaded again in each epoch", _extent(form)
        else:
            size, dtypes = _prove(loader.dataset, form)
            sampled = (
                f"{min(SAMPLED, len(form))} sampled examples came out equal to the dataset's own, "
                "bit for bit"
            )
    except NoArrayForm as no:
        if wanted != "auto" and cache is None:
            raise PlanError(
                f"NumpyLoader: the {wanted} plan needs a dataset whose batches can be gathered "
                f"from arrays, and {no}; ask for plan='streamed', or leave plan out"
            ) from None
        return Choice(Plan("streamed", str(no), _streamed_notes(loader)), None, form)

    described = f"all {len(form):,} examples of {form.name} take {_megabytes(size)} as arrays"
    notes = [sampled, *narrowing(dtypes)]
    if loader.num_workers > 0:
        notes.append(f"Its {loader.num_workers} workers are not started: there is nothing to load")
    if wanted == "vectorised":
        reason = f"it was asked for; {described}"
        return Choice(Plan("vectorised", reason, tuple(notes), size), form, form)
    if size <= memory_budget or wanted == "resident":
        notes.append("Iterated by hand, it gathers each batch with NumPy, in the same order")
        reason = f"{described} and fit on the device"
        return Choice(Plan("resident", reason, tuple(notes), size), form, form)
    reason = f"{described}, over the budget of {_megabytes(memory_budget)} for a device"
    return Choice(Plan("vectorised", reason, tuple(notes), size), form, form)


def _look(loader: Any) -> ArrayForm | str:
    """The array form of the loader's dataset, or of what is kept of it, or why there is none."""
    try:
        found = _obstacle(loader) or array_form(loader.dataset)
    except NoArrayForm as no:
        found = str(no)
    cache = loader._account.cache
    return cache.form() if isinstance(found, str) and cache and cache.is_complete else found


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
    notes = ["Examples are loaded in this process, one Python call each"]
    if loader.num_workers > 0:
        how = start_method(loader)
        notes = [f"Examples are loaded by {loader.num_workers} worker processes (started by {how})"]
    if loader._account.cache is not None:
        known, count = loader._account.cache.known()
        notes.append(
            f"They are kept, {known:,} of {count:,} so far; once all are, epochs come from memory"
        )
    if isinstance(loader.dataset, IterableDataset):
        if loader.num_workers > 1:
            notes.append(
                "Each worker iterates the dataset: one that does not ask get_worker_info() for its "
                "share comes once for each"
            )
        if loader.seed is not None:
            notes.append("Its randomness comes from (seed, epoch, worker): more workers, other one")
        if not keeps_state(loader.dataset):
            notes.append("It has no state_dict: to go on from a position it is loaded again")
    return tuple(notes)


def _extent(form: ArrayForm) -> tuple[int, set[np.dtype]]:
    """The bytes and the dtypes of arrays that need no proof."""
    leaves = form.leaves(np.arange(1))
    return sum(leaf.nbytes for leaf in leaves) * len(form), {leaf.dtype for leaf in leaves}


def _prove(dataset: Dataset[Any], form: ArrayForm) -> tuple[int, set[np.dtype]]:
    """Compare the form with the dataset on sampled indices; return its bytes and its dtypes.

    Raises:
        NoArrayForm: they differ, or loading an example fails or moves a global random state.
    """
    if len(form) == 0:
        raise NoArrayForm("the dataset is empty")
    # A generator of our own: the proof must not move the user's random states.
    inner = range(1, len(form) - 1)
    some = random.Random(len(form)).sample(inner, min(SAMPLED - 2, len(inner)))
    indices = sorted({0, *some, len(form) - 1})
    with random_states_restored() as before:
        try:
            expected = numpy_collate(examples_of(dataset, indices))
        except Exception as error:
            raise NoArrayForm(f"{name_of(dataset)} fails to load an example ({error})") from error
        drew = not equal_states(before, random_states())
    if drew:
        raise NoArrayForm(f"{name_of(dataset)} draws random numbers for its examples")
    try:
        leaves = form.leaves(np.asarray(indices))
    except IndexError:
        raise NoArrayForm(f"the arrays of {name_of(dataset)} are not of one length") from None
    if not same_bits(form.structure(leaves), expected):
        raise NoArrayForm(f"{name_of(dataset)} yields other examples than its arrays hold")
    size = sum(leaf.nbytes // len(indices) * len(form) for leaf in leaves)
    return size, {leaf.dtype for leaf in leaves}


def same_bits(batch: Any, expected: Any) -> bool:
    """Whether two batches have the same structure, and the same arrays to the bit."""
    if type(batch) is not type(expected):
        return False
    if isinstance(batch, np.ndarray):
        return (
            batch.dtype == expected.dtype
            and batch.shape == expected.shape
            and batch.tobytes() == expected.tobytes()
        )
    if not isinstance(batch, Mapping | list | tuple):
        return False
    parts, others = taken_apart(batch), taken_apart(expected)
    assert parts is not None
    assert others is not None
    return list(parts.keys) == list(others.keys) and all(
        same_bits(parts.get(batch, key), others.get(expected, key)) for key in parts.keys
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
