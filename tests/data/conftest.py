"""What the tests of data share."""

import importlib
from collections.abc import Iterator
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The `datasets` package, which asks no network and uses a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hugging face")))
        for switch in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
            patch.setenv(switch, "1")
        yield importlib.import_module("datasets")
