"""Runs that go on, and the flags of `feedax train` that decide what a run keeps."""

import os
import re
import shutil
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from helpers import change_config, run_command, slow, slow_but, timeless
from safetensors.numpy import load_file

from feedax.cli import main
from feedax.cli.examples import Examples
from feedax.cli.flags import DataFlags, OptimizerFlags
from feedax.report.run_folder import RunFolder
from feedax.storage.checkpoint_file import read_checkpoint
from feedax.train.optimizers import OptimizerName, ScheduleName

BEGAN = "feedax train: a run is resumed with the flags that it began with, and "
TINY = "--dataset npz:{} --hidden 8 --batch-size 16 --loss cross_entropy"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """60 images of 4 x 4 in 3 classes that overlap, and a test part: 4 batches of 16."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    labels = np.arange(80) % 3
    images = (rng.normal(size=(80, 4, 4)) * 40 + 60 + 40 * labels[:, None, None]).clip(0, 255)
    parts = {"train": slice(0, 60), "test": slice(60, 80)}
    arrays = {f"x_{name}": images[part].astype(np.uint8) for name, part in parts.items()}
    np.savez(path, **arrays, **{f"y_{name}": labels[part] for name, part in parts.items()})
    return path


@pytest.fixture
def train(data, tmp_path, monkeypatch, capfd):
    """Runs `feedax train` in this process, in a folder of its own.

    Where a run goes on, its data are named again, since they lie outside of its folder.
    """
    monkeypatch.chdir(tmp_path)

    def run(words, start=True, names=True):
        arguments = f"{words} {TINY.format(data)}" if start else words
        if names and "--resume" in words and "--dataset" not in words:
            arguments += f" --dataset npz:{data}"
        return run_command(capfd, ["train", *arguments.split()])

    return run


@pytest.fixture(scope="module")
def once(data, tmp_path_factory):
    """A run of two epochs with a seed and an optimizer that are not the defaults."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("once"))
        words = f"--epochs 2 --shuffle --seed 3 --optimizer adam --out run {TINY.format(data)}"
        assert main(["train", *words.split()]) == 0
    return folder / "run"


@pytest.fixture
def begun(train, once):
    """A copy of that run of its own for each test."""
    shutil.copytree(once, "run")
    return Path("run")


def rows(run):
    """The rows of a run but for what the clock says."""
    return timeless(RunFolder.open(run).rows())


def assert_same_end(run, other):
    assert (run / "params.safetensors").read_bytes() == (other / "params.safetensors").read_bytes()
    assert rows(run) == rows(other)


def last_line(done):
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "others"),
    [
        ("--batch-size 8", "--batch-size was 16 and is 8; leave it out"),
        ("--seed 0", "--seed was 3 and is 0; leave it out"),  # the default, said aloud
        ("--seed=0", "--seed was 3 and is 0; leave it out"),
        ("--no-shuffle", "--shuffle was on and is off; leave it out"),
        ("--hidden 512 512", "--hidden was 8 and is 512 512; leave it out"),
        ("--out elsewhere", "--out was run and is elsewhere; leave it out"),
        ("--preset modern", "--preset was tutorial and is modern; leave it out"),
        ("--dropout 0.1", "--dropout was 0.0 and is 0.1; leave it out"),
        ("--flip", "--flip was off and is on; leave it out"),
        ("--name x", "--name was not given and is x; leave it out"),
        ("--initial-params run", "--initial-params was not given and is {here}/run; leave it out"),
        ("--dataset npz:a.npz", "--dataset was npz:{data} and is npz:{here}/a.npz; leave it out"),
        (
            "--epochs 5 --optimizer sgd --learning_rate 0.5 --devices 1 --clip-norm 2 --seed 3",
            "--optimizer was adam and is sgd; --learning-rate was 0.01 and is 0.5; --clip-norm was "
            "not given and is 2.0; leave them out",
        ),
    ],
    ids=lambda value: value.partition(" was")[0],
)
def test_a_flag_that_contradicts_the_run_is_named(train, begun, data, tmp_path, words, others):
    before = (begun / "config.json").read_bytes()
    done = train(f"--resume run {words}", start=False)
    others = others.replace("{here}", str(tmp_path)).replace("{data}", str(data))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{BEGAN}{others}, or start a new run\n"
    assert (begun / "config.json").read_bytes() == before


