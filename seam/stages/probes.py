"""How long a piece of work takes on this machine: its set-up, and each of its steps, measured on a few of them."""

import copy
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from seam.calibration.levels import calibrate
from seam.data.datasets import DATASETS
from seam.data.fetch import described, places
from seam.data.image_sets import ImageSet, TensorSet
from seam.data.loaders import load
from seam.experiment.params import Params
from seam.models.build import build
from seam.models.find import find_layers
from seam.policy.file import policy_bits
from seam.quant.apply import quantize
from seam.quant.kernels import use_kernels
from seam.runtime.meter import Meter, processor_name
from seam.runtime.process import set_up
from seam.search.problem import prepare, solve
from seam.settings import Training
from seam.stages.target import CALIBRATION_IMAGES, budgets_of, locked_layers
from seam.training.evaluate import evaluate_each
from seam.training.statistics import IMAGES
from seam.training.supervised import train

FEW, MANY = 4, 20  # steps of the two runs whose difference gives the seconds of one
_START = "from seam.runtime.imports import import_torch; import_torch(); import seam.stages.probes"
_FILES = ("folder", "torchvision")  # layouts of datasets whose images are files, which take time to read


class Line(NamedTuple):
    """Seconds of a piece of work: `fixed`, whatever its length, and `step` for each step (or image, or iteration)."""

    fixed: float
    step: float = 0.0

    def at(self, steps: float) -> float:
        return self.fixed + self.step * steps


class Sizes(NamedTuple):
    """Of a dataset: images in train and test, classes, and (C, H, W)."""

    train: int
    test: int
    classes: int
    shape: tuple[int, int, int]


def sizes_of(params: Params, dataset: str, path: str | None) -> Sizes:
    """Of a dataset that seam knows, without its data; else of the folder, which must be there."""
    info = DATASETS[dataset]
    if path is None and info.counts and info.image_size and info.classes and info.channels:
        return Sizes(*info.counts, info.classes, (info.channels, *info.image_size))
    manifest = described(dataset, params.data_root, path)
    train_count, test_count = (manifest[part]["count"] for part in ("train", "test"))
    return Sizes(train_count, test_count, len(manifest["classes"]), (manifest["channels"], *manifest["image_size"]))


class Probes:
    """What takes how long here: jobs of a parameter set, for a few steps.

    Attributes:
        unread: names of datasets whose files are not there to be read.
    """

    def __init__(self, params: Params, target: Sizes, tests: int):
        self.params, self.target, self.tests = params, target, tests
        self.unread: list[str] = []
        self.device = set_up(params.device, params.pretrain.threads, 0)
        cuda = self.device.type == "cuda"
        self.hardware = torch.cuda.get_device_name(self.device) if cuda else processor_name()
        widths = {len(params.settings(search).bits) for search in params.grid.searches}
        use_kernels(params.finetune.kernels, (1, *sorted(widths)), self.device)  # compiled once on a machine

    def trained(self, network: Callable[..., torch.nn.Module], alias: str, settings: Training) -> Line:
        batch = max(1, settings.batch_size // settings.processes)
        available = min(settings.images or self.target.train, self.target.train)
        # As many as it re-estimates statistics from, which is the greater part of what does not grow with the steps.
        few = max(4 * batch, IMAGES if getattr(settings, "batch_norm", "") == "re-estimated" else 0)
        images, start = self.images(min(few, available), self.target), network(self, alias)
        calibration = getattr(settings, "calibration", None)
        teacher = self.network(alias).eval() if getattr(settings, "distillation", 0.0) else None

        def taken(steps: int) -> float:
            model, meter = copy.deepcopy(start), Meter(self.device)
            some = settings.model_copy(update={"epochs": steps, "batch_size": batch})
            return _seconds(lambda: train(model, some, images, 0, self.device, meter, teacher, steps=steps))

        line = _through(taken, FEW, MANY)
        if calibration is None:
            return line
        return line._replace(fixed=line.fixed + self.calibrated(alias, calibration, CALIBRATION_IMAGES).fixed)

    def evaluated(self, network: Callable[..., torch.nn.Module], alias: str) -> Line:
        """Seconds an image."""
        batch = min(self.params.evaluate.batch_size, self.tests)
        images, model = self.images(3 * batch, self.target), network(self, alias)
        batch = max(1, len(images) // 3)

        def taken(count: int) -> float:
            return _seconds(lambda: evaluate_each(model, images.subset(range(count)), batch, self.device, "probe"))

        return _through(taken, batch, 3 * batch)

    def calibrated(self, alias: str, level: str, count: int) -> Line:
        images, network = self.images(count, self.target), self.quantized(alias)

        def taken(iterations: int) -> float:
            some = self.params.evaluate.reconstruct.model_copy(update={"iterations": iterations})
            return _seconds(lambda: calibrate(copy.deepcopy(network), images, level, self.device, some))

        return _through(taken, FEW, MANY) if level == "reconstruct" else Line(taken(1))

    def searched(self, alias: str, search: str, method: Any, settings: Any, sizes: Sizes | None, own: bool) -> Line:
        budget = next(job.budget for job in self.params.jobs() if job.search == search)
        layers = locked_layers(self.params, alias, find_layers(self.network(alias), self.target.shape))
        budgets = budgets_of(self.params, alias, budget, layers, settings)
        images = None if sizes is None else self.images(sizes.train, sizes)
        batch = max(1, settings.batch_size // settings.processes)
        trains = False

        def taken(steps: int) -> float:
            nonlocal trains
            network, meter = self.network(alias), Meter(self.device)
            some = {"steps": steps, "epochs": steps, "warmup_epochs": 0, "batch_size": batch}
            given = settings.model_copy(update=some)

            def whole() -> None:
                problem = prepare(
                    method, network, images, layers, budgets, given, 0, self.device, meter, own_classes=own
                )
                solve(method, problem, method.preferences(problem), budgets)

            found = _seconds(whole)
            trains = meter.steps > 0
            return found

        first = taken(FEW)
        return _through(taken, FEW, MANY) if trains else Line(min(first, taken(FEW)))

    def network(self, alias: str) -> torch.nn.Module:
        torch.manual_seed(0)
        network = build(unweighted(self.params, alias), self.target.classes, self.target.shape[0])
        return network.to(self.device, memory_format=torch.channels_last)

    def quantized(self, alias: str) -> torch.nn.Module:
        """At 4 bits: what a step takes does not depend on the bits."""
        network, size = self.network(alias), self.target.shape
        layers = locked_layers(self.params, alias, find_layers(network, size))
        bits = policy_bits(layers, [(4, 4)] * sum(not layer.fixed for layer in layers))
        quantize(network, bits, layers, size)
        calibrate(network, self.images(32, self.target), "steps", self.device)
        return network

    def images(self, count: int, sizes: Sizes) -> ImageSet:
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


def unweighted(params: Params, alias: str) -> Any:
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


def start_of_a_process() -> float:
    """Seconds until a job's process has loaded what it needs: the lesser of two."""
    taken = [_seconds(lambda: subprocess.run([sys.executable, "-c", _START], check=True)) for _ in range(2)]
    return min(taken)
