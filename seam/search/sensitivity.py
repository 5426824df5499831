"""Training-free sensitivity: how far quantizing one tensor moves the features. Sees images, not their labels.

For each searched layer, its weight alone (and, for each group of layers that read one tensor, that input alone) is
quantized at each bit-width, and the normalised pre-logits z of the proxy's images are compared with those of the
full-precision model:

    P_lwa = -(E_lw + E_la),      E = mean_i ||z'_i - z_i||^2

so the assignment minimises the sum of the errors, as if they were independent (the additive model of HAWQ-V2, Dong et
al. 2020, and of most training-free methods, with features in place of the loss). No step is learned. Of the layers
before the quantized one, convolutions and linear layers return what they returned for the full-precision model instead
of computing it again.

Option `distance`: features (the default), or kl, then E is the Kullback-Leibler divergence of the class probabilities
from those of full precision, as in vendors' automatic modes.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seam.errors import unknown
from seam.models.features import capture_features
from seam.quant.apply import calibrate, quantize
from seam.quant.quantizer import weight_quantizer
from seam.runtime.distributed import share_out
from seam.search.problem import Problem

DATA = True
CHUNK = 128  # images at a time: the outputs of all layers are kept for them


@torch.no_grad()
def preferences(problem: Problem) -> np.ndarray:
    """[L, B, B] minus the feature error of each layer's (weight bits, activation bits)."""
    model, settings, names = problem.model.eval(), problem.settings, problem.names
    count = min(settings.calibration_images, len(problem.images))
    batches = [
        (x[i : i + CHUNK], y[i : i + CHUNK])
        for x, y in [next(iter(problem.images.batches(count, seed=problem.seed, device=problem.device)))]
        for i in range(0, count, CHUNK)
    ]
    distance = settings.options.get("distance", "features")
    if distance not in _DISTANCES:
        raise unknown("distance", str(distance), tuple(_DISTANCES), "options")
    answer, far = _DISTANCES[distance]
    searched = [layer for layer in problem.layers if not layer.fixed]
    first = [problem.groups.index(group) for group in problem.groups]
    # A shared input's error is counted once, with the group's first layer.
    tensors = [(i, kind) for i in range(len(names)) for kind in (0, 1) if kind == 0 or first[i] == i]
    errors = torch.zeros(2, len(names), len(settings.bits), dtype=torch.float64, device=problem.device)

    def measured(j: int) -> Tensor:
        """The errors of one bit-width."""
        net = quantize(copy.deepcopy(model), dict.fromkeys(names, (settings.bits[j],) * 2), searched)
        calibrate(net, batches)
        modules = dict(net.named_modules())
        quantizers = [(weight_quantizer(modules[name]), modules[name].input_quantizer) for name in names]
        for quantizer in (q for pair in quantizers for q in pair):
            quantizer.enabled = False
        found = torch.zeros_like(errors)
        for x, _ in batches:
            known: dict[str, list[Tensor]] = {}
            with _outputs(modules, names, known):
                reference = answer(net, x)
            for i, kind in tensors:
                with _replayed(modules, names[:i], known):
                    quantizers[i][kind].enabled = True
                    found[kind, i, j] += far(answer(net, x), reference).item() / count
                    quantizers[i][kind].enabled = False
        return found

    with problem.meter.part("sensitivity"):
        errors = share_out(range(len(settings.bits)), measured, errors, "sensitivity").cpu().numpy()
    problem.meter.look(count * len(settings.bits) * (1 + len(tensors)))
    return -(errors[0][:, :, None] + errors[1][:, None, :])


def _copy(output: Tensor, *_: Any, **__: Any) -> Tensor:
    return output.clone()  # what follows may compute in place


def _features(net: nn.Module, x: Tensor) -> Tensor:
    """Normalised pre-logits [N, F]."""
    with capture_features(net) as features:
        net(x)
    return F.normalize(features[-1].float(), dim=1)


def _log_probabilities(net: nn.Module, x: Tensor) -> Tensor:
    """[N, K] logarithms of the classes' probabilities."""
    return F.log_softmax(net(x).float(), dim=1)


# What is compared, and how far the quantized network's is from full precision's, summed over the images.
_DISTANCES = {
    "features": (_features, lambda found, full: (found - full).square().sum()),
    "kl": (_log_probabilities, lambda found, full: F.kl_div(found, full, reduction="sum", log_target=True)),
}


@contextmanager
def _outputs(modules: dict[str, nn.Module], names: list[str], known: dict[str, list[Tensor]]) -> Iterator[None]:
    """Within the context, note the outputs of the named layers, in the order of their calls."""
    hooks = [
        modules[name].register_forward_hook(
            lambda _, __, output, name=name: known.setdefault(name, []).append(output.clone())
        )
        for name in names
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _replayed(modules: dict[str, nn.Module], names: list[str], known: dict[str, list[Tensor]]) -> Iterator[None]:
    """Within the context, the named layers return their noted outputs. A layer noted several times computes again."""
    changed: list[tuple[nn.Module, Any]] = []
    for name in names:
        outputs, module = known.get(name, []), modules[name]
        if len(outputs) == 1:
            changed.append((module, vars(module).get("forward")))
            module.forward = partial(_copy, outputs[0])
    try:
        yield
    finally:
        for module, forward in changed:
            if forward is None:
                del module.forward
            else:
                module.forward = forward
