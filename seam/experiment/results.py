"""The grid's results, loaded once and typed: what claims, report and log read. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seam.errors import SeamError, shortened
from seam.experiment.params import Job, Params
from seam.experiment.shapes import (
    ClaimsFile,
    Classes,
    EvaluateCost,
    FinetuneCost,
    FullPrecision,
    Hits,
    Layers,
    Metrics,
    ModelClasses,
    Proxy,
    SearchCost,
)
from seam.io import read_csv, read_json
from seam.models.layers import Layer
from seam.policy.file import read_policy
from seam.settings import check_shape

if TYPE_CHECKING:
    import numpy as np

# Files of one job under the results folder, and the stage that makes each.
JOB_FILES = {
    "proxy": ("sample", "proxies/{model}/{search}/proxy.json"),
    "policy": ("search", "search/{model}/{search}/{budget}/{seed}/policy.json"),
    "search_cost": ("search", "search/{model}/{search}/{budget}/{seed}/cost.json"),
    "search_history": ("search", "search/{model}/{search}/{budget}/{seed}/history.csv"),
    "finetune_cost": ("finetune", "finetune/{model}/{search}/{budget}/{seed}/cost.json"),
    "finetune_history": ("finetune", "finetune/{model}/{search}/{budget}/{seed}/history.csv"),
    "evaluate_cost": ("evaluate", "evaluate/{model}/{search}/{budget}/{seed}/cost.json"),
    "metrics": ("evaluate", "evaluate/{model}/{search}/{budget}/{seed}/metrics.json"),
    "hits": ("evaluate", "evaluate/{model}/{search}/{budget}/{seed}/hits.json"),
    "classes": ("evaluate", "evaluate/{model}/{search}/{budget}/{seed}/classes.json"),
}
# What the claims read of a job; the report and MLflow read everything.
CLAIMS = ("metrics", "hits", "policy", "search_cost", "proxy")


@dataclass(frozen=True)
class JobResult:
    """What one (model, search, budget, seed) left behind. Accuracies in percent, BitOPs in 1e9, sizes in MB."""

    job: Job
    method: str
    metrics: dict[str, float]  # evaluate's metrics.json
    search_cost: dict[str, Any]
    proxy: dict[str, Any]  # proxy.json; {"dataset": None, "count": 0} for methods that see no data
    policy: dict[str, Any] = field(default_factory=dict)  # policy.json
    finetune_cost: dict[str, Any] = field(default_factory=dict)
    evaluate_cost: dict[str, Any] = field(default_factory=dict)
    hits: dict[str, Any] = field(default_factory=dict)  # evaluate's hits.json
    classes: dict[str, Any] = field(default_factory=dict)  # evaluate's classes.json
    files: dict[str, Path] = field(default_factory=dict)  # key of JOB_FILES -> path

    @property
    def searched(self) -> bool:
        """Whether the search looked at images: only then do its cost and a speed-up mean anything."""
        return self.search_cost["image_macs"] > 0

    @property
    def top1(self) -> float:
        return self.metrics["top1"]

    @property
    def share(self) -> float | None:
        """Images of the proxy / training images of the target; None when the method sees no images."""
        return self.proxy["share_of_target"] if self.proxy["count"] else None

    @property
    def proxy_name(self) -> str:
        """Short name of the data the search saw, e.g. `digits 8x8 (1797)`."""
        if not self.proxy["count"]:
            return "none"
        height, width = self.proxy["image_size"]
        return f"{self.proxy['dataset']} {height}x{width} ({self.proxy['count']})"

    @property
    def bits(self) -> dict[str, tuple[int, int]]:
        """Layer -> (weight bits, input bits) of the policy: what two seeds may have in common."""
        return {name: (layer["w"], layer["a"]) for name, layer in self.policy["layers"].items()}

    def right(self, key: str) -> np.ndarray:
        """`top1` or `calibrated_top1` image by image: whether the model is right about it ([N], 0 or 1)."""
        try:
            return unpack(self.hits[key], self.hits["images"])
        except ValueError as error:
            raise SeamError(f"{self.files['hits']}: {key} is broken ({error}); run `seam evaluate` again") from None

    def history(self, stage: str) -> dict[str, list[float]]:
        """Columns of the stage's history.csv (`search` or `finetune`); empty when the stage took no steps."""
        return columns(self.files[f"{stage}_history"], HISTORIES[stage])


@dataclass(frozen=True)
class Results:
    """The results of `params.grid`, in grid order."""

    params: Params
    root: Path
    jobs: dict[Job, JobResult]

    def __iter__(self) -> Iterator[JobResult]:
        return iter(self.jobs.values())

    def get(self, model: str, search: str, budget: str, seed: int) -> JobResult | None:
        return self.jobs.get(Job(model, search, budget, seed))

    @property
    def files(self) -> list[Path]:
        """All files that were read, in a fixed order, each once."""
        return list(dict.fromkeys(path for result in self for path in result.files.values()))


