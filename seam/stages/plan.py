"""`seam plan`: what an experiment will cost, before any of it is spent.

Each kind of job of the grid is probed here: its set-up, and a few of its real steps on random images of the size that
it will see (read from the target's files, where they are there and are files). The rest is arithmetic,

    seconds of a job = start of a process + set-up + steps x seconds a step,

with the steps that the parameters and the sizes of the datasets give. What `claims`, `report` and `log` take, fetching
data, and jobs that wait for each other's memory are not in it.
"""

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field

from seam import io
from seam.calibration.levels import calibrate
from seam.data import proxy as proxies
from seam.data.datasets import DATASETS
from seam.data.fetch import described, places
from seam.data.image_sets import ImageSet, TensorSet
from seam.data.loaders import load
from seam.errors import SeamError
from seam.experiment import schedule
from seam.experiment.graph import nodes
from seam.experiment.params import Params
from seam.models.build import build
from seam.models.find import find_layers
from seam.policy.file import policy_bits
from seam.quant.apply import quantize
from seam.quant.kernels import use_kernels
from seam.report.text import factor, seconds
from seam.runtime.cores import available_cores
from seam.runtime.meter import Meter, processor_name
from seam.runtime.process import set_up
from seam.runtime.progress import progress, quietly
from seam.search.interface import image_count, load_method, needs_network
from seam.search.problem import prepare, solve
from seam.settings import Proxy, Shape, Training, check_shape
from seam.stages.target import CALIBRATION_IMAGES, budgets_of, locked_layers
from seam.training.evaluate import evaluate_each
from seam.training.supervised import train

FEW, MANY = 4, 20  # steps of the two runs whose difference gives the seconds of one
_START = "from seam.runtime.imports import import_torch; import_torch(); import seam.stages.plan"
_FILES = ("folder", "torchvision")  # layouts of datasets whose images are files, which take time to read


class Line(NamedTuple):
    """Seconds of a piece of work: `fixed`, whatever its length, and `step` for each step (or image, or iteration)."""

    fixed: float
    step: float = 0.0

    def at(self, steps: float) -> float:
        return self.fixed + self.step * steps


class Term(NamedTuple):
    """A piece of a job's work. of: all that its seconds a step depend on; probe: measures it; steps: of the job."""

    of: dict[str, Any]
    steps: int
    probe: Callable[[], Line]

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


