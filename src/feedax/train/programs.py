"""What is compiled for a run: its steps, its evaluation, and the programs around them."""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from feedax.errors import CheckpointError
from feedax.feed import Devices, Residents, on_device, scalar
from feedax.storage.safetensors_file import MAX_HEADER, listed
from feedax.storage.snapshot import is_key, nbytes, restore, snapshot
from feedax.train.check import ModelCheck
from feedax.train.checkpoints import Checkpoint
from feedax.train.evaluation import Evaluation
from feedax.train.model import untrained
from feedax.train.optimizers import Optimizer, are_finite
from feedax.train.specification import FitSpecification
from feedax.train.step import Score, TrainState, init_state
from feedax.train.steps import Compiled, Steps
from feedax.train.waiting import Advice

LOGGER = logging.getLogger("feedax")


class Programs:
    """The compiled programs of a run, and the examples on the device that they read.

    They are those of every run with the same functions, shapes, metrics and devices: parameters,
    keys, learning rates, hyperparameters and the order of the examples may be others.

    Args:
        asked: by the first of them.
        mapped: whether they train a group of networks at once: a state has a first axis for them.

    Attributes:
        metrics: by name; filled when the first examples have been seen.
        advice: given once to all that share the programs.
    """

    def __init__(self, asked: FitSpecification, mapped: bool = False) -> None:
        model, devices, optimizer = asked.model, asked.run_on, asked.optimizer
        if model.dtype is not None:
            slower = ", and on this CPU more slowly" if jax.default_backend() == "cpu" else ""
            LOGGER.info(
                f"{asked.who}: the model computes in bfloat16, with 8 bits of precision{slower}; "
                "parameters, losses, the optimizer and batch statistics stay in float32"
            )
        if found := untrained(model.static):
            LOGGER.warning(
                f"{asked.who}: arrays of floating point or complex numbers are trained, and "
                f"{listed(found)} {'are' if len(found) > 1 else 'is'} not; make such an array of "
                "what is to be trained, jnp.array(0.0) of 0.0 say"
            )
        self.check = ModelCheck(
            model,
            asked.trained,
            asked.state,
            asked.loss,
            asked.metrics,
            asked.hyperparams,
            modes=(True, False) if asked.evaluate else (True,),
            who=asked.who,
        )
        self.residents = Residents(devices, asked.who)
        self.advice = Advice(asked.who)
        self.metrics: dict[str, Score] = {}
        self.steps = Steps(model, asked.loss, optimizer, self.metrics, devices, asked.mixup, mapped)
        self.states = States(optimizer, devices, mapped)
        process = jax.process_index()
        self.evaluation = Evaluation(self.check, self.residents, process, mapped)


class InitialValues(NamedTuple):
    """What the first state of a run is made of, on the device."""

    params: Any
    model_state: Any
    key: Array
    learning_rate: Array
    hyperparams: dict[str, Array]


def initial_values(specifications: Sequence[FitSpecification], size: int) -> InitialValues:
    """Those of one network, or of `size` networks, stacked; the last of fewer is repeated."""
    every = [*specifications, *[specifications[-1]] * (size - len(specifications))]

    def stacked(values: list[Any], stack: Callable[..., Any]) -> Any:
        if size == 1:
            return values[0]
        return jax.tree.map(lambda *leaves: stack(leaves), *values)

    params, state = stacked(
        [(one.trained, one.state) for one in every], lambda leaves: jnp.stack(on_device(leaves))
    )
    rate, hyperparams = stacked([(one.learning_rate, one.hyperparams) for one in every], np.array)
    return InitialValues(
        on_device(params),
        on_device(state),
        stacked([one.key for one in every], jnp.stack),
        scalar(rate),
        {name: scalar(value) for name, value in hyperparams.items()},
    )


