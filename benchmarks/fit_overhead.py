"""What `fit` costs beside the bare loop: the same steps, called by hand.

`fit` runs as `feedax train` runs it: a checkpoint, the parameters and a row written every epoch, a
progress bar on a terminal, the accuracy measured in every step. Nothing is evaluated.
The bare loop runs the same `train_step` and knows nothing of all that. Resident, it is one compiled
call an epoch; streamed, one compiled step a batch of the same loader, called by hand. A second bare
loop measures the accuracy in its steps too: beside it stands what is around the steps.

Each side trains the tutorial's network on MNIST from the same parameters. The first epoch compiles
and does not count; the clock runs from its end until the last parameters are there, and for `fit`
until the last checkpoint is on the disk. Sides take turns. At the end all must have trained the
same network: resident equal to the bit on a CPU, else up to the rounding of sums.

    python benchmarks/fit_overhead.py [--pairs 7] [--epochs 3] [--only adam-streamed] [--quick]
"""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing
from jax import lax
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch.utils.data import Subset

import feedax
from feedax.feed import pick
from feedax.report.recorder import Recorder
from feedax.report.run_folder import RunFolder
from feedax.train.losses import is_right

SIZES = (784, 512, 512, 10)
BATCH_SIZE = 128
RATES = {"sgd": 0.01, "adam": 0.001}
PLANS = ("resident", "streamed")
AIM = 1.05
FIT, BARE, BARE_WITH_METRICS = "fit", "bare loop", "bare loop with the accuracy"


