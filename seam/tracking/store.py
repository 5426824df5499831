"""Runs in an MLflow experiment: each says which content it holds, so that writing it again adds nothing."""

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from seam.errors import SeamError
from seam.experiment.params import Params
from seam.io import sha256

# Tags of a run. DONE is set last: a run without it was interrupted, or is being logged live.
JOB, STATE, DIGEST = "seam.job", "seam.state", "seam.digest"
WRITING, LIVE, DONE = "writing", "live", "done"
FORMAT = 2  # part of the digest: raise it when runs of an older layout are to be replaced
BATCH = 1000  # MLflow's limit of metrics a request
Curve = Mapping[int, float]  # step -> value


@dataclass(frozen=True)
class Record:
    """Everything that one run shall hold. `job` identifies the run in the experiment; `name` is what people see."""

    job: str
    name: str
    metrics: Mapping[str, float]
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)  # metric key -> step -> value
    datasets: tuple[Mapping[str, Any], ...] = ()  # name, context, source (a path), profile
    files: tuple[Path, ...] = ()
    charts: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)  # file name -> draws it; from `files`
    started: str | None = None  # when the job ran (ISO 8601); not content, as the same results may be made twice
    ended: str | None = None

    @property
    def digest(self) -> str:
        """Hash of all content, files by their content; charts only show what is in the files."""
        content = {
            name: getattr(self, name) for name in ("job", "name", "metrics", "params", "tags", "curves", "datasets")
        }
        content |= {"files": {path.name: sha256(path) for path in self.files}, "format": FORMAT}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


def quiet() -> None:
    """No telemetry, no minutes of retries, no migration messages; to be called before mlflow is imported.

    Left alone, MLflow reports its use to a server of its own, and asks an absent tracking server seven times with
    growing pauses. What the user has set in the environment stays.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def public(uri: str) -> str:
    """The URI without user name and password, for files and messages."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def clean(key: str) -> str:
    """A metric or tag name that MLflow accepts."""
    return re.sub(r"[^\w\-. /]", "", key)


