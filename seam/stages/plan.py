"""`seam plan`: what an experiment will cost, before any of it is spent.

Each kind of job of the grid is probed here: its set-up, and a few of its real steps on random images of the size that
it will see (read from the target's files, where they are there and are files). The rest is arithmetic,

    seconds of a job = start of a process + set-up + steps x seconds a step,

with the steps that the parameters and the sizes of the datasets give. What `claims`, `report` and `log` take, fetching
data, and jobs that wait for each other's memory are not in it.
"""

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field

from seam import io
from seam.data import proxy as proxies
from seam.errors import SeamError
from seam.experiment import schedule
from seam.experiment.graph import nodes
from seam.experiment.params import Params
from seam.models.build import build
from seam.report.text import factor, seconds
from seam.runtime.cores import available_cores
from seam.runtime.progress import progress, quietly
from seam.search.interface import image_count, load_method, needs_network
from seam.settings import Proxy, Shape, check_shape
from seam.stages.probes import Line, Probes, sizes_of, start_of_a_process, unweighted


class Term(NamedTuple):
    """A piece of a job's work. of: all that its seconds a step depend on; probe: measures it; steps: of the job."""

    of: dict[str, Any]
    steps: int
    probe: Callable[[Probes], Line]

    @property
    def key(self) -> str:
        return json.dumps(self.of, sort_keys=True)


class Kind(NamedTuple):
    """Jobs that cost the same: those of a stage, model and search. count: of them; steps: of each, of its training."""

    stage: str
    model: str
    search: str
    count: int
    steps: int


def plan(params: Params, hardware: str | Path | None = None) -> dict[str, Any]:
    """Predict the seconds of every job of the grid, the core-hours or GPU-hours of all, and the disk they need.

    Args:
        hardware: the name of measured hardware, a folder under `HARDWARE` of plans that were written there; or the
            path of such a folder, or of one plan. Their probes are taken, also where aliases, counts of images, epochs,
            seeds or budgets are others. By default this machine is probed.

    Returns: {"hardware", "device", "cores", "start", "probes": [{of, fixed, step}], "jobs": [{stage, model, search,
    count, steps, seconds, core_hours, gpu_hours, gigabytes}], "core_hours", "gpu_hours", "gigabytes", "speedup":
    {model/search: times the baseline's}, "unread": names of datasets whose files are not there to be read}. A row's
    seconds are of one job, its hours and gigabytes (weights that are kept) of all of its kind.

    Raises SeamError: `hardware` is not known, is no plan, or lacks a measurement.
    """
    grid = Grid(params)
    kinds = {kind: grid.terms(kind) for kind in grid.kinds()}
    terms = {term.key: term for of_kind in kinds.values() for term in of_kind}
    if hardware is not None:
        content = _measured(hardware, grid.datasets())
        lines = content.pop("lines")
        if missing := sorted(terms.keys() - lines.keys()):
            raise SeamError(f"{hardware}: holds no measurement of {missing[0]}; write one for it with {_WRITE}")
    else:
        probes, lines = Probes(params, grid.target, grid.tests), {}
        for key, term in progress(terms.items(), len(terms), "probe"):
            with quietly():
                lines[key] = term.probe(probes)
        content = {"hardware": probes.hardware, "device": probes.device.type, "cores": available_cores()}
        content |= {"start": round(start_of_a_process(), 2), "unread": probes.unread}
    jobs = []
    for kind, of_kind in kinds.items():
        start = content["start"] if any(term.of["what"] != "nothing" for term in of_kind) else 0.0
        seconds = start + sum(lines[term.key].at(term.steps) for term in of_kind)
        trains = any(lines[term.key].step for term in of_kind)  # else it takes no steps, and looks at its images once
        job = {**kind._asdict(), "steps": kind.steps * trains, "seconds": round(seconds, 2)}
        place = (params, kind.stage, kind.search)
        hours = kind.count * schedule.processes(*place) * seconds / 3600
        job["core_hours"] = round(hours * min(schedule.threads(*place), content["cores"]), 4)
        job["gpu_hours"] = round(hours * (content["device"] == "cuda" and schedule.on_device(*place)), 4)
        jobs.append({**job, "gigabytes": round(grid.kept(kind) / 1e9, 4)})
    return {
        **{key: content[key] for key in ("hardware", "device", "cores", "start", "unread")},
        "probes": [{"of": term.of, **_rounded(lines[key])} for key, term in terms.items()],
        "jobs": jobs,
        "core_hours": round(sum(job["core_hours"] for job in jobs), 3),
        "gpu_hours": round(sum(job["gpu_hours"] for job in jobs), 3),
        "gigabytes": round(sum(job["gigabytes"] for job in jobs) + grid.checkpoints(kinds) / 1e9, 3),
        "speedup": _speedup(params, jobs),
    }


