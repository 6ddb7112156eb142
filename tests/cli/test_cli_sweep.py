"""`feedax sweep`: which networks it trains, what it says of them, and how it goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import slow, timeless
from safetensors.numpy import load_file
from terminal import Terminal

from feedax import he_normal, init_network_params
from feedax.cli import main
from feedax.cli.examples import Examples
from feedax.cli.flags import PRESET_FLAGS, TrainFlags
from feedax.cli.parse import fields_of
from feedax.cli.sweep import groups_of
from feedax.cli.sweep_flags import REFUSED, SINGLE, SweepFlags, parse_sweep, several_flags
from feedax.report.figures import SWEEP_COLOURS, sweep_curves_png
from feedax.report.run_folder import RunFolder
from feedax.report.sweep_folder import SweepFolder
from feedax.storage.checkpoint_file import read_checkpoint

COMMON = "--hidden 8 --batch-size 50 --loss cross_entropy --optimizer adam --shuffle"
SGD = COMMON.replace("adam", "sgd")
SWEPT = (
    f"{COMMON} --learning-rate 0.003 0.03 --dropout 0 0.2 --flip --validation 0.2 "
    "--epochs 2 --seeds 2 --seed 3 --out swept"
)
NOT_A_NUMBER = (
    "sweep: the loss and the parameters must be finite numbers, and they were not in epoch 0 at "
    "step 1; lower the step size, or look at that batch's examples"
)


@pytest.fixture(scope="module")
def swept(digits, tmp_path_factory):
    """The folder of a sweep of four settings by two programs, with two seeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("swept"))
        assert main(["sweep", *SWEPT.split(), "--dataset", f"npz:{digits}"]) == 0
    return folder / "swept"


def records(folder):
    return SweepFolder.open(folder).rows()


def params(path):
    arrays, _ = read_checkpoint(path)
    return {name.removeprefix("params."): one.numbers.tobytes() for name, one in arrays.items()}


def last_line(done):
    return done.stderr.splitlines()[-1]


def test_a_sweep_keeps_every_network(swept, digits):
    every = records(swept)
    names = [
        f"learning_rate={rate},dropout={dropout},seed={seed}"
        for rate in (0.003, 0.03)
        for dropout in (0.0, 0.2)
        for seed in (3, 4)
    ]
    assert [one["name"] for one in every] == names
    for one in every:
        assert one["error"] is None
        assert [row["epoch"] for row in one["rows"]] == [0, 1]
        assert one["seconds"] == sum(row["seconds"] for row in one["rows"]) > 0
        # The training set is not looked at as a whole: that costs as much as training.
        sets = {name.partition("_")[0] for name in one["rows"][0] if name.endswith("_accuracy")}
        assert sets == {"validation"}
        # The parameters are those of the best epoch, and the result is its row, with the test set.
        row = max(one["rows"], key=lambda row: row["validation_accuracy"])
        assert one["result"].items() > row.items()
        assert set(one["result"]) - set(row) == {"test_loss", "test_accuracy"}
        assert (swept / one["params"]).is_file()
    assert {path.name for path in swept.iterdir()} == {
        "config.json",
        "networks.jsonl",
        "summary.json",
        "curves.png",
        "report.html",
        "networks",
    }
    assert not list(swept.rglob("step-*"))  # checkpoints of networks that have ended
    config = SweepFolder.open(swept).config
    assert config["dataset"] == f"npz:{digits}"
    assert config["versions"]["feedax"]
    assert len(config["settings"]) == 4


