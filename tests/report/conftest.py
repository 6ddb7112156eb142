"""Runs that pages are written about."""

from pathlib import Path

import pytest

from feedax.cli import main


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of a small network on MNIST, by the command."""
    run = tmp_path_factory.mktemp("reported") / "run"
    assert main(["train", "--hidden", "64", "--epochs", "2", "--out", str(run)]) == 0
    return run
