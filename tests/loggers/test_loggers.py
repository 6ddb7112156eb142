"""What is logged is read back by the libraries themselves, whatever happened to the run."""

import io
import logging
import os
import signal
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import read_back
from helpers import batches, bits, linear, problem, run_script, slow, slow_but, timeless
from matplotlib.figure import Figure
from PIL import Image

import feedax
from feedax.errors import LoggerError, NotANumberError
from feedax.train import processes
from feedax.train.training import Training

KINDS = ["TensorBoard", "MLflow", "WandB"]
READ = {
    "TensorBoard": read_back.of_tensorboard,
    "MLflow": read_back.of_mlflow,
    "WandB": read_back.of_wandb,
}
X, Y = problem()
START = jnp.zeros((3, 6))


def fit(folder=None, **options):
    """A run of 7 steps an epoch, saved every 3."""
    checkpoints = None if folder is None else feedax.Checkpoints(folder, every_steps=3)
    options = {"epochs": 3, "evaluate": {"test": [(X, Y)]}, **options}
    return feedax.fit(linear, START, batches(X, Y, 8), checkpoints=checkpoints, **options)


@pytest.fixture(autouse=True)
def _hears_of_every_step(monkeypatch):
    monkeypatch.setattr(Training, "report_seconds", 0.0)
    monkeypatch.setattr(Training, "chunk_steps", 1)


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING, "feedax")
    return lambda: [one.getMessage() for one in caplog.records if one.name == "feedax"]


def logger_of(kind, folder, **options):
    return getattr(feedax.loggers, kind)(folder, **options)


