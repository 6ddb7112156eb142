"""`NumpyLoader`: torch's DataLoader, with NumPy batches and a plan."""

import copy
import dataclasses
import inspect
import math
import operator
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from numbers import Integral, Real
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    IterDataPipe,
    MapDataPipe,
    RandomSampler,
    Sampler,
    SequentialSampler,
)

from feedax.data.array_form import ArrayForm
from feedax.data.cache import Cache, refuse_cache
from feedax.data.collate import convert_example, numpy_collate
from feedax.data.iterators import BatchLog, GatheringIter, LoaderStats, LocalIter, WorkersIter
from feedax.data.loading import Loading, why_whole
from feedax.data.order import Order, Position, checked_position, saved_position
from feedax.data.plan import PLANS, Choice, Plan, choose_plan, find_form
from feedax.data.randomness import Apart, OwnStates, seeded_generator
from feedax.data.shard import Shard, refuse_shard
from feedax.data.workers import HAS_OWN_WORKERS, has_own_workers
from feedax.errors import PlanError
from feedax.random_states import generators_in, random_states

MEMORY_BUDGET = 2**31
"""The most bytes a dataset may take on the device, unless the loader is told otherwise."""

if HAS_OWN_WORKERS:
    from feedax.data.workers.server import WorkerContext

_PIN_MEMORY = (
    "NumpyLoader: pin_memory pins the memory of torch's tensors, and these batches are NumPy "
    "arrays; leave it out, and let feedax.prefetch_to_device move batches ahead of time"
)

_T_co = TypeVar("_T_co", covariant=True)


class AskedPlan(str):
    """What ``loader.plan`` is: the plan that was asked for. Called, it says which one there is.

    >>> loader = NumpyLoader(range(4), plan="streamed")
    >>> loader.plan == "streamed", loader.plan().reason
    (True, 'it was asked for')
    """

    def __new__(cls, asked: str, loader: "NumpyLoader") -> "AskedPlan":
        self = super().__new__(cls, asked)
        self._loader = loader
        return self

    _loader: "NumpyLoader"

    def __call__(self) -> Plan:
        """How this loader's batches are made, and why.

        The first call loads a few examples to prove a fast plan; it leaves the global random
        states as they were.
        """
        return self._loader._current_plan()

    def __reduce__(self) -> Any:
        return str, (str(self),)


