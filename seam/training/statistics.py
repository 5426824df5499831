"""BatchNorm's statistics at the end of a quantization-aware training."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from seam.models.norms import batch_norms
from seam.runtime.process import loader_workers
from seam.runtime.progress import phase

IMAGES = 512
BATCH = 64
PASSES = 3  # over them: two for the loss, one for the statistics


@torch.no_grad()
def re_estimate(
    model: nn.Module,
    images: Any,
    loss: Callable[[Tensor, Tensor], Tensor],
    seed: int,
    device: torch.device,
    batch_size: int = BATCH,
) -> int:
    """Set BatchNorm's running means and variances, in place, to their averages over batches of `images`, where that
    lowers the mean `loss` (images, labels) of these.

    Returns how many it looked at: at most `IMAGES`, drawn by `seed`, and none where there is nothing to set.

    Few-bit weights leap between two values until the end of a training, which moves a depthwise layer's channel far:
    frozen statistics are then those of other weights (Nagel et al. 2022, Overcoming oscillations in quantization-aware
    training, who re-estimate them). But what a training with frozen statistics moved on purpose new ones move back, so
    the loss decides (our choice).

    Args:
        batch_size: the training's. A pass without gradients has room for more images, so batches here are of `BATCH` or
            four times the training's, whichever is less.
    """
    norms = batch_norms(model)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:IMAGES]
    if not norms or len(order) < 2:  # one image may be a single value a channel, which has no variance
        return 0
    most = min(BATCH, max(2, 4 * batch_size))
    with phase("re-estimate BatchNorm's statistics"):
        loader = images.subset(order).batches(most, device=device, workers=loader_workers(device))
        # Evenly: a last batch of one image would be as above.
        parts = [torch.cat(part).tensor_split(-(-len(order) // most)) for part in zip(*loader, strict=True)]
        batches = list(zip(*parts, strict=True))

        def mean_loss() -> float:
            return sum(float(loss(x, y)) * len(y) for x, y in batches) / len(order)

        model.eval()
        before, better = mean_loss(), False
        kept = [(norm.momentum, {name: value.clone() for name, value in norm.state_dict().items()}) for norm in norms]
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # averages, all batches alike
                norm.training = True  # of it alone: timm's may hold an activation and dropout
            for x, _ in batches:
                model(x)
            for norm, (momentum, state) in zip(norms, kept, strict=True):
                norm.momentum, norm.training = momentum, False
                if norm.num_batches_tracked == 0:  # nothing reaches it
                    norm.load_state_dict(state)
            better = mean_loss() < before
        finally:
            for norm, (momentum, state) in zip(norms, kept, strict=True):
                norm.momentum, norm.training = momentum, False
                if not better:
                    norm.load_state_dict(state)
    return len(order)
