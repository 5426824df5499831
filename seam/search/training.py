"""What methods that train a mixture over bit-widths on the proxy have in common."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from torch import nn

from seam.quant.mixture import Mixture
from seam.runtime.progress import phase
from seam.search.problem import Problem
from seam.settings import SearchSettings
from seam.training.loop import fit
from seam.training.optimizers import Group
from seam.training.supervised import cross_entropy


def mixture(problem: Problem) -> Mixture:
    """The search network of a problem's model (changed in place), its steps set from the proxy's first images."""
    settings = problem.settings
    with problem.meter.part("setup"), phase("calibrate"):
        net = Mixture(problem.model, problem.layers, settings.bits)
        first = problem.images.batches(settings.calibration_images, seed=problem.seed, device=problem.device)
        net.calibrate([next(iter(first))])
    return net


def parameter_groups(net: Mixture, settings: SearchSettings) -> list[Group]:
    """Three optimizers: of network weights (SGD), of log steps and of bit-width logits (Adam)."""
    logits = [net.weight_logits, net.input_logits]
    log_steps = [p for name, p in net.named_parameters() if name.endswith(("log_step", "log_steps"))]
    special = {id(p) for p in logits + log_steps}
    weights = [p for p in net.parameters() if id(p) not in special]
    return [
        Group(weights, settings.lr, "sgd", settings.weight_decay),
        Group(log_steps, settings.step_lr, "adam", key="step_lr"),
        Group(logits, settings.logit_lr, "adam", schedule="constant", key="logit_lr"),
    ]


def warm_up(problem: Problem) -> None:
    """Adapt the full-precision network and its new head to the proxy, for `warmup_epochs`: a network that knows nothing
    of the proxy's classes has no margins to keep, and few-bit mixtures hardly let it learn them."""
    settings, model = problem.settings, problem.model
    if settings.warmup_epochs:
        groups = [Group(list(model.parameters()), settings.lr, "sgd", settings.weight_decay)]
        resume = problem.resume and problem.resume.with_suffix(".warmup.safetensors")
        more = {"epochs": settings.warmup_epochs, "resume": resume, "label": "warm-up"}
        _fit(problem, model, cross_entropy(model), groups, **more)


def train(
    problem: Problem, module: nn.Module, loss: Callable, groups: list[Group], frozen: Iterable[nn.Module] = ()
) -> None:
    """Train a module on the proxy's images for as long as the settings say; the rows join the problem's history.

    loss, groups and frozen: of `seam.training.loop.fit`.
    """
    settings = problem.settings
    more = {"epochs": settings.epochs, "steps": settings.steps, "resume": problem.resume, "label": "search"}
    problem.history += _fit(problem, module, loss, groups, live=problem.live, frozen=frozen, **more)


def _fit(problem: Problem, module: nn.Module, loss: Callable, groups: list[Group], **more: Any) -> list[dict[str, Any]]:
    """`fit` on the proxy's images, as the settings say."""
    settings = problem.settings
    return fit(
        module=module,
        loss=loss,
        images=problem.images,
        batch_size=settings.batch_size,
        augment=settings.augment,
        groups=groups,
        seed=problem.seed,
        device=problem.device,
        meter=problem.meter,
        section="search",
        sync_batch_norm=settings.sync_batch_norm,
        **more,
    )


def decided(problem: Problem, net: Mixture) -> np.ndarray:
    """[L, B, B] log-probability of each layer's (weight bits, activation bits) at the last temperature."""
    net.temperature = problem.settings.temperature
    net.refresh()
    problem.report["logit_entropy"] = round(net.entropy().item(), 4)
    return net.preferences()