@pytest.mark.parametrize("at", [0, 7], ids=["plain", "dropout"])
def test_a_network_is_the_one_that_train_trains(on_digits, swept, at):
    record = records(swept)[at]
    setting = record["setting"]
    words = SWEPT.replace("--seeds 2 --seed 3", f"--seed {record['seed']}")
    words = words.replace("0.003 0.03", str(setting["learning_rate"]))
    words = words.replace("--dropout 0 0.2", f"--dropout {setting['dropout']}")
    assert on_digits(f"train {words.replace('swept', 'alone')}").returncode == 0
    alone = {name: one.tobytes() for name, one in load_file("alone/params.safetensors").items()}
    assert list(params(swept / record["params"]).values()) == list(alone.values())
    rows = timeless(RunFolder.open("alone").rows())
    best = max(rows, key=lambda row: row["validation_accuracy"])
    for column in ("test_loss", "test_accuracy"):
        assert record["result"][column] == best[column]
    for row in rows:
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            del row[name]
    assert timeless(record["rows"]) == rows


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
@pytest.mark.parametrize("initialisation", ["tutorial", "he"])
def test_initial_parameters_are_those_of_the_seed(digits, initialisation, seed):
    words = f"{COMMON} --initialisation {initialisation} --dataset npz:{digits}"
    _, combinations = parse_sweep(words.split(), "")
    (group,) = groups_of(combinations, [0], Examples.open(combinations[0].flags.data))
    found = group.arguments["init"](jax.random.key(seed))
    if initialisation == "he":
        expected = he_normal([64, 8, 10], jax.random.key(seed))
    else:
        with jax.threefry_partitionable(False):
            draw = jax.jit(init_network_params, static_argnums=0)
            expected = draw((64, 8, 10), jax.random.PRNGKey(seed))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_the_summary_is_that_of_the_networks(swept):
    summary = json.loads((swept / "summary.json").read_text())
    assert summary["is_complete"] is True
    assert len(summary["settings"]) == 4
    for one in summary["settings"]:
        some = [record for record in records(swept) if record["setting"] == one["setting"]]
        for column in ("test_accuracy", "validation_accuracy", "test_loss"):
            values = [record["result"][column] for record in some]
            found = one[column]
            assert found["mean"] == pytest.approx(np.mean(values), rel=1e-12)
            assert found["sd"] == pytest.approx(np.std(values, ddof=1), rel=1e-9, abs=1e-15)
            assert (found["minimum"], found["maximum"]) == (min(values), max(values))
        assert one["seconds"] == pytest.approx(np.mean([record["seconds"] for record in some]))
        assert (one["networks"], one["failed"]) == (2, 0)


def test_what_it_prints_of_networks_that_fail(on_digits):
    done = on_digits(f"sweep {SGD} --learning-rate 0.01 1e30 --seeds 2 --epochs 1 --out run")
    good, bad = records("run")[:2], records("run")[2:]
    assert [one["error"] for one in bad] == [NOT_A_NUMBER] * 2
    scores = [one["result"]["test_accuracy"] for one in good]
    mean, sd = np.mean(scores), np.std(scores, ddof=1)
    seconds = np.mean([one["seconds"] for one in good])
    lines = [
        *(
            f"learning_rate=0.01,seed={i}   {one['seconds']:8.2f} sec  test set accuracy "
            f"{one['result']['test_accuracy']:.5f}"
            for i, one in enumerate(good)
        ),
        *(
            f"learning_rate=1e+30,seed={i}  {one['seconds']:8.2f} sec  {NOT_A_NUMBER}"
            for i, one in enumerate(bad)
        ),
        "",
        "test set accuracy    networks     mean       sd      min      max  failed  sec each",
        f"learning_rate=0.01          2  {mean:.5f}  {sd:.5f}  {min(scores):.5f}  "
        f"{max(scores):.5f}       0  {seconds:8.2f}",
        "learning_rate=1e+30         0        -        -        -        -       2         -",
    ]
    assert done.stdout.splitlines() == lines
    assert done.returncode == 0
    first, *others = done.stderr.splitlines()
    assert first.startswith("feedax sweep: the sweep's folder is run; it trains on the CPU, ")
    assert others == [
        "feedax sweep: done; the networks, summary.json, curves.png and report.html are in run",
    ]


def test_where_every_network_fails_the_sweep_has_failed(on_digits):
    done = on_digits(f"sweep {SGD} --learning-rate 1e30 --seeds 2 --epochs 1 --out run")
    assert done.returncode == 1
    assert last_line(done) == (
        "feedax sweep: every network turned not-a-number; what they were before is in run"
    )
    (setting,) = json.loads(Path("run/summary.json").read_text())["settings"]
    assert setting == {"setting": {}, "networks": 2, "failed": 2, "seconds": None}


