"""`NumpyLoader`: torch's DataLoader, with NumPy batches and a plan."""

import collections
import copy
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

from feedax.data.array_form import ArrayForm
from feedax.data.collate import numpy_collate, numpy_convert, refuse_empty
from feedax.data.plan import PLANS, Choice, Plan, choose_plan
from feedax.data.workers import loaded_iterator, start_method
from feedax.errors import PlanError

MEMORY_BUDGET = 2**31
"""The most bytes a dataset may take on the device, unless the loader is told otherwise."""


class NumpyLoader(DataLoader[Any]):
    """A ``torch.utils.data.DataLoader`` whose batches are NumPy arrays.

    It takes every argument of torch's loader, in torch's order, and gives the batches that torch's
    loader would give, in the same random order. How they are made is its `plan`: where the
    dataset's examples lie in arrays, they are gathered, not loaded one by one.

    Args:
        dataset: any PyTorch dataset.
        collate_fn: makes a batch of a list of examples; `numpy_collate` if None. The tensors of
            your own function's batches become arrays.
        multiprocessing_context: how workers start. Where None, on Linux, they are forked from a
            server process that has no JAX in it: forking the process that runs JAX can deadlock.
        plan: ``"resident"``, ``"vectorised"``, ``"streamed"``, or ``"auto"`` for the fastest one
            that gives the same batches.
        memory_budget: the most bytes that a dataset may take on the device to be resident.
        batch_size, shuffle, sampler, batch_sampler, num_workers, pin_memory, drop_last, timeout,
            worker_init_fn, generator, prefetch_factor, persistent_workers, pin_memory_device,
            in_order: as in torch.

    Raises:
        PlanError: the plan is unknown, or (when batches are first wanted) cannot be had.
        ExampleError: examples do not make a batch; names the field and their indices.

    >>> from feedax.data import ArrayDataset
    >>> data = ArrayDataset(np.arange(6.0).reshape(3, 2), np.array([7, 8, 9]))
    >>> loader = NumpyLoader(data, batch_size=2)
    >>> for x, y in loader:
    ...     print(x.tolist(), y)
    [[0.0, 1.0], [2.0, 3.0]] [7 8]
    [[4.0, 5.0]] [9]
    >>> loader.plan().name
    'resident'
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Sampler[Any] | Iterable[Any] | None = None,
        batch_sampler: Sampler[list[Any]] | Iterable[list[Any]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: torch.Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
        plan: Literal["auto", "resident", "vectorised", "streamed"] = "auto",
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        if plan not in ("auto", *PLANS):
            raise PlanError(
                f"NumpyLoader: plan must be 'auto' or one of {', '.join(map(repr, PLANS))}, and it "
                f"is {plan!r}; leave it out for the fastest one"
            )
        self.collates_itself = collate_fn in (None, numpy_collate)
        if collate_fn is not None:
            collate_fn = _ToNumpy(collate_fn)
        elif batch_size is None and batch_sampler is None:
            collate_fn = numpy_convert
        else:
            collate_fn = numpy_collate
        if num_workers > 0 and multiprocessing_context is None:
            multiprocessing_context = start_method()
        super().__init__(
            dataset,
            batch_size=batch_size,
            shuffle=shuffle,
            sampler=sampler,
            batch_sampler=batch_sampler,
            num_workers=num_workers,
            collate_fn=collate_fn,
            pin_memory=pin_memory,
            drop_last=drop_last,
            timeout=timeout,
            worker_init_fn=worker_init_fn,
            multiprocessing_context=multiprocessing_context,
            generator=generator,
            prefetch_factor=prefetch_factor,
            persistent_workers=persistent_workers,
            pin_memory_device=pin_memory_device,
            **({} if in_order else {"in_order": False}),  # torch before 2.6 has no such argument
        )
        self._wanted_plan = plan
        self._memory_budget = memory_budget
        self._choice: Choice | None = None
        self._sequential: NumpyLoader | None = None

    def plan(self) -> Plan:
        """How this loader's batches are made, and why.

        The first call loads a few examples to prove a fast plan; it leaves the global random
        states as they were.
        """
        return self._chosen().plan

    def arrays(self) -> list[np.ndarray]:
        """All examples of the dataset as one batch, in the dataset's order.

        Raises:
            PlanError: the plan is ``"streamed"``.
        """
        return self._form().take(slice(None))

    def index_batches(self) -> Iterator[np.ndarray]:
        """The indices of each batch of one epoch, int64 `(examples,)`.

        They are drawn from the sampler when they are asked for, just as iterating the loader does.

        Raises:
            PlanError: the plan is ``"streamed"``.
        """
        self._form()
        epoch = iter(self)
        assert isinstance(epoch, _GatheringIter)
        return epoch.index_batches()

    def sequential(self) -> "NumpyLoader":
        """This loader's examples once each, in the dataset's order; for evaluation.

        Iterating it draws nothing from the loader's generator or from global random states, so
        that an evaluation between two epochs does not change the second one. A loader whose
        sampler picks examples of its own (weighted, a subset) is returned as it is.
        """
        whole = type(self.sampler) in (SequentialSampler, RandomSampler) and (
            len(self.sampler) == len(self.dataset)  # type: ignore[arg-type]
            and not getattr(self.sampler, "replacement", False)
        )
        if not whole or self.batch_size is None:
            return self
        if self._sequential is None:
            loader = copy.copy(self)
            sampler = SequentialSampler(self.dataset)  # type: ignore[arg-type]
            # torch forbids to assign these: the copy is not yet anyone's loader.
            loader.__dict__.update(
                sampler=sampler,
                batch_sampler=torch.utils.data.BatchSampler(sampler, self.batch_size, False),
                drop_last=False,
                generator=torch.Generator(),
                persistent_workers=False,
                _iterator=None,
            )
            self._sequential = loader
        return self._sequential

    def __iter__(self) -> Any:
        gathers = self._chosen().form is not None
        if self._iterator is not None and gathers != isinstance(self._iterator, _GatheringIter):
            self._iterator = None  # kept for the plan before; the dataset has changed since
        return super().__iter__()

    def _get_iterator(self) -> Any:
        form = self._chosen().form
        return loaded_iterator(self) if form is None else _GatheringIter(self)

    def _chosen(self) -> Choice:
        """The plan; chosen again when the dataset or its transform is no longer the same."""
        if self._choice is None or not self._choice.is_current(self):
            self._choice = choose_plan(self, self._wanted_plan, self._memory_budget)
        return self._choice

    def _form(self) -> ArrayForm:
        choice = self._chosen()
        if choice.form is None:
            raise PlanError(
                "NumpyLoader: only a resident or vectorised loader has its examples as arrays, and "
                f"this one is {choice.plan}"
            )
        return choice.form


class _ToNumpy:
    """A user's collate_fn, its tensors converted. A class: workers must be able to unpickle it."""

    def __init__(self, collate_fn: Callable[[list[Any]], Any]) -> None:
        self.collate_fn = collate_fn

    def __call__(self, batch: list[Any]) -> Any:
        return numpy_convert(self.collate_fn(batch))