def _rounded(line: Line) -> dict[str, float]:
    return {name: round(value, 6) for name, value in line._asdict().items()}


def _speedup(params: Params, jobs: list[dict[str, Any]]) -> dict[str, float]:
    """How many times as fast as the baseline's each other search that sees images is, start-up included."""
    seconds = {(job["model"], job["search"]): job["seconds"] for job in jobs if job["stage"] == "search"}
    return {
        f"{model}/{search}": round(seconds[model, params.claims.baseline] / value, 1)
        for (model, search), value in seconds.items()
        if search != params.claims.baseline and params.proxy(search) is not None
        if (model, params.claims.baseline) in seconds
    }


class Grid:
    """The kinds of jobs of a parameter set, how many steps each takes, and how a step of each is probed."""

    def __init__(self, params: Params):
        self.params, target = params, params.target
        sizes = sizes_of(params, target.dataset, target.path)
        side = (target.image_size,) * 2 if target.image_size else sizes.shape[1:]
        self.target = sizes._replace(shape=(sizes.shape[0], *side))
        self.tests = min(target.test_images or sizes.test, sizes.test)
        self._weights: dict[str, int] = {}

    def kinds(self) -> list[Kind]:
        found: dict[tuple[str, str, str], int] = {}
        for node in nodes(self.params):
            if node.stage in ("pretrain", "search", "finetune", "evaluate"):
                key = (node.stage, node.job["model"], node.job["search"] if node.stage == "search" else "")
                found[key] = found.get(key, 0) + 1
        return [Kind(*key, count, self.steps(*key)) for key, count in found.items()]

    def steps(self, stage: str, model: str, search: str) -> int:
        """Steps of a job's training."""
        if stage == "search":
            settings, count = self.params.settings(search), self.proxy_count(search)
            if not count:
                return 0
            per_epoch = max(1, count // min(settings.batch_size, count))
            searching = settings.epochs * per_epoch
            return min(searching, settings.steps or searching) + settings.warmup_epochs * per_epoch
        spec = self.params.model(model)
        if stage == "evaluate" or (stage == "pretrain" and not (spec.from_scratch or spec.train)):
            return 0
        settings = self.params.training(stage, model)
        count = min(settings.images or self.target.train, self.target.train)
        return settings.epochs * max(1, count // min(settings.batch_size, count))

    def terms(self, kind: Kind) -> list[Term]:
        """What a job consists of."""
        params, of = self.params, {"model": _described(self.params, kind.model), "classes": self.target.classes}
        threads = schedule.threads(params, kind.stage, kind.search)
        of |= {"shape": [*self.target.shape], "threads": threads}

        def term(what: str, steps: int, probe: Callable[..., Line], *given: Any, **about: Any) -> Term:
            def measure(probes: Probes) -> Line:
                torch.set_num_threads(min(threads, available_cores()))
                return probe(probes, *given)

            return Term({"what": what, **of, **about}, steps, measure)

        if kind.stage == "search":
            return [self._search_term(term, kind)]
        level, settings = params.evaluate.calibration, params.evaluate
        forward = {"batch_size": settings.batch_size}
        if kind.stage == "evaluate":
            count = min(settings.calibration_images, self.target.train)
            iterations = settings.reconstruct.iterations if level == "reconstruct" else 1
            about = {"level": level, "images": count}
            return [
                term("evaluate quantized", 2 * self.tests, Probes.evaluated, Probes.quantized, kind.model, **forward),
                term("calibrate", iterations, Probes.calibrated, kind.model, level, count, **about),
            ]
        training = params.training(kind.stage, kind.model)
        network = Probes.network if kind.stage == "pretrain" else Probes.quantized
        keys = (
            "batch_size",
            "processes",
            "augment",
            "optimizer",
            "distillation",
            "kernels",
            "batch_norm",
            "calibration",
        )
        about = {key: getattr(training, key) for key in keys if hasattr(training, key)}
        about["clipped"] = training.clip_norm is not None
        found = (
            [term(kind.stage, kind.steps, Probes.trained, network, kind.model, training, **about)] if kind.steps else []
        )
        if kind.stage == "pretrain":
            found.append(term("evaluate", self.tests, Probes.evaluated, Probes.network, kind.model, **forward))
        return found

    def _search_term(self, term: Callable[..., Term], kind: Kind) -> Term:
        settings, name = self.params.settings(kind.search), self.params.method(kind.search)
        method, proxy = load_method(name), self.params.proxy(kind.search)
        if proxy is None and not needs_network(method):
            return Term({"what": "nothing"}, 0, lambda _: Line(0.0))
        keys = ("batch_size", "calibration_images", "bits", "processes", "augment", "kernels", "options")
        about = {"method": name, **{key: getattr(settings, key) for key in keys}}
        if proxy is not None:
            sizes = sizes_of(self.params, proxy.dataset, proxy.path)
            # As many as set the steps, or as it looks at: what does not grow with the proxy is then all there.
            looked_at = image_count(method, settings.options) or 0
            count = max(settings.batch_size, settings.calibration_images, looked_at)
            images = sizes._replace(shape=self.proxy_shape(proxy), train=min(count, self.proxy_count(kind.search)))
            own = (proxy.dataset, proxy.path) == (self.params.target.dataset, self.params.target.path)
            about |= {"proxy": [images.train, images.classes, *images.shape], "own": own}
            return term(
                "search", kind.steps, Probes.searched, kind.model, kind.search, method, settings, images, own, **about
            )
        return term(
            "search", kind.steps, Probes.searched, kind.model, kind.search, method, settings, None, True, **about
        )

    def datasets(self) -> set[str]:
        """Names of the datasets of the target and of all proxies."""
        proxies = (self.params.proxy(search) for search in self.params.grid.searches)
        return {self.params.target.dataset, *(proxy.dataset for proxy in proxies if proxy is not None)}

    def proxy_count(self, search: str) -> int:
        """Images of a search's proxy."""
        if (proxy := self.params.proxy(search)) is None:
            return 0
        sizes = sizes_of(self.params, proxy.dataset, proxy.path)
        available = sizes.train + sizes.test * (proxy.split == "all")
        return proxies.count(proxy, available)

    def proxy_shape(self, proxy: Proxy) -> tuple[int, int, int]:
        channels, *sides = self.target.shape
        return channels, *proxies.image_size(proxy, sides)

    def kept(self, kind: Kind) -> int:
        """Bytes that jobs of a kind leave behind: weights, of a model or of each finetuned policy."""
        return kind.count * self.weights(kind.model) if kind.stage in ("pretrain", "finetune") else 0

    def checkpoints(self, kinds: Iterable[Kind]) -> int:
        """Bytes of two checkpoints of the largest training: weights, and one number of SGD or two of AdamW for each."""
        trained = ((kind.stage, kind.model) for kind in kinds if kind.stage != "search" and kind.steps)
        each = ((model, self.params.training(stage, model)) for stage, model in trained)
        return max((2 * self.weights(m) * (3 if t.optimizer == "adamw" else 2) for m, t in each), default=0)

    def weights(self, alias: str) -> int:
        """Bytes of a model's weights."""
        if alias not in self._weights:
            model = build(unweighted(self.params, alias), self.target.classes, self.target.shape[0])
            self._weights[alias] = sum(value.numel() * value.element_size() for value in model.state_dict().values())
        return self._weights[alias]


def _described(params: Params, alias: str) -> dict[str, Any]:
    """Of a model, what its speed depends on."""
    return {key: getattr(params.model(alias), key) for key in ("name", "kwargs", "small_stem")}


class _Probe(Shape):
    of: dict[str, Any]
    fixed: Annotated[float, Field(ge=0, le=1e9)]
    step: Annotated[float, Field(ge=0, le=1e9)]


class _Plan(Shape):
    hardware: str
    device: str
    cores: Annotated[int, Field(ge=1, le=2**20)]
    start: Annotated[float, Field(ge=0, le=1e6)]
    unread: list[str]
    probes: list[_Probe]


HARDWARE = Path("benchmarks/hardware")  # of measured hardware: NAME/*.json
_WRITE = "seam plan --out on the hardware in question"


def _measured(hardware: str | Path, datasets: Set[str]) -> dict[str, Any]:
    """What plans that were written on some hardware say of it, and medians of what they probed, by the terms' keys.

    datasets: whose files may have been there to be read, or not.
    """
    known = sorted(entry.name for entry in HARDWARE.iterdir() if entry.is_dir()) if HARDWARE.is_dir() else []
    path = HARDWARE / hardware if hardware in known else Path(hardware)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path] if path.is_file() else []
    if not files:
        raise SeamError(
            f"--hardware {hardware}: no plan, no folder of plans, and none of those measured in {HARDWARE}/ "
            f"({', '.join(known) or 'none'}); write one with {_WRITE}"
        )
    plans = [check_shape(io.read_json(file), _Plan, file, f"write it with {_WRITE}") for file in files]
    for file, other in zip(files, plans, strict=True):
        for key in ("hardware", "device", "cores"):
            if other[key] != plans[0][key]:
                here = f"{key} is {other[key]}, but {plans[0][key]} in {files[0].name}"
                raise SeamError(f"{file}: {here}; keep them apart")
    found: dict[str, list[Line]] = {}
    for probe in (probe for plan in plans for probe in plan["probes"]):
        found.setdefault(json.dumps(probe["of"], sort_keys=True), []).append(Line(probe["fixed"], probe["step"]))
    return {
        **plans[0],
        "start": statistics.median(plan["start"] for plan in plans),
        "unread": sorted({name for plan in plans for name in plan["unread"]} & datasets),
        "lines": {key: Line(*map(statistics.median, zip(*lines, strict=True))) for key, lines in found.items()},
    }


def describe(content: Mapping[str, Any], cores: int | None, baseline: str) -> list[str]:
    """A plan as lines of text."""
    hours = {"core_hours": "core-hours"} | ({"gpu_hours": "GPU-hours"} if content["gpu_hours"] else {})
    rows = [("stage", "model", "search", "jobs", "steps", "s a job", *hours.values(), "GB")]
    for job in content["jobs"]:
        names = (job["stage"], job["model"], job["search"], str(job["count"]), str(job["steps"] or ""))
        gigabytes = f"{job['gigabytes']:.2f}" if job["gigabytes"] else ""
        rows.append((*names, seconds(job["seconds"]), *(f"{job[key]:.2f}" for key in hours), gigabytes))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines += ["", f"on {content['hardware']}: {content['core_hours']:.2f} core-hours"]
    if content["gpu_hours"]:
        lines[-1] += f", {content['gpu_hours']:.2f} GPU-hours"
    elif cores:
        lines[-1] += f"; on {cores} busy cores {content['core_hours'] / cores:.2f} hours"
    lines.append(f"results: {content['gigabytes']:.2f} GB of weights and checkpoints")
    if content["unread"]:
        lines.append(f"without reading files: {', '.join(content['unread'])} is not there")
    if content["speedup"]:
        ratios = ", ".join(f"{name} {factor(value)}" for name, value in content["speedup"].items())
        lines.append(f"as fast as {baseline}: {ratios}")
    return lines