@pytest.mark.slow
def test_killed_and_stopped_at_any_moment_it_ends_the_same(on_digits, digits):
    words = f"{COMMON} --epochs 25 --seeds 4"
    assert on_digits(f"sweep {words} --out whole").returncode == 0

    def checkpoints():
        return {str(path) for path in Path("broken/networks").glob("seed=*/step-*")}

    command = [sys.executable, "-m", "feedax", "sweep", *words.split(), "--out", "broken"]
    with subprocess.Popen([*command, "--dataset", f"npz:{digits}"]) as process:
        while not any("seed=1" in path for path in checkpoints()):
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    first, *_ = before = records("broken")
    with Path("broken/networks.jsonl").open("a") as file:
        file.write('{"name": "half a li')  # as a kill at another moment leaves it

    saved = checkpoints()

    def stop():
        while checkpoints() == saved:  # until it trains again
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGTERM)

    signals = []
    previous = signal.signal(signal.SIGTERM, lambda *_: signals.append("too late"))
    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    done = on_digits("sweep --resume broken")
    thread.join()
    signal.signal(signal.SIGTERM, previous)
    assert not signals
    said = done.stderr.splitlines()
    assert f"feedax sweep: resumed: {len(before)} of 4 networks are trained already" in said
    count = len(records("broken"))
    assert len(before) <= count < 4
    assert done.returncode == 143
    assert said[-1] == (
        f"feedax sweep: stopped by SIGTERM after {count} of 4 networks; what they are is in "
        f"broken; resume it with: feedax sweep --resume broken --dataset npz:{digits}"
    )
    assert json.loads(Path("broken/summary.json").read_text())["is_complete"] is False
    done = on_digits("sweep --resume broken")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[: 4 - count]
    assert [line.split()[0] for line in lines] == [f"seed={seed}" for seed in range(count, 4)]
    assert records("broken")[0] == first  # its seconds too: it was not trained again
    assert timeless(records("broken")) == timeless(records("whole"))
    for one in records("whole"):
        assert params(Path("broken", one["params"])) == params(Path("whole", one["params"]))
    summaries = [json.loads(Path(name, "summary.json").read_text()) for name in ("broken", "whole")]
    assert timeless(summaries[0]) == timeless(summaries[1])


def test_more_seeds_add_networks(on_digits):
    words = f"{COMMON} --epochs 1 --learning-rate 0.01 0.02"
    assert on_digits(f"sweep {words} --seeds 3 --out whole").returncode == 0
    assert on_digits(f"sweep {words} --seeds 1 --out run").returncode == 0
    before = records("run")
    done = on_digits("sweep --resume run --seeds 3 --learning-rate 1e-2 0.02")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4 + 4
    assert [one for one in records("run") if one["seed"] == 0] == before
    assert timeless(records("run")) == timeless(records("whole"))
    # It is as if they had been asked for at once.
    done = on_digits("sweep --resume run")
    assert done.stderr.splitlines()[1] == (
        "feedax sweep: resumed: 6 of 6 networks are trained already"
    )
    assert len(SweepFolder.open("run").config["resumed"]) == 2


