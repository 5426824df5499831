"""ONNX export of a fake-quantized model: QuantizeLinear / DequantizeLinear with the narrowest integer types.

Weights become packed integer initializers with one step an output channel; what a layer reads passes through
QuantizeLinear, Clip where its range is narrower than the type, and DequantizeLinear. BatchNormalization stays as it is:
folding it into a convolution would move the quantized weights off their grid.

torch's own exporter makes the graph (`trace.py`), with markers for the quantizers; `rewrite.py` puts integers in their
place. `parity` compares a file with PyTorch (`parity.py`); `export_verified` does both, and names a refused file so.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper
from torch import Tensor, nn

from seam.errors import SeamError
from seam.io import sha256, write_atomic, write_json
from seam.onnx.parity import check_parity, parity, session
from seam.onnx.rewrite import Rewriter
from seam.onnx.trace import mark, trace

__all__ = ["check_parity", "export", "export_verified", "parity"]

OPSETS = range(21, 26)  # 21: first with 4-bit types; 25: first with 2-bit types, and the exporter's last


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
    weights, inputs, marked = mark(model)
    grids = [*inputs.values(), *(weight.grid for weight in weights.values())]
    if not grids:
        raise SeamError("export: the model has no quantizers; apply a policy to it with seam.quant.apply.quantize")
    if opset is None:
        opset = 25 if any(grid.bits == 2 for grid in grids) else 21
    elif opset not in OPSETS:
        raise SeamError(f"export: opset {opset} is not supported; known: {OPSETS.start} to {OPSETS.stop - 1}")
    traced = trace(marked, input_size, opset)
    for least in (2, 4, 8):
        file = Rewriter(traced, weights, inputs, opset, least).run()
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