def test_equal_flags_are_fine(train, begun, data, monkeypatch):
    shutil.copy(data, "tiny.npz")
    words = RunFolder.open(begun).setting("arguments")
    words[words.index("--dataset") + 1] = f"npz:{Path('tiny.npz').absolute()}"
    change_config(begun, arguments=words)
    words = (
        "--dataset npz:tiny.npz --hidden 8 --seed 3 --shuffle --no-cache --epochs 2 "
        "--loss=cross_entropy --optimizer adam --learning-rate 1e-2 --out run "
        "--keep-checkpoints 7 --batch-size=16"
    )
    done = train(f"--resume run {words}", start=False)
    assert done.returncode == 0, done.stderr
    assert "--keep-checkpoints 7" in " ".join(RunFolder.open(begun).setting("arguments"))


@pytest.mark.parametrize(
    ("words", "same"),
    [
        slow("", "--epochs 8 --hidden 512 512"),
        (
            "--epochs 1 --schedule step --validation 0.2",
            "--decay-epochs 30 --best validation_accuracy",
        ),
        slow("--epochs 1 --optimizer adamw --learning-rate 0.001", "--weight-decay 0.0001"),
    ],
)
def test_a_default_that_is_given_on_resume_is_no_contradiction(train, data, words, same):
    start = f"--dataset npz:{data} --batch-size 16"
    assert train(f"{words} {start} --out run", start=False).returncode == 0
    done = train(f"--resume run {same}", start=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "schedule", [slow(""), "--schedule step --decay-epochs 1 --decay-rate 0.5 --warmup-steps 3"]
)
def test_a_run_with_more_epochs_is_the_longer_run(train, data, schedule):
    words = f"--shuffle --optimizer adam --validation 0.2 {schedule}"
    assert train(f"{words} --epochs 2 --out run").returncode == 0
    done = train("--resume run --epochs 4", start=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Epoch 2 in ")
    assert (
        "feedax train: resumed after step 6, from run/checkpoints/step-000000006.safetensors"
        in (done.stderr)
    )
    assert train(f"{words} --epochs 4 --out whole").returncode == 0
    assert_same_end(Path("run"), Path("whole"))
    config = RunFolder.open("run").config
    assert config["arguments"][config["arguments"].index("--epochs") + 1] == "4"
    assert config["command"].endswith("--loss cross_entropy")
    commands = [begun["command"] for begun in config["resumed"]]
    assert commands == [f"feedax train --resume run --epochs 4 --dataset npz:{data}"]


def test_a_run_with_more_steps_is_the_longer_run(train):
    words = "--shuffle --optimizer momentum"
    assert train(f"{words} --steps 6 --out run").returncode == 0  # in the middle of epoch 1
    assert [row["epoch"] for row in rows("run")] == [0, 1]
    done = train("--resume run --steps 11", start=False)
    assert done.returncode == 0, done.stderr
    assert train(f"{words} --steps 11 --out whole").returncode == 0
    assert_same_end(Path("run"), Path("whole"))
    assert len(rows("run")) == 3


@pytest.mark.parametrize(
    ("start", "more", "sentence"),
    [
        (
            "--epochs 2 --schedule cosine",
            "--epochs 3",
            "the schedule cosine is laid out over the whole run, so with --epochs 3 in place of 2 "
            "the learning rate of every step would have been another one; leave it out, or start a "
            "new run with --initial-params",
        ),
        slow(
            "--steps 4 --schedule one_cycle",
            "--steps 5",
            "the schedule one_cycle is laid out over the whole run, so with --steps 5 in place of "
            "4 the learning rate of every step would have been another one; leave it out, or start "
            "a new run with --initial-params",
        ),
        (
            "--epochs 2 --warmup-fraction 0.1",
            "--epochs 3",
            "the warm-up of --warmup-fraction is laid out over the whole run, so with --epochs 3 "
            "in place of 2 the learning rate of every step would have been another one; leave it "
            "out, or start a new run with --initial-params",
        ),
        (
            "--epochs 2",
            "--epochs 1",
            "--epochs must be at least the run's own 2, and it is 1; raise it",
        ),
        (
            "--epochs 2",
            "--steps 50",
            "--steps must not be given where --epochs says how long the run is, as it does for "
            "this one; leave it out, or give a higher --epochs",
        ),
    ],
)
def test_a_length_that_a_run_cannot_have_is_refused(train, start, more, sentence):
    assert train(f"{start} --out run").returncode == 0
    done = train(f"--resume run {more}", start=False)
    assert (done.returncode, done.stderr) == (2, f"feedax train: {sentence}\n")


@pytest.mark.parametrize(
    "length", slow_but(["--epochs 2 --validation 0.2"], ["--epochs 2", "--steps 6"])
)
def test_a_run_that_has_ended_is_left_as_it_is(train, length):
    assert train(f"{length} --out run").returncode == 0
    run = Path("run")
    shutil.copytree(run, "before")
    done = train("--resume run", start=False)
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert said[-3:-1] == [
        "feedax train: the run had reached its end already, and there was nothing left to train",
        "feedax train: done; the parameters, the metrics, curves.png and report.html are in run",
    ]
    assert_same_end(run, Path("before"))
    assert os.listdir(run / "checkpoints") == os.listdir("before/checkpoints")


def test_before_the_first_checkpoint_it_starts_at_step_0(train, begun):
    shutil.copytree(begun, "run2")
    shutil.rmtree("run2/checkpoints")
    (Path("run2") / "params.safetensors").unlink()
    done = train("--resume run2", start=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[1:2] == [
        "feedax train: there is no checkpoint to resume from, so it starts at step 0"
    ]
    assert_same_end(begun, Path("run2"))


def test_a_run_from_other_parameters_goes_on_without_them(train, data):
    """It begins with those of another run, of other layers than the default ones."""
    assert train("--epochs 1 --out other").returncode == 0
    plain = f"--dataset npz:{data} --batch-size 16"
    start = f"{plain} --initial-params other --seed 5"
    assert train(f"{start} --epochs 2 --out whole", start=False).returncode == 0
    assert train(f"{start} --epochs 1 --out run", start=False).returncode == 0
    shutil.copytree("run", "run2")
    shutil.rmtree("run2/checkpoints")
    done = train("--resume run2 --epochs 2", start=False)
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        "feedax train: run folder: parameters of another run must be named by you, not by a file, "
        f"and those that run2 begins with are {Path('other').absolute()}; add --initial-params "
        f"{Path('other').absolute()}\n",
    )
    done = train("--resume run2 --epochs 2 --initial-params other", start=False)
    assert done.returncode == 0, done.stderr
    assert_same_end(Path("run2"), Path("whole"))
    Path("other").rename("gone")
    done = train("--resume run --epochs 2", start=False)  # from the checkpoint, without them
    assert done.returncode == 0, done.stderr
    assert_same_end(Path("run"), Path("whole"))
    shutil.rmtree("run2/checkpoints")
    done = train("--resume run2 --initial-params other", start=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "other must be a folder that feedax train made, and it is not there" in done.stderr


def test_the_rows_come_from_the_checkpoint(train, begun):
    before = rows(begun)
    metrics = begun / "metrics.jsonl"
    metrics.write_text(metrics.read_text() * 2 + '{"epoch": 7}\nnot JSON \x00\n{"epo')
    done = train("--resume run --epochs 3", start=False)
    assert done.returncode == 0, done.stderr
    after = rows(begun)
    assert (after[:2], [row["epoch"] for row in after]) == (before, [0, 1, 2])


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--batch-size", "many"], "--batch-size must be a whole number, and it is 'many')"),
        (["--batch-size", "0"], "--batch-size must be at least 1, and it is 0"),
        (["--zzz"], "there is no flag --zzz"),
        (["--help"], "there is no flag --help"),
        (["-h"], "there is no flag -h"),
        (
            ["--tyro-write-completion", "bash", "written"],
            "there is no flag --tyro-write-completion",
        ),
        (["--tyro-print-completion", "bash"], "there is no flag --tyro-print-completion"),
    ],
    ids=str,
)
def test_arguments_that_are_nonsense_are_refused(train, begun, arguments, why):
    change_config(begun, arguments=arguments)
    done = train("--resume run", start=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "feedax train: run folder: run/config.json must hold the flags of feedax train, and they "
        f"cannot be read ({why}"
    ), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not Path("written").exists()


