"""From torch's graph with markers to one of integers, QuantizeLinear and DequantizeLinear."""

from collections import Counter, defaultdict

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from seam.onnx.parity import quantized_input
from seam.onnx.trace import DOMAIN, Grid, Weight

# Operators that onnxruntime fuses with, or moves behind, the quantization that follows them.
_TRANSPARENT = ("Relu", "Clip", "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")


def integer_type(bits: int, signed: bool, opset: int) -> int:
    """The narrowest integer type of the opset that holds `bits` bits, as a TensorProto data type.

    2 bits: INT2 from opset 25 on, before that INT4. 3 and 4 bits: INT4. 5 to 8 bits: INT8. Unsigned: UINT.
    """
    width = 2 if bits <= 2 and opset >= 25 else 4 if bits <= 4 else 8
    return getattr(TensorProto, f"{'' if signed else 'U'}INT{width}")


def _layer(marker: NodeProto) -> str:
    return helper.get_node_attr_value(marker, "layer").decode()


class Rewriter:
    """Replaces the markers in torch's graph by integer initializers and quantization nodes.

    `least`: width of the narrowest type that activations may have.
    """

    def __init__(
        self,
        traced: onnx.ModelProto,
        weights: dict[str, Weight],
        inputs: dict[str, Grid],
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
        called = {_layer(node) for node in traced.node if node.domain == DOMAIN and node.op_type == "Input"}
        for original in traced.node:
            node = NodeProto()
            node.CopyFrom(original)
            # The exporter's notes on a node hold stack traces with paths of the machine.
            node.ClearField("metadata_props")
            node.input[:] = [renamed.get(name, name) for name in node.input]
            if node.domain == DOMAIN and node.op_type == "Weight":
                marked[node.output[0]] = _layer(node), False
            elif node.domain == DOMAIN:
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
        return any(reader.domain == DOMAIN for reader in readers)

    def _input(self, layer: str, x: str) -> str:
        grid = self.inputs[layer]
        kind, clipped = self._activation_type(grid)
        native = TensorProto.DataType.Name(kind).lower()
        output = quantized_input(layer, self.calls[layer])
        self.calls[layer] += 1
        if x not in self.varying:
            self.constant.add(layer)
        step = self._tensor(f"{layer}.input_step", grid.step)
        # A type without integers below 0 holds them from 0 on.
        zero_point = -grid.low if native.startswith("u") else 0
        zero = self._tensor(f"{native}_{zero_point or 'zero'}", np.array(zero_point), kind)
        key = (x, grid.low, grid.high, grid.step.tobytes())
        if key not in self.quantized:
            integers = self._node("QuantizeLinear", [x, step, zero], f"{output}_integers")
            if clipped:
                low, high = (self._tensor(f"{native}_{end}", np.array(end), kind) for end in (grid.low, grid.high))
                integers = self._node("Clip", [integers, low, high], f"{output}_clipped")
            self.quantized[key] = integers
        return self._node("DequantizeLinear", [self.quantized[key], step, zero], output)

    def _activation_type(self, grid: Grid) -> tuple[int, bool]:
        """The type that an activation is quantized to, and whether a Clip must set its range: 8-bit types have one."""
        kind = integer_type(grid.bits, grid.low == -(2 ** (grid.bits - 1)), self.opset)
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
