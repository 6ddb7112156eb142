"""Which way a loader's batches take, and the proof that it does not change them."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

import feedax.data.known_datasets  # noqa: F401  (registers them)
from feedax.data.array_form import ArrayForm, NoArrayForm, any_python, array_form
from feedax.data.cache import Cache
from feedax.data.collate import numpy_collate
from feedax.data.loading import examples_of
from feedax.data.order import keeps_state
from feedax.data.workers import start_method
from feedax.errors import PlanError
from feedax.random_states import equal_states, random_states, random_states_restored
from feedax.tree import is_text, name_of, named_leaves, same_bits

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

    def shorter(self, dtypes: bool) -> "Plan":
        """The same for somebody who trains: neither how it is iterated by hand, nor the cast.

        Args:
            dtypes: whether the note on what JAX does to 64-bit values is kept.
        """
        left_out = (_BY_HAND,) if dtypes else (_BY_HAND, _ON_A_DEVICE)
        kept = tuple(note for note in self.notes if not note.endswith(left_out))
        return replace(self, reason=self.reason.replace(" with FlattenAndCast", ""), notes=kept)

    def __str__(self) -> str:
        return f"{self.name}: {'. '.join((self.reason, *self.notes))}."


@dataclass(frozen=True)
class Choice:
    """A plan, and what it was chosen for."""

    plan: Plan
    # The array form that was put to the proof, or why there was none; None if nobody looked.
    found: ArrayForm | str | None

    @property
    def form(self) -> ArrayForm | None:
        """The array form of the dataset, where a fast plan reads from it."""
        if self.plan.is_streamed or isinstance(self.found, str):
            return None
        return self.found

    def is_current(self, found: ArrayForm | str | None) -> bool:
        """Whether what is found now is the dataset that the plan was chosen for."""
        if isinstance(found, ArrayForm) and isinstance(self.found, ArrayForm):
            return self.found.same_dataset(found)
        return found == self.found


def find_form(loader: DataLoader[Any], collate_fn: Any, cache: Cache | None) -> ArrayForm | str:
    """The array form of a loader's dataset, or of what a cache keeps of it, or why there is none.

    `collate_fn` is the user's own, if there is one.
    """
    try:
        found = _obstacle(loader, collate_fn) or array_form(loader.dataset)
    except NoArrayForm as no:
        found = str(no)
    return cache.form() if isinstance(found, str) and cache and cache.is_complete else found


def choose_plan(
    loader: DataLoader[Any],
    found: ArrayForm | str | None,
    wanted: str,
    memory_budget: int,
    seed: int | None,
    cache: Cache | None,
) -> Choice:
    """Choose the fastest plan that gives exactly the batches that torch's own loader would give.

    `found` is what `find_form` has found, or None where the plan ``"streamed"`` is wanted.

    Raises:
        PlanError: the wanted plan cannot be had.
    """
    if found is None:
        notes = _streamed_notes(loader, seed, cache)
        return Choice(Plan("streamed", "it was asked for", notes), None)
    try:
        if isinstance(found, str):
            raise NoArrayForm(found)
        if cache is not None and cache.owns(found):
            sampled = "A few of them are loaded again in each epoch"
        else:
            _prove(loader.dataset, found)
            sampled = (
                f"{min(SAMPLED, len(found))} sampled examples came out equal to the dataset's own, "
                "bit for bit"
            )
    except NoArrayForm as no:
        if wanted != "auto" and cache is None:
            raise PlanError(
                who="NumpyLoader",
                rule=f"plan={wanted!r} needs a dataset whose batches can be gathered from arrays",
                found=str(no),
                remedy="leave it out, or give plan='streamed'",
            ) from None
        notes = _streamed_notes(loader, seed, cache) + _registering(loader.dataset, str(no))
        return Choice(Plan("streamed", str(no), notes), found)

    leaves = found.leaves(np.arange(1))
    size = sum(leaf.nbytes for leaf in leaves) * len(found)
    described = f"all {len(found):,} examples of {found.name} take {_megabytes(size)} as arrays"
    notes = (sampled, *_narrowing(leaf.dtype for leaf in leaves))
    if loader.num_workers > 0:
        notes += (f"Its {loader.num_workers} workers are not started: there is nothing to load",)
    name = "vectorised"
    if wanted == "vectorised":
        reason = f"it was asked for; {described}"
    elif size <= memory_budget or wanted == "resident":
        name = "resident"
        notes += (_BY_HAND,)
        reason = f"{described} and fit on the device"
    else:
        reason = f"{described}, over the budget of {_megabytes(memory_budget)} for a device"
    return Choice(Plan(name, reason, notes, size), found)


def _obstacle(loader: DataLoader[Any], collate_fn: Any) -> str | None:
    """What in a loader's arguments, not in its dataset, needs a Python call for each example."""
    if isinstance(loader.dataset, IterableDataset):
        return "an IterableDataset has no indices to gather by"
    if loader.batch_sampler is None:
        return "batch_size=None asks for single examples"
    if collate_fn is not None:
        return "a collate_fn of your own wants to see the examples"
    if loader.num_workers > 0 and loader.worker_init_fn is not None:
        return "a worker_init_fn may change what the workers load"
    return None