class States:
    """Makes the states of a run, and looks at them; each in one program.

    Args:
        mapped: whether a state is that of many networks, as in `Steps`.

    Attributes:
        begin_epoch: of a state, the one with its sums at zero, and a copy of what an epoch that
            fails would lose: the parameters and the model's state.
        copy: of these, as the next step takes over what the state holds.
    """

    def __init__(self, optimizer: Optimizer, devices: Devices, mapped: bool = False) -> None:
        everywhere = devices.shared if mapped else devices.replicated
        self._optimizer = optimizer
        self._devices = devices
        self._mapped = mapped
        self._first = Compiled(self._first_state, out=everywhere if mapped else None)
        self.begin_epoch = Compiled(_epoch_begun, donate=(0,), out=everywhere)
        self.copy = Compiled(_copied, out=everywhere)
        self._are_finite = Compiled(jax.vmap(are_finite) if mapped else are_finite, out=everywhere)

    def first(self, values: InitialValues, metrics: Iterable[str]) -> TrainState:
        """The state before the first step, with these metrics."""
        values = self.place(values) if self._mapped else values
        state: TrainState = self.place(self._first(values, dict.fromkeys(metrics, 0)))
        return state

    def restored(
        self,
        values: InitialValues,
        checkpoint: Checkpoint,
        metrics: Iterable[str],
        copies: Iterable[str],
        who: str,
    ) -> tuple[TrainState, dict[str, Any]]:
        """A checkpoint's state, and the copies of parameters and model states beside it, by name.

        Raises:
            CheckpointError: it is another run's.
        """
        shapes = self.shapes(values, metrics)
        like: Any = {"state": shapes, **dict.fromkeys(copies, (shapes.params, shapes.model_state))}
        arrays = checkpoint.arrays
        if shapes.skipped is not None:  # earlier versions did not count them
            none = np.zeros(shapes.skipped.shape, np.int32)
            arrays = {**snapshot({"state": {"skipped": none}}), **arrays}
        restored = restore(arrays, like, source=checkpoint.path)
        _refuse_another_run(values, restored["state"], checkpoint, who)
        state = self.place(restored.pop("state"))
        return state, {name: self.place(copy) for name, copy in restored.items()}

    def most_bytes(self, values: InitialValues) -> int:
        """Bytes that a checkpoint of a run has at most: its state and three copies."""
        return 4 * nbytes(self.shapes(values)) + MAX_HEADER

    def shapes(self, values: InitialValues, metrics: Iterable[str] = ()) -> TrainState:
        """The shapes of a run's state; nothing is computed."""
        shapes: TrainState = jax.eval_shape(self._first_state, values, dict.fromkeys(metrics, 0))
        return shapes

    def are_finite(self, params: Any) -> np.ndarray:
        """Whether there is a number everywhere; bool, of each of many networks."""
        return np.asarray(jax.device_get(self._are_finite(params)))

    def place(self, tree: Any) -> Any:
        """A tree of one network on every device, or of many shared among the devices."""
        if self._devices.mesh is None:
            return tree
        if self._mapped:
            return jax.device_put(tree, self._devices.shared)
        return self._devices.replicate(tree)

    def _first_state(self, values: InitialValues, metrics: dict[str, Any]) -> TrainState:
        def first(values: InitialValues) -> TrainState:
            return init_state(
                values.params,
                self._optimizer,
                values.key,
                values.model_state,
                learning_rate=values.learning_rate,
                hyperparams=values.hyperparams,
                metrics=metrics,
            )

        # Steps take over their state's memory, and none of the user's.
        return _copied(jax.vmap(first)(values) if self._mapped else first(values))


def _refuse_another_run(
    values: InitialValues, saved: TrainState, checkpoint: Checkpoint, who: str
) -> None:
    """Refuse a checkpoint with another key or other numbers, which never change in a run."""

    def numbers(one: InitialValues | TrainState) -> dict[str, Any]:
        # An old key is itself an array of numbers.
        key = jax.random.key_data(one.key) if is_key(one.key) else one.key
        found: dict[str, Any] = jax.device_get(
            {"key": key, "learning_rate": one.learning_rate, **one.hyperparams}
        )
        return found

    now, then = numbers(values), numbers(saved)
    for name, value in now.items():
        if not np.array_equal(value, then[name]):
            raise CheckpointError(
                f"{who}: a resumed run must have the {name}= that it began with, and in "
                f"{checkpoint.path} it was {then[name]} but is {value}; give the same, or "
                "another folder"
            )


def _copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def _epoch_begun(state: TrainState) -> tuple[TrainState, Any]:
    metrics, skipped = jax.tree.map(jnp.zeros_like, (state.metrics, state.skipped))
    begun = state._replace(metrics=metrics, skipped=skipped)
    return begun, _copied((state.params, state.model_state))
