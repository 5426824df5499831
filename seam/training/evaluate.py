"""Accuracy and class margin of a model on a test set."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seam.errors import SeamError
from seam.models.features import capture_features
from seam.runtime.memory import enough_memory
from seam.runtime.process import loader_workers
from seam.runtime.progress import progress
from seam.training.divergence import first_infinite_layer, not_finite
from seam.training.geometry import class_geometry
from seam.training.margin import class_margin


def evaluate(
    model: nn.Module, images: Any, batch_size: int, device: torch.device, label: str = "evaluate"
) -> dict[str, float]:
    """Top-1 and top-5 (percent), loss and class margin over all images of a seam.data.loaders.ImageSet.

    SeamError: they are not finite.
    """
    return evaluate_each(model, images, batch_size, device, label).metrics


class Measured(NamedTuple):
    """metrics: as `evaluate` returns them; right: [N] whether the model is right about each image, in their order;
    classes: `class_geometry` of the features."""

    metrics: dict[str, float]
    right: Tensor
    classes: dict[str, Any]


@torch.no_grad()
def evaluate_each(
    model: nn.Module, images: Any, batch_size: int, device: torch.device, label: str = "evaluate"
) -> Measured:
    """What `evaluate` returns, and what is known of each image and class."""
    model.eval()
    batches = images.batches(batch_size, device=device, workers=loader_workers(device))
    hits5 = loss = torch.zeros((), device=device)
    hits, features, labels = [], [], []
    with enough_memory(label, "the batch size", batch_size), capture_features(model) as captured:
        for x, y in progress(batches, len(batches), label):
            logits = model(x).float()
            top = logits.topk(min(5, logits.shape[1]), dim=1).indices == y[:, None]
            hits.append(top[:, 0].cpu())
            hits5 = hits5 + top.any(1).sum()
            loss = loss + F.cross_entropy(logits, y, reduction="sum")
            features.append(captured[-1].float().cpu())
            labels.append(y.cpu())
    count, right, z, classes = len(images), torch.cat(hits), torch.cat(features), torch.cat(labels)
    metrics = {
        "top1": round(100 * right.sum().item() / count, 4),
        "top5": round(100 * hits5.item() / count, 4),
        "loss": round(loss.item() / count, 6),
        "class_margin": round(class_margin(z, classes), 6),
    }
    if wrong := not_finite(metrics):
        layer = first_infinite_layer(model, lambda: model(x))
        raise SeamError(
            f"{label}: the network's outputs are not finite ({wrong}{', first in layer ' * bool(layer)}{layer}); its "
            "training diverged: lower its learning rate"
        )
    return Measured(metrics, right, class_geometry(z, classes))
