"""BatchNorm's statistics at the end of a quantization-aware training."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

IMAGES = 512
BATCH = 64


@torch.no_grad()
def re_estimate(
    model: nn.Module, images: Any, loss: Callable[[Tensor, Tensor], Tensor], seed: int, device: torch.device
) -> int:
    """Set BatchNorm's running means and variances, in place, to their averages over batches of `images`, where that
    lowers the mean `loss` (images, labels) of these.

    Returns how many it looked at: at most `IMAGES`, drawn by `seed`, and none where there is nothing to set.

    Few-bit weights leap between two values until the end of a training, which moves a depthwise layer's channel far:
    frozen statistics are then those of other weights (Nagel et al. 2022, Overcoming oscillations in quantization-aware
    training, who re-estimate them). But what a training with frozen statistics moved on purpose new ones move back, so
    the loss decides (our choice).
    """
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    ]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:IMAGES]
    if not norms or len(order) < 2:  # one image may be a single value a channel, which has no variance
        return 0
    parts = order.tensor_split(-(-len(order) // BATCH))  # evenly: a last batch of one image would be as above
    batches = [next(iter(images.subset(part).batches(len(part), device=device))) for part in parts]

    def mean_loss() -> float:
        return sum(float(loss(x, y)) * len(y) for x, y in batches) / len(order)

    model.eval()
    before = mean_loss()
    kept = [(norm.momentum, {name: value.clone() for name, value in norm.state_dict().items()}) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # averages, all batches alike
        norm.train()
    for x, _ in batches:
        model(x)
    reached = [bool(norm.num_batches_tracked) for norm in norms]
    model.eval()
    for norm, (momentum, state), used in zip(norms, kept, reached, strict=True):
        norm.momentum = momentum
        if not used:
            norm.load_state_dict(state)
    if not mean_loss() < before:
        for norm, (_, state) in zip(norms, kept, strict=True):
            norm.load_state_dict(state)
    return len(order)