def load(params: Params, keys: Iterable[str] = tuple(JOB_FILES), *, partial: bool = False) -> Results:
    """Read the results of every job of the grid under `params.results`.

    keys: the files of a job to read, from `JOB_FILES`; at least those in `CLAIMS`.
    partial: leave out the jobs that are not finished yet, instead of failing.
    Raises SeamError naming the missing files and the stage that makes them, or the broken file.
    """
    root = Path(params.results)
    wanted = {job: {key: root / JOB_FILES[key][1].format(**job._asdict()) for key in keys} for job in params.jobs()}
    missing = {}
    for job, files in list(wanted.items()):
        absent = {path: JOB_FILES[key][0] for key, path in files.items() if not path.exists()}
        if absent and partial:
            del wanted[job]
        else:
            missing |= absent
    if missing:
        listed = "\n".join(f"  {path} (made by `seam {stage}`)" for path, stage in list(missing.items())[:8])
        more = f"\n  and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise SeamError(
            f"{len(missing)} result files of the grid are missing; run snakemake or dvc repro, or shorten grid:\n"
            f"{listed}{more}"
        )
    jobs = {job: _load_job(job, params.method(job.search), files) for job, files in wanted.items()}
    counted = {result.hits["images"]: result.files["hits"] for result in jobs.values() if result.hits}
    if len(counted) > 1:
        listed = ", ".join(f"{path} of {count}" for count, path in list(counted.items())[:2])
        raise SeamError(f"policies are measured on different numbers of images: {listed}; {_again('evaluate')}")
    return Results(params, root, jobs)


def columns(path: Path, needed: Iterable[str] = ()) -> dict[str, list[float]]:
    """A history.csv as columns of numbers; empty when it holds only its header.

    SeamError names a file that holds anything else than finite numbers, or lacks one of the columns `needed`.
    """
    rows = read_csv(path)
    try:
        table = {key: [float(row[key]) for row in rows] for key in rows[0]} if rows else {}
    except (TypeError, ValueError) as error:
        raise SeamError(
            f"{path}: not a table of numbers ({shortened(str(error))}); delete it and run its stage again"
        ) from None
    problems = [f"no column {key}" for key in needed if rows and key not in table]
    problems += [
        f"{shortened(key)} is not finite" for key, values in table.items() if not all(map(math.isfinite, values))
    ]
    if problems:
        raise SeamError(f"{path}: {'; '.join(problems[:3])}; delete it and run its stage again")
    return table


def pack(hits: np.ndarray) -> str:
    """[N] booleans as hexadecimal text, four a digit, for hits.json."""
    import numpy as np

    return np.packbits(hits).tobytes().hex()


def unpack(text: str, count: int) -> np.ndarray:
    """What `pack` wrote, as 0 and 1; ValueError where the text does not hold `count` booleans."""
    import numpy as np

    packed = np.frombuffer(bytes.fromhex(text), np.uint8)
    if len(packed) != -(-count // 8):
        raise ValueError(f"holds {8 * len(packed)} bits for {count} images")
    return np.unpackbits(packed, count=count)


def curves(history: dict[str, list[float]], keys: Iterable[str] | None = None, most: int = 1000) -> dict[str, list]:
    """History columns thinned to at most `most` evenly spaced rows; the first and last rows always stay."""
    count = len(next(iter(history.values()), []))
    kept = sorted({round(i * (count - 1) / (most - 1)) for i in range(most)}) if count > most else range(count)
    return {key: [column[i] for i in kept] for key, column in history.items() if keys is None or key in keys}


SHAPES = {
    "metrics": Metrics,
    "hits": Hits,
    "classes": Classes,
    "search_cost": SearchCost,
    "finetune_cost": FinetuneCost,
    "evaluate_cost": EvaluateCost,
    "proxy": Proxy,
}
HISTORIES = {  # the columns that are there for certain; a search method has others of its own
    "search": ("step",),
    "finetune": ("step", "loss", "top1"),
}


def read_proxy(path: str | Path) -> dict[str, Any]:
    """The content of proxy.json; SeamError names the file and what is wrong in it."""
    return check_shape(read_json(path), Proxy, path, _again("sample"))


def read_layers(path: str | Path) -> tuple[dict[str, Any], list[Layer]]:
    """The model (name, num_classes, in_chans, input_size) and the layers of layers.json; SeamError as `read_proxy`."""
    content = check_shape(read_json(path), Layers, path, _again("pretrain"))
    return content["model"], [Layer(**layer) for layer in content["layers"]]


def read_full_precision(path: str | Path) -> dict[str, Any]:
    """The content of pretraining's metrics.json; SeamError as `read_proxy`."""
    return check_shape(read_json(path), FullPrecision, path, _again("pretrain"))


def read_model_classes(path: str | Path) -> dict[str, Any]:
    """The content of pretraining's classes.json; SeamError as `read_proxy`."""
    return check_shape(read_json(path), ModelClasses, path, _again("pretrain"))


def read_claims(path: str | Path) -> dict[str, Any]:
    """The content of claims.json; SeamError as `read_proxy`."""
    return check_shape(read_json(path), ClaimsFile, path, _again("claims"))


def _again(stage: str) -> str:
    return f"run `seam {stage}` again"


def _load_job(job: Job, method: str, files: dict[str, Path]) -> JobResult:
    loaded = {}
    for key, path in files.items():
        if key == "policy":
            loaded[key] = _read_result_policy(path)
        elif not key.endswith("_history"):
            loaded[key] = check_shape(read_json(path), SHAPES[key], path, _again(JOB_FILES[key][0]))
    return JobResult(job, method, files=files, **loaded)


def _read_result_policy(path: Path) -> dict[str, Any]:
    """A policy with what a search adds."""
    policy = read_policy(path)
    if absent := [key for key in ("budget", "totals") if key not in policy]:
        raise SeamError(f"{path}: holds no {', '.join(absent)}; {_again('search')}")
    return policy
