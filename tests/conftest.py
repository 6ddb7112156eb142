"""What every test shares: a cache folder of its own, and real MNIST from the shipped bytes."""

import multiprocessing
import os
from collections.abc import Iterator
from typing import Any

# Tests hold what a CPU computes, on a machine with a GPU too; those marked `gpu` undo this.
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import pytest

import feedax
from feedax.data.workers import server

# Workers import the modules of the tests: what those need is imported once, by the server.
server.PRELOADED += ["pytest", "hypothesis", "helpers"]

if "forkserver" in multiprocessing.get_all_start_methods():
    # torch's own workers, where tests compare with them, need not import it each time.
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torch", "feedax.data"])


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither use nor change the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))
        assert "XDG_CACHE_HOME" in os.environ
        yield


@pytest.fixture(scope="session", autouse=True)
def _jax_is_strict() -> None:
    """JAX mixes no ranks and no dtypes by itself in this process."""
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def others_mix() -> Iterator[None]:
    """For tests in which another library, or what is held against ours, mixes ranks or dtypes."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="session", autouse=True)
def _programs_are_compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests of one session share what XLA compiles; JAX still says what it would compile."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.getbasetemp() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A browser, started once; see `browser.opened`."""
    from browser import started

    with started() as found:
        yield found


@pytest.fixture(scope="session")
def mnist_train():
    return feedax.datasets.mnist(train=True)


@pytest.fixture(scope="session")
def mnist_test():
    return feedax.datasets.mnist(train=False)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
