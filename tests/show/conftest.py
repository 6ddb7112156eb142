"""The page over a folder, without a server."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from shown_runs import PORT
from starlette.testclient import TestClient

from feedax.cli.show import open_run
from feedax.show.app import make_app
from feedax.show.runs import Runs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "runs"
    path.mkdir()
    return path


@pytest.fixture
def client(folder: Path) -> Iterator[TestClient]:
    with TestClient(
        make_app(Runs(folder), open_run, PORT),
        base_url=f"http://127.0.0.1:{PORT}",
        headers={"Origin": f"http://127.0.0.1:{PORT}"},
    ) as found:
        yield found


@pytest.fixture
def ask(client: TestClient) -> Callable[..., dict[str, Any]]:
    """What the page is told, of the ticked runs too."""

    def asked(*ticked: tuple[str, str, int]) -> dict[str, Any]:
        response = client.get("/api/runs", params={"ticked": json.dumps(ticked)})
        assert response.status_code == 200, response.text
        return response.json()

    return asked
