"""An exported ONNX file as a model: how it wants its images, and what it reaches in onnxruntime."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from seam.errors import SeamError, shown


class OnnxFile(nn.Module):
    """A file of `seam.tool.export`, run by onnxruntime on the CPU; `open_images` prepares images as the file says.

    Attributes:
        num_classes: width of the logits.
        classes: their names, as the file has them; None: it does not say.

    Raises SeamError for a missing or broken file, and for one that does not say how its images are prepared.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        import onnx

        from seam.onnx.parity import session

        if not Path(path).is_file():
            raise SeamError(f"{path}: no such file")
        try:
            self.session = session(onnx.load(str(path)))
            (images,), (logits,) = self.session.get_inputs(), self.session.get_outputs()
            about = self.session.get_modelmeta().custom_metadata_map
            how, names = json.loads(about["preprocessing"]), json.loads(about["classes"])
            share = how["crop"][0] / how["resize"][0] if how["crop"] else 1.0
            self.num_classes, self.classes, self.path = int(logits.shape[1]), names, Path(path)
            self.pretrained_cfg = {
                "input_size": tuple(images.shape[1:]),
                "crop_pct": share,
                **{key: how[key] for key in ("mean", "std", "interpolation")},
            }
        except Exception as error:  # onnxruntime and protobuf raise many types
            raise SeamError(f"{path}: no ONNX file of `seam export` ({type(error).__name__}: {error})") from None

    def evaluate(self, images: Any, batch_size: int = 64) -> dict[str, float]:
        """Top-1, top-5 (percent) and loss. Raises SeamError where the images' classes are not the file's."""
        from seam.runtime.process import loader_workers
        from seam.runtime.progress import progress
        from seam.tool.network import check_classes

        check_classes(self, images)
        if self.classes and [*images.classes] != self.classes:
            number = next(i for i, (a, b) in enumerate(zip(self.classes, images.classes, strict=True)) if a != b)
            own, theirs = shown(self.classes[number]), shown(images.classes[number])
            raise SeamError(f"{self.path}: class {number} is {own} in the file, {theirs} in the images")
        right = right5 = loss = 0.0
        batches = images.batches(batch_size, workers=loader_workers(torch.device("cpu")), channels_last=False)
        for x, labels in progress(batches, len(batches), "evaluate"):
            (found,) = self.session.run(["logits"], {"images": np.ascontiguousarray(x.numpy())})
            logits = torch.from_numpy(found)
            top = logits.topk(min(5, self.num_classes), dim=1).indices == labels[:, None]
            right, right5 = right + top[:, 0].sum().item(), right5 + top.any(1).sum().item()
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
        count = len(images)
        return {
            "top1": round(100 * right / count, 4),
            "top5": round(100 * right5 / count, 4),
            "loss": round(loss / count, 6),
        }
