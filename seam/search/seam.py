"""SEAM: search on a small proxy, upholding discriminability (Tang et al., ACM MM 2023, arXiv 2302.06845).

The network stays as it was trained: weights and BatchNorm's statistics are frozen. On a proxy batch the search network
(`seam.quant.mixture`), with normalised pre-logits z' where full precision has z, minimises

    L = mean_i ||z'_i - z_i||^2 + lambda_m max(0, margin(z') - margin(z)) + lambda_b (log E - log B)^2

over its bit-width logits and quantizer steps. margin is `MarginLoss` (lower separates classes better), so
the second term punishes what falls below full precision's separation of the proxy's classes, and only that: a margin
that is maximised can grow on the proxy while the features go elsewhere. E is the expected cost of the mixture (for
BitOPs, sum_l MACs_l E[w_l] E[a_l]), and B the budget. The last term pulls from both sides: a search that ends below its
budget wastes it, and one that ends above leaves the choice to the assignment. Further budgets add the same term where
they are exceeded. The logits start around the policy of `seam.search.jacobian`; the softmax's temperature falls
geometrically from 1 to `temperature`, so that they end sharp. lambda_m = 0 is the search without margin.

The paper publishes no code, and says that a good policy upholds the discriminability of full precision; relaxation,
margin and schedule are our choice. `seam.search.joint` is the other reading of it, which trains the weights as well.

Options: `start`: jacobian (the default) or zero, where the logits start; and those of `jacobian`.
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F

from seam.errors import unknown
from seam.models.features import capture_features, feature_count
from seam.quant.fused_activations import clamp_in_quantizers
from seam.runtime.distributed import processes
from seam.search import jacobian
from seam.search.problem import Problem, solve
from seam.search.training import decided, mixture, parameter_groups, train
from seam.training.margin import MarginLoss

DATA = True
OWN = {"margin_weight": 0.1, "budget_weight": 20.0, "logit_lr": 0.05}
_START = 2.0  # nats by which a logit starts lower for each step between its bit-width and that of the first policy


def preferences(problem: Problem) -> np.ndarray:
    """[L, B, B] log-probability of each layer's (weight bits, activation bits) at the end of the search."""
    settings, device, images = problem.settings.filled(**OWN), problem.device, problem.images
    start = settings.options.get("start", "jacobian")
    if start not in ("jacobian", "zero"):
        raise unknown("start", str(start), ("jacobian", "zero"), "options")
    full = copy.deepcopy(problem.model).eval()
    first = _first_policy(problem) if start == "jacobian" else None
    problem.model.requires_grad_(False)
    net = mixture(problem)
    if first is not None:
        net.start(first, _START)
    margins = [MarginLoss(len(images.classes), feature_count(problem.model)).to(device) for _ in range(2)]

    def loss(x: torch.Tensor, y: torch.Tensor, done: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        net.temperature = settings.temperature**done
        net(x)
        with torch.no_grad():
            full(x)
        problem.meter.forwards += len(x) * processes()
        moved = (F.normalize(kept[-1].float(), dim=1) - F.normalize(wanted[-1].float(), dim=1)).square().sum(1).mean()
        lost = F.relu(margins[0](kept[-1], y) - margins[1](wanted[-1], y))
        spent, excess = net.excess(problem.budgets)
        total = moved + settings.budget_weight * excess
        if settings.margin_weight:
            total = total + settings.margin_weight * lost
        return total, {"moved": moved, "margin": lost, "budget": spent, "entropy": net.entropy()}

    _, *groups = parameter_groups(net, settings)  # the weights stay
    with (
        clamp_in_quantizers(problem.model, images.shape),
        capture_features(problem.model) as kept,
        capture_features(full) as wanted,
    ):
        train(problem, torch.nn.ModuleList([net, *margins]), loss, groups, frozen=[problem.model])
    return decided(problem, net)


def _first_policy(problem: Problem) -> list[tuple[int, int]]:
    """The policy that the Jacobian sensitivities alone would choose."""
    given = copy.copy(problem)
    given.model = copy.deepcopy(problem.model)
    table = jacobian.preferences(given)
    with problem.meter.part("solve"):
        return solve(jacobian, given, table, problem.budgets)
