"""Batches that are gathered from arrays, many examples at once."""

import collections
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data.dataloader import _BaseDataLoaderIter

from feedax.data.collate import refuse_empty
from feedax.data.columns import Columns
from feedax.data.iterators import changed_view
from feedax.data.loading import Task
from feedax.data.position import Tasks


class GatheringIter(_BaseDataLoaderIter):
    """One epoch of batches gathered from arrays.

    It draws from the sampler and the generator when torch's own iterators draw: at once for the
    batches that workers would be given ahead, then one for each batch that is handed over. So
    whatever shares these random states sees no difference, also after a break. The dataset is
    looked at when an epoch begins.
    """

    _shutdown = False

    def __init__(self, loader: Any) -> None:
        self._progress = loader._progress
        self._account = loader._account
        view = changed_view(loader, batch_sampler=Tasks(loader, self._progress, Columns()))
        super().__init__(view)
        self._form = loader._form()
        self._columns = loader._columns
        self._ahead: collections.deque[Task] = collections.deque()
        if loader.num_workers > 0:
            self._reset(loader)  # torch's iterator with workers does, and so asks its sampler twice

    def _reset(self, loader: Any, first_iter: bool = False) -> None:
        self._progress = self._index_sampler.progress = loader._progress
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

    def _next_task(self) -> Task:
        if self._num_workers == 0:
            return self._next_index()
        if not self._ahead:
            raise StopIteration
        task = self._ahead.popleft()
        self._draw_ahead()
        return task

    def _next_indices(self, columns: Columns) -> np.ndarray:
        """Columns of the indices of the next batch, which is counted as handed over."""
        try:
            task = self._next_task()
        except StopIteration:
            self._account.epoch_ended(self._progress)
            raise
        mine = columns.of(task.count)
        indices = self._checked(task)[mine]
        self._account.gathered(self._progress, task, len(indices))
        return indices

    def _checked(self, task: Task) -> np.ndarray:
        numbers = task.numbers
        refuse_empty(task)
        count = len(self._form)
        if numbers is None:
            wrong: Any = task.indices
        elif numbers.min() < -count or numbers.max() >= count:
            wrong = next(i for i in numbers if not -count <= i < count)
        else:
            return np.where(numbers < 0, numbers + count, numbers)
        raise IndexError(
            f"NumpyLoader: the sampler must yield indices below {count}, the length of the "
            f"dataset, and it yielded {wrong}; give it the dataset that the loader has"
        )

    def __next__(self) -> Any:
        began = time.perf_counter()
        batch = self._form.take(self._next_indices(self._columns))
        seconds = time.perf_counter() - began
        self._account.stats.waited += seconds
        self._account.stats.loading += seconds
        return batch

    def index_batches(self) -> Iterator[np.ndarray]:
        """Whole ones: who has all examples, on every device, can take its part by itself."""
        while True:
            try:
                yield self._next_indices(Columns())
            except StopIteration:
                return