def drawn(params):
    figure = Figure((2, 1))
    figure.subplots().plot(np.ravel(params))
    return {"weights": figure}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_read_back(kind, tmp_path, said):
    config = {"optimizer": {"name": "adam", "rate": 0.5}, "sizes": [6, 3], "biased": False}
    logger = logger_of(kind, tmp_path / "log", config=config, pictures=drawn)
    params, history = fit(callbacks=[logger])
    read = READ[kind](tmp_path / "log")
    assert said() == []
    assert read_back.steps(read, "step/loss") == list(range(1, 22))
    for name in history[0]:
        entries = read.scalars[f"epoch/{name}"]
        wanted = [(7 * (i + 1), row[name]) for i, row in enumerate(history)]
        assert entries == [(step, pytest.approx(value, rel=1e-6)) for step, value in wanted]
    assert read.config == {
        "optimizer.name": "adam",
        "optimizer.rate": "0.5",
        "sizes": "6 3",
        "biased": "False",
    }
    assert sorted(read.pictures) == ["curves", "weights"]
    assert Image.open(io.BytesIO(read.pictures["weights"])).size == (200, 100)
    assert bits(read_back.loaded(read, START)) == bits(params)
    assert read.status == {"MLflow": "FINISHED", "WandB": 0}.get(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_goes_on_in_the_same_log(kind, tmp_path, said):
    def fails(event):
        if isinstance(event, feedax.Stepped) and event.total_steps == 12:
            raise OSError("no power")

    first, second = (logger_of(kind, tmp_path / "log", pictures=drawn) for _ in range(2))
    with pytest.raises(OSError, match="no power"), first:
        fit(tmp_path, callbacks=[first, fails])
    assert said() == []
    read = READ[kind](tmp_path / "log")
    assert read_back.steps(read, "step/loss") == list(range(1, 13))
    assert read.status == {"MLflow": "FAILED", "WandB": 1}.get(kind)

    _, history = fit(tmp_path, callbacks=[second])  # from step 9 on
    read = READ[kind](tmp_path / "log")
    assert read_back.steps(read, "step/loss") == list(range(1, 22))
    assert read.scalars["epoch/loss"] == [
        (7 * (i + 1), pytest.approx(row["loss"], rel=1e-6)) for i, row in enumerate(history)
    ]
    assert read.status == {"MLflow": "FINISHED", "WandB": 0}.get(kind)

    fit(tmp_path, callbacks=[second])  # nothing is left to train
    again = READ[kind](tmp_path / "log")
    assert (again.scalars, again.pictures) == (read.scalars, read.pictures)
    assert sorted(again.pictures) == ["curves", "weights"]
    assert said() == []


def test_what_a_log_lacks_of_the_history_is_added_when_a_run_is_resumed(tmp_path):
    fit(tmp_path, epochs=2)
    fit(tmp_path, callbacks=[feedax.loggers.TensorBoard(tmp_path / "log")])
    read = read_back.of_tensorboard(tmp_path / "log")
    assert read_back.steps(read, "epoch/epoch") == [7, 14, 21]
    assert read_back.steps(read, "step/loss") == list(range(15, 22))


@pytest.mark.slow
def test_a_run_that_begins_anew_replaces_what_tensorboard_shows(tmp_path):
    logger = feedax.loggers.TensorBoard(tmp_path, name="mine")
    fit(callbacks=[logger])
    fit(callbacks=[logger], epochs=1)
    read = read_back.of_tensorboard(tmp_path / "mine")
    assert read_back.steps(read, "step/loss") == list(range(1, 8))


KILLED = """
import contextlib, os, signal, time
from pathlib import Path
import jax.numpy as jnp
import feedax, read_back
from feedax.train.training import Training
from helpers import batches, linear, problem

Training.report_seconds, Training.chunk_steps = 0.0, 1
logs = [getattr(feedax.loggers, kind)(kind) for kind in {kinds}]

def are_written():
    with contextlib.suppress(Exception):  # half a file
        reads = [getattr(read_back, f"of_{{kind.lower()}}")(Path(kind)) for kind in {kinds}]
        return all(read.scalars["step/loss"][-1][0] == 12 for read in reads)

def kill(event):
    if isinstance(event, feedax.Stepped) and event.total_steps == 12 and {kills}:
        while not are_written():  # by the thread, and by W&B's own process
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)

feedax.fit(linear, jnp.zeros((3, 6)), batches(*problem(), 8), epochs=3, callbacks=[*logs, kill],
           checkpoints=feedax.Checkpoints("saved", every_steps=5))
"""


@pytest.mark.parametrize("kinds", [["TensorBoard"], slow(["MLflow", "WandB"])])
def test_a_killed_run_is_resumed_without_a_step_twice(kinds, tmp_path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    env.pop("WANDB_SERVICE", None)  # of this process: it would outlive the kill
    options = {"cwd": tmp_path, "env": env}
    for kills, code in ((True, -signal.SIGKILL), (False, 0)):
        script = KILLED.format(kinds=kinds, kills=kills)
        done = run_script(tmp_path, script, **options)
        assert done.returncode == code, done.stderr
        for kind in kinds:
            read = READ[kind](tmp_path / kind)
            assert read_back.steps(read, "step/loss") == list(range(1, 13 if kills else 22))
    assert read_back.steps(read, "epoch/epoch") == [7, 14, 21]


@pytest.mark.parametrize("kind", slow_but(["TensorBoard"], KINDS))
def test_a_sweep_logs_each_network_as_a_run_of_its_own(kind, tmp_path):
    options = {"pictures": drawn, "config": {"note": "mine"}}
    logger = logger_of(kind, tmp_path, name="all" if kind != "TensorBoard" else None, **options)
    found = feedax.sweep(
        linear, lambda key: START, [(X, Y)], learning_rate=[0.1, 0.2], epochs=2, callbacks=[logger]
    )
    for network in found.networks:
        if kind == "WandB" and network is not found.networks[-1]:
            continue  # the reader looks at the newest run
        read = {
            "TensorBoard": lambda name: read_back.of_tensorboard(tmp_path / name),
            "MLflow": lambda name: read_back.of_mlflow(tmp_path, name),
            "WandB": lambda name: read_back.of_wandb(tmp_path),
        }[kind](network.name)
        rate = str(network.setting["learning_rate"])
        assert read.config == {"note": "mine", "learning_rate": rate, "seed": "0"}
        losses = [row["loss"] for row in network.history]
        assert read.scalars["epoch/loss"] == [
            (i, pytest.approx(loss, rel=1e-6)) for i, loss in enumerate(losses)
        ]
        assert bits(read_back.loaded(read, START)) == bits(network.params)


# What goes wrong

GOES_ON = "training goes on, and nothing more is logged"


@pytest.mark.parametrize("kind", slow_but(["TensorBoard"], KINDS))
def test_a_log_that_cannot_be_written_is_told_of_once(kind, tmp_path, said):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "log"
    logger = logger_of(kind, folder, pictures=drawn)
    params, history = fit(callbacks=[logger])
    alone, rows = fit()
    assert bits(params) == bits(alone)
    assert timeless(list(history)) == timeless(list(rows))
    assert said() == [
        f"{kind}: the log at {folder} must be writable, and it is not (Not a directory); {GOES_ON}"
    ]
    fit(callbacks=[logger])
    assert len(said()) == 1


def test_a_library_that_raises_is_told_of_once(tmp_path, said, monkeypatch):
    from mlflow import MlflowClient

    def refuse(*_, **__):
        raise RuntimeError("the server\nis gone")

    monkeypatch.setattr(MlflowClient, "log_batch", refuse)
    fit(callbacks=[feedax.loggers.MLflow(tmp_path)])
    assert said() == [
        f"MLflow: the log at {tmp_path} must be writable, and it is not (RuntimeError: the "
        f"server is gone); {GOES_ON}"
    ]


FULL = """
import resource
import jax.numpy as jnp
import feedax
from helpers import linear, problem

x, y = problem()
log = feedax.loggers.{kind}("log", config={{str(i): "x" * 400 for i in range(100)}})
resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, resource.RLIM_INFINITY))
_, history = feedax.fit(linear, jnp.zeros((3, 6)), [(x, y)], epochs=20, callbacks=[log])
print(len(history))
"""


@pytest.mark.parametrize(("kind", "most"), [slow("TensorBoard", 20_000), slow("MLflow", 200)])
def test_a_full_disk_ends_no_run(kind, most, tmp_path):
    path = os.pathsep.join(sys.path)
    options = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": path}}
    done = run_script(tmp_path, FULL.format(kind=kind, most=most), **options)
    assert (done.returncode, done.stdout) == (0, "20\n"), done.stderr
    assert done.stderr.count(f"{kind}: the log at ") == 1
    assert "File too large" in done.stderr


def test_pictures_that_fail_cost_the_log_nothing_else(tmp_path, said):
    def pictures(params):
        raise ValueError("no")

    params, _ = fit(callbacks=[feedax.loggers.TensorBoard(tmp_path, pictures=pictures)])
    read = read_back.of_tensorboard(tmp_path)
    assert list(read.pictures) == ["curves"]
    assert bits(read_back.loaded(read, START)) == bits(params)
    assert said() == [
        "TensorBoard: pictures must return matplotlib figures by name, and it fails (ValueError: "
        "no); the log has the curves alone"
    ]


def test_ctrl_c_passes(tmp_path):
    def pictures(params):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(callbacks=[feedax.loggers.TensorBoard(tmp_path, pictures=pictures)])


@pytest.mark.parametrize(("stop", "status"), [(True, "KILLED"), (False, "FAILED")])
def test_a_log_says_how_its_run_ended(stop, status, tmp_path):
    def stops(event):
        if isinstance(event, feedax.Stepped) and event.total_steps == 5:
            raise feedax.StopTraining

    logger = feedax.loggers.MLflow(tmp_path)
    if stop:
        fit(callbacks=[logger, stops])
    else:
        with logger, pytest.raises(NotANumberError):
            fit(callbacks=[logger], learning_rate=float("inf"))
    read = read_back.of_mlflow(tmp_path)
    assert read.status == status
    if stop:
        assert read_back.steps(read, "step/loss") == [1, 2, 3, 4, 5]


def test_only_process_0_logs(tmp_path, monkeypatch):
    logger = feedax.loggers.TensorBoard(tmp_path / "log")
    monkeypatch.setattr(processes, "index", lambda: 1)
    logger(feedax.Started(1, 1, "", [], None, 0))
    logger.close()
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("kind", "library"),
    [("TensorBoard", "tensorboard.compat.proto"), ("MLflow", "mlflow"), ("WandB", "wandb")],
)
def test_a_missing_library_is_one_sentence(kind, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    extra = kind.lower()
    with pytest.raises(LoggerError) as error:
        logger_of(kind, "log")
    assert str(error.value) == (
        f"{kind}: its library must be installed, feedax[{extra}], and it cannot be imported "
        f"(import of {library} halted; None in sys.modules); pip install 'feedax[{extra}]'"
    )
