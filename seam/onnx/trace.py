"""A network as torch's exporter sees it: markers in the place of quantizers, their integers taken out beforehand."""

import copy
from typing import NamedTuple

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from seam.errors import SeamError
from seam.quant.apply import input_quantizers
from seam.quant.quantizer import Quantizer, weight_quantizer

DOMAIN = "seam"  # of the markers that stand for quantizers between torch's exporter and our rewriting


class Grid(NamedTuple):
    """Integers of a quantizer: [low, high], and the step, [] or [C]."""

    bits: int
    low: int
    high: int
    step: np.ndarray


class Weight(NamedTuple):
    """A quantized weight: its integers, int8 in the weight's shape, and their grid."""

    grid: Grid
    integers: np.ndarray


class _Marker(nn.Module):
    """Stands for a quantizer while torch exports: one node that names the layer."""

    def __init__(self, kind: str, layer: str):
        super().__init__()
        self.kind, self.layer = kind, layer

    def forward(self, x: Tensor) -> Tensor:
        node = f"{DOMAIN}::{self.kind}"
        return torch.onnx.ops.symbolic(node, (x,), {"layer": self.layer}, dtype=x.dtype, shape=x.shape, version=1)


def mark(model: nn.Module) -> tuple[dict[str, Weight], dict[str, Grid], nn.Module]:
    """Integers of the weights, grids of the inputs, both by layer, and a copy of the model with markers instead."""
    weights, inputs = {}, {}
    marked = copy.deepcopy(model).cpu().float().eval()
    modules = dict(marked.named_modules())
    for name, layer in modules.items():
        if quantizer := weight_quantizer(layer):
            weights[name] = weight_integers(layer, quantizer)
            # Links below the quantizer are in the integers; one above quantizes what a parent multiplies by the weight,
            # which Rewriter does.
            chain = layer.parametrizations["weight"]
            for position, link in enumerate(chain):
                chain[position] = _Marker("Weight", name) if link is quantizer else nn.Identity()
    for name, quantizer in input_quantizers(marked).items():
        inputs[name] = _grid(quantizer)
        modules[name].input_quantizer = _Marker("Input", name)
    return weights, inputs, marked


@torch.no_grad()
def _grid(quantizer: Quantizer) -> Grid:
    low, high = quantizer.bounds[:, 0].tolist()
    step = quantizer.log_step.exp()
    return Grid(quantizer.bits, int(low), int(high), (step[0] if step.dim() == 2 else step.squeeze(0)).numpy())


@torch.no_grad()
def weight_integers(layer: nn.Module, quantizer: Quantizer) -> Weight:
    """The integers of a weight: those of the fake quantizer itself, so that both sides hold the same weight."""
    seen = []
    hook = quantizer.register_forward_hook(lambda _, args, output: seen.append(output))
    _ = layer.weight  # runs the parametrizations
    hook.remove()
    grid = _grid(quantizer)
    steps = torch.from_numpy(grid.step).view(-1, *[1] * (seen[0].dim() - 1))
    return Weight(grid, torch.round(seen[0] / steps).to(torch.int8).numpy())


def trace(marked: nn.Module, input_size: tuple[int, int, int], opset: int) -> onnx.ModelProto:
    """torch's graph of the marked model; of timm's own attention where torch's fused one cannot be exported."""
    try:
        return _trace(marked, input_size, opset)
    except SeamError:
        fused = [module for module in marked.modules() if getattr(module, "fused_attn", False) is True]
        if not fused:
            raise
    for module in fused:
        module.fused_attn = False
    return _trace(marked, input_size, opset)


def _trace(marked: nn.Module, input_size: tuple[int, int, int], opset: int) -> onnx.ModelProto:
    images = torch.zeros(2, *input_size)
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                marked,
                (images,),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    except Exception as error:  # the exporter wraps what a network's own code raises in many types
        cause: BaseException = error
        while cause.__cause__:
            cause = cause.__cause__
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise SeamError(f"export: torch cannot export this network: {reason}") from error
    return program.model_proto
