"""`sweep`: many networks, by one compiled program."""

import contextlib
import hashlib
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from feedax.errors import BatchError, CheckpointError, ModelError, NotANumberError, ProcessError
from feedax.feed import Batch, on_device, source_by_seed
from feedax.storage.checkpoint_file import LargerError
from feedax.storage.snapshot import nbytes, restore, snapshot
from feedax.train.check import shapes_of
from feedax.train.checkpoint_content import CheckpointContent, EndedNetworkContent
from feedax.train.checkpoints import Checkpoints, most_bytes, refuse_no_checkpoints
from feedax.train.evaluation import block_size
from feedax.train.events import (
    EpochEnded,
    Event,
    NetworkEnded,
    NetworksStarted,
    Stepped,
    Stopped,
    StopTraining,
    tell,
)
from feedax.train.history import History
from feedax.train.model import partition
from feedax.train.networks import Member, Network, Sweep, file_name, grid
from feedax.train.programs import Programs, States, initial_values
from feedax.train.progress import progress_bar
from feedax.train.specification import FitSpecification, random_key
from feedax.train.step import train_step
from feedax.train.training import Trained, Training

LOGGER = logging.getLogger("feedax")
Scalars = float | Iterable[float]

MEMORY_SHARE = 0.8
"""Of the memory that is free; the rest is for what nobody counts."""
COPIES = 6
"""Of a network's parameters besides its state: as they were given, and stacked; from the epoch's
start, of its end, at their best, and of those that have ended."""


def sweep(
    predict: Callable[..., Any],
    init: Callable[[jax.Array], Any],
    train: Any,
    *,
    seeds: int | Iterable[int] = 1,
    learning_rate: Scalars | None = None,
    hyperparams: Mapping[str, Scalars] | None = None,
    together: int | None = None,
    checkpoints: Checkpoints | None = None,
    callbacks: Iterable[Callable[[NetworksStarted | Stepped | NetworkEnded], None]] = (),
    progress: bool | None = None,
    **options: Any,
) -> Sweep:
    """Train many networks: every combination of learning rates and hyperparameters, many seeds.

    The network of seed s is the one that `fit` trains from ``init(jax.random.key(s))`` with
    ``key=jax.random.key(s)`` on the examples in the order of seed s.

    On a CPU the networks are trained one after another, by one compiled program, that of `fit`,
    and to its bits. Accelerators train as many side by side as fit into their memory, and share
    them out: `train_step` is mapped over their states by ``vmap``. Its sums are taken in another
    order, so float32 trajectories part from those of `fit` after some hundred steps.

    Args:
        predict: as in `fit`.
        init: makes the parameters of a network, any PyTree, from a random key ``()``.
        train: a `NumpyLoader`, of which each network has one ``with_seed``; a function of a seed
            that returns a loader or an iterator; or another iterable of batches, the same for all.
        seeds: the seeds, or how many, counted from 0.
        learning_rate: as in `fit`, or many.
        hyperparams: as in `fit`, with one value each or many.
        together: how many networks to train side by side, rounded up so that every device has as
            many. None for one on a CPU, and as many as fit on accelerators.
        checkpoints: where and when to save. The same call again resumes, to the same bits; with
            more seeds or values it trains those that are new.
        callbacks: functions of one event: `NetworksStarted`, `Stepped` or `NetworkEnded`. One that
            raises `StopTraining` ends the sweep in good order. Of networks side by side, `Stepped`
            has their mean loss, and their parameters stacked.
        progress: as in `fit`; the bar counts networks.
        options: loss, optimizer, epochs, steps, evaluate, metrics, augment, mixup, state, batched,
            best, patience, devices and precision, as in `fit`.

    Returns:
        The networks, with their parameters and histories. One that turned not-a-number has an
        `error`; the other ones are trained on. Of networks side by side the ``seconds`` of a row
        are those of all of them together.

    Raises:
        ModelError: the seeds, the values or `together` are none; init is no function of a key.
        CheckpointError: the folder holds networks of another sweep.
        ProcessError: there are several processes.
        FeedaxError: as in `fit`.

    >>> import feedax
    >>> import numpy as np
    >>> x = np.float32([[0, 1], [1, 0]] * 8)
    >>> found = feedax.sweep(lambda w, x: w @ x, lambda key: jax.random.normal(key, (2, 2)),
    ...                      [(x, x.argmax(1))], seeds=3, learning_rate=[0.1, 1.0], epochs=9)
    >>> [network.name for network in found.networks][:2]
    ['learning_rate=0.1,seed=0', 'learning_rate=0.1,seed=1']
    >>> slow, fast = found.summaries("loss")
    >>> slow.count, slow.mean > fast.mean
    (3, True)
    """
    if refused := {"key", "params"} & options.keys():
        raise ModelError(
            f"sweep: {min(refused)} must not be given, since every network has one of its own; "
            "give seeds and init"
        )
    known = {one.name for one in fields(FitSpecification) if one.init} - {"who"}
    if unknown := options.keys() - known:
        raise TypeError(f"sweep() got an unexpected keyword argument {min(unknown)!r}")
    members = grid(seeds, learning_rate, hyperparams or {})
    with progress_bar(progress) as bars:
        return sweep_members(
            members, predict, init, train, together, checkpoints, (*bars, *callbacks), **options
        )


