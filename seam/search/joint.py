"""Joint search: weights, steps and bit-widths learned together on the proxy, with a large-margin objective.

On a proxy batch the search network (`seam.quant.mixture`) minimises

    L = cross-entropy + lambda_m margin + lambda_b (log E - log B)^2

over its weights, steps and bit-width logits together, where margin is `MarginLoss`, E the expected cost of
the mixture (for BitOPs, sum_l MACs_l E[w_l] E[a_l]), and B the budget. The last term pulls from both sides: a search
that ends below its budget wastes it. Further budgets add the same term where they are exceeded. The softmax's
temperature falls geometrically from 1 to `temperature`, so that the logits end sharp. lambda_m = 0 is the objective of
EdMIPS (Cai & Vasconcelos 2020) under our relaxation; with it, this is the most literal reading of the abstract of SEAM
(Tang et al., ACM MM 2023, arXiv 2302.06845), which publishes no code: relaxation, margin and schedule are our choice.

On all of the target's own images this is the direct search that others are compared with. On a foreign proxy the
weights learn the proxy and get used to the noise, so that the logits no longer tell what the deployed network can bear.
"""

import numpy as np
import torch
import torch.nn.functional as F

from seam.models.features import capture_features, feature_count
from seam.quant.fused_activations import clamp_in_quantizers
from seam.search.problem import Problem
from seam.search.training import decided, mixture, parameter_groups, train, warm_up
from seam.training.margin import MarginLoss

DATA = True
CLASSIFIER = True
OWN = {"margin_weight": 1.0, "budget_weight": 2.0, "logit_lr": 0.15}


def preferences(problem: Problem) -> np.ndarray:
    """[L, B, B] log-probability of each layer's (weight bits, activation bits) at the end of the search."""
    settings, images = problem.settings.filled(**OWN), problem.images
    warm_up(problem)
    net = mixture(problem)
    margin = MarginLoss(len(images.classes), feature_count(problem.model)).to(problem.device)

    def loss(x: torch.Tensor, y: torch.Tensor, done: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        net.temperature = settings.temperature**done
        ce = F.cross_entropy(net(x), y)
        margin_loss = margin(features[-1], y)
        spent, excess = net.excess(problem.budgets)
        total = ce + settings.budget_weight * excess
        if settings.margin_weight:
            total = total + settings.margin_weight * margin_loss
        logs = {"ce": ce, "margin": margin_loss, "budget": spent, "entropy": net.entropy()}
        return total, logs

    with clamp_in_quantizers(problem.model, images.shape), capture_features(problem.model) as features:
        train(problem, torch.nn.ModuleList([net, margin]), loss, parameter_groups(net, settings))
    return decided(problem, net)