def _streamed_notes(
    loader: DataLoader[Any], seed: int | None, cache: Cache | None
) -> tuple[str, ...]:
    notes = ["Examples are loaded in this process, one Python call each"]
    if loader.num_workers > 0:
        how = start_method(loader.multiprocessing_context)
        notes = [f"Examples are loaded by {loader.num_workers} worker processes (started by {how})"]
    if cache is not None:
        known, count = cache.known()
        notes.append(
            f"They are kept, {known:,} of {count:,} so far; once all are, epochs come from memory"
        )
    if isinstance(loader.dataset, IterableDataset):
        if loader.num_workers > 1:
            notes.append(
                "Each worker iterates the dataset: one that does not ask get_worker_info() for its "
                "share comes once for each"
            )
        if seed is not None:
            notes.append("Its randomness comes from (seed, epoch, worker): more workers, other one")
        if not keeps_state(loader.dataset):
            notes.append("It has no state_dict: to resume from a position, it is loaded again")
    return tuple(notes)


def _registering(dataset: Any, why: str) -> tuple[str, ...]:
    """The line that may give a dataset a faster plan, whose own class keeps arrays."""
    while type(dataset) is Subset:
        dataset = dataset.dataset
    library = type(dataset).__module__.partition(".")[0]
    if why != any_python(dataset) or library in ("builtins", "torch", "torchvision", "datasets"):
        return ()
    held = {
        f"data.{name}": value
        for name, value in getattr(dataset, "__dict__", {}).items()
        if isinstance(value, list | np.ndarray | torch.Tensor)
        and getattr(value, "ndim", 1) > 0
        and len(value) == len(dataset)
    }
    are_arrays = [
        not isinstance(value, list) and getattr(value.dtype, "kind", "f") not in "OSTU"
        for value in held.values()
    ]
    if not any(are_arrays):
        return ()
    names = ", ".join(held)
    arrays = names if len(held) == 1 else f"({names})"
    function = f"lambda data: {arrays}" if all(are_arrays) else "..."
    line = f"feedax.register_arrays({type(dataset).__name__}, {function})"
    return (f"If its examples are of these arrays in this order, {line} makes a faster plan",)


def _prove(dataset: Dataset[Any], form: ArrayForm) -> None:
    """Compare the form with the dataset on sampled indices.

    Raises:
        NoArrayForm: they differ, or loading an example fails or moves a global random state.
    """
    if len(form) == 0:
        raise NoArrayForm("the dataset is empty")
    # With a generator of our own, the proof does not move the user's random states.
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


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


_BY_HAND = "Iterated by hand, it gathers each batch with NumPy, in the same order"
_ON_A_DEVICE = "unless jax_enable_x64 is set"
_NARROW = {"int64": "int32", "uint64": "uint32", "float64": "float32", "complex128": "complex64"}


def _narrowing(dtypes: Iterable[np.dtype]) -> list[str]:
    """What JAX does to 64-bit values."""
    wide = sorted({str(dtype) for dtype in dtypes} & set(_NARROW))
    if not wide:
        return []
    return [
        f"Its {' and '.join(wide)} values reach a device as "
        f"{' and '.join(_NARROW[name] for name in wide)} {_ON_A_DEVICE}"
    ]


def batch_notes(batch: Any) -> tuple[str, ...]:
    """What a batch tells about the way to a device; a sentence each."""
    leaves = list(named_leaves(batch, is_text))
    notes = _narrowing(leaf.dtype for _, leaf in leaves if isinstance(leaf, np.ndarray))
    texts = [name for name, leaf in leaves if is_text(leaf)]
    if texts:
        if len(texts) > 1:
            whose, kept = f"Its fields {' and '.join(texts)} are", "lists, which do not go"
        else:
            whose, kept = f"Its field {texts[0]} is", "a list, which does not go"
        if texts == [""]:
            whose = "An example is"
        notes.append(f"{whose} text: kept as {kept} to a device")
    return tuple(notes)
