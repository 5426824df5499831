"""MLflow: the `log` stage (serial and idempotent), and live logging of search and finetuning to a server.

An experiment a parameter set, a run a (model, search, budget, seed), and a summary run with the claims and figures.
"""

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from seam.io import read_json, write_json
from seam.mlflow_store import JOB, LIVE, STATE, Record, Store, clean, exclusive, is_server, public
from seam.pairs import ALL
from seam.params import Job, Params
from seam.results import JobResult, Results, curves, load

POINTS = 250  # of a curve in MLflow; history.csv holds every step
NO_CURVE = {"step", "epoch", "seconds"}
SUMMARY = "summary"  # no job can have this name: those hold dashes


def uri(params: Params) -> str:
    """The tracking URI in force: MLFLOW_TRACKING_URI, else `mlflow.uri`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or params.mlflow.uri


def experiment(params: Params) -> str:
    return params.mlflow.experiment or params.name


def run(params: Params, out: Path) -> dict[str, Any]:
    """Log the grid's results, claims and figures; write `mlflow.json` with the run ids; return its content.

    What the store holds already stays as it is; a run whose results have changed is replaced.
    Raises SeamError when results are missing or made with other parameters, or when the store cannot be used.
    """
    from rich.console import Console
    from rich.progress import track

    from seam.graph import report_files
    from seam.provenance import check_inputs, record

    results, root = load(params), Path(params.results)
    report = [root / "report" / name for name in report_files(params)]
    manifest = root / "data/target/manifest.json"
    inputs = [manifest, root / "claims.json", *results.files, *report]
    check_inputs(params, inputs)
    claims = read_json(root / "claims.json")
    place, names, written = uri(params), {}, 0
    with exclusive(place):
        store = Store(place, experiment(params))
        records = _records(results, claims, read_json(manifest), report)
        bar = Console(stderr=True)
        for entry in track(records, "MLflow", len(results.jobs) + 1, console=bar, disable=not sys.stderr.isatty()):
            names[entry.job], new = store.put(entry)
            written += new
    content = {
        "uri": public(place),
        "experiment": store.experiment,
        "experiment_id": store.experiment_id,
        "summary": names.pop(SUMMARY),
        "runs": names,
    }
    write_json(out, content)
    record(params, "log", {}, inputs, [out], out.with_name(f"{out.stem}.provenance.json"))
    print(f"MLflow: {written} runs written, {len(names) + 1 - written} already there; experiment '{store.experiment}'")
    if not is_server(place):
        print(f"Look at them with: mlflow ui --backend-store-uri {public(place)}")
    return content


def _records(
    results: Results, claims: Mapping[str, Any], target: Mapping[str, Any], report: list[Path]
) -> Iterator[Record]:
    from seam.report.tables import rows

    table = rows(results, claims["design"]["roles"]["baseline"])
    for row, result in zip(table, results, strict=True):
        yield _job_record(results.params, row, result, target)
    yield _summary(results.params, claims, [results.root / "claims.json", *report])


def _job_record(params: Params, row: Mapping[str, Any], result: JobResult, target: Mapping[str, Any]) -> Record:
    job = result.job

    def chart(path: Path) -> None:
        from seam.report.policy_chart import draw_policy
        from seam.report.style import styles

        draw_policy(result.policy, path, styles(params)[job.search].colour, dpi=100)

    settings = {
        "model": job.model,
        "timm_model": params.model(job.model).name,
        "search": job.search,
        "method": result.method,
        "budget": job.budget,
        "budget_spec": params.budget(job.budget),
        "seed": job.seed,
        "target": params.target.dataset,
        "proxy": result.proxy_name,
        **_flat("search", params.settings(job.search).model_dump(mode="json")),
        **_flat("finetune", params.finetune.model_dump(mode="json")),
    }
    lines = {}
    for stage in ("search", "finetune"):
        history = curves(result.history(stage), most=POINTS)
        for key in history.keys() - NO_CURVE:
            steps = zip(history["step"], history[key], strict=True)
            lines[f"{stage}/{key}"] = {int(step): value for step, value in steps}
    return Record(
        job=job.name,
        name=job.name,
        metrics={k: float(v) for k, v in row.items() if isinstance(v, int | float) and k != "seed"},
        params=settings,
        tags={"model": job.model, "search": job.search, "budget": job.budget, "seed": str(job.seed)},
        curves=dict(sorted(lines.items())),
        datasets=tuple(_datasets(params, result, target)),
        files=(result.files["policy"], result.files["metrics"]),
        charts={"bits.png": chart},
    )


def _datasets(params: Params, result: JobResult, target: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    proxy = result.proxy
    profile = {key: target[key] for key in ("image_size", "channels", "train", "test", "sha256")}
    place = target["path"] or str(Path(params.data_root) / target["dataset"])
    yield {"name": target["dataset"], "context": "target", "source": place, "profile": profile}
    if proxy["count"]:
        wanted = ("count", "image_size", "split", "sampling", "seed", "class_counts", "sha256", "share_of_target")
        profile = {key: proxy[key] for key in wanted if key in proxy}
        place = proxy.get("path") or str(Path(params.data_root) / proxy["dataset"])
        yield {"name": f"{proxy['dataset']}-{proxy['count']}", "context": "proxy", "source": place, "profile": profile}


def _summary(params: Params, claims: Mapping[str, Any], files: list[Path]) -> Record:
    metrics = {f"claims_{verdict.replace(' ', '_')}": float(n) for verdict, n in claims["verdicts"].items()}
    for claim in claims["claims"]:
        if "estimate" in claim:
            metrics[clean(claim["id"])] = float(claim["estimate"]["value"])
    text = next((path.read_text(encoding="utf-8") for path in files if path.name == "claims.md"), "")
    return Record(
        job=SUMMARY,
        name=f"{params.name}-summary",
        metrics=metrics,
        params={"target": params.target.dataset, **_flat("claims", params.claims.model_dump(mode="json"))},
        tags={"mlflow.note.content": text[:8000], **_verdicts(claims)},
        files=tuple(files),
    )


def _verdicts(claims: Mapping[str, Any]) -> dict[str, str]:
    """Verdicts as tags: of the pooled claims, or of the one model; MLflow takes at most 100 tags at once."""
    models = claims["design"]["models"]
    scope = ALL if len(models) > 1 else models[0]
    found = {clean(f"verdict/{c['id']}"): c["verdict"] for c in claims["claims"] if c["model"] in (scope, ALL)}
    return dict(list(found.items())[:90])


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        name = clean(f"{prefix}.{key}")
        result |= _flat(name, value) if isinstance(value, Mapping) and value else {name: value}
    return result


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
