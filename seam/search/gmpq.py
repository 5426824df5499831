"""Attribution preserved: bit-widths under which the network looks at the places where full precision looks.

GMPQ (Wang et al., ICCV 2021, arXiv 2108.02720) trains weights, steps and bit-width logits together on the proxy, as
`joint`, with

    L = cross-entropy + lambda_a mean((M' - M^p)^2) + lambda_b (log E - log B)^2,

where M^p and M' are attribution maps of the full-precision and of the search network, each image's of length 1:
Grad-CAM (Selvaraju et al. 2017) of the label's score on the last feature map A [C, H, W],

    M_hw = relu(sum_c a_c A_chw),        a_c = mean over h, w of the score's gradient at A_chw.

The power p draws M^p together on the places that matter most: a network of few bits has no capacity for more. E is the
expected cost of the mixture and B the budget.

What differs: maps of one layer, the last (the authors' code: attention maps after each stage); full precision on the
proxy is the target's network after `warmup_epochs` on it, not one trained on the proxy alone; relaxation, schedule and
budget term are those of `joint`. The gradient goes through A, not through a.

Options: `attribution`: lambda_a (20, as in the authors' code), `power`: p (3).
"""

import copy
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seam.errors import SeamError, unknown
from seam.quant.fused_activations import clamp_in_quantizers
from seam.runtime.distributed import processes
from seam.search.problem import Problem
from seam.search.training import decided, mixture, parameter_groups, train, warm_up

DATA = True
CLASSIFIER = True
OWN = {"budget_weight": 2.0, "logit_lr": 0.15}
OPTIONS = {"attribution": 20.0, "power": 3.0}


def preferences(problem: Problem) -> np.ndarray:
    """[L, B, B] log-probability of each layer's (weight bits, activation bits) at the end of the search."""
    settings = problem.settings.filled(**OWN)
    weight, power = _options(settings.options)
    if not (problem.own_classes or settings.warmup_epochs):
        raise SeamError("warmup_epochs: must be at least 1 for gmpq, for full precision to know the proxy's classes")
    warm_up(problem)
    full = copy.deepcopy(problem.model).eval().requires_grad_(False)
    net = mixture(problem)

    def loss(x: Tensor, y: Tensor, done: float) -> tuple[Tensor, dict[str, Tensor]]:
        net.temperature = settings.temperature**done
        scores = net(x)
        ce = F.cross_entropy(scores, y)
        wanted = attribution(full(x), y, *theirs).detach()
        problem.meter.forwards += len(x) * processes()
        moved = (attribution(scores, y, *ours) - F.normalize(wanted**power, dim=1)).square().mean()
        spent, excess = net.excess(problem.budgets)
        total = ce + weight * moved + settings.budget_weight * excess
        return total, {"ce": ce, "attribution": moved, "budget": spent, "entropy": net.entropy()}

    with (
        clamp_in_quantizers(problem.model, problem.images.shape),
        capture_map(problem.model) as ours,
        capture_map(full) as theirs,
    ):
        train(problem, net, loss, parameter_groups(net, settings))
    return decided(problem, net)


def attribution(scores: Tensor, labels: Tensor, features: Tensor, channels: int = 1, apart: int = 0) -> Tensor:
    """Grad-CAM of each image's label, [N, places] of length 1, from the scores [N, K] that features led to.

    features: [N, C, H, W], or with another axis of channels. apart: how many of the first places are no places.
    """
    score = scores.gather(1, labels[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, features, retain_graph=True)
    places = [axis for axis in range(1, features.dim()) if axis != channels % features.dim()]
    weights = gradient.mean(places, keepdim=True)
    return F.normalize(F.relu((weights * features).sum(channels)).flatten(1)[:, apart:], dim=1)


@contextmanager
def capture_map(model: nn.Module):
    """Within the context, (features, axis of channels, tokens that are no places) of the last forward's feature map,
    timm's `forward_features`.

    Raises SeamError where the model has none, the map has one place only, or the scores are of a class token: what the
    last block makes of the places then leads nowhere.
    """
    if not hasattr(model, "forward_features"):
        raise SeamError("gmpq: the model has no forward_features, as timm's have: no feature map to look at")
    if getattr(model, "global_pool", "") == "token":
        raise SeamError("gmpq: the model's scores are of its class token: no feature map to look at")
    apart = getattr(model, "num_prefix_tokens", 0)
    found: list = []
    forward = model.forward_features

    def keep(*args, **kwargs) -> Tensor:
        features = forward(*args, **kwargs)
        channels = 1 if features.dim() == 4 and getattr(model, "output_fmt", "NCHW") != "NHWC" else features.dim() - 1
        if features.dim() < 3 or features[0].numel() <= features.shape[channels] * (1 + apart):
            raise SeamError(
                f"gmpq: the last feature map has one place; give larger images than {tuple(args[0].shape[2:])}"
            )
        found[:] = [features if features.requires_grad else features.requires_grad_(), channels, apart]
        return features

    model.forward_features = keep
    try:
        yield found
    finally:
        del model.forward_features


def _options(given: dict) -> tuple[float, float]:
    for key, value in given.items():
        if key not in OPTIONS:
            raise unknown("option", key, tuple(OPTIONS), "options")
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise SeamError(f"options.{key}: must be a number above 0 (found {value!r})")
    found = {**OPTIONS, **given}
    return float(found["attribution"]), float(found["power"])
