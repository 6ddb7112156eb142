"""MLflow: a folder, or a server."""

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from feedax.loggers.logger import ROW, STEP, Log, Logger, Pictures, Status, place

TAG = "feedax.run"
"""The tag by which a resumed run finds its log."""
LONGEST = 500
"""Letters of a parameter's value; servers refuse longer ones."""


class MLflow(Logger):
    """Logs to MLflow: ``MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri mlruns``.

    A run that is resumed is the newest one of its name. What it logged after its checkpoint stays,
    since nothing can be taken back; it is not logged again.

    Args:
        folder: of the runs; or the address of a server, which is then asked. MLFLOW_TRACKING_URI,
            or ``mlruns``, if None.
        name: the run's, by which it is found when it is resumed; "run" if None.
        config, pictures: see `Logger`.
        experiment: MLFLOW_EXPERIMENT_NAME if None, or "feedax".

    Raises:
        LoggerError: mlflow is not installed.
    """

    extra = "mlflow"

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        pictures: Pictures | None = None,
        experiment: str | None = None,
    ) -> None:
        self._uri = str(folder or os.environ.get("MLFLOW_TRACKING_URI") or "mlruns")
        if ":" not in self._uri:
            self._uri = str(Path(self._uri).absolute())
        self._experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "feedax"
        super().__init__(self._uri, name=name or "run", config=config, pictures=pictures)

    def _import(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else a folder is refused
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # 7 take minutes
        from mlflow import MlflowClient, entities

        self._entities, self._new_client = entities, MlflowClient

    def _begin(self, log: Log) -> int:
        self._client = client = self._new_client(tracking_uri=self._uri)
        found = client.get_experiment_by_name(self._experiment)
        experiment = found.experiment_id if found else client.create_experiment(self._experiment)
        name = log.name.replace("'", "")
        tags = {TAG: name} | ({} if log.sweep is None else {"feedax.sweep": log.sweep})
        if log.resumed_at is not None:
            runs = client.search_runs(
                [experiment], f"tags.`{TAG}` = '{name}'", order_by=["attributes.start_time DESC"]
            )
            if runs:
                self._run = runs[0].info.run_id
                client.update_run(self._run, status="RUNNING")
                return max(
                    self._last_place("step/loss", STEP), self._last_place("epoch/epoch", ROW)
                )
        self._run = client.create_run(experiment, run_name=log.name, tags=tags).info.run_id
        for key, value in log.config.items():
            client.log_param(self._run, key, str(value)[:LONGEST])
        return -1

    def _last_place(self, name: str, kind: int) -> int:
        history = self._client.get_metric_history(self._run, name)
        return max((place(one.step, kind) for one in history), default=-1)

    def _scalars(self, step: int, place: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [self._entities.Metric(name, one, now, step) for name, one in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def _figures(self, step: int, place: int, pngs: Mapping[str, bytes]) -> None:
        for name, png in pngs.items():
            self._artifact(f"{name}.png", [png], "pictures")

    def _params(self, content: Sequence[bytes | memoryview]) -> None:
        self._artifact("params.safetensors", content)

    def _artifact(
        self, name: str, content: Sequence[bytes | memoryview], folder: str | None = None
    ) -> None:
        with tempfile.TemporaryDirectory() as aside:
            path = Path(aside, name)
            path.write_bytes(b"".join(content))
            self._client.log_artifact(self._run, str(path), folder)

    def _end(self, status: Status) -> None:
        names = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
        self._client.set_terminated(self._run, names[status])
