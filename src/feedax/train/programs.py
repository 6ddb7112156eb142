"""What is compiled for a job; jobs that differ in numbers alone can share it."""

import logging
import operator
from functools import partial

import jax

from feedax.feed import Residents
from feedax.storage.safetensors_file import listed
from feedax.train.check import ModelCheck
from feedax.train.evaluation import Evaluation
from feedax.train.job import Job
from feedax.train.model import untrained
from feedax.train.states import States
from feedax.train.step import Score
from feedax.train.steps import Steps
from feedax.train.waiting import Advice

LOGGER = logging.getLogger("feedax")


class Programs:
    """The compiled programs of a job, and the examples on the device that they read.

    They are those of every job with the same functions, shapes, metrics and devices: parameters,
    keys, learning rates, hyperparameters and the order of the examples may be others.

    Args:
        job: the first of them.
        mapped: whether it is that of many networks side by side: its parameters, model state, key,
            learning rate and hyperparameters are stacked.

    Attributes:
        metrics: by name; filled when the first examples have been seen.
        advice: given once to all that share the programs.
    """

    def __init__(self, job: Job, mapped: bool = False) -> None:
        model, devices = job.model, job.devices
        if model.dtype is not None:
            slower = ", and on this CPU more slowly" if jax.default_backend() == "cpu" else ""
            LOGGER.info(
                f"fit: the model computes in bfloat16, with 8 bits of precision{slower}; "
                "parameters, losses, the optimizer and batch statistics stay in float32"
            )
        if found := untrained(model.static):
            LOGGER.warning(
                "fit: arrays of floating point or complex numbers are trained, and "
                f"{listed(found)} {'are' if len(found) > 1 else 'is'} not; make such an array of "
                "what is to be trained, jnp.array(0.0) of 0.0 say"
            )
        params, state, scalars = job.params, job.model_state, job.hyperparams
        if mapped:  # of one network, its shapes are enough
            first = partial(jax.tree.map, operator.itemgetter(0))
            params, state = jax.eval_shape(first, (params, state))
            scalars = first(scalars)
        modes = (True, False) if job.sets else (True,)
        self.check = ModelCheck(model, params, state, job.loss, job.metrics, scalars, modes)
        self.residents = Residents(devices)
        self.advice = Advice()
        self.metrics: dict[str, Score] = {}
        self.steps = Steps(model, job.loss, job.optimizer, self.metrics, devices, job.mixup, mapped)
        self.states = States(job.optimizer, devices, mapped)
        process = jax.process_index()
        self.evaluation = Evaluation(model, self.check, self.residents, process, mapped)
