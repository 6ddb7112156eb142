"""``--log`` of feedax train and feedax sweep."""

import json
import sys

import pytest
import read_back
from helpers import run_command, save_digits, slow


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    data = save_digits(tmp_path / "digits.npz", 320, 100)

    def run(words, start=True):
        given = ["--dataset", f"npz:{data}", "--hidden", "8", "--no-report"] if start else []
        return run_command(capfd, [*words.split(), *given])

    return run


def test_a_run_is_logged_with_the_pictures_of_its_report(run, tmp_path):
    done = run("train --epochs 1 --out a --log tensorboard")
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, (tmp_path / "a" / "metrics.jsonl").read_text().splitlines())
    read = read_back.of_tensorboard(tmp_path / "a" / "tensorboard")
    assert read.scalars["epoch/test_accuracy"] == [(3, pytest.approx(row["test_accuracy"]))]
    assert read.config["batch_size"] == "128"
    assert (read.config["hidden"], read.config["preset"]) == ("8", "tutorial")
    assert list(read.pictures) == [
        "curves",
        "confusion matrix",
        "mistakes",
        "reliability",
        "weights",
        "first layer",
    ]
    params, kept = read.params, tmp_path / "a" / "params.safetensors"
    assert params.read_bytes() == kept.read_bytes()

    data = f"--dataset npz:{tmp_path / 'digits.npz'}"
    done = run(f"train --resume a --epochs 2 {data}", start=False)  # the log is recorded
    assert done.returncode == 0, done.stderr
    read = read_back.of_tensorboard(tmp_path / "a" / "tensorboard")
    assert read_back.steps(read, "epoch/epoch") == [3, 6]
    assert run("train --resume a --epochs 3 --log " + data, start=False).returncode == 0
    read = read_back.of_tensorboard(tmp_path / "a" / "tensorboard")
    assert read_back.steps(read, "epoch/epoch") == [3, 6]


def test_a_sweep_logs_its_networks_by_their_names(run, tmp_path):
    done = run("sweep --epochs 1 --seeds 2 --optimizer sgd adam --out a --log tensorboard")
    assert done.returncode == 0, done.stderr
    records = map(json.loads, (tmp_path / "a" / "networks.jsonl").read_text().splitlines())
    records = list(records)
    logs = {path.name: path for path in (tmp_path / "a" / "tensorboard").iterdir()}
    assert sorted(logs) == sorted(one["name"] for one in records)
    for one in records:
        read = read_back.of_tensorboard(logs[one["name"]])
        accuracy = pytest.approx(one["result"]["test_accuracy"])
        assert read.scalars["epoch/test_accuracy"] == [(0, accuracy)]
        assert read.config["optimizer"] == one["setting"]["optimizer"]
        assert read.config["seed"] == str(one["seed"])


@pytest.mark.parametrize("command", ["train", slow("sweep")])
def test_a_missing_library_is_one_sentence_before_there_is_a_folder(
    command, run, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    done = run(f"{command} --epochs 1 --out a --log wandb")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"feedax {command}: WandB: its library must be installed, feedax[wandb], and it cannot be "
        "imported (import of wandb halted; None in sys.modules); pip install 'feedax[wandb]'\n"
    )
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_log_that_may_be_sent_elsewhere_is_named_by_a_person(command, run, tmp_path, monkeypatch):
    more = " --seeds 1" if command == "sweep" else ""
    done = run(f"{command} --epochs 1 --out a --log mlflow{more}")
    assert done.returncode == 0, done.stderr
    data = f"--dataset npz:{tmp_path / 'digits.npz'}"
    done = run(f"{command} --resume a {data}", start=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"feedax {command}: run folder: a log that may be sent elsewhere must be named by you, not "
        "by a file, and a has --log mlflow; add --log mlflow, or --log without a value\n"
    )
    assert run(f"{command} --resume a --log mlflow {data}", start=False).returncode == 0
    read = read_back.of_mlflow(tmp_path / "a" / "mlruns")
    assert len(read.scalars["epoch/loss"]) == 1


def test_a_link_in_the_place_of_a_log_is_refused(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    assert run("train --epochs 1 --out a").returncode == 0
    (tmp_path / "a" / "tensorboard").symlink_to(tmp_path / "elsewhere")
    data = f"--dataset npz:{tmp_path / 'digits.npz'}"
    done = run(f"train --resume a --epochs 2 --log tensorboard {data}", start=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "feedax train: run folder: a/tensorboard must be a folder, and it is a link, which could "
        "lead anywhere; put the folder itself there"
    )
    assert list((tmp_path / "elsewhere").iterdir()) == []