def sweep_members(
    members: Sequence[Member],
    predict: Callable[..., Any],
    init: Callable[[jax.Array], Any],
    train: Any,
    together: int | None,
    checkpoints: Checkpoints | None,
    callbacks: Sequence[Callable[[Any], None]],
    **options: Any,
) -> Sweep:
    """As `sweep`, of networks that are listed one by one; each must have a name of its own."""
    if together is not None and (type(together) is not int or together < 1):
        raise ModelError(
            f"sweep: together must be a whole number from 1 on, and it is {together!r}; leave it "
            "out"
        )
    if jax.process_count() > 1:
        raise ProcessError(
            f"sweep: one process must train all networks, and there are {jax.process_count()}; "
            "give each of them seeds of its own, without jax.distributed"
        )

    _refuse_no_init(init)
    refuse_no_checkpoints(checkpoints, "sweep")
    train_of = source_by_seed(train, "sweep: train")

    def specification(member: Member, **own: Any) -> FitSpecification:
        return FitSpecification(
            predict=predict,
            params=init(random_key(member.seed)),
            train=train_of(member.seed),
            learning_rate=member.learning_rate,  # type: ignore[arg-type]
            hyperparams=member.hyperparams,
            key=random_key(member.seed),
            who="sweep",
            **options,
            **own,
        )

    checkpoints = checkpoints and checkpoints.used_by("sweep")
    return Sweeping(members, specification, checkpoints, callbacks, together).run()


@dataclass(frozen=True)
class _Group:
    """Networks that are trained at once by programs for `size` of them; alone where it is 1."""

    members: Sequence[Member]
    size: int

    @property
    def names(self) -> list[str]:
        return [member.name for member in self.members]

    @property
    def folder(self) -> str:
        """The name of the folder of its checkpoints."""
        if self.size == 1:
            return file_name(self.members[0].name)
        digest = hashlib.sha256(repr([self.names, self.size]).encode()).hexdigest()
        return f"together-{digest[:12]}"


