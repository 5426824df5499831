"""Does an exported ONNX file compute what PyTorch's fake-quantized model computes? Checked in onnxruntime, on images.

Two runtimes sum floats in different orders, so a value within float error of a rounding boundary (a *tie*) may be
rounded up by one and down by the other, and one such step changes all that follows. Comparing only the logits would
report faults where there are none or, with a tolerance that lets ties pass, miss real ones. Therefore PyTorch runs a
second time, *following* the file: what each layer reads, before it is quantized, is compared with what the file's
layer reads, within float tolerance, and the layer goes on with the file's values. So both decide ties alike, and what
all layers read and the logits must agree within float tolerance, for networks of any depth.
"""

import copy
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn.utils import parametrize

from seam.errors import SeamError
from seam.quant.apply import input_quantizers
from seam.quant.kernels import use_kernels

CHANCE = 1e-3  # a difference between classes that is less probable than this is none of chance
TOLERANCE = 1e-4  # of the largest value of a tensor; float32 sums in another order differ by about 1e-6 of it
_CHUNK = 16  # images a run: what all layers read in a run is held in memory
_QUANTIZED_INPUT = re.compile(r"\.input_quantized(_\d+)?$")


def quantized_input(layer: str, call: int) -> str:
    """Name of a layer's quantized input in the file; `call` counts the calls of a layer that is called repeatedly."""
    return f"{layer}.input_quantized" + (f"_{call}" if call else "")


@torch.no_grad()
def parity(model: nn.Module, path: str | Path, batches: Iterable[tuple[Tensor, Any]], device: torch.device) -> dict:
    """Compare an exported file, run by onnxruntime on the CPU, with the model it was made from, on real images.

    Args:
        model: the fake-quantized model given to `seam.onnx.export.export`; evaluated in evaluation mode, not changed.
        path: the ONNX file.
        batches: (images [N, C, H, W], labels [N] or anything else), as for `seam.quant.apply.calibrate`.
        device: where PyTorch runs.

    Returns: a report for parity.json:
        images: their count.
        argmax_equal: share of the images for which both name the same class; ties can tip it.
        argmax_equal_kept: the same for onnxruntime when it must keep what the layers read.
        only_kept_equal, only_fused_equal: images for which just one of these two runs names PyTorch's class.
        top1_onnxruntime, top1_pytorch (percent), only_onnxruntime_right, only_pytorch_right (images): with labels only.
        largest_logit_difference: over all images, ties included.
        largest_logit_difference_non_tie: with ties decided as the file does; at most `tolerance` if all is well.
        tolerance: 1e-4 of the largest logit.
        quantized_values: how many inputs of layers were compared.
        mismatches: how many of them differed by more than 1e-4 of the largest value that their layer reads.
        mismatched_layers: at most five layers with mismatches, in order of execution.
        ties: how many values were rounded differently without being mismatches; images_with_ties: in how many images.
        images_fused_differently: images whose logits change beyond tolerance when onnxruntime must keep what the
            layers read; their ties were decided as in that run.
        onnxruntime: its version. verdict: "equal", or what is not.

    Classes may differ by chance, as ties do, not beyond it: exact tests of the images that only one side has right
    (McNemar 1947), refused below a probability of 0.001. They see what is wrong only where onnxruntime fuses operators.

    Raises: SeamError for a missing or broken file, one of another model, no images, or logits that are not finite.
    """
    use_kernels(device=device)
    model = copy.deepcopy(model).to(device).float().eval()
    run = _Run()
    followers = {name: _Follower(name, quantizer, run) for name, quantizer in input_quantizers(model).items()}
    for name, follower in followers.items():
        model.get_submodule(name).input_quantizer = follower
    file = _File(Path(path))
    counts: Counter[str] = Counter()
    difference = difference_non_tie = largest = 0.0
    with torch.backends.cudnn.flags(allow_tf32=False), parametrize.cached():  # weights are quantized once
        for x, labels in _chunks(batches):
            file_logits, kept_logits, reads = file.run(x)
            run.start(len(x), reads)
            followed = model(x.to(device)).cpu()
            # An image that it rounds as the file does, the model need not compute again.
            tied, apart = run.tied, run.tied | run.mismatched
            logits = followed.clone()
            if apart.any():
                run.start(int(apart.sum()), None)
                logits[apart] = model(x[apart].to(device)).cpu()
            largest = max(largest, logits.abs().max().item())
            difference = max(difference, _distances(logits, file_logits).max().item())
            difference_non_tie = max(difference_non_tie, _distances(followed, kept_logits).max().item())
            found, fused, kept = (one.argmax(1) for one in (logits, file_logits, kept_logits))
            counts["images"] += len(x)
            counts["images_with_ties"] += int(tied.sum())
            fused_differently = _distances(file_logits, kept_logits) > TOLERANCE * largest
            counts["images_fused_differently"] += int(fused_differently.sum())
            counts.update(_paired(fused == found, kept == found, "fused_equal", "kept_equal"))
            if labels is not None:
                counts["labels"] += len(x)
                counts.update(_paired(fused == labels, found == labels, "onnxruntime_right", "pytorch_right"))
    images = counts["images"]
    if not images:
        raise SeamError("parity: no images")
    report = {
        "images": images,
        "argmax_equal": counts["fused_equal"] / images,
        "argmax_equal_kept": counts["kept_equal"] / images,
        "only_fused_equal": counts["only_fused_equal"],
        "only_kept_equal": counts["only_kept_equal"],
        "largest_logit_difference": difference,
        "largest_logit_difference_non_tie": difference_non_tie,
        "tolerance": TOLERANCE * largest,
        "quantized_values": sum(follower.values for follower in followers.values()),
        "mismatches": sum(follower.mismatches for follower in followers.values()),
        "mismatched_layers": [name for name, follower in followers.items() if follower.mismatches][:5],
        "ties": sum(follower.ties for follower in followers.values()),
        "images_with_ties": counts["images_with_ties"],
        "images_fused_differently": counts["images_fused_differently"],
        "onnxruntime": onnxruntime.__version__,
    }
    if counts["labels"] == images:
        report |= {
            "top1_onnxruntime": 100 * counts["onnxruntime_right"] / images,
            "top1_pytorch": 100 * counts["pytorch_right"] / images,
            "only_onnxruntime_right": counts["only_onnxruntime_right"],
            "only_pytorch_right": counts["only_pytorch_right"],
        }
    return report | {"verdict": "; ".join(_faults(report)) or "equal"}


