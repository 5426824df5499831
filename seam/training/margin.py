"""The large-margin objective and the class-margin metric: one definition for the loss, the metric and the plots.

On L2-normalised pre-logit features z with class centroids c:

    intra = mean_i ||z_i - c_{y_i}||^2          inter = mean over pairs j != k of ||c_j - c_k||^2
    margin loss = log(intra + e) - log(inter + e),  e = 0.1          class margin (metric) = -(margin loss)

Features are normalised, so both distances lie in 0..4 whatever the network, and a weight of 1 needs no tuning. SEAM
(Tang et al. 2023) proposes a large-margin regulariser for the search; this form of it is our choice.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seam.runtime.distributed import average, total

_EPS = 0.1  # distances lie in 0..4; a smaller floor lets the gradient of collapsed features drown all else


def _log_ratio(intra: Tensor, centroids: Tensor, present: Tensor) -> Tensor:
    """log intra - log inter, for centroids [K, F], present [K] (1.0 for classes seen)."""
    count = present.sum().clamp(min=2)
    weighted = centroids * present[:, None]
    # Mean over ordered pairs of ||c_j - c_k||^2, without a [K, K, F] temporary.
    inter = 2 * (count * weighted.square().sum() - weighted.sum(0).square().sum()) / (count * (count - 1))
    return torch.log(intra + _EPS) - torch.log(inter + _EPS)


def _intra(z: Tensor, labels: Tensor, centroids: Tensor) -> Tensor:
    return (z - centroids[labels]).square().sum(1).mean()


def class_means(z: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Mean feature [K, F] and count [K] of each class (zero rows where a class is absent)."""
    sums, counts = _class_sums(z, labels, num_classes)
    return sums / counts.clamp(min=1)[:, None], counts


def _class_sums(z: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    counts = torch.zeros(num_classes, dtype=z.dtype, device=z.device).index_add(0, labels, torch.ones_like(z[:, 0]))
    sums = torch.zeros(num_classes, z.shape[1], dtype=z.dtype, device=z.device).index_add(0, labels, z)
    return sums, counts


class MarginLoss(nn.Module):
    """Margin loss of a batch against moving class centroids; the batch's own part of them is differentiable.

    In several processes the batch is all of their shares.

    Args:
        num_classes, features: shape of the centroid buffer [K, F].
        momentum: of the moving average, in [0, 1).
    """

    def __init__(self, num_classes: int, features: int, momentum: float = 0.9):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centroids", torch.zeros(num_classes, features))
        self.register_buffer("seen", torch.zeros(num_classes))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss for pre-logits [N, F] and labels [N]; updates the centroids in training mode."""
        z = F.normalize(features.float(), dim=1)
        sums, counts = (total(part) for part in _class_sums(z, labels, len(self.centroids)))
        means = sums / counts.clamp(min=1)[:, None]
        in_batch = (counts > 0).to(z.dtype)
        # A class's first batch sets its centroid; later ones move it.
        keep = torch.where(self.seen > 0, self.momentum, 0.0) * in_batch + (1 - in_batch)
        centroids = keep[:, None] * self.centroids + (1 - keep)[:, None] * means
        seen = torch.maximum(self.seen, in_batch)
        if self.training:
            self.centroids.copy_(centroids.detach())
            self.seen.copy_(seen)
        return _log_ratio(average(_intra(z, labels, centroids)), centroids, seen)


@torch.no_grad()
def class_margin(features: Tensor, labels: Tensor) -> float:
    """Class margin of a whole set: log inter - log intra with exact centroids; higher is more separable.

    Args: features [N, F] pre-logits (normalised here), labels [N].
    """
    z = F.normalize(features.float(), dim=1)
    means, counts = class_means(z, labels, int(labels.max()) + 1)
    return -_log_ratio(_intra(z, labels, means), means, (counts > 0).to(z.dtype)).item()