class _GatheringIter(_BaseDataLoaderIter):
    """One epoch of batches gathered from arrays.

    It draws from the sampler and the generator when torch's own iterators draw: at once for the
    batches that workers would be given ahead, then one for each batch that is handed over. So
    whatever shares these random states sees no difference, also after a break. The dataset is
    looked at when an epoch begins.
    """

    def __init__(self, loader: NumpyLoader) -> None:
        super().__init__(loader)
        self._form = loader._form()
        self._ahead: collections.deque[Any] = collections.deque()
        if loader.num_workers > 0:
            self._reset(loader)  # torch's iterator with workers does, and so asks its sampler twice

    def _reset(self, loader: Any, first_iter: bool = False) -> None:
        super()._reset(loader, first_iter)
        self._form = loader._form()
        self._ahead.clear()
        for _ in range((loader.prefetch_factor or 0) * loader.num_workers):
            self._draw_ahead()

    def _draw_ahead(self) -> None:
        try:
            self._ahead.append(self._next_index())
        except StopIteration:
            return

    def _next_indices(self) -> np.ndarray:
        if self._num_workers == 0:
            return self._checked(self._next_index())
        if not self._ahead:
            raise StopIteration
        indices = self._ahead.popleft()
        self._draw_ahead()
        return self._checked(indices)

    def _checked(self, indices: Iterable[Any]) -> np.ndarray:
        numbers = np.fromiter(map(operator.index, indices), np.int64)
        refuse_empty(numbers)
        count = len(self._form)
        if numbers.min() < -count or numbers.max() >= count:
            wrong = next(i for i in numbers if not -count <= i < count)
            raise IndexError(
                f"NumpyLoader: the sampler must yield indices below {count}, the length of the "
                f"dataset, and it yielded {wrong}; give it the dataset that the loader has"
            )
        return np.where(numbers < 0, numbers + count, numbers)

    def _next_data(self) -> Any:
        return self._form.take(self._next_indices())

    def index_batches(self) -> Iterator[np.ndarray]:
        while True:
            try:
                yield self._next_indices()
            except StopIteration:
                return
