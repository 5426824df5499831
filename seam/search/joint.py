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
from seam.quant.mixture import Mixture
from seam.runtime.progress import phase
from seam.search.problem import Problem
from seam.settings import SearchSettings
from seam.training.loop import fit
from seam.training.margin import MarginLoss
from seam.training.optimizers import Group
from seam.training.supervised import cross_entropy

DATA = True
CLASSIFIER = True
OWN = {"margin_weight": 1.0, "budget_weight": 2.0, "logit_lr": 0.15}


def parameter_groups(net: Mixture, settings: SearchSettings) -> list[Group]:
    """The search's three optimizers: network weights (SGD), log steps and bit-width logits (Adam)."""
    logits = [net.weight_logits, net.input_logits]
    log_steps = [p for name, p in net.named_parameters() if name.endswith(("log_step", "log_steps"))]
    special = {id(p) for p in logits + log_steps}
    weights = [p for p in net.parameters() if id(p) not in special]
    return [
        Group(weights, settings.lr, "sgd", settings.weight_decay),
        Group(log_steps, settings.step_lr, "adam", key="step_lr"),
        Group(logits, settings.logit_lr, "adam", schedule="constant", key="logit_lr"),
    ]


def preferences(problem: Problem) -> np.ndarray:
    """[L, B, B] log-probability of each layer's (weight bits, activation bits) at the end of the search."""
    settings, device = problem.settings.filled(**OWN), problem.device
    images = problem.images
    if settings.warmup_epochs:
        _warm_up(problem)
    with problem.meter.part("setup"), phase("calibrate"):
        net = Mixture(problem.model, problem.layers, settings.bits)
        first = images.batches(settings.calibration_images, seed=problem.seed, device=device)
        net.calibrate([next(iter(first))])
        margin = MarginLoss(len(images.classes), feature_count(problem.model)).to(device)

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
        problem.history += fit(
            module=torch.nn.ModuleList([net, margin]),
            loss=loss,
            images=images,
            epochs=settings.epochs,
            steps=settings.steps,
            batch_size=settings.batch_size,
            augment=settings.augment,
            groups=parameter_groups(net, settings),
            seed=problem.seed,
            device=device,
            meter=problem.meter,
            resume=problem.resume,
            live=problem.live,
            label="search",
            section="search",
        )
    net.temperature = settings.temperature
    net.refresh()
    problem.report["logit_entropy"] = round(net.entropy().item(), 4)
    return net.preferences()


def _warm_up(problem: Problem) -> None:
    """Adapt the full-precision network and its new head to the proxy: a network that knows nothing of the proxy's
    classes has no margins to keep, and few-bit mixtures hardly let it learn them."""
    settings, model = problem.settings, problem.model
    fit(
        module=model,
        loss=cross_entropy(model),
        images=problem.images,
        epochs=settings.warmup_epochs,
        batch_size=settings.batch_size,
        augment=settings.augment,
        groups=[Group(list(model.parameters()), settings.lr, "sgd", settings.weight_decay)],
        seed=problem.seed,
        device=problem.device,
        meter=problem.meter,
        resume=problem.resume and problem.resume.with_suffix(".warmup.safetensors"),
        label="warm-up",
        section="search",
    )
