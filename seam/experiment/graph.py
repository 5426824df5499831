"""The graph of jobs that a parameter set stands for: each job's folder, inputs and outputs.

`workflow/` and `dvc.yaml` spell the same graph for their engines (a test compares all three); `seam verify` walks it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from seam.experiment.params import Params
from seam.experiment.results import CLAIMS, JOB_FILES

FIGURES = ("accuracy_bitops", "accuracy_cost", "bits", "search_curves", "finetune_curves")
TABLES = ("results.csv", "results.md", "claims.md", "report.html")


class Node(NamedTuple):
    """One job. All paths are relative to the repository root unless the parameters say otherwise."""

    stage: str
    job: dict[str, Any]  # the values of model, search, budget, seed that apply
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]  # without provenance.json
    provenance: Path

    @property
    def place(self) -> Path:
        """The job's folder, or its file where it has no folder of its own."""
        return self.provenance.parent if self.provenance.name == "provenance.json" else self.outputs[0]


def nodes(params: Params) -> list[Node]:
    """All jobs of the grid, each after those it depends on."""
    root = Path(params.results)
    manifest = root / "data/target/manifest.json"
    jobs = list(params.jobs())
    result = [_node("fetch", {}, [], manifest.parent, ["manifest.json"])]
    for m in params.grid.models:
        names = ["fp.safetensors", "layers.json", "history.csv", "metrics.json", "classes.json", "cost.json"]
        inputs = [manifest, *_given(params.model(m).weights)]
        result.append(_node("pretrain", {"model": m}, inputs, root / "models" / m, names))
    for m in params.grid.models:
        for s in params.grid.searches:
            weights = root / "models" / m / "fp.safetensors"
            job = {"model": m, "search": s}
            result.append(_node("sample", job, [weights], root / "proxies" / m / s, ["proxy.json"]))
    for j in jobs:
        weights = root / "models" / j.model / "fp.safetensors"
        policy = root / "search" / j.folder / "policy.json"
        tuned = root / "finetune" / j.folder / "model.safetensors"
        proxy = root / "proxies" / j.model / j.search / "proxy.json"
        job = j._asdict()
        names = ["policy.json", "cost.json", "history.csv"]
        inputs = [weights, weights.with_name("layers.json"), proxy, *_given(params.model(j.model).latency)]
        result.append(_node("search", job, inputs, policy.parent, names))
        names = ["model.safetensors", "history.csv", "cost.json"]
        result.append(_node("finetune", job, [weights, policy], tuned.parent, names))
        inputs = [weights, weights.with_name("metrics.json"), weights.with_name("classes.json"), policy, tuned]
        names = ["metrics.json", "hits.json", "classes.json", "cost.json"]
        result.append(_node("evaluate", job, inputs, root / "evaluate" / j.folder, names))
    claims = root / "claims.json"
    result.append(Node("claims", {}, job_files(params, CLAIMS), (claims,), root / "claims.provenance.json"))
    everything = (claims, *job_files(params, JOB_FILES))
    report = _node("report", {}, everything, root / "report", report_files(params))
    result.append(report)
    inputs = (manifest, *everything, *report.outputs)
    result.append(Node("log", {}, inputs, (root / "mlflow.json",), root / "mlflow.provenance.json"))
    return result


def _given(path: str | None) -> list[Path]:
    """A file of the user's own, where the parameters name one."""
    return [Path(path)] if path else []


def _node(stage: str, job: dict, inputs: Iterable[Path], folder: Path, names: list[str]) -> Node:
    return Node(stage, job, tuple(inputs), tuple(folder / name for name in names), folder / "provenance.json")


def job_files(params: Params, keys: Iterable[str]) -> tuple[Path, ...]:
    """Files of all jobs of the grid, by their keys in `seam.experiment.results.JOB_FILES`."""
    paths = [JOB_FILES[key][1].format(**job._asdict()) for key in keys for job in params.jobs()]
    return tuple(Path(params.results) / path for path in dict.fromkeys(paths))


def report_files(params: Params) -> list[str]:
    """Names of the report's files."""
    return [*TABLES, *(f"{figure}.{suffix}" for figure in FIGURES for suffix in params.report.formats)]