def check_parity(report: dict) -> None:
    """Raise SeamError if a report of `parity` shows that the file and the model differ."""
    if faults := _faults(report):
        raise SeamError(f"parity: the ONNX file does not compute what the model computes: {'; '.join(faults)}")


def _faults(report: dict) -> list[str]:
    faults = []
    if report["mismatches"]:
        layers = ", ".join(report["mismatched_layers"])
        faults.append(f"{report['mismatches']} of {report['quantized_values']} inputs of layers differ (from {layers})")
    if not report["largest_logit_difference_non_tie"] <= report["tolerance"]:
        found, most = report["largest_logit_difference_non_tie"], report["tolerance"]
        faults.append(f"logits differ by {found:.3g} with ties decided alike, float error is at most {most:.3g}")
    kept, fused = report["only_kept_equal"], report["only_fused_equal"]
    if kept > fused and _beyond_chance(kept, fused):
        faults.append(
            f"{100 * report['argmax_equal']:.1f} % equal classes, {100 * report['argmax_equal_kept']:.1f} % where "
            "onnxruntime may not fuse operators"
        )
    if "top1_pytorch" in report and _beyond_chance(report["only_onnxruntime_right"], report["only_pytorch_right"]):
        theirs, ours = report["top1_onnxruntime"], report["top1_pytorch"]
        faults.append(f"top-1 is {theirs:.1f} % in onnxruntime and {ours:.1f} % in PyTorch, which is not by chance")
    return faults


def _paired(first: Tensor, second: Tensor, name: str, other: str) -> dict[str, int]:
    """Images [N] for which each holds, and for which only one does."""
    pairs = {name: first, other: second, f"only_{name}": first & ~second, f"only_{other}": second & ~first}
    return {key: int(values.sum()) for key, values in pairs.items()}


def _beyond_chance(only_one: int, only_other: int) -> bool:
    return only_one + only_other > 0 and binomtest(only_one, only_one + only_other).pvalue < CHANCE


class _Run:
    """What the followers of one run of the model share."""

    def start(self, images: int, reads: dict[str, np.ndarray] | None) -> None:
        """Before a run of so many images. reads: what the file's layers read, by `quantized_input`; None: follow none.

        Afterwards `tied` and `mismatched` [N] tell which images have such values.
        """
        self.images, self.reads = images, reads
        self.tied, self.mismatched = (torch.zeros(images, dtype=torch.bool) for _ in range(2))
        self.calls: Counter[str] = Counter()
        self.last: _Last | None = None


class _Last(NamedTuple):
    """What a quantizer was last given and made of it. Layers of a group read one tensor: one pass serves them all."""

    quantizer: nn.Module
    x: Tensor
    version: int  # of x, which counts what is done to it in place
    file: np.ndarray | None
    output: Tensor
    ties: int
    mismatches: int