def plan(params: Params, measured: Path | None = None) -> dict[str, Any]:
    """Predict the seconds of every job of the grid, the core-hours or GPU-hours of all, and the disk they need.

    Args:
        measured: what an earlier plan wrote, on the hardware in question: its probes are taken, also where aliases,
            counts of images, epochs, seeds or budgets are others. By default this machine is probed.

    Returns: {"hardware", "device", "cores", "start", "probes": [{of, fixed, step}], "jobs": [{stage, model, search,
    count, steps, seconds}], "core_hours", "gpu_hours", "gigabytes", "speedup": {model/search: times the baseline's},
    "unread": names of datasets whose files are not there to be read}.

    Raises SeamError: `measured` is no plan, or lacks a measurement.
    """
    grid = Grid(params)
    kinds = {kind: grid.terms(kind) for kind in grid.kinds()}
    terms = {term.key: term for of_kind in kinds.values() for term in of_kind}
    if measured is not None:
        content = _read(measured)
        lines = {json.dumps(p["of"], sort_keys=True): Line(p["fixed"], p["step"]) for p in content["probes"]}
        if missing := sorted(terms.keys() - lines.keys()):
            raise SeamError(f"{measured}: holds no measurement of {missing[0]}; write one for it with {_WRITE}")
    else:
        grid.set_up()
        lines = {}
        for key, term in progress(terms.items(), len(terms), "probe"):
            with quietly():
                lines[key] = term.probe()
        content = {"hardware": grid.hardware, "device": grid.device.type, "cores": available_cores()}
        content |= {"start": round(_start_of_a_process(), 2), "unread": grid.unread}
    jobs = []
    for kind, of_kind in kinds.items():
        start = content["start"] if any(term.of["what"] != "nothing" for term in of_kind) else 0.0
        seconds = start + sum(lines[term.key].at(term.steps) for term in of_kind)
        trains = any(lines[term.key].step for term in of_kind)  # else it takes no steps, and looks at its images once
        jobs.append({**kind._asdict(), "steps": kind.steps * trains, "seconds": round(seconds, 2)})
    wide = [(job, schedule.processes(params, job["stage"], job["search"])) for job in jobs]
    cores = [n * min(schedule.threads(params, j["stage"], j["search"]), content["cores"]) for j, n in wide]
    gpus = [n * schedule.on_device(params, j["stage"], j["search"]) * (content["device"] == "cuda") for j, n in wide]
    return {
        **{key: content[key] for key in ("hardware", "device", "cores", "start", "unread")},
        "probes": [{"of": term.of, **_rounded(lines[key])} for key, term in terms.items()],
        "jobs": jobs,
        "core_hours": round(sum(j["count"] * j["seconds"] * n for j, n in zip(jobs, cores, strict=True)) / 3600, 3),
        "gpu_hours": round(sum(j["count"] * j["seconds"] * n for j, n in zip(jobs, gpus, strict=True)) / 3600, 3),
        "gigabytes": round(grid.bytes() / 1e9, 3),
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


class Sizes(NamedTuple):
    """Of a dataset: images in train and test, classes, and (C, H, W)."""

    train: int
    test: int
    classes: int
    shape: tuple[int, int, int]


class Grid:
    """The kinds of jobs of a parameter set, how many steps each takes, and the probes of a step."""

    device: torch.device
    hardware: str

    def __init__(self, params: Params):
        self.params, target = params, params.target
        self.unread: list[str] = []
        sizes = _sizes(params, target.dataset, target.path)
        side = (target.image_size,) * 2 if target.image_size else sizes.shape[1:]
        self.target = sizes._replace(shape=(sizes.shape[0], *side))
        self.tests = min(target.test_images or sizes.test, sizes.test)

    def set_up(self) -> None:
        """Make this process ready for probes."""
        self.device = set_up(self.params.device, self.params.pretrain.threads, 0)
        cuda = self.device.type == "cuda"
        self.hardware = torch.cuda.get_device_name(self.device) if cuda else processor_name()
        widths = {len(self.params.settings(search).bits) for search in self.params.grid.searches}
        use_kernels(self.params.finetune.kernels, (1, *sorted(widths)), self.device)  # compiled once on a machine

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
        settings = self.params.pretrain if stage == "pretrain" else self.params.finetune
        count = min(settings.images or self.target.train, self.target.train)
        return settings.epochs * max(1, count // min(settings.batch_size, count))

    def terms(self, kind: Kind) -> list[Term]:
        """What a job consists of."""
        params, of = self.params, {"model": _described(self.params, kind.model), "classes": self.target.classes}
        threads = schedule.threads(params, kind.stage, kind.search)
        of |= {"shape": [*self.target.shape], "threads": threads}

        def term(what: str, steps: int, probe: Callable[..., Line], *given: Any, **about: Any) -> Term:
            def measure() -> Line:
                torch.set_num_threads(min(threads, available_cores()))
                return probe(*given)

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
                term("evaluate quantized", 2 * self.tests, self._evaluated, self._quantized, kind.model, **forward),
                term("calibrate", iterations, self._calibrated, kind.model, level, count, **about),
            ]
        training = params.pretrain if kind.stage == "pretrain" else params.finetune
        network = self._network if kind.stage == "pretrain" else self._quantized
        keys = ("batch_size", "processes", "augment", "distillation", "kernels", "batch_norm", "calibration")
        about = {key: getattr(training, key) for key in keys if hasattr(training, key)}
        found = (
            [term(kind.stage, kind.steps, self._trained, network, kind.model, training, **about)] if kind.steps else []
        )
        if kind.stage == "pretrain":
            found.append(term("evaluate", self.tests, self._evaluated, self._network, kind.model, **forward))
        return found

    def _search_term(self, term: Callable[..., Term], kind: Kind) -> Term:
        settings, name = self.params.settings(kind.search), self.params.method(kind.search)
        method, proxy = load_method(name), self.params.proxy(kind.search)
        if proxy is None and not needs_network(method):
            return Term({"what": "nothing"}, 0, lambda: Line(0.0))
        keys = ("batch_size", "calibration_images", "bits", "processes", "augment", "kernels", "options")
        about = {"method": name, **{key: getattr(settings, key) for key in keys}}
        if proxy is not None:
            sizes = _sizes(self.params, proxy.dataset, proxy.path)
            # As many as set the steps, or as it looks at: what does not grow with the proxy is then all there.
            looked_at = image_count(method, settings.options) or 0
            count = max(settings.batch_size, settings.calibration_images, looked_at)
            images = sizes._replace(shape=self.proxy_shape(proxy), train=min(count, self.proxy_count(kind.search)))
            own = (proxy.dataset, proxy.path) == (self.params.target.dataset, self.params.target.path)
            about |= {"proxy": [images.train, images.classes, *images.shape], "own": own}
            return term("search", kind.steps, self._searched, kind, method, settings, images, own, **about)
        return term("search", kind.steps, self._searched, kind, method, settings, None, True, **about)

    def proxy_count(self, search: str) -> int:
        """Images of a search's proxy."""
        if (proxy := self.params.proxy(search)) is None:
            return 0
        sizes = _sizes(self.params, proxy.dataset, proxy.path)
        available = sizes.train + sizes.test * (proxy.split == "all")
        return proxies.count(proxy, available)

    def proxy_shape(self, proxy: Proxy) -> tuple[int, int, int]:
        channels, *sides = self.target.shape
        return channels, *proxies.image_size(proxy, sides)

    def bytes(self) -> int:
        """Of the weights of all models and policies, and of two checkpoints of the largest model's training."""
        total, largest = 0, 0
        for alias in self.params.grid.models:
            model = build(_unweighted(self.params, alias), self.target.classes, self.target.shape[0])
            size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
            policies = sum(job.model == alias for job in self.params.jobs())
            total, largest = total + size * (1 + policies), max(largest, size)
        return total + 2 * 2 * largest  # weights and momentum

    def _trained(self, network: Callable[[str], torch.nn.Module], alias: str, settings: Training) -> Line:
        batch = max(1, settings.batch_size // settings.processes)
        available = min(settings.images or self.target.train, self.target.train)
        images, start = self._images(min(4 * batch, available), self.target), network(alias)
        calibration = getattr(settings, "calibration", None)
        teacher = copy.deepcopy(start).eval() if getattr(settings, "distillation", 0.0) else None

        def taken(steps: int) -> float:
            model, meter = copy.deepcopy(start), Meter(self.device)
            some = settings.model_copy(update={"epochs": steps, "batch_size": batch})
            return _seconds(lambda: train(model, some, images, 0, self.device, meter, teacher, steps=steps))

        line = _through(taken, FEW, MANY)
        if calibration is None:
            return line
        return line._replace(fixed=line.fixed + self._calibrated(alias, calibration, CALIBRATION_IMAGES).fixed)

    def _evaluated(self, network: Callable[[str], torch.nn.Module], alias: str) -> Line:
        """Seconds an image."""
        batch = min(self.params.evaluate.batch_size, self.tests)
        images, model = self._images(3 * batch, self.target), network(alias)
        batch = max(1, len(images) // 3)

        def taken(count: int) -> float:
            return _seconds(lambda: evaluate_each(model, images.subset(range(count)), batch, self.device, "probe"))

        return _through(taken, batch, 3 * batch)

    def _calibrated(self, alias: str, level: str, count: int) -> Line:
        images, network = self._images(count, self.target), self._quantized(alias)

        def taken(iterations: int) -> float:
            some = self.params.evaluate.reconstruct.model_copy(update={"iterations": iterations})
            return _seconds(lambda: calibrate(copy.deepcopy(network), images, level, self.device, some))

        return _through(taken, FEW, MANY) if level == "reconstruct" else Line(taken(1))

    def _searched(self, kind: Kind, method: Any, settings: Any, sizes: Sizes | None, own: bool) -> Line:
        budget = next(job.budget for job in self.params.jobs() if job.search == kind.search)
        layers = locked_layers(self.params, kind.model, find_layers(self._network(kind.model), self.target.shape))
        budgets = budgets_of(self.params, kind.model, budget, layers, settings.bits)
        images = None if sizes is None else self._images(sizes.train, sizes)
        batch = max(1, settings.batch_size // settings.processes)
        trains = False

        def taken(steps: int) -> float:
            nonlocal trains
            network, meter = self._network(kind.model), Meter(self.device)
            some = {"steps": steps, "epochs": steps, "warmup_epochs": 0, "batch_size": batch}
            given = settings.model_copy(update=some)

            def search() -> None:
                problem = prepare(
                    method, network, images, layers, budgets, given, 0, self.device, meter, own_classes=own
                )
                solve(method, problem, method.preferences(problem), budgets)

            found = _seconds(search)
            trains = meter.steps > 0
            return found

        first = taken(FEW)
        return _through(taken, FEW, MANY) if trains else Line(min(first, taken(FEW)))

    def _network(self, alias: str) -> torch.nn.Module:
        torch.manual_seed(0)
        network = build(_unweighted(self.params, alias), self.target.classes, self.target.shape[0])
        return network.to(self.device, memory_format=torch.channels_last)

    def _quantized(self, alias: str) -> torch.nn.Module:
        """At 4 bits: what a step takes does not depend on the bits."""
        network, size = self._network(alias), self.target.shape
        layers = locked_layers(self.params, alias, find_layers(network, size))
        bits = policy_bits(layers, [(4, 4)] * sum(not layer.fixed for layer in layers))
        quantize(network, bits, layers, size)
        calibrate(network, self._images(32, self.target), "steps", self.device)
        return network

    def _images(self, count: int, sizes: Sizes) -> ImageSet:
        """The target's own, where they are files that are there: reading them takes time; else noise."""
        target, root = self.params.target, self.params.data_root
        channels, *size = sizes.shape
        info = DATASETS[target.dataset]
        if sizes == self.target and info.layout in _FILES:
            if places(info, Path(root), target.path)[0].is_dir():
                images = load(target.dataset, root, "train", target.path, image_size=tuple(size))
                return images.balanced(count)
            if target.dataset not in self.unread:
                self.unread.append(target.dataset)
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (count, *size, channels), dtype=torch.uint8, generator=generator)
        labels = torch.arange(count) % sizes.classes
        return TensorSet(pixels, labels, map(str, range(sizes.classes)), [0.5] * channels, [0.3] * channels)


def _described(params: Params, alias: str) -> dict[str, Any]:
    """Of a model, what its speed depends on."""
    return {key: getattr(params.model(alias), key) for key in ("name", "kwargs", "small_stem")}


def _sizes(params: Params, dataset: str, path: str | None) -> Sizes:
    """Of a dataset that seam knows, without its data; else of the folder, which must be there."""
    info = DATASETS[dataset]
    if path is None and info.counts and info.image_size and info.classes and info.channels:
        return Sizes(*info.counts, info.classes, (info.channels, *info.image_size))
    manifest = described(dataset, params.data_root, path)
    train_count, test_count = (manifest[part]["count"] for part in ("train", "test"))
    return Sizes(train_count, test_count, len(manifest["classes"]), (manifest["channels"], *manifest["image_size"]))


def _unweighted(params: Params, alias: str) -> Any:
    """A model of the parameters without weights: what it computes takes as long."""
    return params.model(alias).model_copy(update={"pretrained": False, "weights": None})


def _seconds(work: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _through(taken: Callable[[int], float], few: int, many: int) -> Line:
    """The line through two runs; a first one, in which memory is fetched, does not count."""
    taken(few)
    low, high = taken(few), taken(many)
    step = max(1e-6, (high - low) / (many - few))  # never none: that says that nothing is trained
    return Line(max(0.0, low - few * step), step)


def _start_of_a_process() -> float:
    """Seconds until a job's process has loaded what it needs: the lesser of two."""
    taken = [_seconds(lambda: subprocess.run([sys.executable, "-c", _START], check=True)) for _ in range(2)]
    return min(taken)


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


_WRITE = "seam plan --out on the hardware in question"


def _read(path: Path) -> dict[str, Any]:
    return check_shape(io.read_json(path), _Plan, path, f"write it with {_WRITE}")


def describe(content: Mapping[str, Any], cores: int | None, baseline: str) -> list[str]:
    """A plan as lines of text."""
    rows = [("stage", "model", "search", "jobs", "steps", "s a job", "hours of jobs")]
    for job in content["jobs"]:
        names = (job["stage"], job["model"], job["search"], str(job["count"]), str(job["steps"] or ""))
        rows.append((*names, seconds(job["seconds"]), f"{job['count'] * job['seconds'] / 3600:.2f}"))
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
