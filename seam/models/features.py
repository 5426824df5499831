"""A network's features: the pre-logits [N, F] that its classifier reads."""

from collections.abc import Iterable
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from seam.models.find import classifier_layer
from seam.models.shared_inputs import layer_input


def feature_count(model: nn.Module) -> int:
    """F, the width of the pre-logits [N, F] that `capture_features` takes."""
    layer = classifier_layer(model)
    return layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features


@contextmanager
def capture_features(model: nn.Module):
    """Within the context, `features[-1]` is the last forward's pre-logits [N, F]: the input of the classifier.

    Where the classifier scores positions (a map [N, F, H, W] or tokens [N, T, F]), their mean is taken.
    """
    features: list[Tensor] = []
    layer = classifier_layer(model)

    def keep(_: nn.Module, args: tuple, kwargs: dict) -> None:
        x = layer_input(args, kwargs)
        x = x.flatten(2).mean(2) if isinstance(layer, nn.Conv2d) else x.flatten(1, -2).mean(1) if x.dim() > 2 else x
        features[:] = [x]

    # First among the pre-hooks: the features before the classifier's input quantizer.
    hook = layer.register_forward_pre_hook(keep, prepend=True, with_kwargs=True)
    try:
        yield features
    finally:
        hook.remove()


@torch.no_grad()
def extract_features(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Pre-logits [N, F] and labels [N] of all batches, in evaluation mode, on the CPU."""
    training = model.training
    model.eval()
    rows, labels = [], []
    with capture_features(model) as features:
        for x, y in batches:
            model(x)
            rows.append(features[-1].float().cpu())
            labels.append(y.cpu())
    model.train(training)
    return torch.cat(rows), torch.cat(labels)
