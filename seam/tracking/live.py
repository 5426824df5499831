"""Live logging of search and finetuning to an MLflow server."""

import contextlib
import time
import warnings
from collections.abc import Iterator
from typing import Any

from seam.experiment.params import Job, Params
from seam.tracking.store import JOB, LIVE, STATE, Store, experiment, is_server, uri


class Live:
    """Logs a stage's progress to a server, in batches; does nothing without one, and stops at the first failure.

    The training goes on whatever happens to the server: the `log` stage completes the run from history.csv.
    """

    def __init__(self, params: Params, job: Job, stage: str, every: float = 5.0):
        """every: least seconds between two requests."""
        self.job, self.stage, self.every = job, stage, every
        self.store: Store | None = None
        self._waiting: list[Any] = []
        self._sent, self._last, self._run_id, self._first = time.monotonic(), -1, "", True
        if is_server(place := uri(params)):
            with self._guarded():
                self.store = Store(place, experiment(params))

    def log(self, step: int, **metrics: float) -> None:
        """Log metrics of one step as `<stage>/<name>`; use the names of the history's columns."""
        if self.store is None:
            return
        from mlflow.entities import Metric

        with self._guarded():
            if self._first:
                self._start(step, f"{self.stage}/{next(iter(metrics))}")
            if step <= self._last:  # resumed before the last step that was sent
                return
            now = int(time.time() * 1000)
            self._waiting += [Metric(f"{self.stage}/{k}", float(v), now, step) for k, v in metrics.items()]
            if time.monotonic() - self._sent > self.every or len(self._waiting) > 900:
                self._flush()

    def close(self, status: str = "FINISHED") -> None:
        """Send what is waiting and set the run's status."""
        if self.store is not None and self._run_id:
            with self._guarded():
                self._flush()
                self.store.client.set_terminated(self._run_id, status)

    def _start(self, step: int, key: str) -> None:
        """Take up the job's live run, or a new one: if this stage starts again from its beginning, the old is gone."""
        self._first = False
        for run in self.store.runs(self.job.name):
            if run.data.tags.get(STATE) != LIVE:
                continue
            points = self.store.history(run.info.run_id, key)
            if points and step <= min(at for at, _ in points):
                self.store.client.delete_run(run.info.run_id)
            else:
                self._run_id = run.info.run_id
                self._last = max((at for at, _ in points), default=-1)
        if not self._run_id:
            tags = {JOB: self.job.name, STATE: LIVE}
            created = self.store.client.create_run(self.store.experiment_id, run_name=self.job.name, tags=tags)
            self._run_id = created.info.run_id
        self.store.client.update_run(self._run_id, status="RUNNING")

    def _flush(self) -> None:
        waiting, self._waiting, self._sent = self._waiting, [], time.monotonic()
        for start in range(0, len(waiting), 1000):
            self.store.client.log_batch(self._run_id, metrics=waiting[start : start + 1000])

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.store = None
            warnings.warn(f"live logging to MLflow stopped ({error}); the log stage adds the rest", stacklevel=4)


@contextlib.contextmanager
def live(params: Params, job: Job, stage: str) -> Iterator[Live]:
    """`with live(params, job, "search") as logger: logger.log(step, loss=...)`; no-op unless the URI is a server's."""
    logger = Live(params, job, stage)
    try:
        yield logger
    except BaseException:
        logger.close("FAILED")
        raise
    logger.close()