@pytest.mark.slow
def test_side_by_side_the_networks_are_nearly_the_same(on_digits):
    words = f"sweep {SGD} --seeds 3 --epochs 1"
    assert on_digits(f"{words} --out run --together 3").returncode == 0
    assert on_digits(f"{words} --out alone").returncode == 0
    for one, other in zip(records("run"), records("alone"), strict=True):
        assert one["name"] == other["name"]
        assert one["rows"][0]["loss"] == pytest.approx(other["rows"][0]["loss"], rel=1e-4)
        assert one["seconds"] == pytest.approx(sum(row["seconds"] for row in one["rows"]) / 3)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--seeds 0", "--seeds must be at least 1, and it is 0"),
        ("--together 0", "--together must be at least 1, and it is 0"),
        ("--epochs 3 0", "--epochs must be at least 1, and it is 0"),
        (
            "--epochs 3 x",
            "--epochs must be a whole number, and it is 'x'; see feedax sweep --help",
        ),
        (
            "--loss tutorial l1",
            "--loss must be one of tutorial, cross_entropy, and it is 'l1'; see feedax sweep "
            "--help",
        ),
        ("--dropout 0 --learning-rte 1", "there is no flag --learning-rte; did you mean "
         "--learning-rate?"),
        ("--dropout=0 0.1", "there is nothing to do with '0.1'; see feedax sweep --help"),
        ("--seed 0 1", "there is nothing to do with '1'; see feedax sweep --help"),
        (
            "--dropout 0 0.1 --learning-rate 0.1 0.2 1e-1",
            "every combination of values must be there once, and dropout 0.0 learning_rate 0.1 is "
            "there twice; give each value once",
        ),
        (
            "--initial-params run",
            "--initial-params must not be given, since every network of a sweep starts from "
            "parameters of its own seed; leave it out",
        ),
        (
            "--coordinator=here:1",
            "--coordinator must not be given, since one process trains all networks of a sweep; "
            "leave it out",
        ),
        ("--seed 4294967295 --seeds 2", "the seeds must be below 2**32, and the last one is "
         "4294967296; lower --seed"),
        ("--decay-epochs 3 4", "--decay-epochs is for --schedule step, and the schedule is "
         "constant; leave it out"),
    ],
    ids=lambda value: value.partition(",")[0][:30],
)  # fmt: skip
def test_what_is_wrong_is_said_before_there_is_a_folder(on_digits, words, sentence):
    done = on_digits(f"sweep {words}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"feedax sweep: {sentence}\n"
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "--learning-rate 0.003",
            "a sweep is resumed with the flags that it began with, and --learning-rate was 0.003 "
            "and 0.03 and is 0.003; leave it out, or start a new sweep",
        ),
        (
            "--epochs 3 --cache",
            "a sweep is resumed with the flags that it began with, and --epochs was 2 and is 3; "
            "--cache was off and is on; leave them out, or start a new sweep",
        ),
        ("--seeds 1", "--seeds must be at least the sweep's own 2, and it is 1; raise it"),
    ],
)
def test_a_flag_that_contradicts_the_sweep_is_named(on_digits, swept, words, sentence):
    done = on_digits(f"sweep --resume {swept} {words}", start=False)
    assert (done.returncode, done.stderr) == (2, f"feedax sweep: {sentence}\n")


@pytest.mark.parametrize("command", ["train --resume {}", "evaluate {}", "predict {} seven.png"])
def test_a_sweep_is_no_run(on_digits, swept, command):
    done = on_digits(command.format(swept), start=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"feedax {command.split()[0]}: run folder: {swept} must be a folder that feedax train "
        "made, and feedax sweep made it; give it to feedax sweep\n"
    )


def test_a_run_is_no_sweep(on_digits):
    RunFolder.create({}, path=Path("run"))
    done = on_digits("sweep --resume run", start=False)
    assert done.returncode == 1
    assert done.stderr == (
        "feedax sweep: run folder: run must be a folder that feedax sweep made, and feedax train "
        "made it; give it to feedax train\n"
    )


def test_code_is_not_run_because_a_folder_names_it(on_digits, swept, tmp_path):
    config = json.loads((swept / "config.json").read_text())
    for one in config["settings"]:
        one["arguments"] += ["--dataset", "os:getcwd"]
    SweepFolder.create(config, path=tmp_path / "run")
    done = on_digits("sweep --resume run", start=False)
    assert done.stderr == (
        "feedax sweep: run folder: code must be named by you, not by a file, and the dataset of "
        "run is made by os:getcwd; add --dataset os:getcwd\n"
    )


def test_flags_in_a_folder_are_only_flags(on_digits, swept, tmp_path):
    config = json.loads((swept / "config.json").read_text())
    SweepFolder.create({**config, "arguments": ["--help"]}, path=tmp_path / "run")
    done = on_digits("sweep --resume run", start=False)
    assert done.stderr == (
        "feedax sweep: run folder: run/config.json must hold the settings of a sweep, and they "
        "cannot be read (there is no flag --help); use the version of feedax that wrote it\n"
    )


