"""What the tests of the command line share."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from helpers import run_command, save_digits


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """320 real digits of 8 x 8 to train on and 100 to test with, as bytes."""
    return save_digits(tmp_path_factory.mktemp("digits") / "digits.npz", 320, 100)


@pytest.fixture
def on_digits(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., CompletedProcess[str]]:
    """Runs a command on the digits in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(words: str, start: bool = True) -> CompletedProcess[str]:
        data = ["--dataset", f"npz:{digits}"] if start else []
        return run_command(capfd, [*words.split(), *data])

    return run
