"""What the libraries keep of a user is kept away from the tests, and they from the network."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _nobodys_account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No account and no server is configured, so that nothing leaves this machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith(("WANDB_", "MLFLOW_")):
                patch.delenv(name)
        home = tmp_path_factory.mktemp("home")
        patch.setenv("HOME", str(home))
        patch.setenv("NETRC", str(home / "none"))
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("WANDB_X_DISABLE_STATS", "true")
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        yield