@dataclass
class Sweeping:
    """Trains the networks of a sweep that are not trained yet, see `sweep`.

    Attributes:
        specification: what `fit` would be asked for, of each, and of some more arguments.
        programs: of the last group.
        kind: of its networks, see `_kind`.
        ended: the networks that are trained, by name.
    """

    members: Sequence[Member]
    specification: Callable[..., FitSpecification]
    checkpoints: Checkpoints | None
    callbacks: Sequence[Callable[[Any], None]]
    together: int | None
    programs: Programs | None = None
    kind: Any = None
    ended: dict[str, Network] = field(default_factory=dict)
    is_stopped: bool = False

    def run(self) -> Sweep:
        """Train them; those there are, where a callback stops the sweep."""
        with contextlib.ExitStack() as stack:
            if self.checkpoints is not None:
                stack.enter_context(self.checkpoints.in_use())
                for member in self.members:
                    self._read(member, self.checkpoints)
            rest = [member for member in self.members if member.name not in self.ended]
            with contextlib.suppress(StopTraining):
                groups = self._groups(rest) if rest else []
                for group in groups:
                    self._train(group)
        networks = [self.ended[one.name] for one in self.members if one.name in self.ended]
        return Sweep(networks, len(networks) == len(self.members))

    @cached_property
    def _most_bytes(self) -> int:
        """Bytes that a checkpoint of one network has at most."""
        asked = self.specification(self.members[0])
        return most_bytes((asked.trained, asked.state))

    def _groups(self, rest: Sequence[Member]) -> list[_Group]:
        """The networks that are left, in groups; first those that an earlier call has begun."""
        some, most = [self.specification(member) for member in rest[:2]], len(self.members)
        if len(some) > 1:
            _refuse_what_comes_once(some[0], some[1], len(rest))
        size = min(self.together or networks_that_fit(some, most), most)
        devices = some[0].run_on.count
        if size > 1:  # every device has as many
            size = -(-size // devices) * devices
        groups = self._begun(rest, size, devices)
        if groups and self.together is None:
            size = groups[0].size
        begun = {name for group in groups for name in group.names}
        new = [member for member in rest if member.name not in begun]
        return groups + [
            _Group(new[start : start + size], size) for start in range(0, len(new), size)
        ]

    def _begun(self, rest: Sequence[Member], size: int, devices: int) -> list[_Group]:
        """Groups that an earlier call has not brought to their end: resumed to the same bits."""
        groups: list[_Group] = []
        if self.checkpoints is None:
            return groups
        members = {member.name: member for member in self.members}
        left = {member.name for member in rest}
        for folder in self.checkpoints.names():
            if not folder.startswith("together-"):
                continue
            found = self.checkpoints.within(folder).newest(len(members) * self._most_bytes)
            if found is None:
                continue
            content = CheckpointContent.from_json(found.about, found.path, True, "sweep")
            listed, begun = content.names or [], content.size
            names = set(listed)
            fits = begun == size or (self.together is None and begun % devices == 0)
            fits = fits and len(listed) <= begun <= -(-len(members) // devices) * devices
            if fits and len(listed) == len(names) and left & names and members.keys() >= names:
                groups.append(_Group([members[name] for name in listed], begun))
                left -= names
        return groups

    def _train(self, group: _Group) -> None:
        """Train a group to its end, and keep what was trained; then its checkpoints are removed."""
        checkpoints = self.checkpoints and self.checkpoints.within(group.folder)
        own = {"checkpoints": checkpoints, "callbacks": (self._relay,)}
        asked = [self.specification(member, **own) for member in group.members]
        first, count = asked[0], len(self.members)
        self._tell(
            NetworksStarted(group.names, len(self.ended), count, first.epochs, first.train.length)
        )
        programs = self._programs_of(asked, group.size)
        programs.residents.forget_others([*(one.train for one in asked), *first.evaluate.values()])
        names = group.names if group.size > 1 else None
        try:
            trained = Training(asked, programs, names, group.size).run()
        except NotANumberError as error:  # of one network; those of a group are set apart
            trained = [Trained(error.params, History(error.history), error)]
        if self.is_stopped:
            raise StopTraining
        new = []
        for member, one, of in zip(group.members, asked, trained, strict=True):
            if member.name not in self.ended:
                network = Network(member.seed, member.setting, *of, one.best)
                if self.checkpoints is not None:
                    self._write(network, one, self.checkpoints)
                self.ended[member.name] = network
                new.append(NetworkEnded(network))
        if checkpoints is not None:
            checkpoints.remove()
        self._tell(*new)

    def _programs_of(self, asked: Sequence[FitSpecification], size: int) -> Programs:
        """Those of the group before, if it differs in numbers alone."""
        kinds = [_kind(one, size) for one in asked]
        if not all(_same(kinds[0], kind) for kind in kinds):
            raise ModelError(
                "sweep: networks trained side by side may differ only in the values of their "
                "parameters, and init makes other leaves or shapes from another key; give "
                "together=1"
            )
        if self.programs is None or not _same(self.kind, kinds[0]):
            self.programs, self.kind = Programs(asked[0], mapped=size > 1), kinds[0]
        return self.programs

    def _write(self, network: Network, asked: FitSpecification, checkpoints: Checkpoints) -> None:
        params, state = network.params if asked.model.stateful else (network.params, None)
        arrays = snapshot({"params": partition(params)[0], "state": state})
        numbers = _numbers_of(asked, checkpoints.run)
        content = EndedNetworkContent(numbers, network.history, network.error)
        checkpoints.write(_file_of(network.name), arrays, content.to_json())

    def _read(self, member: Member, checkpoints: Checkpoints) -> None:
        """Read a network that an earlier call has trained, if it is there."""
        name = _file_of(member.name)
        try:
            found = checkpoints.read(name, self._most_bytes)
        except LargerError:
            raise
        except CheckpointError as error:
            LOGGER.warning(f"{error}; it is trained again")
            return
        if found is None:
            return
        (arrays, about), path = found, checkpoints.folder / name
        asked = self.specification(member)
        content = EndedNetworkContent.from_json(about, path, _numbers_of(asked, checkpoints.run))
        like = on_device({"params": asked.trained, "state": asked.state})
        tree = restore(arrays, like, source=path)
        whole = asked.whole(tree["params"], tree["state"])
        history = History(content.history)
        if content.error is not None:
            content.error.params, content.error.history = whole, history
        self.ended[member.name] = Network(
            member.seed, member.setting, whole, history, content.error, asked.best
        )

    def _relay(self, event: Event) -> None:
        match event:
            case Stopped():
                self.is_stopped = True
            case Stepped():
                self._tell(event)
            case EpochEnded(epoch=epoch, row=row, params=params, is_last=False):
                loss, rate = row["loss"], row["examples_per_second"]
                self._tell(Stepped(epoch + 1, 0, loss, rate, params, event.total_steps))

    def _tell(self, *events: Event) -> None:
        if tell(self.callbacks, *events):
            raise StopTraining


def _file_of(name: str) -> str:
    return f"{file_name(name)}.safetensors"


def _numbers_of(asked: FitSpecification, run: str) -> dict[str, Any]:
    """What a network that was trained must have been asked for."""
    return {
        "run": run,
        "epochs": asked.epochs,
        "steps": asked.steps,
        "learning_rate": float(asked.learning_rate),
        "hyperparams": {name: float(value) for name, value in asked.hyperparams.items()},
        "mixup": asked.mixup,
        "best": asked.best,
        "patience": asked.patience,
    }


def _refuse_what_comes_once(one: FitSpecification, other: FitSpecification, count: int) -> None:
    """Refuse an iterator that networks would share: each would get the rest of another's."""
    shared = {"train": one.train} if one.train == other.train else {}
    shared |= {
        f"evaluate[{name!r}]": source
        for name, source in one.evaluate.items()
        if source == other.evaluate[name]
    }
    for what, source in shared.items():
        if source.comes_once:
            raise BatchError(
                f"sweep: {what} must be there for each of {count} networks, and it is a "
                f"{source.type_name}, which comes once; give a NumpyLoader or a list"
                + (", or a function of a seed that makes one" if what == "train" else "")
            )


def _refuse_no_init(init: Any) -> None:
    """Refuse an init that cannot be called with a key: parameters, say, or predict in its place."""
    found = f"a {type(init).__name__}"
    if callable(init):
        try:
            signature = inspect.signature(init)
            signature.bind(None)
        except ValueError:  # some built-in functions have none
            return
        except TypeError:
            found = f"one of {signature}"
        else:
            return
    raise ModelError(
        f"sweep: init must be a function of a random key, which makes parameters, and it is "
        f"{found}; call sweep(predict, init, train)"
    )


def _kind(asked: FitSpecification, size: int) -> tuple[Any, list[Any]]:
    """What decides whether the programs of another network are those of this one."""
    trained = asked.trained, asked.state, asked.hyperparams
    shapes = [(np.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(trained)]
    structure = jax.tree.structure((*trained, asked.model.static))
    return (structure, shapes, size), jax.tree.leaves(asked.model.static)


def _same(one: tuple[Any, list[Any]], other: tuple[Any, list[Any]]) -> bool:
    return one[0] == other[0] and all(
        a is b or np.array_equal(a, b) for a, b in zip(one[1], other[1], strict=True)
    )


def networks_that_fit(asked: Sequence[FitSpecification], most: int) -> int:
    """How many networks are to be trained side by side.

    On a CPU one: there, mapping a step gains nothing. On accelerators as many as have room.

    Args:
        asked: of one of them, or of two, which tell whether all learn from the same examples.
        most: how many there are.
    """
    if jax.default_backend() == "cpu":
        return 1
    first = asked[0]
    devices = jax.local_devices()[: first.run_on.count]
    stats = [device.memory_stats() or {} for device in devices]
    free = min(one.get("bytes_limit", 0) - one.get("bytes_in_use", 0) for one in stats)
    free -= sum(source.nbytes for source in first.evaluate.values())
    each = network_bytes(first)
    plans = {id(plan) for one in asked if (plan := one.train.plan()) is not None}
    if len(plans) > 1:  # every device has those of all its networks, and of all others
        each += len(devices) * first.train.nbytes
    else:
        free -= first.train.nbytes
    return max(1, min(most, len(devices) * int(MEMORY_SHARE * free / each)))


def network_bytes(asked: FitSpecification) -> int:
    """What one network takes: its state, copies of its parameters, and what a step or an
    evaluation works with.

    XLA says so of the compiled programs; where a loader has no arrays, its batches are not counted.
    """
    state = States(asked.optimizer, asked.run_on).shapes(initial_values([asked], 1))
    taken = nbytes(state) + COPIES * nbytes((state.params, state.model_state))
    if not asked.train.has_arrays:
        return taken
    arrays = tuple(asked.train.arrays())
    size = asked.train.batch_size or 1
    batch = _batch(arrays, size)
    step = partial(
        train_step, model=asked.model, loss=asked.loss, optimizer=asked.optimizer, mixup=asked.mixup
    )
    works_with = _temporary(step, state, batch)
    if asked.evaluate:

        def scored(state: Any, inputs: Any) -> Any:
            of, scalars = (state.params, state.model_state), state.hyperparams
            return asked.model.predictions(*of, inputs, state.key, False, scalars)[0]

        count = block_size(jax.tree.leaves(arrays)) if asked.model.of_one_example else size
        works_with = max(works_with, _temporary(scored, state, _batch(arrays, count).inputs))
    return taken + works_with + nbytes(batch)


def _batch(arrays: tuple[Any, ...], size: int) -> Batch:
    """The shapes of a batch of so many examples."""
    inputs, targets = shapes_of(arrays, size)
    return Batch(inputs, targets, jax.ShapeDtypeStruct((size,), jnp.float32))  # type: ignore[arg-type]


def _temporary(function: Callable[..., Any], *shapes: Any) -> int:
    """Bytes that a compiled function takes for itself."""
    found: Any = jax.jit(function).lower(*shapes).compile().memory_analysis()
    return int(found.temp_size_in_bytes)