class _Follower(nn.Module):
    """In the place of a layer's input quantizer: compares its input with the file's, and goes on with the file's."""

    def __init__(self, layer: str, quantizer: nn.Module, run: _Run):
        super().__init__()
        self.layer, self.quantizer, self.run = layer, quantizer, run
        self.values = self.ties = self.mismatches = 0

    def forward(self, x: Tensor) -> Tensor:
        last, file = self.run.last, self._file(x)
        known = last and last.quantizer is self.quantizer and last.x is x and last.version == x._version
        if not (known and last.file is file):
            found = (self.quantizer(x), 0, 0) if file is None else self._follow(x, torch.from_numpy(file).to(x.device))
            last = self.run.last = _Last(self.quantizer, x, x._version, file, *found)
        if file is not None:
            self.values += x.numel()
            self.ties += last.ties
            self.mismatches += last.mismatches
        return last.output

    def _file(self, x: Tensor) -> np.ndarray | None:
        """What the file's layer reads."""
        if self.run.reads is None:
            return None
        name = quantized_input(self.layer, self.run.calls[self.layer])
        self.run.calls[self.layer] += 1
        file = self.run.reads.get(name)
        if file is None or file.shape != tuple(x.shape):
            raise SeamError(f"parity: the file is no export of this model: it has no {name} of shape {list(x.shape)}")
        return file

    def _follow(self, x: Tensor, file: Tensor) -> tuple[Tensor, int, int]:
        """The file's input, quantized, and how many values are ties and mismatches."""
        step, (low, high) = self.quantizer.log_step.exp(), self.quantizer.bounds[:, 0].tolist()
        images, counts = self.run.images, Counter()
        quantized = self.quantizer(x)
        tolerance = TOLERANCE * torch.stack(torch.aminmax(x)).abs().max()
        followed = torch.empty_like(x, memory_format=torch.contiguous_format)
        tied, mismatched = [], []
        # Image by image, which stay in the processor's cache; a table of positions, or a part of one, as a whole.
        for mine, own, theirs, out in zip(*(t.chunk(images) for t in (x, quantized, file, followed)), strict=True):
            # As QuantizeLinear has it, by a division; our quantizer multiplies by 1 / step: a tie can tell them apart.
            torch.div(theirs, step, out=out).clamp_(low, high).round_().mul_(step)
            wrong = None
            if not (theirs - mine).abs_().max() <= tolerance:  # so written, NaN is wrong
                wrong = ~((theirs - mine).abs() <= tolerance)
                counts["mismatches"] += int(wrong.sum())
            ties = 0
            if not torch.equal(out, own):
                apart = (out - own).abs() > step / 2
                ties = int((apart if wrong is None else apart & ~wrong).sum())
                counts["ties"] += ties
            tied.append(ties > 0)
            mismatched.append(wrong is not None)
        for marks, seen in ((self.run.tied, tied), (self.run.mismatched, mismatched)):
            # Windows of images have more rows than images, image by image; a table of positions any.
            marks |= torch.tensor(seen if len(x) % images == 0 else any(seen))
        return followed, counts["ties"], counts["mismatches"]


class _File:
    """An exported file in onnxruntime: as it is, and with what its layers read, before quantizing, as outputs."""

    def __init__(self, path: Path):
        if not path.is_file():
            raise SeamError(f"{path}: no such file")
        try:
            file = onnx.load(str(path))
            self._plain = session(file)
            self._sources = _sources(file)
            given = {value.name for value in (*file.graph.input, *file.graph.output)}
            # Not the quantized values: onnxruntime moves and fuses quantization and would do it differently.
            self._probes = [name for name in dict.fromkeys(self._sources.values()) if name not in given]
            for name in self._probes:
                file.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
            self._probed = session(file)
        except Exception as error:  # protobuf and onnxruntime raise many types
            raise SeamError(f"{path}: onnxruntime cannot load it ({error})") from error

    def run(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, np.ndarray]]:
        """Logits of the file and of the file with probes, and what the layers read, by `quantized_input` name."""
        feed = {"images": x.numpy()}
        try:
            (logits,) = self._plain.run(["logits"], feed)
            probed_logits, *values = self._probed.run(["logits", *self._probes], feed)
        except Exception as error:  # onnxruntime raises many types
            raise SeamError(f"parity: onnxruntime cannot run the file on images {list(x.shape)} ({error})") from error
        values = {**feed, "logits": probed_logits, **dict(zip(self._probes, values, strict=True))}
        reads = {name: values[source] for name, source in self._sources.items()}
        return torch.from_numpy(logits), torch.from_numpy(probed_logits), reads


def session(file: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """The model in onnxruntime on the CPU, with as many threads as PyTorch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # a failure raises; its log line would only repeat it
    cpu = ["CPUExecutionProvider"]  # nothing to fall back to
    return onnxruntime.InferenceSession(file.SerializeToString(), options, providers=cpu, enable_fallback=0)


def _sources(file: onnx.ModelProto) -> dict[str, str]:
    """Quantized input of a layer -> the tensor that it was quantized from."""
    makers = {node.output[0]: node for node in file.graph.node}
    sources = {}
    for name, node in makers.items():
        if _QUANTIZED_INPUT.search(name):
            while node.op_type != "QuantizeLinear":
                node = makers[node.input[0]]
            sources[name] = node.input[0]
    return sources


def _chunks(batches: Iterable[tuple[Tensor, Any]]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Images and, if there are, their labels."""
    for x, y in batches:
        images = x.detach().float().cpu().contiguous().split(_CHUNK)
        yield from zip(images, y.cpu().split(_CHUNK) if torch.is_tensor(y) else [None] * len(images), strict=True)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Largest difference of each image, [N]."""
    distances = (a - b).abs().amax(1)
    if not math.isfinite(distances.sum().item()):
        raise SeamError("parity: the logits of the model or of the file are not finite")
    return distances