def test_the_help_has_every_flag_of_train_that_is_of_use(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["sweep", "--preset", "modern", "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: feedax sweep ")
    shown = set(re.findall(r"^\W*(--[a-z][a-z-]+)", said, re.MULTILINE))
    assert shown == {name for name, _, _ in fields_of(TrainFlags)} - REFUSED.keys() | {
        "--seeds",
        "--together",
    }
    assert "--preset best: " in said
    several = several_flags(SweepFlags)
    assert {"--learning-rate", "--clip-norm", "--optimizer", "--preset", "--mixup"} <= {*several}
    alone = {"--hidden", "--dataset", "--best", "--shuffle", "--devices", "--resume", "--seeds"}
    assert not (alone | set(SINGLE)) & {*several}


def test_one_program_serves_all_numbers_that_it_is_given(digits):
    words = f"{COMMON} --dropout 0 0.1 0.2 --learning-rate 0.1 0.2 --weight-decay 0 0.1 --steps 2 3"
    _, combinations = parse_sweep([*words.split(), "--dataset", f"npz:{digits}"], "")
    groups = groups_of(combinations, [0, 1], Examples.open(combinations[0].flags.data))
    # Whether there is dropout or weight decay is a part of it, and so is the number of steps.
    assert [group.name for group in groups] == [
        *(f"dropout=0.0,weight_decay={decay},steps={n}" for decay in (0.0, 0.1) for n in (2, 3)),
        *(f"weight_decay={decay},steps={n}" for decay in (0.0, 0.1) for n in (2, 3)),
    ]
    assert [(one.setting, one.hyperparams) for one in groups[-1].members[::2]] == [
        (
            {"learning_rate": rate, "dropout": dropout},
            {"dropout": dropout, "weight_decay": 0.1},
        )
        for rate in (0.1, 0.2)
        for dropout in (0.1, 0.2)
    ]
    assert len({id(group.arguments["train"]) for group in groups}) == 1  # loaded once


def test_a_preset_can_be_swept_too():
    words = "--preset tutorial modern best --epochs 1 --dropout 0.3"
    _, found = parse_sweep(words.split(), "")
    assert [one.setting for one in found] == [{"preset": name} for name in PRESET_FLAGS]
    for one, (name, preset) in zip(found, PRESET_FLAGS.items(), strict=True):
        assert one.flags.augment == preset.augment, name
        assert one.flags.optimizer.learning_rate == preset.optimizer.learning_rate
        assert (one.flags.training.epochs, one.flags.model.dropout) == (1, 0.3)


def made_up(count):
    """Records of settings with two networks each, the later the better, and one that failed."""
    every = []
    for i in range(count):
        for seed in (0, 1):
            rows = [
                {"epoch": epoch, "test_loss": 3.0 - epoch, "test_accuracy": (i + seed / 9) / 20}
                for epoch in range(3)
            ]
            one = {"setting": {"rate": i}, "error": None, "result": rows[-1], "rows": rows}
            every.append(one)
    rows = [{"epoch": 0, "test_loss": None, "test_accuracy": None}]
    every.append({"setting": {"rate": -1}, "error": "it failed", "result": rows[0], "rows": rows})
    return every


@pytest.mark.parametrize("count", [slow(3), 12])
def test_the_curves_have_a_colour_for_each_setting(count):
    import io

    from PIL import Image

    png = sweep_curves_png(made_up(count), title="a sweep")
    image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3)
    assert Image.open(io.BytesIO(png)).width == 1600
    drawn = {tuple(pixel) for pixel in np.unique(image, axis=0).tolist()}
    colours = [tuple(bytes.fromhex(colour[1:])) for colour in SWEEP_COLOURS]
    used = min(count, len(SWEEP_COLOURS))
    assert set(colours[:used]) <= drawn
    assert not set(colours[used:6]) & drawn


def test_on_a_terminal_a_sweep_counts_networks_and_says_what_to_type_next(tmp_path, digits):
    flags = ["--dataset", f"npz:{digits}", "--hidden", "4", "--epochs", "1", "--seeds", "2"]
    words = [sys.executable, "-m", "feedax", "sweep", *flags, "--out", "my sweep"]
    screen = Terminal(words, tmp_path)
    assert screen.returncode == 0, screen.text
    assert re.search(r"^0/2 networks ━+", screen.text, re.MULTILINE)
    seconds = sum(one["seconds"] for one in records(tmp_path / "my sweep"))
    assert f"\ntime    {seconds:.1f} s training; " in screen.text
    assert screen.text.splitlines()[-6:] == [
        "sweep   my sweep",
        "report  my sweep/report.html",
        "",
        "next:",
        "  feedax show 'my sweep'",
        f"  feedax sweep --resume 'my sweep' --dataset npz:{digits} --seeds 4",
    ]