@pytest.mark.parametrize(
    "arguments", [None, "--epochs 3", {"--epochs": 3}, [["--epochs", 3]], 7, ["--epochs", 3]]
)
def test_arguments_that_are_no_words_are_refused(train, begun, arguments):
    change_config(begun, arguments=arguments)
    done = train("--resume run", start=False)
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        "feedax train: run folder: 'arguments' of run/config.json must be a list of words, and it "
        f"is {arguments!r}; restore the file from a copy or train again\n",
    )


@pytest.mark.parametrize("layers", [None, [16], [16, "8", 3], [16, True, 3], "16", [16, -8, 3]])
def test_layers_that_are_nonsense_are_refused(train, begun, layers):
    change_config(begun, layers=layers)
    done = train("--resume run", start=False)
    assert (done.returncode, done.stderr) == (
        1,
        "feedax train: run folder: 'layers' of run/config.json must be a list of sizes, and it is "
        f"{layers!r}; restore the file from a copy or train again\n",
    )


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 2}', b"\xff\x00", b"null"])
def test_a_damaged_configuration_is_one_line(train, begun, content):
    (begun / "config.json").write_bytes(content)
    done = train("--resume run", start=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"feedax train: run folder: run/config\.json must (be JSON, and it cannot be read|have "
        r"format 1, and it has) .*\n",
        done.stderr,
    ), done.stderr


