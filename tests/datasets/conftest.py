"""What the tests of datasets share."""

from pathlib import Path

import pytest

from feedax import datasets


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The cache folder of feedax, of one test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "feedax"


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One unpacked MNIST that tests copy from or read, and never change."""
    root = tmp_path_factory.mktemp("unpacked")
    datasets.mnist(root=root)
    return root
