"""What the tests of training share."""

import logging
from collections.abc import Callable, Iterator

import jax
import pytest

from feedax.train.training import Training


@pytest.fixture
def tells_of_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is a piece of its own, and an event comes after each."""
    monkeypatch.setattr(Training, "report_seconds", 0.0)
    monkeypatch.setattr(Training, "chunk_steps", 1)


@pytest.fixture
def compilations(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[str], int]]:
    """Counts how often JAX itself says that it compiled a function of this name."""
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):

        def count(name: str) -> int:
            said = f"Finished XLA compilation of jit({name})"
            return sum(said in record.getMessage() for record in caplog.records)

        yield count
