"""What the runs in MLflow hold.

An experiment a parameter set, a run a (model, search, budget, seed), and a summary run with the claims and figures.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from seam.claims.comparison import ALL
from seam.experiment.params import Params
from seam.experiment.provenance import provenance_path
from seam.experiment.results import JobResult, Results, curves
from seam.io import read_json
from seam.tracking.store import Record, clean
from seam.tracking.view import ORDER

POINTS = 250  # of a curve in MLflow; history.csv holds every step
NO_CURVE = {"step", "epoch", "seconds"}
SUMMARY = "summary"  # no job can have this name: those hold dashes
# The columns of results.csv that people compare runs by; the summary's results.csv holds all.
METRICS = (
    "top1",
    "calibrated_top1",
    "delta_fp",
    "class_margin",
    "bitops_g",
    "size_mb",
    "mean_w",
    "mean_a",
    "search_seconds",
    "search_image_macs",
    "speedup",
    "speedup_image_macs",
)


def records(
    results: Results, claims: Mapping[str, Any], target: Mapping[str, Any], report: list[Path]
) -> Iterator[Record]:
    """A run for each job of the grid, and the summary."""
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
        ORDER: f"{job.model} {100 - row['top1']:06.2f}",
        **{clean(f"bits.{name}"): f"{w}/{a}" for name, (w, a) in result.bits.items()},
        **_flat("search", params.settings(job.search).model_dump(mode="json")),
        **_flat("finetune", params.training("finetune", job.model).model_dump(mode="json")),
    }
    lines = {}
    for stage in ("search", "finetune"):
        history = curves(result.history(stage), most=POINTS)
        for key in history.keys() - NO_CURVE:
            steps = zip(history["step"], history[key], strict=True)
            lines[f"{stage}/{key}"] = {int(step): value for step, value in steps}
    ends = (cost.get("ended") for cost in (result.search_cost, result.finetune_cost, result.evaluate_cost))
    return Record(
        job=job.name,
        name=job.name,
        metrics={key: float(row[key]) for key in METRICS if row[key] != ""},
        params=settings,
        tags=source_tags(result.files["policy"]),
        curves=dict(sorted(lines.items())),
        datasets=tuple(_datasets(params, result, target)),
        files=(result.files["policy"], result.files["metrics"]),
        charts={"bits.png": chart},
        started=result.search_cost.get("started"),
        ended=max(filter(None, ends), key=datetime.fromisoformat, default=None),
    )


def source_tags(policy: Path) -> dict[str, str]:
    """MLflow's own tags of where a run comes from: the command, and the commit that made the policy, if it is known."""
    tags = {"mlflow.source.name": "seam", "mlflow.source.type": "LOCAL"}
    provenance = provenance_path(policy)
    git = read_json(provenance).get("git") if provenance else None
    commit = git.get("commit") if isinstance(git, Mapping) else None
    return tags | ({"mlflow.source.git.commit": str(commit)} if commit else {})


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
    text = next((path.read_text(encoding="utf-8") for path in files if path.name == "claims.md"), "")
    return Record(
        job=SUMMARY,
        name=f"{params.name}-summary",
        metrics={},  # a column for each claim would hide those of the runs; estimates are in claims.md and .json
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