class Case(NamedTuple):
    """What every side trains.

    Attributes:
        optimizer: of learning rate 1.
        rate: the learning rate.
        loader: yields the batches; resident or streamed.
        epochs: how many count; one more comes before them.
    """

    optimizer: optax.GradientTransformation
    rate: float
    loader: feedax.NumpyLoader
    epochs: int


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """Let standard output be a terminal that another process reads."""
    os.environ["TERM"] = "xterm-256color"  # as a person has it: rich draws nothing for others
    ours, theirs = os.openpty()
    with subprocess.Popen(
        ["wc", "-c"], stdin=ours, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as reader:
        os.close(ours)
        with open(theirs, "w") as stdout, contextlib.redirect_stdout(stdout):
            yield
        said = reader.communicate()[0]
    assert int(said) > 1_000, f"the bar has written {said.strip()} bytes"


class Bar:
    """A callback that draws a progress bar, as `feedax train` does."""

    def __init__(self) -> None:
        said = TextColumn("{task.fields[said]}")
        self._bar = Progress(BarColumn(), MofNCompleteColumn(), said, refresh_per_second=4)
        self._task = self._bar.add_task("", said="")

    def __call__(self, event: Any) -> None:
        match event:
            case feedax.Started(steps=steps):
                self._bar.update(self._task, total=steps)
                self._bar.start()
            case feedax.Stepped(step=step, loss=loss):
                self._bar.update(self._task, completed=step, said=f"loss {loss:.4f}")
            case feedax.EpochEnded(epoch=epoch, is_last=is_last):
                self._bar.console.print(f"Epoch {epoch}")
                self._bar.reset(self._task, said="")
                if is_last:
                    self._bar.stop()


def by_fit(case: Case) -> timing.Trained:
    """As `feedax train` does it, evaluation apart."""
    clock = timing.Clock()
    with tempfile.TemporaryDirectory() as parent, terminal():
        folder = RunFolder.create({}, path=Path(parent) / "run")
        params, _ = feedax.fit(
            feedax.mlp,
            feedax.init_mlp(SIZES, jax.random.key(0), "tutorial"),
            case.loader,
            loss=feedax.tutorial_loss,
            optimizer=case.optimizer,
            learning_rate=case.rate,
            epochs=1 + case.epochs,
            callbacks=(Recorder(folder, None, lambda _: None), Bar(), clock),
            checkpoints=feedax.Checkpoints(folder.checkpoints_path, every_epochs=1),
        )
        jax.block_until_ready(params)
        seconds = clock.seconds()
        saved = len(list(folder.checkpoints_path.glob("*.safetensors")))
        assert saved == min(3, 1 + case.epochs), f"{saved} checkpoints"
    return params, seconds / case.epochs


def by_hand(case: Case, epoch: Callable[[Any], Any], metrics: Any) -> timing.Trained:
    """A bare loop over epochs."""
    state = feedax.init_state(
        feedax.init_mlp(SIZES, jax.random.key(0), "tutorial"),
        case.optimizer,
        jax.random.key(0),
        learning_rate=case.rate,
        metrics=metrics,
    )
    state = jax.tree.map(jnp.copy, state)  # steps take over their state's memory
    state = jax.block_until_ready(epoch(state))
    clock = timing.Clock()
    clock.start()
    for _ in range(case.epochs):
        state = jax.block_until_ready(epoch(state))
    return state.params, clock.seconds() / case.epochs


def resident_epoch(case: Case, step: Callable[..., Any]) -> Callable[[Any], Any]:
    """All steps in one compiled loop, over examples that live on the device."""
    examples = jax.device_put(case.loader.arrays())

    @partial(jax.jit, donate_argnums=0)
    def steps(state: Any, examples: Any, indices: Any, sizes: Any, count: Any) -> Any:
        def body(i: Any, state: Any) -> Any:
            return step(state, pick(examples, indices[i], sizes[i]))

        return lax.fori_loop(0, count, body, state)

    def epoch(state: Any) -> Any:
        rows = list(case.loader.index_batches())
        indices = np.zeros((len(rows), BATCH_SIZE), np.int32)
        sizes = np.zeros(len(rows), np.int32)
        for i, row in enumerate(rows):
            indices[i], sizes[i] = row[0], len(row)
            indices[i, : len(row)] = row
        return steps(state, examples, indices, sizes, np.int32(len(rows)))

    return epoch


def streamed_epoch(case: Case, step: Callable[..., Any]) -> Callable[[Any], Any]:
    """A compiled step a batch; the short last batch is compiled for itself."""
    compiled = jax.jit(step, donate_argnums=0)

    def epoch(state: Any) -> Any:
        for x, y in case.loader:
            state = compiled(state, feedax.Batch(x, y, np.ones(len(y), np.float32)))
        return state

    return epoch


def seconds_of(
    name: str, plan: str, dataset: Any, rounds: int, epochs: int
) -> dict[str, list[float]]:
    """An epoch's seconds by side, of one optimizer and plan."""
    loader = feedax.NumpyLoader(dataset, batch_size=BATCH_SIZE, seed=0, plan=plan)
    case = Case(feedax.build_optimizer(name), RATES[name], loader, epochs)
    open_epoch = resident_epoch if plan == "resident" else streamed_epoch
    sides = {FIT: partial(by_fit, case)}
    for label, metrics in ((BARE, {}), (BARE_WITH_METRICS, {"accuracy": is_right})):
        step = partial(
            feedax.train_step,
            model=feedax.Model(feedax.mlp),
            loss=feedax.tutorial_loss,
            optimizer=case.optimizer,
            metrics=metrics,
        )
        sides[label] = partial(by_hand, case, open_epoch(case, step), metrics)
    tolerance = 0.0 if plan == "resident" else 2e-3
    if jax.default_backend() != "cpu":
        tolerance = 1e-2  # there XLA chooses for each program anew how it rounds its products
    return timing.train_in_turn(sides, rounds, tolerance)


def measure(name: str, plan: str, dataset: Any, rounds: int, epochs: int) -> str:
    """The table of one optimizer and plan."""
    seconds = seconds_of(name, plan, dataset, rounds, epochs)
    verdict = timing.verdict(seconds[FIT], seconds[BARE], AIM)
    return f"{timing.table(f'{name}, {plan}, an epoch', seconds)}\n\n{verdict}\n"


def main() -> None:
    cases = [f"{name}-{plan}" for plan in PLANS for name in RATES]
    parser = timing.parser(__doc__, "--pairs", 7, quick="a part of MNIST")
    parser.add_argument("--epochs", type=int, default=3, help="how many count, each time")
    parser.add_argument("--only", choices=cases, help="this case and no other")
    options = parser.parse_args()

    print(f"{timing.machine()}\n", flush=True)
    dataset = feedax.datasets.mnist()
    if options.quick:
        dataset, options.rounds, options.epochs = Subset(dataset, range(6_400 + 96)), 2, 1
    for case in [options.only] if options.only else cases:
        name, plan = case.split("-")
        print(measure(name, plan, dataset, options.rounds, options.epochs), flush=True)


if __name__ == "__main__":
    main()
