"""Checkpoints and run folders that version 0.1.0 wrote are resumed to the bits of whole runs."""

import contextlib
import json
import shutil

import jax
import numpy as np
import old_files
import pytest
from helpers import slow
from safetensors.numpy import load_file

from feedax.cli import main

WHOLE = np.load(old_files.FOLDER / "whole.npz")


def assert_as_whole(name, leaf, is_same_machine):
    """To the bit where this processor rounds as the one did that wrote the files."""
    if is_same_machine:
        np.testing.assert_array_equal(leaf, WHOLE[name])
    else:
        np.testing.assert_allclose(leaf, WHOLE[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("plan", ["resident", slow("vectorised"), "streamed"])
def test_a_run_is_resumed(plan, tmp_path):
    whole, _ = old_files.run(tmp_path / "whole", plan)
    is_same = all(np.array_equal(leaf, WHOLE[f"{plan}/{name}"]) for name, leaf in whole.items())
    shutil.copytree(old_files.FOLDER / plan, tmp_path / plan)
    begun = list((tmp_path / plan).iterdir())

    params, history = old_files.run(tmp_path / plan, plan)

    for name, leaf in params.items():
        assert_as_whole(f"{plan}/{name}", leaf, is_same)
    assert_as_whole(f"{plan}/loss", [row["loss"] for row in history], is_same)
    assert not any(path.exists() for path in begun)  # it was resumed, and newer ones were kept


@pytest.mark.parametrize("together", [1, 4])
def test_a_sweep_is_resumed(together, tmp_path):
    name = f"together_{together}"
    whole = old_files.grid(tmp_path / "whole", together)
    shutil.copytree(old_files.FOLDER / name, tmp_path / name)

    networks = old_files.grid(tmp_path / name, together)

    assert len(networks) == 4
    for network, other in zip(networks, whole, strict=True):
        key = f"{name}/{network.setting['learning_rate']}/{network.seed}"
        is_same = all(
            np.array_equal(leaf, WHOLE[f"{key}/{part}"]) for part, leaf in other.params.items()
        )
        for part, leaf in network.params.items():
            assert_as_whole(f"{key}/{part}", leaf, is_same)


def test_a_run_folder_is_resumed(tmp_path, capsys):
    old_files.train(tmp_path, epochs=4)
    whole = load_file(tmp_path / "run" / "params.safetensors")
    shutil.rmtree(tmp_path / "run")
    shutil.copytree(old_files.FOLDER / "run", tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace("/data", str(tmp_path)))
    capsys.readouterr()

    with contextlib.chdir(tmp_path):
        command = ["train", "--resume", "run", "--epochs", "4", "--dataset", "npz:examples.npz"]
        assert main(command) == 0

    told = capsys.readouterr().out.splitlines()
    assert [line.split(" in ")[0] for line in told if line.startswith("Epoch")] == [
        "Epoch 2",
        "Epoch 3",
    ]
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [0, 1, 2, 3]
    resumed = load_file(tmp_path / "run" / "params.safetensors")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), resumed, whole
    )
