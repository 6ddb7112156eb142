"""`fit`: many epochs."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from jax import Array

from feedax.train.check import Scores
from feedax.train.checkpoints import Checkpoints
from feedax.train.events import Event
from feedax.train.history import History
from feedax.train.losses import cross_entropy
from feedax.train.optimizers import Optimizer
from feedax.train.progress import progress_bar
from feedax.train.specification import FitSpecification
from feedax.train.training import Training


def fit(
    predict: Callable[..., Any],
    params: Any,
    train: Iterable[Any],
    *,
    loss: Callable[..., Any] = cross_entropy,
    optimizer: Optimizer | None = None,
    learning_rate: float | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    evaluate: Mapping[str, Iterable[Any]] | None = None,
    metrics: Scores | None = None,
    augment: Callable[..., Any] | None = None,
    mixup: float = 0.0,
    hyperparams: Mapping[str, float] | None = None,
    key: Array | None = None,
    callbacks: Iterable[Callable[[Event], None]] = (),
    state: Any = None,
    batched: bool = False,
    best: str | None = None,
    patience: int | None = None,
    checkpoints: Checkpoints | None = None,
    devices: int | None = None,
    precision: Literal["float32", "bfloat16"] | None = None,
    progress: bool | None = None,
) -> tuple[Any, History]:
    """Train a model.

    Args:
        predict: a function of (params, x) for one example x of any shape ``(...)``, which returns
            its prediction, ``(classes,)`` in a classifier. If it has parameters named ``key`` or
            ``train``, it is also given a random key of its own and whether it is trained. With
            ``state=`` it is a function of (params, state, x) that returns (prediction, state);
            statistics of the batch are taken over the axis ``"batch"``.
        params: the model's parameters, any PyTree. Its floating point and complex arrays are
            trained; they are copied, so yours stay as they are. Other numbers that one may take
            for trained ones (Python's, integer arrays) the logger "feedax" names.
        train: a `NumpyLoader`, or any iterable of NumPy batches (inputs, targets) of shapes
            ``(batch, ...)``, PyTrees of them too, iterated once an epoch. A short batch is filled
            up with copies that do not count. Text in it stays on the host: in a dict its key is
            left out, elsewhere None stands in its place. Each shape of an example is compiled for
            once.
        loss: a function of one example's prediction ``(...)`` and target ``(...)`` that returns a
            scalar ``()``. The gradient is that of its mean over a batch.
        optimizer: an optax transformation, or a function of hyperparameters that makes one; Adam
            if None.
        learning_rate: the optimizer's updates are multiplied by it. None for 1, as an optimizer
            that was made with a learning rate wants, or 1e-3 where `optimizer` is None.
        epochs: how many times to go through the training examples; 1 if `steps` is None too.
        steps: how many steps to train for in all. The epoch that they end in ends with them;
            given both, whichever comes first ends the run. Of an iterator, an endless one say,
            so many batches are taken, in one epoch.
        evaluate: sets to evaluate after every epoch, by name: as `train`. A loader's examples
            are then taken in the dataset's order.
        metrics: functions of one example's prediction and target, by name. If None, the accuracy
            where targets are class labels.
        augment: a function of (key, x) that changes the input of one example at random while it
            is trained on, afresh in every epoch; see `feedax.augment`.
        mixup: alpha of `feedax.augment.mixup`: every example is mixed with another of its batch,
            and scored against both targets. 0 for none.
        hyperparams: scalars by name. Each is given to those of predict, loss, augment, the metrics
            and a function `optimizer` that have a parameter of that name. They are arguments of
            the compiled step: `sweep` trains networks with many values by one program.
        key: the random key of the run, ``()``, for models and augmentations; ``jax.random.key(0)``
            if None.
        callbacks: functions of one event, see `feedax.train.events`.
        state: the model's state that is not trained (batch statistics), or None.
        batched: whether predict takes a batch ``(batch, ...)``. Such models, and models with a
            state, get a short last batch as it is, at the price of a second compilation.
        best: the column of the rows that chooses what is returned, ``"validation_loss"`` say:
            that of the epoch where it is lowest (its name ends in "loss" or "error") or highest.
        patience: end after so many epochs in a row in which `best` got no better.
        checkpoints: where and when to save. If the folder holds a checkpoint, the run resumes
            from the newest one that is whole, to the bits of one that never stopped, where the
            other arguments are the same; a larger `epochs` or `steps` extends it.
        devices: how many of this process's devices share each batch; all of an accelerator's
            if None, and one CPU. The devices of all processes work together.
        precision: ``"bfloat16"`` to compute the model in it, with float32 parameters, losses and
            batch statistics; otherwise it is computed in the dtypes of its parameters.
        progress: whether to show a bar, with the time left, and a line for each epoch (of epochs
            shorter than 0.2 s, for some). None to show it where somebody looks: in a notebook,
            and on standard error where that is a terminal.

    Returns:
        The trained parameters (with ``state=``, the pair of parameters and state), of the last
        step or of the epoch that `best` chose, and the history: a list of dicts, one
        for each epoch, that prints as a table (`feedax.plot` draws it).

        ===================== =====================================================================
        Column                Meaning
        ===================== =====================================================================
        epoch                 counted from 0
        seconds               of training, without evaluation and compilation
        compile_seconds       of compilation
        evaluate_seconds      of evaluation, without compilation
        wait_seconds          of `seconds`: the next batch was not there
        load_seconds          of loading, in all workers together, where the source says so
        transfer_seconds      of transfer to the device
        start_seconds         of starting workers
        skipped_steps         steps that the optimizer skipped, as ``optax.apply_if_finite`` does,
                              since their gradient was no number; only if it reports them. Their
                              examples are in no mean
        examples_per_second   of training
        loss, <metric>        means over the epoch's examples as they were trained on, while the
                              parameters moved
        <set>_loss,           means over each evaluation set, after the epoch
        <set>_<metric>
        ===================== =====================================================================

        Where waiting takes more than a fifth of an epoch, and more than the machine is busy with
        something else, the logger "feedax" says once what to change.

    Raises:
        BatchError: there is no batch, or one is not a pair of arrays; there are fewer devices.
        ModelError, LabelError: the model or the loss does not fit the data; nothing in params can
            be trained; there is no column named as `best`.
        NotANumberError: a training loss is not finite in a step that the optimizer did not skip;
            it has the parameters of the epoch's start.
        CheckpointError: the newest checkpoint is of another model or optimizer, or another
            process saves in the folder. A damaged one is named in a warning, and the one before
            it is taken.
        RunFolderError: a checkpoint cannot be written, for want of space say.
        PositionError: the checkpoint's place in the epoch does not fit the loader.
        ProcessError: one of several processes is lost.

    >>> import feedax
    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> x = np.float32([[0, 1], [1, 0]] * 8)
    >>> y = x.argmax(1)
    >>> w, history = feedax.fit(lambda w, x: w @ x, jnp.zeros((2, 2)), [(x, y)], epochs=3)
    >>> [row["epoch"] for row in history], history[-1]["loss"] < history[0]["loss"]
    ([0, 1, 2], True)
    """
    arguments = locals()
    with progress_bar(arguments.pop("progress"), steps) as bars:
        arguments["callbacks"] = (*bars, *callbacks)
        (network,) = Training([FitSpecification(**arguments)]).run()
    return network.params, network.history
