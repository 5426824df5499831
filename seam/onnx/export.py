"""ONNX export of a fake-quantized model: QuantizeLinear / DequantizeLinear with the narrowest integer types.

Weights become packed integer initializers with one step an output channel; what a layer reads passes through
QuantizeLinear, Clip where its range is narrower than the type, and DequantizeLinear. BatchNormalization stays as it is:
folding it into a convolution would move the quantized weights off their grid.

`parity` compares a file with PyTorch (`parity.py`); `export_verified` does both, and names a file that is refused
so.
"""

import copy
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from seam.errors import SeamError
from seam.io import sha256, write_atomic, write_json
from seam.onnx.parity import check_parity, parity, quantized_input, session
from seam.quant.apply import input_quantizers
from seam.quant.quantizer import Quantizer, weight_quantizer

__all__ = ["check_parity", "export", "export_verified", "parity"]

OPSETS = range(21, 26)  # 21: first with 4-bit types; 25: first with 2-bit types, and the exporter's last
# Operators that onnxruntime fuses with, or moves behind, the quantization that follows them.
_TRANSPARENT = ("Relu", "Clip", "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
_DOMAIN = "seam"  # of the markers that stand for quantizers between torch's exporter and our rewriting


class _Grid(NamedTuple):
    """Integers of a quantizer: [low, high], and the step, [] or [C]."""

    bits: int
    low: int
    high: int
    step: np.ndarray


class _Weight(NamedTuple):
    grid: _Grid
    integers: np.ndarray


def integer_type(bits: int, signed: bool, opset: int) -> int:
    """The narrowest integer type of the opset that holds `bits` bits, as a TensorProto data type.

    2 bits: INT2 from opset 25 on, before that INT4. 3 and 4 bits: INT4. 5 to 8 bits: INT8. Unsigned: UINT.
    """
    width = 2 if bits <= 2 and opset >= 25 else 4 if bits <= 4 else 8
    return getattr(TensorProto, f"{'' if signed else 'U'}INT{width}")


def export(
    model: nn.Module,
    input_size: tuple[int, int, int],
    path: str | Path,
    opset: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> dict:
    """Write a fake-quantized model as an ONNX file; input `images` [N, C, H, W], output `logits`, any N.

    Args:
        model: from `seam.quant.apply.quantize`, calibrated or finetuned; not changed, exported as it evaluates.
        input_size: (C, H, W) of an image.
        path: the file; written atomically.
        opset: 21 to 25. None: 25 where a layer has 2 bits (the first with 2-bit types), else 21.
        metadata: what a user of the file should know, such as the preprocessing; each value is stored as JSON text.

    Activations of 2, 4 and 8 bits get the type of that width. Where onnxruntime refuses the file (it has no kernels for
    some operators on narrow integers), those of 2 bits, then also those of 4, get an 8-bit type and a Clip, as 3, 5, 6
    and 7 bits always do: the values are the same, and activations are not stored.

    Returns: {"opset", "ir_version", "file_mb" (1e6 bytes), "initializers" and "activations" (type -> count)}.

    Raises: SeamError for a model without quantizers, an opset out of range, a network that torch cannot export or
        onnxruntime cannot load.
    """
    weights, inputs, marked = _mark(model)
    grids = [*inputs.values(), *(weight.grid for weight in weights.values())]
    if not grids:
        raise SeamError("export: the model has no quantizers; apply a policy to it with seam.quant.apply.quantize")
    if opset is None:
        opset = 25 if any(grid.bits == 2 for grid in grids) else 21
    elif opset not in OPSETS:
        raise SeamError(f"export: opset {opset} is not supported; known: {OPSETS.start} to {OPSETS.stop - 1}")
    traced = _trace(marked, input_size, opset)
    for least in (2, 4, 8):
        file = _Rewriter(traced, weights, inputs, opset, least).run()
        try:
            session(file)
            break
        except Exception as error:  # onnxruntime raises many types
            if least == 8:
                raise SeamError(f"export: onnxruntime cannot load the exported network ({error})") from error
    helper.set_model_props(
        file, {key: json.dumps(value, ensure_ascii=False) for key, value in (metadata or {}).items()}
    )
    write_atomic(path, lambda temporary: onnx.save(file, str(temporary)))
    stored = {tensor.name: TensorProto.DataType.Name(tensor.data_type) for tensor in file.graph.initializer}
    quantized = [stored[node.input[2]] for node in file.graph.node if node.op_type == "QuantizeLinear"]
    return {
        "opset": opset,
        "ir_version": file.ir_version,
        "file_mb": Path(path).stat().st_size / 1e6,
        "initializers": dict(sorted(Counter(stored.values()).items())),
        "activations": dict(sorted(Counter(quantized).items())),
    }


def export_verified(
    model: nn.Module,
    input_size: tuple[int, int, int],
    path: str | Path,
    batches: Iterable[tuple[Tensor, Any]],
    opset: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> dict:
    """`export`, then `parity` on images, where the model is. A file named `path` is one that computes the same.

    Beside NAME.onnx, NAME.parity.json holds the report, with the name and sha256 of the file that it is about. Until
    the two are found equal the file is called NAME.unverified.onnx, and one that is refused keeps this name. NAME.onnx
    and its report of an earlier run are removed as soon as there is a new file.

    Args: as those of `export` and `parity`.

    Returns: the report: keys of `parity` and of `export`, "file", "sha256", "metadata".

    Raises: SeamError as those do, and for a file that does not compute what the model computes.
    """
    path = Path(path)
    unverified, where = path.with_name(f"{path.stem}.unverified.onnx"), path.with_name(f"{path.stem}.parity.json")
    summary = export(model, input_size, unverified, opset, metadata)
    for stale in (path, where):
        stale.unlink(missing_ok=True)
    report = parity(model, unverified, batches, next(model.parameters()).device)
    equal = report["verdict"] == "equal"
    file = path if equal else unverified
    report |= {"file": file.name, "sha256": sha256(unverified), **summary, "metadata": dict(metadata or {})}
    write_json(where, report)
    if not equal:
        try:
            check_parity(report)
        except SeamError as error:
            raise SeamError(f"{error}; the file is kept as {unverified}, the report is {where}") from None
    unverified.rename(path)
    return report


class _Marker(nn.Module):
    """Stands for a quantizer while torch exports: one node that names the layer."""

    def __init__(self, kind: str, layer: str):
        super().__init__()
        self.kind, self.layer = kind, layer

    def forward(self, x: Tensor) -> Tensor:
        node = f"{_DOMAIN}::{self.kind}"
        return torch.onnx.ops.symbolic(node, (x,), {"layer": self.layer}, dtype=x.dtype, shape=x.shape, version=1)


def _mark(model: nn.Module) -> tuple[dict[str, _Weight], dict[str, _Grid], nn.Module]:
    """Integers of the weights, grids of the inputs, both by layer, and a copy of the model with markers instead."""
    weights, inputs = {}, {}
    marked = copy.deepcopy(model).cpu().float().eval()
    modules = dict(marked.named_modules())
    for name, layer in modules.items():
        if quantizer := weight_quantizer(layer):
            weights[name] = _integers(layer, quantizer)
            # Links below the quantizer are in the integers; one above quantizes what a parent multiplies by the weight,
            # which _Rewriter does.
            chain = layer.parametrizations["weight"]
            for position, link in enumerate(chain):
                chain[position] = _Marker("Weight", name) if link is quantizer else nn.Identity()
    for name, quantizer in input_quantizers(marked).items():
        inputs[name] = _grid(quantizer)
        modules[name].input_quantizer = _Marker("Input", name)
    return weights, inputs, marked


@torch.no_grad()
def _grid(quantizer: Quantizer) -> _Grid:
    low, high = quantizer.bounds[:, 0].tolist()
    step = quantizer.log_step.exp()
    return _Grid(quantizer.bits, int(low), int(high), (step[0] if step.dim() == 2 else step.squeeze(0)).numpy())


@torch.no_grad()
def _integers(layer: nn.Module, quantizer: Quantizer) -> _Weight:
    """The integers of a weight: those of the fake quantizer itself, so that both sides hold the same weight."""
    seen = []
    hook = quantizer.register_forward_hook(lambda _, args, output: seen.append(output))
    _ = layer.weight  # runs the parametrizations
    hook.remove()
    grid = _grid(quantizer)
    steps = torch.from_numpy(grid.step).view(-1, *[1] * (seen[0].dim() - 1))
    return _Weight(grid, torch.round(seen[0] / steps).to(torch.int8).numpy())


def _trace(marked: nn.Module, input_size: tuple[int, int, int], opset: int) -> onnx.ModelProto:
    """torch's graph of the marked model."""
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


def _layer(marker: NodeProto) -> str:
    return helper.get_node_attr_value(marker, "layer").decode()


class _Rewriter:
    """Replaces the markers in torch's graph by integer initializers and quantization nodes.

    `least`: width of the narrowest type that activations may have.
    """

    def __init__(
        self,
        traced: onnx.ModelProto,
        weights: dict[str, _Weight],
        inputs: dict[str, _Grid],
        opset: int,
        least: int,
    ):
        self.traced, self.weights, self.inputs, self.opset, self.least = traced, weights, inputs, opset, least
        self.initializers = {tensor.name: tensor for tensor in traced.graph.initializer}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in traced.graph.node:
            for name in node.input:
                self.readers[name].append(node)
        self.nodes: list[NodeProto] = []
        self.tensors: dict[str, TensorProto] = {}
        self.quantized: dict[tuple, str] = {}  # layers that share a quantizer quantize their tensor once
        self.calls: Counter[str] = Counter()
        self.varying = {value.name for value in traced.graph.input}  # tensors that depend on the images
        self.constant: set[str] = set()  # layers whose input does not

    def run(self) -> onnx.ModelProto:
        traced, renamed, marked = self.traced.graph, {}, {}
        called = {_layer(node) for node in traced.node if node.domain == _DOMAIN and node.op_type == "Input"}
        for original in traced.node:
            node = NodeProto()
            node.CopyFrom(original)
            # The exporter's notes on a node hold stack traces with paths of the machine.
            node.ClearField("metadata_props")
            node.input[:] = [renamed.get(name, name) for name in node.input]
            if node.domain == _DOMAIN and node.op_type == "Weight":
                marked[node.output[0]] = _layer(node), False
            elif node.domain == _DOMAIN:
                renamed[node.output[0]] = self._input(_layer(node), node.input[0])
            elif node.op_type == "Transpose" and node.input[0] in marked and self._is_matrix(*marked[node.input[0]]):
                # The matrix of a linear layer: onnxruntime would transpose it at each run, and cannot in 2 bits.
                marked[node.output[0]] = marked[node.input[0]][0], True
            else:
                weights = [position for position, name in enumerate(node.input) if name in marked]
                for position in weights:
                    layer, transposed = marked[node.input[position]]
                    if layer in self.inputs and layer not in called:  # a parent applied the weight itself
                        node.input[0] = self._input(layer, node.input[0])
                    node.input[position] = self._weight(layer, transposed)
                bias = self._take_bias(node, layer) if weights else None
                self._add(node)
                if bias is not None:
                    self._node("Add", [node.output[0], bias], original.output[0])
        used = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in traced.initializer if tensor.name in used]
        graph = helper.make_graph(self.nodes, "seam", traced.input, traced.output, [*kept, *self.tensors.values()])
        for value in (*graph.input, *graph.output, *graph.initializer):
            value.ClearField("metadata_props")
        opsets = [helper.make_opsetid("", self.opset)]
        file = helper.make_model(graph, producer_name="seam", opset_imports=opsets)
        file.ir_version = helper.find_min_ir_version_for(opsets)
        return file

    def _is_matrix(self, layer: str, transposed: bool) -> bool:
        return self.weights[layer].integers.ndim == 2 and not transposed

    def _weight(self, layer: str, transposed: bool) -> str:
        weight, name = self.weights[layer], f"{layer}.weight" + ("_transposed" if transposed else "")
        if layer in self.constant:
            # onnxruntime folds the input of such a layer (a table of positions) to a float constant, and it multiplies
            # floats by low-bit weights with 8-bit inputs of its own making (MatMulNBits). Float weights are exact.
            steps = weight.grid.step.reshape(-1, *[1] * (weight.integers.ndim - 1))
            values = weight.integers * steps
            return self._tensor(f"{name}_constant", values.T if transposed else values)
        output = f"{name}_quantized"
        if f"{name}_integers" not in self.tensors:
            integers = weight.integers.T if transposed else weight.integers
            stored = self._tensor(f"{name}_integers", integers, integer_type(weight.grid.bits, True, self.opset))
            step = self._tensor(f"{layer}.weight_step", weight.grid.step)
            self._node("DequantizeLinear", [stored, step], output, axis=int(transposed))
        return output

    def _take_bias(self, node: NodeProto, layer: str) -> str | None:
        """The bias of a Conv or Gemm as an Add behind it needs it, [1, C, 1, 1] or [C]; the node loses it.

        Left in the node, onnxruntime (its pass WeightBiasQuantization) rounds it to multiples of the input's step times
        the weight's. It also fuses layers without a bias into integer operators, which have no kernels for 2-bit
        weights: those get a bias of zeros.
        """
        shape = (1, -1, 1, 1) if node.op_type == "Conv" else (-1,)
        if len(node.input) < 3:
            weight = self.weights[layer]
            if integer_type(weight.grid.bits, True, self.opset) != TensorProto.INT2 or not self._is_requantized(node):
                return None
            bias = self._tensor(f"{layer}.no_bias", np.zeros(len(weight.integers)).reshape(shape))
        elif node.op_type == "Gemm":
            bias = node.input.pop()
        elif node.op_type == "Conv" and node.input[2] in self.initializers:
            name = node.input.pop()
            bias = self._tensor(f"{name}_of_channels", numpy_helper.to_array(self.initializers[name]).reshape(shape))
        else:
            return None
        node.output[0] += "_without_bias"
        return bias

    def _is_requantized(self, node: NodeProto) -> bool:
        """Whether a node's output is quantized, with nothing but `_TRANSPARENT` between: onnxruntime then fuses it."""
        readers = self.readers[node.output[0]]
        while len(readers) == 1 and readers[0].op_type in _TRANSPARENT:
            readers = self.readers[readers[0].output[0]]
        return any(reader.domain == _DOMAIN for reader in readers)

    def _input(self, layer: str, x: str) -> str:
        grid = self.inputs[layer]
        kind, clipped = self._activation_type(grid)
        native = TensorProto.DataType.Name(kind).lower()
        output = quantized_input(layer, self.calls[layer])
        self.calls[layer] += 1
        if x not in self.varying:
            self.constant.add(layer)
        step = self._tensor(f"{layer}.input_step", grid.step)
        zero = self._tensor(f"{native}_zero", np.zeros(()), kind)
        key = (x, grid.low, grid.high, grid.step.tobytes())
        if key not in self.quantized:
            integers = self._node("QuantizeLinear", [x, step, zero], f"{output}_integers")
            if clipped:
                low, high = (self._tensor(f"{native}_{end}", np.array(end), kind) for end in (grid.low, grid.high))
                integers = self._node("Clip", [integers, low, high], f"{output}_clipped")
            self.quantized[key] = integers
        return self._node("DequantizeLinear", [self.quantized[key], step, zero], output)

    def _activation_type(self, grid: _Grid) -> tuple[int, bool]:
        """The type that an activation is quantized to, and whether a Clip must set its range: 8-bit types have one."""
        kind = integer_type(grid.bits, grid.low < 0, self.opset)
        exact = TensorProto.DataType.Name(kind).endswith(f"INT{grid.bits}")
        if exact and grid.bits >= self.least:
            return kind, False
        return integer_type(8, grid.low < 0, self.opset), grid.bits < 8

    def _tensor(self, name: str, values: np.ndarray, kind: int = TensorProto.FLOAT) -> str:
        if name not in self.tensors:
            self.tensors[name] = numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(kind)), name)
        return name

    def _node(self, operator: str, inputs: list[str], output: str, **attributes: int) -> str:
        self._add(helper.make_node(operator, inputs, [output], name=f"{output}/{operator}", **attributes))
        return output

    def _add(self, node: NodeProto) -> None:
        self.nodes.append(node)
        if self.varying & set(node.input):
            self.varying |= set(node.output)
