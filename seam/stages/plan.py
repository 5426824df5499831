"""`seam plan`: what an experiment will cost, before any of it is spent.

Each kind of job of the grid is probed here: its set-up, and a few of its real steps on random images of the size that
it will see (read from the target's files, where they are there and are files). The rest is arithmetic,

    seconds of a job = start of a process + set-up + steps x seconds a step,

with the steps that the parameters and the sizes of the datasets give. What `claims`, `report` and `log` take, fetching
data, and jobs that wait for each other's memory are not in it.
"""

import copy
import math
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
from seam.data.datasets import DATASETS
from seam.data.fetch import described
from seam.data.image_sets import ImageSet, TensorSet
from seam.data.loaders import load
from seam.data.proxy import LARGEST
from seam.experiment import schedule
from seam.experiment.graph import nodes
from seam.experiment.params import Params
from seam.models.build import build
from seam.models.find import find_layers
from seam.policy.file import policy_bits
from seam.quant.apply import quantize
from seam.quant.kernels import use_kernels
from seam.report.text import factor, seconds
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


class Line(NamedTuple):
    """Seconds of a job: `fixed`, whatever its length, and `step` for each step (or image, of an evaluation)."""

    fixed: float
    step: float = 0.0

    def at(self, steps: float) -> float:
        return self.fixed + self.step * steps


class Kind(NamedTuple):
    """Jobs that cost the same: those of a stage, model and search. count: of them; steps: of each."""

    stage: str
    model: str
    search: str
    count: int
    steps: int

    @property
    def key(self) -> str:
        return "/".join(filter(None, (self.stage, self.model, self.search)))


def plan(params: Params, measured: Path | None = None) -> dict[str, Any]:
    """Predict the seconds of every job of the grid, the core-hours or GPU-hours of all, and the disk they need.

    Args:
        measured: what an earlier plan wrote, on the hardware in question; its probes are taken, for all jobs that it
            has. By default this machine is probed.

    Returns: {"hardware", "start", "probes": {key: {fixed, step}}, "jobs": [{stage, model, search, count, steps,
    seconds}], "hours", "gpu_hours", "gigabytes", "speedup": {model/search: times}}.

    Raises SeamError: `measured` is no plan.
    """
    grid = Grid(params)
    probes: dict[str, Line] = {}
    hardware, start = "", 0.0
    if measured is not None:
        hardware, start, probes = _read(measured)
    missing = [kind for kind in grid.kinds() if kind.key not in probes]
    if missing:
        probe = Probe(params, grid)
        if measured is None:
            hardware, start = probe.hardware, _start_of_a_process()
        for kind in progress(missing, len(missing), "probe"):
            with quietly():
                probes[kind.key] = probe.line(kind)
    jobs = [
        {**kind._asdict(), "seconds": round(probes[kind.key].at(kind.steps) + _starts(params, kind, start), 2)}
        for kind in grid.kinds()
    ]
    cores = sum(job["count"] * job["seconds"] * _width(params, job, schedule.threads) for job in jobs)
    gpus = sum(job["count"] * job["seconds"] * schedule.gpus(params, job["stage"], job["search"]) for job in jobs)
    return {
        "hardware": hardware,
        "start": round(start, 2),
        "probes": {
            key: {name: round(value, 6) for name, value in line._asdict().items()} for key, line in probes.items()
        },
        "jobs": jobs,
        "hours": round(cores / 3600, 3),
        "gpu_hours": round(gpus / 3600, 3),
        "gigabytes": round(grid.bytes() / 1e9, 3),
        "speedup": _speedup(params, jobs),
    }


def _width(params: Params, job: Mapping[str, Any], of: Callable[..., int]) -> int:
    return of(params, job["stage"], job["search"]) * schedule.processes(params, job["stage"], job["search"])


