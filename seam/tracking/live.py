"""Live logging of search and finetuning to an MLflow server."""

import contextlib
import queue
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from seam.experiment.params import Job, Params
from seam.runtime.distributed import rank
from seam.runtime.meter import Meter
from seam.tracking.store import JOB, LIVE, STATE, Store, experiment, is_server, quiet, uri

PATIENCE = 5.0  # seconds that a job waits for the server in all
WAITING = 10_000  # steps that may wait for it


class Step(NamedTuple):
    """What one call of `Live.log` adds; milliseconds: when."""

    number: int
    metrics: dict[str, float]
    milliseconds: int


class Live:
    """Logs a stage's progress to a server, in batches; does nothing without one, and stops at the first failure.

    A thread talks to the server, so that the training waits for it only at the end, at most `PATIENCE` seconds: a
    server may accept connections and never answer. The training goes on whatever happens to the server: the `log`
    stage completes the run from history.csv.
    """

    def __init__(self, params: Params, job: Job, stage: str, every: float = 5.0):
        """every: least seconds between two requests."""
        self._sender: _Sender | None = None
        if is_server(place := uri(params)) and not rank():
            quiet()
            # Here rather than in the thread, where it would compete with the training:
            import mlflow.tracking  # noqa: F401
            import sqlalchemy.exc  # noqa: F401

            self._sender = _Sender(place, experiment(params), job.name, stage, every)
            self._sender.start()

    def log(self, step: int, **metrics: float) -> None:
        """Log metrics of one step as `<stage>/<name>`; use the names of the history's columns."""
        if self._sender is not None:
            self._hand_over(Step(step, metrics, int(time.time() * 1000)))

    def close(self, status: str = "FINISHED") -> None:
        """Send what is waiting and set the run's status."""
        if self._sender is None:
            return
        self._hand_over(status)
        if (sender := self._sender) is None:
            return
        sender.join(max(0.0, PATIENCE - sender.unanswered()))
        self._stop("no answer" if sender.is_alive() else sender.failure)

    def _hand_over(self, item: Step | str) -> None:
        try:
            self._sender.items.put_nowait(item)
            self._stop(self._sender.failure, quietly=True)
        except queue.Full:
            self._stop("the server does not keep up")

    def _stop(self, failure: str, quietly: bool = False) -> None:
        """End the logging, with a warning if it failed; `quietly`: only if it failed."""
        if failure:
            warnings.warn(f"live logging to MLflow stopped ({failure}); the log stage adds the rest", stacklevel=4)
        if failure or not quietly:
            self._sender.gone.set()
            self._sender = None


class _Sender(threading.Thread):
    """Sends steps to the server until it is told a status; keeps the first failure. It never holds up the exit."""

    def __init__(self, place: str, experiment: str, job: str, stage: str, every: float):
        super().__init__(name="live-logging", daemon=True)
        self.place, self.experiment, self.job, self.stage, self.every = place, experiment, job, stage, every
        self.items: queue.Queue[Step | str] = queue.Queue(WAITING)
        self.gone = threading.Event()  # nobody waits for it any more
        self.failure = ""
        self._asked = time.monotonic()  # when the request in progress began; 0 while there is none

    def unanswered(self) -> float:
        """Seconds that the server has owed an answer."""
        asked = self._asked
        return time.monotonic() - asked if asked else 0.0

    def run(self) -> None:
        try:
            self._send()
        except Exception as error:
            self.failure = str(error).strip() or type(error).__name__

    def _send(self) -> None:
        from mlflow.entities import Metric

        store = Store(self.place, self.experiment)
        run_id, last, waiting, sent = "", -1, [], time.monotonic()
        while not self.gone.is_set():
            self._asked = 0.0
            item = self.items.get()
            self._asked = time.monotonic()
            if isinstance(item, Step):
                if not run_id:
                    run_id, last = self._start(store, item)
                if item.number > last:  # else: resumed before the last step that was sent
                    key, now = f"{self.stage}/", item.milliseconds
                    waiting += [Metric(key + k, float(v), now, item.number) for k, v in item.metrics.items()]
            done = isinstance(item, str)
            if done or time.monotonic() - sent > self.every or len(waiting) > 900:
                for start in range(0, len(waiting), 1000):
                    store.client.log_batch(run_id, metrics=waiting[start : start + 1000])
                waiting, sent = [], time.monotonic()
            if done:
                if run_id:
                    store.client.set_terminated(run_id, item)
                return

    def _start(self, store: Store, first: Step) -> tuple[str, int]:
        """Take up the job's live run, or a new one: if this stage starts again from its beginning, the old is gone.

        Returns the run's id and the last step that it holds.
        """
        run_id, last, key = "", -1, f"{self.stage}/{next(iter(first.metrics))}"
        for run in store.runs(self.job):
            if run.data.tags.get(STATE) != LIVE:
                continue
            points = store.history(run.info.run_id, key)
            if points and first.number <= min(at for at, _ in points):
                store.client.delete_run(run.info.run_id)
            else:
                run_id, last = run.info.run_id, max((at for at, _ in points), default=-1)
        if not run_id:
            tags: dict[str, Any] = {JOB: self.job, STATE: LIVE}
            run_id = store.client.create_run(store.experiment_id, run_name=self.job, tags=tags).info.run_id
        store.client.update_run(run_id, status="RUNNING")
        return run_id, last


@contextlib.contextmanager
def live(params: Params, job: Job, stage: str, meter: Meter) -> Iterator[Live]:
    """`with live(params, job, "search", meter) as logger: logger.log(step, loss=...)`; no-op unless the URI is a
    server's. What it costs is not in the meter's seconds."""
    with meter.aside():
        logger = Live(params, job, stage)
    try:
        yield logger
    except BaseException:
        logger.close("FAILED")
        raise
    with meter.aside():
        logger.close()
