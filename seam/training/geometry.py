"""Where a network's classes lie in its features: distances of centroids, and images on the plane that shows them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seam.training.margin import class_means

MOST_CLASSES = 100  # more would make files of megabytes that no figure can show
POINTS = 20  # images a class


def class_geometry(features: Tensor, labels: Tensor) -> dict[str, Any]:
    """Distances between class centroids, and some images of each class on the centroids' first two principal axes.

    Args:
        features: [N, F] pre-logits, normalised here; labels: [N].

    Returns: {"distances": [K][K], "points": [[x, y, class], ...]}; both empty for one class, and for more than
        `MOST_CLASSES`.
    """
    count = int(labels.max()) + 1
    if not 2 <= count <= MOST_CLASSES:
        return {"distances": [], "points": []}
    z = F.normalize(features.double(), dim=1)
    centroids, _ = class_means(z, labels, count)
    middle = centroids.mean(0)
    axes = torch.linalg.svd(centroids - middle, full_matrices=False).Vh[:2]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    axes = axes * largest.sign()  # an axis may point either way: its largest part is positive
    chosen = torch.cat([(labels == k).nonzero()[:POINTS, 0] for k in range(count)])
    places = (z[chosen] - middle) @ axes.T
    points = [
        [round(x, 4) for x in place] + [int(label)]
        for place, label in zip(places.tolist(), labels[chosen].tolist(), strict=True)
    ]
    distances = [[round(d, 4) for d in row] for row in torch.cdist(centroids, centroids).tolist()]
    return {"distances": distances, "points": points}