def _starts(params: Params, kind: Kind, start: float) -> float:
    """What the start of a job's process takes: little where it loads no torch."""
    light = kind.stage == "sample" or (kind.stage == "search" and params.proxy(kind.search) is None)
    return 0.0 if light else start


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
    """The kinds of jobs of a parameter set, and how many steps each takes."""

    def __init__(self, params: Params):
        self.params, target = params, params.target
        sizes = _sizes(params, target.dataset, target.path)
        side = (target.image_size,) * 2 if target.image_size else sizes.shape[1:]
        self.target = sizes._replace(shape=(sizes.shape[0], *side))

    def kinds(self) -> list[Kind]:
        """One for each stage, model and search that costs anything worth a probe."""
        found: dict[tuple, int] = {}
        for node in nodes(self.params):
            if node.stage in ("pretrain", "search", "finetune", "evaluate"):
                model, search = node.job["model"], node.job.get("search", "") if node.stage == "search" else ""
                key = (node.stage, model, search)
                found[key] = found.get(key, 0) + 1
        return [Kind(*key, count, self.steps(*key)) for key, count in found.items()]

    def steps(self, stage: str, model: str, search: str) -> int:
        """Steps of a job; of `evaluate`, images."""
        if stage == "evaluate":
            return 2 * self.tests  # calibrated only, and after finetuning
        if stage == "search":
            settings = self.params.settings(search)
            count = self.proxy_count(search)
            if not count:
                return 0
            per_epoch = max(1, count // min(settings.batch_size, count))
            return min(settings.epochs * per_epoch, settings.steps or math.inf) + settings.warmup_epochs * per_epoch
        settings = self.training(stage)
        spec = self.params.model(model)
        if stage == "pretrain" and not (spec.from_scratch or spec.train):
            return 0
        count = min(settings.images or self.target.train, self.target.train)
        return settings.epochs * max(1, count // min(settings.batch_size, count))

    @property
    def tests(self) -> int:
        return min(self.params.target.test_images or self.target.test, self.target.test)

    def training(self, stage: str) -> Training:
        return self.params.pretrain if stage == "pretrain" else self.params.finetune

    def proxy_count(self, search: str) -> int:
        """Images of a search's proxy."""
        if (proxy := self.params.proxy(search)) is None:
            return 0
        sizes = _sizes(self.params, proxy.dataset, proxy.path)
        available = sizes.train + sizes.test * (proxy.split == "all")
        return proxy.count or (round(proxy.fraction * available) if proxy.fraction else available)

    def proxy_shape(self, proxy: Proxy) -> tuple[int, int, int]:
        channels, *sides = self.target.shape
        return channels, *([proxy.image_size] * 2 if proxy.image_size else [min(side, LARGEST) for side in sides])

    def bytes(self) -> int:
        """Of the weights of all models and policies, and of two checkpoints of the largest job of each stage."""
        total, largest = 0, 0
        for alias in self.params.grid.models:
            model = build(_unweighted(self.params, alias), self.target.classes, self.target.shape[0])
            size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
            policies = sum(job.model == alias for job in self.params.jobs())
            total, largest = total + size * (1 + policies), max(largest, size)
        return total + 2 * 3 * largest  # weights, momentum, and steps' or gradients' moments


class Probe:
    """Runs a few steps of each kind of job."""

    def __init__(self, params: Params, grid: Grid):
        self.params, self.grid = params, grid
        self.device = set_up(params.device, params.pretrain.threads, 0)
        cuda = self.device.type == "cuda"
        self.hardware = torch.cuda.get_device_name(self.device) if cuda else processor_name()
        use_kernels(params.finetune.kernels, (1, *self._widths()), self.device)  # compiled once on a machine

    def _widths(self) -> list[int]:
        return sorted({len(self.params.settings(search).bits) for search in self.params.grid.searches})

    def line(self, kind: Kind) -> Line:
        """What a job of the kind takes, without the start of its process."""
        torch.set_num_threads(max(1, schedule.threads(self.params, kind.stage, kind.search)))
        return getattr(self, f"_{kind.stage}")(kind)

    def _pretrain(self, kind: Kind) -> Line:
        trained = Line(0.0)
        if kind.steps:
            trained = self._trained(self._network(kind.model), self.params.pretrain)
        evaluated = self._evaluated(self._network(kind.model))
        return Line(trained.fixed + evaluated.at(self.grid.tests), trained.step)

    def _finetune(self, kind: Kind) -> Line:
        return self._trained(self._quantized(kind.model), self.params.finetune)

    def _evaluate(self, kind: Kind) -> Line:
        settings, level = self.params.evaluate, self.params.evaluate.calibration
        network = self._quantized(kind.model)
        line = self._evaluated(network)
        count = min(settings.calibration_images if level != "steps" else CALIBRATION_IMAGES, self.grid.target.train)
        images = self._images(count, self.grid.target)

        def taken(iterations: int) -> float:
            some = settings.reconstruct.model_copy(update={"iterations": iterations})
            return _seconds(lambda: calibrate(copy.deepcopy(network), images, level, self.device, some))

        if level != "reconstruct":
            return Line(line.fixed + taken(1), line.step)
        return Line(line.fixed + _through(taken, FEW, MANY).at(settings.reconstruct.iterations), line.step)

    def _search(self, kind: Kind) -> Line:
        params, method = self.params, load_method(self.params.method(kind.search))
        settings = params.settings(kind.search).model_copy(update={"warmup_epochs": 0})
        proxy, job = params.proxy(kind.search), next(j for j in params.jobs() if j.search == kind.search)
        layers = locked_layers(params, kind.model, find_layers(self._network(kind.model), self.grid.target.shape))
        budgets = budgets_of(params, kind.model, job.budget, layers, settings.bits)
        images, own = None, True
        if proxy is not None:
            sizes = _sizes(params, proxy.dataset, proxy.path)
            # As many as set the steps, or as it looks at: what does not grow with the proxy is then all there.
            looked_at = image_count(method, settings.options) or 0
            count = min(
                max(settings.batch_size, settings.calibration_images, looked_at), self.grid.proxy_count(kind.search)
            )
            images = self._images(count, sizes._replace(shape=self.grid.proxy_shape(proxy)))
            own = (proxy.dataset, proxy.path) == (params.target.dataset, params.target.path)
        trains = False

        def taken(steps: int) -> float:
            nonlocal trains
            network = self._network(kind.model) if proxy is not None or needs_network(method) else None
            meter, given = Meter(self.device), settings.model_copy(update={"steps": steps, "epochs": steps})

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

    def _trained(self, network: torch.nn.Module, settings: Training) -> Line:
        count = min(settings.batch_size * 4, settings.images or self.grid.target.train, self.grid.target.train)
        images = self._images(count, self.grid.target)
        teacher = copy.deepcopy(network).eval() if getattr(settings, "distillation", 0.0) else None

        def taken(steps: int) -> float:
            model, meter = copy.deepcopy(network), Meter(self.device)
            some = settings.model_copy(update={"epochs": steps})
            return _seconds(lambda: train(model, some, images, 0, self.device, meter, teacher, steps=steps))

        return _through(taken, FEW, MANY)

    def _evaluated(self, network: torch.nn.Module) -> Line:
        """Seconds an image."""
        batch = min(self.params.evaluate.batch_size, self.grid.tests)
        images = self._images(3 * batch, self.grid.target)

        def taken(count: int) -> float:
            return _seconds(lambda: evaluate_each(network, images.subset(range(count)), batch, self.device, "probe"))

        return _through(taken, batch, 3 * batch)

    def _network(self, alias: str) -> torch.nn.Module:
        torch.manual_seed(0)
        network = build(_unweighted(self.params, alias), self.grid.target.classes, self.grid.target.shape[0])
        return network.to(self.device, memory_format=torch.channels_last)

    def _quantized(self, alias: str) -> torch.nn.Module:
        """At 4 bits: what a step takes does not depend on the bits."""
        network, size = self._network(alias), self.grid.target.shape
        layers = locked_layers(self.params, alias, find_layers(network, size))
        bits = policy_bits(layers, [(4, 4)] * sum(not layer.fixed for layer in layers))
        quantize(network, bits, layers, size)
        calibrate(network, self._images(32, self.grid.target), "steps", self.device)
        return network

    def _images(self, count: int, sizes: Sizes) -> ImageSet:
        """The target's own, where they are files that are there: reading them takes time; else noise."""
        target, params = self.params.target, self.params
        channels, *size = sizes.shape
        if sizes == self.grid.target and DATASETS[target.dataset].layout == "folder" and count <= sizes.train:
            images = load(target.dataset, params.data_root, "train", target.path, image_size=tuple(size))
            return images.subset(range(0, len(images), max(1, len(images) // count))[:count])
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (count, *size, channels), dtype=torch.uint8, generator=generator)
        labels = torch.arange(count) % sizes.classes
        return TensorSet(pixels, labels, map(str, range(sizes.classes)), [0.5] * channels, [0.3] * channels)


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
    step = max(0.0, (high - low) / (many - few))
    return Line(max(0.0, low - few * step), step)


def _start_of_a_process() -> float:
    """Seconds until a job's process has loaded what it needs: the lesser of two."""
    taken = [_seconds(lambda: subprocess.run([sys.executable, "-c", _START], check=True)) for _ in range(2)]
    return min(taken)


class _Line(Shape):
    fixed: Annotated[float, Field(ge=0, le=1e9)]
    step: Annotated[float, Field(ge=0, le=1e9)]


class _Plan(Shape):
    hardware: str
    start: Annotated[float, Field(ge=0, le=1e6)]
    probes: dict[str, _Line]


def _read(path: Path) -> tuple[str, float, dict[str, Line]]:
    content = check_shape(io.read_json(path), _Plan, path, "write it with seam plan --out on the hardware in question")
    lines = {key: Line(line["fixed"], line["step"]) for key, line in content["probes"].items()}
    return content["hardware"], content["start"], lines


def describe(content: Mapping[str, Any], cores: int | None) -> list[str]:
    """A plan as lines of text."""
    rows = [("stage", "model", "search", "jobs", "steps", "s a job", "hours")]
    for job in content["jobs"]:
        hours = job["count"] * job["seconds"] / 3600
        steps = "" if job["stage"] == "evaluate" else str(job["steps"])
        names = (job["stage"], job["model"], job["search"], str(job["count"]), steps)
        rows.append((*names, seconds(job["seconds"]), f"{hours:.2f}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines += ["", f"on {content['hardware']}: {content['hours']:.2f} core-hours"]
    if content["gpu_hours"]:
        lines[-1] += f", {content['gpu_hours']:.2f} GPU-hours"
    if cores:
        lines[-1] += f"; with {cores} busy cores {content['hours'] / cores:.2f} hours"
    lines.append(f"results: {content['gigabytes']:.2f} GB of weights and checkpoints")
    if content["speedup"]:
        ratios = ", ".join(f"{name} {factor(value)}" for name, value in content["speedup"].items())
        lines.append(f"as fast as the direct search: {ratios}")
    return lines
