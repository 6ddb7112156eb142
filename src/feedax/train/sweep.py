"""`sweep`: many networks, by one compiled program."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from feedax.errors import ModelError, ProcessError
from feedax.feed import source_by_seed
from feedax.train.checkpoints import Checkpoints
from feedax.train.events import NetworkEnded, NetworksStarted, Stepped
from feedax.train.job import Job, plan_job, random_key
from feedax.train.members import Member, members
from feedax.train.networks import Sweep, file_name
from feedax.train.sweeping import Sweeping

Scalars = float | Iterable[float]


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
        init: makes the parameters of a network from a random key.
        train: a `NumpyLoader`, of which each network has one ``with_seed``; a function of a seed
            that returns a loader or an iterator; or another iterable of batches, the same for all.
        seeds: the seeds, or how many, counted from 0.
        learning_rate: as in `fit`, or many.
        hyperparams: as in `fit`, with one value each or many.
        together: how many networks to train side by side, rounded up so that every device has as
            many. None for one on a CPU, and as many as fit on accelerators.
        checkpoints: where and when to save. The same call again goes on, to the same bits; with
            more seeds or values it trains those that are new.
        callbacks: functions of one event: `NetworksStarted`, `Stepped` or `NetworkEnded`. One that
            raises `StopTraining` ends the sweep in good order. Of networks side by side, `Stepped`
            has their mean loss, and their parameters stacked.
        options: loss, optimizer, epochs, steps, evaluate, metrics, augment, mixup, state, batched,
            best, patience, devices and precision, as in `fit`.

    Returns:
        The networks, with their parameters and histories. One that turned not-a-number has an
        `error`; the others go on. Of networks side by side the ``seconds`` of a row are those of
        all of them together.

    Raises:
        ModelError: the seeds, the values or `together` are none.
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
    if unknown := options.keys() - inspect.signature(plan_job).parameters.keys():
        raise TypeError(f"sweep() got an unexpected keyword argument {min(unknown)!r}")
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

    def job_of(member: Member) -> Job:
        return plan_job(
            predict,
            init(random_key(member.seed)),
            train_of(member.seed),
            learning_rate=member.learning_rate,
            hyperparams=member.hyperparams,
            key=random_key(member.seed),
            checkpoints=checkpoints and checkpoints.within(file_name(member.name)),
            **options,
        )

    every = members(seeds, learning_rate, hyperparams or {})
    train_of = source_by_seed(train, "sweep: train")
    return Sweeping(every, job_of, checkpoints, tuple(callbacks), together).run()