@pytest.mark.parametrize("dataset", ["os:system", "evil:make", "subprocess:run"])
def test_a_run_folder_runs_no_code(train, begun, dataset, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    Path("evil.py").write_text("open('ran', 'w').close()\ndef make(): open('ran', 'w').close()\n")
    words = RunFolder.open(begun).setting("arguments")
    words[words.index("--dataset") + 1] = dataset
    change_config(begun, arguments=words)
    done = train("--resume run", start=False, names=False)
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        "feedax train: run folder: code must be named by you, not by a file, and the dataset of "
        f"run is made by {dataset}; add --dataset {dataset}\n",
    )
    assert not Path("ran").exists()
    assert "evil" not in sys.modules


def test_a_run_on_code_goes_on_when_the_code_is_named(train, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    Path("my_pairs.py").write_text(
        "import numpy as np\nfrom feedax.data import ArrayDataset\n"
        "def make(): return ArrayDataset(np.eye(12, 4, dtype=np.float32), np.arange(12) % 3)\n"
    )
    start = "--dataset my_pairs:make --hidden 4 --batch-size 4 --epochs"
    assert train(f"{start} 1 --out run", start=False).returncode == 0
    assert train("--resume run --epochs 2", start=False, names=False).returncode == 1
    done = train("--resume run --epochs 2 --dataset my_pairs:make", start=False)
    assert done.returncode == 0, done.stderr
    assert train(f"{start} 2 --out whole", start=False).returncode == 0
    assert_same_end(Path("run"), Path("whole"))


def test_a_copied_run_goes_on_where_it_lies_from_any_folder(train, data, tmp_path, monkeypatch):
    """Its dataset was named as a relative path."""
    words = "--hidden 8 --batch-size 16 --optimizer adam --epochs"
    monkeypatch.chdir(data.parent)
    begun, whole = tmp_path / "a", tmp_path / "whole"
    for epochs, out in ((1, begun), (3, whole)):
        done = train(f"--dataset npz:tiny.npz {words} {epochs} --out {out}", start=False)
        assert done.returncode == 0, done.stderr
    before = {path: path.stat().st_mtime_ns for path in begun.rglob("*")}
    (tmp_path / "far").mkdir()
    monkeypatch.chdir(tmp_path / "far")
    shutil.copytree(begun, "copy")
    done = train("--resume copy --epochs 3", start=False)
    assert done.returncode == 0, done.stderr
    first = done.stderr.splitlines()[0]
    assert first.startswith("feedax train: the run's folder is copy; it trains on the CPU, ")
    assert_same_end(Path("copy"), whole)
    assert {path: path.stat().st_mtime_ns for path in begun.rglob("*")} == before


def test_the_validation_split_is_a_split_and_the_same_every_time(data):
    def parts(seed):
        flags = DataFlags(dataset=f"npz:{data}", validation=0.1, seed=seed)
        examples = Examples.open(flags)
        loaders = examples.loaders()
        found = {name: loader.dataset for name, loader in loaders.items()}
        assert found["test"] is examples.test
        assert len(found["test"]) == 20
        return found["train"].indices, found["validation"].indices

    train, validation = parts(0)
    assert (len(train), len(validation)) == (54, 6)
    assert sorted(train + validation) == list(range(60))
    assert parts(0) == (train, validation)
    assert parts(1) == (train, validation)  # runs of several seeds are compared by it


@pytest.mark.parametrize(
    ("share", "held_out"), [("0.001", 0), ("0.999", 60)], ids=["nothing", "everything"]
)
def test_a_split_needs_examples_on_both_sides(train, data, share, held_out):
    done = train(f"--validation {share} --out run")
    assert (done.returncode, done.stderr) == (
        1,
        f"feedax train: feedax: --validation must leave examples on both sides, and {share} of the "
        f"60 of npz:{data} is {held_out}; give another share\n",
    )


def test_a_stream_cannot_be_split(train, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    Path("my_stream.py").write_text(
        "import numpy as np\nfrom torch.utils.data import IterableDataset\n"
        "class Stream(IterableDataset):\n"
        "    def __iter__(self): return ((np.ones(4, np.float32), i % 2) for i in range(9))\n"
    )
    done = train("--dataset my_stream:Stream --validation 0.1 --out run", start=False)
    assert (done.returncode, done.stderr) == (
        1,
        "feedax train: feedax: only a dataset with indices can be split, and my_stream:Stream is a "
        "stream; leave --validation out\n",
    )
    assert not Path("run").exists()


@pytest.mark.parametrize("column", ["validation_loss", slow("validation_accuracy")])
def test_the_best_epochs_parameters_are_kept(train, column):
    """A learning rate that leads away from the optimum: the best epoch is not the last one."""
    words = f"--validation 0.3 --optimizer adam --shuffle --best {column}"
    assert train(f"{words} --epochs 6 --keep-checkpoints 1 --out run").returncode == 0
    run = RunFolder.open("run")
    values = [row[column] for row in run.rows()]
    best = values.index(min(values) if column.endswith("loss") else max(values))
    assert best < 5, values
    names = sorted(path.name for path in run.checkpoints_path.iterdir())
    step = (best + 1) * 3
    assert names == [f"step-{step:09}.safetensors", "step-000000018.safetensors"]
    arrays, about = read_checkpoint(run.checkpoints_path / names[0])
    assert about["best"] == {"column": column, "value": values[best], "epoch": best, "step": step}
    kept = load_file(run.params_path)
    in_checkpoint = {
        name.removeprefix("state.params."): array.numbers
        for name, array in arrays.items()
        if name.startswith("state.params.")
    }
    assert kept.keys() == in_checkpoint.keys()
    assert all(np.array_equal(kept[name], in_checkpoint[name]) for name in kept)
    # So are those of a run that ended there.
    assert train(f"{words} --epochs {best + 1} --out short").returncode == 0
    assert Path("short/params.safetensors").read_bytes() == run.params_path.read_bytes()


def test_patience_ends_a_run_that_gets_no_better(train):
    words = "--validation 0.3 --shuffle --best validation_loss"
    assert train(f"{words} --epochs 12 --patience 2 --out run").returncode == 0
    values = [row["validation_loss"] for row in rows("run")]
    best = values.index(min(values))
    assert len(values) == best + 3 < 12
    shutil.copytree("run", "before")
    done = train("--resume run", start=False)
    assert "there was nothing left to train" in done.stderr
    assert_same_end(Path("run"), Path("before"))


def test_the_flags_know_every_optimizer_and_schedule():
    hints = get_type_hints(OptimizerFlags)
    assert get_args(hints["optimizer"]) == get_args(OptimizerName)
    assert get_args(hints["schedule"]) == get_args(ScheduleName)


@pytest.mark.parametrize("name", slow_but(["adamw"], get_args(OptimizerName)))
def test_every_optimizer_trains(train, name):
    rate = {"lion": 0.001, "sgd": 0.001, "momentum": 1e-4, "nesterov": 1e-4}.get(name, 0.01)
    words = f"--optimizer {name} --learning-rate {rate} --weight-decay 0.01 --clip-norm 5"
    done = train(f"{words} --epochs 2 --out run")
    assert done.returncode == 0, done.stderr
    losses = [row["loss"] for row in rows("run")]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", slow_but(["cosine"], get_args(ScheduleName)))
def test_every_schedule_trains(train, name):
    warmup = "" if name == "one_cycle" else "--warmup-steps 2"
    done = train(f"--schedule {name} {warmup} --learning-rate 0.001 --epochs 2 --out run")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "--schedule one_cycle --warmup-steps 2",
            "schedule: 'one_cycle' has a warm-up of its own, and warmup_steps is 2; leave it out, "
            "or choose --schedule cosine",
        ),
        (
            "--warmup-steps 8 --epochs 2",
            "schedule: --warmup-steps N must be shorter than the run, and it is 8 of 8 steps; "
            "lower it, or train longer",
        ),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_before_there_is_a_folder(train, words, sentence):
    done = train(f"{words} --out run")
    assert (done.returncode, done.stderr) == (1, f"feedax train: {sentence}\n")
    assert not Path("run").exists()


def test_bfloat16_says_what_it_changes(train, once):
    shutil.copytree(once, "once")
    done = train("--precision bfloat16 --epochs 2 --shuffle --seed 3 --optimizer adam --out run")
    assert done.returncode == 0, done.stderr
    assert (
        "feedax train: fit: the model computes in bfloat16, with 8 bits of precision, and on this "
        "CPU more slowly; parameters, losses, the optimizer and batch statistics stay in float32\n"
    ) in done.stderr
    assert {array.dtype.name for array in load_file("run/params.safetensors").values()} == {
        "float32"
    }
    losses = [[row["loss"] for row in rows(run)] for run in ("run", "once")]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.1)