def database(uri: str) -> Path | None:
    """The file of a SQLite store; None for other stores."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what a store raises into a SeamError that names the key."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise SeamError(
            f"mlflow.uri: cannot log to '{public(uri)}': {lines[0]}\n"
            "Give a database (sqlite:///mlflow.db) or a running server (http://host:port), "
            "in the parameters or in MLFLOW_TRACKING_URI."
        ) from error


@contextlib.contextmanager
def exclusive(uri: str) -> Iterator[None]:
    """One writer at a time on a SQLite store: two would race in the migration of a new database."""
    if (file := database(uri)) is None:
        yield
        return
    from filelock import FileLock

    quiet()
    lock = FileLock(f"{file}.lock")
    with explained(uri):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _create(file: Path) -> None:
    """Make a new database under another name first: one that was cut off in its hundred steps could never be opened."""
    from mlflow import MlflowClient

    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=file.parent) as folder:
        new = Path(folder, file.name)
        MlflowClient(f"sqlite:///{new}").search_experiments(max_results=1)
        os.replace(new, file)


class Store:
    """One experiment of one tracking server or database."""

    def __init__(self, uri: str, experiment: str):
        """Connect, and create the experiment (and a new SQLite database) where needed.

        Raises SeamError when the URI cannot be used.
        """
        quiet()
        from mlflow import MlflowClient

        self.uri, self.experiment = uri, experiment
        with explained(uri):
            if (file := database(uri)) and not file.exists():
                _create(file)
            self.client = MlflowClient(uri)
            self.experiment_id = self._experiment()

    def show(self) -> None:
        """Have the experiment open as a training's, with the view of `tracking.view`; again, this changes nothing."""
        from seam.tracking.view import experiment_tags

        with explained(self.uri):
            found = self.client.get_experiment(self.experiment_id)
            for key, value in experiment_tags(found.creation_time).items():
                if found.tags.get(key) != value:
                    self.client.set_experiment_tag(self.experiment_id, key, value)

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(self.experiment)
        if found is None:
            artifacts = None
            if file := database(self.uri):  # beside the database, wherever the process runs
                artifacts = (file.resolve().parent / "mlruns" / self.experiment).as_uri()
            try:
                return self.client.create_experiment(self.experiment, artifact_location=artifacts)
            except MlflowException:  # another process was faster
                found = self.client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def runs(self, job: str | None = None) -> list[Any]:
        """The experiment's runs that are not deleted, oldest first; only those of one job if given."""
        condition, found, token = f"tags.`{JOB}` = '{job}'" if job else "", [], None
        while True:
            page = self.client.search_runs([self.experiment_id], condition, page_token=token)
            found += page
            if not (token := page.token):
                return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))

    def put(self, record: Record) -> tuple[str, bool]:
        """Make the experiment hold this record once; returns (run id, whether anything was written).

        A run with the same content stays as it is. A live run whose curves agree with the record is completed. Every
        other run of the job holds old or partial results, and is deleted (MLflow keeps deleted runs restorable).
        """
        with explained(self.uri):
            found, digest = self.runs(record.job), record.digest
            kept = next((run for run in found if run.data.tags.get(DIGEST) == digest), None)
            written = kept is None
            if written:
                kept = next((run for run in found if self._continues(run, record)), None)
            for run in found:
                if kept is None or run.info.run_id != kept.info.run_id:
                    self.client.delete_run(run.info.run_id)
            if not written:
                return kept.info.run_id, False
            if kept is None:
                tags = {JOB: record.job, STATE: WRITING}
                started = _milliseconds(record.started)
                kept = self.client.create_run(self.experiment_id, started, tags, record.name)
            self._write(kept.info.run_id, record, digest)
            return kept.info.run_id, True

    def history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """(step, value) of a metric, in the order of logging."""
        return [(metric.step, metric.value) for metric in self.client.get_metric_history(run_id, key)]

    def _continues(self, run: Any, record: Record) -> bool:
        """Whether a run is live and every point it holds is a point of the record's curves."""
        if run.data.tags.get(STATE) != LIVE:
            return False
        for key, curve in record.curves.items():
            points = self.history(run.info.run_id, key) if key in run.data.metrics else []
            if len({step for step, _ in points}) != len(points):
                return False
            if any(abs(value - curve.get(step, value)) > 1e-4 * (1 + abs(value)) for step, value in points):
                return False
        return True

    def _write(self, run_id: str, record: Record, digest: str) -> None:
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        live = self.client.get_run(run_id).data.metrics
        self.client.set_tag(run_id, STATE, WRITING)
        points = [Metric(key, value, now, 0) for key, value in record.metrics.items()]
        for key, curve in record.curves.items():
            there = {step for step, _ in self.history(run_id, key)} if key in live else set()
            points += [Metric(key, value, now, step) for step, value in curve.items() if step not in there]
        for start in range(0, len(points), BATCH):
            self.client.log_batch(run_id, metrics=points[start : start + BATCH])
        entries = [Param(key, str(value)) for key, value in record.params.items()]
        for start in range(0, len(entries), 100):
            self.client.log_batch(run_id, params=entries[start : start + 100])
        if record.datasets:
            self.client.log_inputs(run_id, [_dataset(entry) for entry in record.datasets])
        for path in record.files:
            self.client.log_artifact(run_id, str(path))
        with tempfile.TemporaryDirectory() as folder:
            for name, draw in record.charts.items():
                draw(Path(folder) / name)
                self.client.log_artifact(run_id, str(Path(folder) / name))
        self.client.update_run(run_id, status="FINISHED", name=record.name)
        tags = {**record.tags, DIGEST: digest, STATE: DONE}
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        self.client.set_terminated(run_id, end_time=_milliseconds(record.ended))


def _milliseconds(moment: str | None) -> int | None:
    """MLflow's times; None, which MLflow takes as now, for results that do not tell."""
    return None if moment is None else max(0, int(datetime.fromisoformat(moment).timestamp() * 1000))


def _dataset(entry: Mapping[str, Any]) -> Any:
    """A dataset input by its description alone: no images are read."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile = json.dumps(entry["profile"], sort_keys=True)
    digest = hashlib.sha256(f"{entry['name']} {profile}".encode()).hexdigest()[:12]
    source = json.dumps({"uri": entry["source"]})
    dataset = Dataset(entry["name"], digest, "local", source, profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", entry["context"])])


def uri(params: Params) -> str:
    """The tracking URI in force: MLFLOW_TRACKING_URI, else `mlflow.uri`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or params.mlflow.uri


def experiment(params: Params) -> str:
    return params.mlflow.experiment or params.name
