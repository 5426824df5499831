"""A quantized model as a verified ONNX file that says how its images must be prepared."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from seam.tool.images import has_classes_of, input_size, open_images, preprocessing

PARITY_IMAGES = 256


def export(
    model: nn.Module,
    path: str | Path,
    images: Any = None,
    *,
    count: int = PARITY_IMAGES,
    opset: int | None = None,
    name: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a calibrated or finetuned model as ONNX and compare it with onnxruntime; returns the report.

    The file is called as asked only if it computes the same (`seam.onnx.export.export_verified`).

    Args:
        images: from `open_images(..., full_size=True)`; by default scikit-learn's digits. Where they have as many
            classes as the model, they are taken for its own: top-1 is compared as well, and their names are stored.
        count: how many of them are compared, evenly spaced.
        opset: as in `seam.onnx.export.export`.
        name: the model's, stored in the file with its classes and how `images` were prepared.
        metadata: more to store.

    Raises SeamError: torch cannot export the network, or the file does not compute what it computes.
    """
    from seam.io import software
    from seam.onnx.export import export_verified
    from seam.runtime.progress import phase, progress

    shown = images if images is not None else open_images(None, model, full_size=True)
    own = images is not None and has_classes_of(model, shown)
    about = {
        "model": name or type(model).__name__,
        "classes": shown.classes if own else None,
        "preprocessing": shown.preprocessing if images is not None else preprocessing(model),
        **(metadata or {}),
        "seam": software()["seam"],
    }
    count = min(count, len(shown))
    chosen = shown.subset([i * len(shown) // count for i in range(count)])
    batches = progress(
        ((x, y if own else None) for x, y in chosen.batches(16)), -(-count // 16), "compare with onnxruntime"
    )
    with phase("export to ONNX"):
        return export_verified(model, input_size(model), path, batches, opset, about)