class NumpyLoader(DataLoader[_T_co]):
    """A ``torch.utils.data.DataLoader`` whose batches are NumPy arrays.

    It takes every argument of torch's loader, in torch's order, and gives the batches that torch's
    loader would give, in the same random order. How they are made is its `plan`: where the
    dataset's examples lie in arrays, they are gathered, not loaded one by one.

    Args:
        dataset: any PyTorch dataset.
        collate_fn: makes a batch from a list of examples; `numpy_collate` if None. The tensors of
            your own function's batches become arrays.
        multiprocessing_context: how workers start. Where None, on Linux, they are forked from a
            server process that has no JAX in it: forking the process that runs JAX can deadlock.
        seed: fixes the order and, for each example, the random states of Python, NumPy and torch,
            from (seed, epoch, position in the epoch, index): any number of workers and any plan
            give the same bytes. The epoch counts the calls of `iter`, or is set by `set_epoch`. An
            iterable dataset is seeded from (seed, epoch, worker), one with `__getitems__` once a
            batch. A sampler with a `set_epoch` is told the epoch; one with a generator of its own
            keeps that. None for torch's randomness.
        cache: whether to keep the examples when they are loaded first, and not to load them again
            but for a few that are compared. The dataset must be deterministic.
        plan: ``"resident"``, ``"vectorised"``, ``"streamed"``, or ``"auto"`` for the fastest one
            that gives the same batches.
        memory_budget: the most bytes that a dataset may take on the device to be resident.

    The others (batch_size, shuffle, sampler, batch_sampler, num_workers, pin_memory, drop_last,
    timeout, worker_init_fn, generator, prefetch_factor, persistent_workers, pin_memory_device and
    in_order) are as in torch.

    Every argument is an attribute of the same name, so that a loader that is made again from its
    attributes is an equal one. Those that torch allows to be assigned may be assigned, and so may
    seed, cache, plan and memory_budget. What was assigned applies from the next `iter`.

    A copy (`copy.copy`, `copy.deepcopy`, `pickle`) stands where the next `iter` of the original
    would begin.

    Raises:
        PlanError: the plan is unknown, or (when batches are first wanted) cannot be had; seed and
            generator are both given; there is nothing that a cache can keep.
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
        dataset: Dataset[_T_co],
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
        seed: int | None = None,
        cache: bool = False,
        plan: Literal["auto", "resident", "vectorised", "streamed"] = "auto",
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        if pin_memory:
            warnings.warn(_PIN_MEMORY, UserWarning, stacklevel=2)
        if collate_fn is None:
            alone = batch_size is None and batch_sampler is None
            collate_fn = convert_example if alone else numpy_collate
        super().__init__(
            dataset, batch_size, shuffle, sampler, batch_sampler, num_workers, collate_fn,
            pin_memory, drop_last, timeout, worker_init_fn, multiprocessing_context, generator,
            prefetch_factor=prefetch_factor,
            persistent_workers=persistent_workers,
            pin_memory_device=pin_memory_device,
            in_order=in_order,
        )  # fmt: skip
        self.seed = seed
        self.cache = cache
        vars(self)["plan"] = str(plan)
        self.memory_budget = memory_budget
        self._choice: Choice | None = None
        self._sequential: NumpyLoader | None = None
        self._draws_apart = False
        self._position = Position()
        self._refuse_arguments()
        self._log = BatchLog(Cache(dataset) if cache else None, Shard())

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _ARGUMENTS or "_log" not in vars(self):
            super().__setattr__(name, value)
            return
        before = dict(vars(self))
        super().__setattr__(name, value)
        try:
            self._refuse_arguments()
            if name == "cache":
                self._log.cache = Cache(self.dataset) if value else None
            elif name == "num_workers":  # as torch's constructor has it
                vars(self)["prefetch_factor"] = (self.prefetch_factor or 2) if value else None
            elif name == "pin_memory" and value:
                warnings.warn(_PIN_MEMORY, UserWarning, stacklevel=2)
        except BaseException:
            vars(self).update(before)
            raise
        self._look_again()

    def _look_again(self) -> None:
        """Forget the plan and the workers that are kept; both are made again when needed."""
        vars(self).update(_choice=None, _iterator=None, _sequential=None)

    def _refuse_arguments(self) -> None:
        """Raise PlanError unless the arguments, as they are now, fit together."""
        if self.plan not in ("auto", *PLANS):
            raise PlanError(
                f"NumpyLoader: plan must be 'auto' or one of {', '.join(map(repr, PLANS))}, and it "
                f"is {self.plan!r}; leave it out for the fastest one"
            )
        if self.seed is not None:
            if not hasattr(self.seed, "__index__"):
                raise PlanError(
                    f"NumpyLoader: seed must be a whole number or None, and it is {self.seed!r}; "
                    "give 0, for example"
                )
            vars(self)["seed"] = operator.index(self.seed)
            if self.generator is not None:
                raise PlanError(
                    "NumpyLoader: either seed or generator must decide the order, and both are "
                    "given; leave one of them out"
                )
        if self.cache:
            refuse_cache(self, self.user_collate_fn, self.plan)
        for name in ("num_workers", "timeout", "memory_budget"):
            value = getattr(self, name)
            if not isinstance(value, Integral if name == "num_workers" else Real) or value < 0:
                raise PlanError(
                    f"NumpyLoader: {name} must be a number that is not negative, and it is "
                    f"{value!r}; leave it out"
                )

    @property
    def plan(self) -> AskedPlan:
        """``loader.plan()`` is how batches are made, and why: a `Plan`; see `AskedPlan`."""
        return AskedPlan(vars(self)["plan"], self)

    @plan.setter
    def plan(self, asked: str) -> None:
        vars(self)["plan"] = str(asked)

    @property
    def user_collate_fn(self) -> Callable[[Any], Any] | None:
        """The user's own `collate_fn`, if there is one."""
        alone = self.batch_sampler is None
        own = (None, numpy_collate, convert_example) if alone else (None, numpy_collate)
        return None if self.collate_fn in own else self.collate_fn

    def _current_plan(self) -> Plan:
        """The plan, with what the batches so far have shown."""
        choice = self._chosen()
        if choice.form is not None:
            return choice.plan
        notes = (*choice.plan.notes, *(self._log.notes or ()))
        if self._log.repeats:
            notes += ("Its workers began with the same examples: these come once for each worker",)
        shards = self._log.shard.count
        if shards > 1 and (why := self._why_whole()):
            notes += (f"Whole batches are loaded and cut into {shards} shards: {why}",)
        if self._log.brings_jax:
            notes += (
                "The dataset brings JAX into its workers: there it is confined to the CPU, and its "
                "arrays come back as NumPy",
            )
        return dataclasses.replace(choice.plan, notes=notes)

    @property
    def batches_are_fresh(self) -> bool:
        """Whether nothing else holds a batch's arrays, so that a device may use their memory."""
        return self.user_collate_fn is None and self.batch_sampler is not None

    @property
    def device_budget(self) -> float:
        """The most bytes that resident examples may take, all copies together."""
        return math.inf if self.plan == "resident" else self.memory_budget

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
        return self._apart(lambda: self._begin().index_batches())

    def set_epoch(self, epoch: int) -> None:
        """Make the next `iter` this epoch, counted from 0; a loader with a seed depends on it."""
        self._position.set_epoch(operator.index(epoch))

    def state_dict(self) -> dict[str, Any]:
        """The position of the last batch handed over, as plain JSON; see `load_state_dict`.

        It never raises. A loader that cannot tell (with ``in_order=False``, of a data pipe, or
        with a sampler whose own `state_dict` fails) has ``{"cannot_tell": why, ...}``, which
        `load_state_dict` refuses.
        """
        keeps_workers = self.persistent_workers and self._iterator is not None
        return saved_position(self, self.seed, self._position, keeps_workers)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next `iter` resume after the last batch that was handed over.

        With a seed, everything that follows is as if there had been no interruption, whatever the
        number of workers and the plan. Without one, only the order of the rest of that epoch is:
        the sampler draws the epoch again, from the random state that it began with, and skips what
        was handed over; with a generator of your own, later epochs are the same too. A sampler
        with a `state_dict` is restored from it; one without must yield the same indices again. An
        iterable dataset with a `state_dict` is restored from it in each worker; one without loads
        its examples once more.

        Args:
            state_dict: what `state_dict` returned, perhaps in another process.

        Raises:
            PositionError: it is damaged, belongs to another loader, or holds no position; or, when
                batches are wanted, the sampler yields other indices than it did, or the dataset
                has another length.

        >>> import torch
        >>> from feedax.data import ArrayDataset
        >>> data = ArrayDataset(np.arange(6), np.arange(6))
        >>> loader = NumpyLoader(data, batch_size=2, shuffle=True, seed=1)
        >>> epoch = iter(loader)
        >>> first, saved = next(epoch), loader.state_dict()
        >>> another = NumpyLoader(data, batch_size=2, shuffle=True, seed=1)
        >>> another.load_state_dict(saved)
        >>> [x.tolist() for x, y in another] == [x.tolist() for x, y in epoch]
        True
        """
        position = checked_position(state_dict, self.seed)
        self._position.next_epoch, self._position.resume = position["epoch"], position
        self._iterator = None  # persistent workers stand elsewhere

    def stats(self) -> LoaderStats:
        """Where this loader's time went since it was made."""
        return dataclasses.replace(self._log.stats)

    def refresh(self) -> None:
        """Look at the dataset again: NumPy arrays were edited in place, which nobody can see."""
        self._look_again()
        if self._log.cache is not None:
            self._log.cache.forget()

    @property
    def takes_each_once(self) -> bool:
        """Whether an epoch has each example of the dataset, in whatever order."""
        whole = type(self.sampler) in (SequentialSampler, RandomSampler) and (
            len(self.sampler) == len(self.dataset)  # type: ignore[arg-type]
            and not getattr(self.sampler, "replacement", False)
        )
        return bool(whole and self.batch_size is not None)

    def sequential(self) -> "NumpyLoader":
        """This loader's examples once each, in the dataset's order; for evaluation.

        Iterating it leaves all random states as they are: the global ones of Python, NumPy and
        torch, and those of generators that the loader, its sampler or its dataset has. Samplers
        and datasets that draw do so from copies of these states. So an evaluation between two
        epochs does not change the second one. For an iterable dataset, and for a loader whose
        sampler picks examples of its own (weighted, a subset), the examples are those of its first
        epoch: see `takes_each_once`.
        """
        if self._sequential is None:
            changed: dict[str, Any] = {"_position": Position(), "_draws_apart": True}
            if self.takes_each_once:
                sampler = SequentialSampler(self.dataset)  # type: ignore[arg-type]
                changed["sampler"] = sampler
                changed["batch_sampler"] = BatchSampler(sampler, self.batch_size or 1, False)
                changed |= {"drop_last": False, "generator": torch.Generator()}
            self._sequential = self._twin(**changed)
        self._sequential.set_epoch(0)  # its examples are the same each time, if they are seeded
        return self._sequential

    def with_seed(self, seed: int) -> "NumpyLoader":
        """The same examples in the order, and with the randomness, of another seed.

        It shares the dataset, its plan and the cache with this one, and has not begun yet. A
        sampler with a generator of its own is shared too, and keeps its order.

        Raises:
            PlanError: a generator decides the order.
        """
        self.plan()  # made once, for all of them
        twin = self._twin(seed=operator.index(seed), _position=Position())
        twin._refuse_arguments()
        return twin

    def shard(self, index: int, count: int, *, seed: int | None = None) -> "NumpyLoader":
        """This process's share of every batch, where several processes train one model.

        Every shard draws the same whole batches and loads only its rows of each: shard i those from
        `i * n // count` to `(i + 1) * n // count`. Where n is not divisible by count (in the last
        batch, perhaps) every shard has the whole batch; `has_part` tells which it was. Seeds,
        positions and `index_batches` are those of the whole batches: a position saved by any shard
        is that of all, and a loader with another number of shards can resume from it.

        Where examples are not loaded one by one (an iterable dataset, a collate_fn of your own,
        ``batch_size=None``, ``__getitems__``, until a cache is full) the whole batch is loaded and
        cut: the same bytes, but each process does all the work; an iterable dataset must yield
        the same in each. The examples of a batch must have one dtype.

        Args:
            index: of this process, from 0.
            count: how many processes there are.
            seed: for a loader that has none; every process must give the same.

        Returns:
            A loader that stands where this one would begin. It shares the dataset, the sampler,
            its generator and the cache with this one.

        Raises:
            PlanError: nothing makes sure that all shards are cut from the same batches.

        >>> loader = NumpyLoader(range(9), batch_size=4, seed=0)
        >>> for index in range(2):
        ...     print([batch.tolist() for batch in loader.shard(index, 2)])
        [[0, 1], [4, 5], [8]]
        [[2, 3], [6, 7], [8]]
        """
        shard = Shard(operator.index(index), operator.index(count))
        seed = operator.index(seed) if self.seed is None and seed is not None else self.seed
        refuse_shard(self, shard, seed)
        return self._twin(seed=seed, _log=BatchLog(self._log.cache, shard), _choice=None)

    def columns(self, part: int, parts: int, *, seed: int | None = None) -> "NumpyLoader":
        """The former name of `shard`."""
        return self.shard(part, parts, seed=seed)

    @property
    def has_part(self) -> bool:
        """Whether the batch handed over last is only this process's shard of one."""
        return self._log.gave_part

    def _twin(self, **changed: Any) -> "NumpyLoader":
        """Another loader of the same examples that has not begun yet."""
        twin = copy.copy(self)
        log = BatchLog(self._log.cache, self._log.shard)
        vars(twin).update({"_choice": self._choice, "_log": log} | changed)  # torch forbids some
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """What a copy has: the arguments, and the place where the next epoch begins."""
        none = dict.fromkeys(("_choice", "_iterator", "_sequential"))
        position = Position(self._position.next_epoch, self._position.resume)
        return {**vars(self), **none, "_log": self._log.renewed(), "_position": position}

    def __iter__(self) -> Any:
        return self._apart(self._begin)

    def _apart(self, begin: Callable[[], Any]) -> Any:
        """What `begin` iterates, drawing from random states apart if this loader is to."""
        in_order = (
            type(self.sampler) is SequentialSampler and type(self.batch_sampler) is BatchSampler
        )
        if not self._draws_apart or (
            # Nothing is drawn in this process.
            in_order and (self.num_workers > 0 or self._chosen().form is not None)
        ):
            return begin()
        generators = generators_in(self.generator, self.batch_sampler, self.sampler, self.dataset)
        return Apart(begin, OwnStates(states=random_states(), generators=generators))

    def _begin(self) -> Any:
        gathers = self._chosen().form is not None
        kept: Any = self._iterator
        if kept is not None and (gathers != isinstance(kept, GatheringIter) or kept.has_shut_down):
            self._iterator = None  # of the plan before, or its workers are lost
        position = self._position
        last = position.progress
        out_of_turn = last is not None and position.next_epoch != last.epoch + 1
        if out_of_turn and isinstance(self.dataset, IterableDataset | MapDataPipe):
            self._iterator = None  # kept workers count their streams from one epoch to the next
        cache = self._log.cache
        if cache is not None and self._choice is not None and cache.owns(self._choice.form):
            cache.check(position.next_epoch)
        position.begin()
        return super().__iter__()

    def _get_iterator(self) -> Any:
        """torch's hook: the iterator over the epoch that has begun."""
        gathers = self._chosen().form is not None
        # The log cuts the shard from batches that are loaded whole.
        whole = gathers or self._why_whole()
        order = Order(self, self.seed, self._position, Shard() if whole else self._log.shard)
        order.refuse_other_streams()
        if gathers:
            form = weakref.WeakMethod(self._form)
            return GatheringIter(self._view(batch_sampler=order), order, self._log, form)
        loading = Loading(
            self.dataset,
            self.user_collate_fn,
            self.worker_init_fn,
            converts=not order.is_batched,
            seed=self.seed,
            epoch=order.progress.epoch,
            resume=order.progress.resume.get("streams"),
        )
        changed: dict[str, Any] = {"collate_fn": loading.collate}
        if not isinstance(self.dataset, IterDataPipe | MapDataPipe):  # torch's to take apart
            changed["batch_sampler" if order.is_batched else "sampler"] = order
            changed |= {"dataset": loading, "worker_init_fn": loading.init_worker}
        view = self._view(**changed)
        if self.num_workers == 0:
            return LocalIter(view, order, self._log)
        context = None
        if has_own_workers(self.multiprocessing_context):
            heavy = [view.dataset, view.collate_fn, view.worker_init_fn]
            named = {
                "dataset": self.dataset,
                "collate_fn": self.user_collate_fn,
                "worker_init_fn": self.worker_init_fn,
            }
            context = WorkerContext(self, heavy, named)
            vars(view)["_DataLoader__multiprocessing_context"] = context
        return WorkersIter(view, order, self._log, context)

    def _view(self, **changed: Any) -> Any:
        """This loader as torch's iterators are to see it."""
        if self.seed is not None and self._position.progress is not None:
            # What torch draws for its workers comes from the seed, not from the caller's state.
            changed["generator"] = seeded_generator(self.seed, self._position.progress.epoch)
        view = object.__new__(type(self))
        vars(view).update(vars(self) | {"pin_memory": False} | changed)  # torch forbids some
        return view

    def _why_whole(self) -> str | None:
        return why_whole(self, self.user_collate_fn, self._log.cache is not None)

    def _chosen(self) -> Choice:
        """The plan; chosen again when the dataset or its transform is no longer the same."""
        cache = self._log.cache
        streams = self.plan == "streamed"
        found = None if streams else find_form(self, self.user_collate_fn, cache)
        if self._choice is None or not self._choice.is_current(found):
            self._choice = choose_plan(self, found, self.plan, self.memory_budget, self.seed, cache)
        return self._choice

    def _form(self) -> ArrayForm:
        choice = self._chosen()
        if choice.form is None:
            raise PlanError(
                "NumpyLoader: only a resident or vectorised loader has its examples as arrays, and "
                f"this one is {choice.plan}"
            )
        return choice.form


_ARGUMENTS = inspect.signature(NumpyLoader.__init__).parameters.keys() - {"self", "shuffle"}
