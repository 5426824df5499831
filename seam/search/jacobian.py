"""Training-free, to first order: how far the quantization error of each tensor moves the features.

z(x): normalised pre-logits of the full-precision network in evaluation mode. Quantizing a tensor t (a layer's weight,
or the input of a group of layers) to b bits adds D = Q_b(t) - t to it, which to first order moves the features of
image i by J_ti D, with J_ti their Jacobian. The assignment minimises the sum over tensors of

    E_tb = mean_i ||J_ti D||^2,        P_lwa = -(E_lw + E_la),

the Gauss-Newton form of the feature distance. No Jacobian is made: for u_i ~ N(0, I), one backward pass of
sum_i u_i z_i gives u_i J_ti of all images and tensors at once, and (u_i J_ti D)^2 is unbiased for ||J_ti D||^2, for all
bit-widths. An input's D is an elementwise error, multiplied with the gradient of the input. A weight's moves the
output of its layer by layer(x_i; D), multiplied with the gradient of the output: so images stay apart, which in the
gradient of the weight are summed. (Hutchinson's estimator, as in HAWQ-V2, Dong et al. 2020, and FIT, Zandonati et al.
2022, which trace the curvature of the loss and multiply it by a mean squared error; here the error itself is projected,
and on the features.)

The method trains nothing. Options:
    images: how many it looks at, in batches of `BATCH`; draws: the backward passes of each batch.
    directions: features (the default) weighs all directions of a feature alike, and no label is seen. With centroids,
        as much weight again lies on those between the centroids of the proxy's classes, and with classifier on those
        between the target's own classes (the rows of its classifier): error along them eats up the class margin, the
        idea of SEAM (Tang et al. 2023) as a metric.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import isotonic_regression
from torch import Tensor, nn
from torch.nn.utils import parametrize

from seam.errors import SeamError, unknown
from seam.models.features import capture_features, extract_features
from seam.models.find import classifier_layer
from seam.models.shared_inputs import watch, weight_parameter
from seam.quant.apply import input_samples
from seam.quant.functional import initial_steps, integer_bounds
from seam.quant.quantizer import attach, channel_samples, check_weight, standardize
from seam.runtime.progress import progress
from seam.search.problem import Problem

DATA = True
QUANTIZERS = False  # their errors are taken here, at steps of their own
OPTIONS = ("images", "draws", "directions", "start")  # the last one is `seam`'s
IMAGES = 128
DRAWS = 2
BATCH = 16


@dataclass
class _Grid:
    """The quantizers of one tensor. steps: [B, C] or [B, 1]; bounds: [2, B] (as for `seam.quant.functional.mix`)."""

    steps: Tensor
    bounds: Tensor

    def error(self, x: Tensor, b: int) -> Tensor:
        """Q_b(x) - x."""
        steps = self.steps[b].view(-1, *[1] * (x.dim() - 1))
        return (x / steps).clamp_(*self.bounds[:, b]).round_().mul_(steps).sub_(x)


@dataclass
class _Watched:
    """A searched layer: its quantizers' grids, and what it read and gave in the last forward pass.

    errors: B tensors Q_b(weight) - weight. group: number of the first layer that reads the same input.
    reads: the input as the layer was given it at each call, a tensor of its own to autograd, so that its gradient is
    the one by way of this layer alone. versions: of the reads, to notice changes in place. taken: those gradients,
    given: those of the outputs, for each call one a draw (none where the features do not depend on it).
    """

    layer: nn.Module
    errors: list[Tensor]
    inputs: _Grid
    group: int
    reads: list[Tensor] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    taken: list[list[Tensor]] = field(default_factory=list)
    given: list[list[Tensor]] = field(default_factory=list)

    def read(self, _: nn.Module, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return x
        x = x.view_as(x)
        self.reads.append(x if x.requires_grad else x.requires_grad_())
        self.versions.append(x._version)
        return x

    def note(self, output: Tensor) -> None:
        """Collect the gradients of an output."""
        gradients: list[Tensor] = []
        output.register_hook(lambda g: gradients.append(g.detach()))
        self.given.append(gradients)

    def forget(self) -> None:
        """Let go of the tensors of a pass."""
        for kept in (self.reads, self.versions, self.taken, self.given):
            kept.clear()

    def moved(self, x: Tensor, b: int) -> Tensor:
        """layer(x; Q_b(weight) - weight), without the bias: what the weight's error adds to the output."""
        weight, bias = weight_parameter(self.layer), self.layer.bias
        whole = weight.data
        weight.data, self.layer.bias = self.errors[b], None
        try:
            return self.layer.forward(x)  # without hooks
        finally:
            weight.data, self.layer.bias = whole, bias


def preferences(problem: Problem) -> np.ndarray:
    """[L, B, B] minus the error of the features, to first order, of each layer's (weight bits, activation bits)."""
    settings, model = problem.settings, problem.model.eval().requires_grad_(False)
    draws, count = _counts(settings.options)
    count = min(count, len(problem.images))
    x, labels = next(iter(problem.images.batches(count, seed=problem.seed, device=problem.device)))
    with problem.meter.part("setup"):
        across = _directions(problem, x, labels)
        watched = _watch(problem, x)
    noise = torch.Generator(problem.device).manual_seed(problem.seed)
    errors = torch.zeros(2, len(watched), len(settings.bits), dtype=torch.float64, device=problem.device)
    with problem.meter.part("sensitivity"):
        batches = x.split(BATCH)
        for batch in progress(batches, len(batches), "jacobian"):
            _propagate(model, batch, watched, across, draws, noise)
            errors += _squares(watched, len(batch))
            for one in watched.values():
                one.forget()
            # A forward pass; a backward pass without gradients of weights for each draw; all layers for each bit-width.
            problem.meter.look(len(batch), forwards=1 + draws + len(settings.bits))
    # More bits are never worse; where estimates say so it is noise.
    errors = np.apply_along_axis(_falling, 2, errors.cpu().numpy() / (count * draws))
    return -(errors[0][:, :, None] + errors[1][:, None, :])


def _falling(errors: np.ndarray) -> np.ndarray:
    """[B] the closest errors, by least squares, that fall with the bits."""
    return isotonic_regression(errors, increasing=False).x


def _counts(options: Mapping[str, Any]) -> tuple[int, int]:
    """The options `draws` and `images`, checked."""
    for key in options:
        if key not in OPTIONS:
            raise unknown("option", key, OPTIONS, "options")
    counts = {"draws": DRAWS, "images": IMAGES}
    for key in counts.keys() & options.keys():
        counts[key] = options[key]
        if not isinstance(counts[key], int) or counts[key] < 1:
            raise SeamError(f"options.{key}: must be a whole number of at least 1 (found {counts[key]!r})")
    return counts["draws"], counts["images"]


def _watch(problem: Problem, x: Tensor) -> dict[str, _Watched]:
    """Prepare the L searched layers, by name: steps are set from the weights and from the inputs that images x give."""
    names, groups, bits = problem.names, problem.groups, problem.settings.bits
    modules = dict(problem.model.named_modules())
    functional = {layer.name for layer in problem.layers if layer.functional}
    samples = input_samples(problem.model, names, [(part, None) for part in x.split(64)])
    problem.meter.forwards += len(x)
    signed = integer_bounds(bits, signed=True).to(x.device)
    watched: dict[str, _Watched] = {}
    for name, group in zip(names, groups, strict=True):
        layer, first = modules[name], groups.index(group)
        check_weight(name, layer)
        standardize(layer)
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight")  # its result becomes the weight
            layer.weight.requires_grad_(False)
        values, counts = channel_samples(layer.weight)
        weights = _Grid(initial_steps(values, signed, counts), signed)
        if names[first] in watched:
            inputs = watched[names[first]].inputs
        else:
            read = torch.cat([samples[n] for n, g in zip(names, groups, strict=True) if g == group], dim=1)
            bounds = integer_bounds(bits, signed=bool((read < 0).any())).to(x.device)
            inputs = _Grid(initial_steps(read, bounds), bounds)
        errors = [weights.error(layer.weight.detach(), b) for b in range(len(bits))]
        watched[name] = _Watched(layer, errors, inputs, first)
        attach(layer, None, watched[name].read, name in functional)
    return watched


def _directions(problem: Problem, x: Tensor, labels: Tensor) -> Tensor | None:
    """[K, F] what u_i gets more of, a random number times each row: with the weight of all directions (F) in all."""
    kind = problem.settings.options.get("directions", "features")
    if kind not in ("features", "centroids", "classifier"):
        raise unknown("directions", str(kind), ("features", "centroids", "classifier"), "options")
    if kind == "features":
        return None
    if kind == "centroids":
        z, labels = extract_features(problem.model, [(part, labels[:0]) for part in x.split(64)])[0], labels.cpu()
        z = F.normalize(z, dim=1)
        rows = torch.stack([z[labels == k].mean(0) for k in labels.unique()])
    else:
        rows = classifier_layer(problem.model).weight.detach().flatten(1).float()
    rows = (rows - rows.mean(0)).to(x.device)
    if not rows.norm() > 0:
        raise SeamError(f"options.directions: {kind} needs at least two classes")
    return rows * (rows.shape[1] ** 0.5 / rows.norm())


def _propagate(
    model: nn.Module,
    x: Tensor,
    watched: Mapping[str, _Watched],
    across: Tensor | None,
    draws: int,
    noise: torch.Generator,
) -> None:
    """One forward pass of images x and `draws` backward passes: leaves in `watched` what they read, and gradients."""
    with (
        torch.enable_grad(),
        capture_features(model) as features,
        watch(model, watched, lambda *_: None, lambda name, output, _: watched[name].note(output)),
    ):
        model(x)
        z = F.normalize(features[-1].float(), dim=1)
        reads = [read for one in watched.values() for read in one.reads]
        gradients = []
        for left in reversed(range(draws)):
            u = torch.randn(z.shape, generator=noise, device=z.device)
            if across is not None:
                u = u + torch.randn(len(z), len(across), generator=noise, device=z.device) @ across
            gradients.append(torch.autograd.grad((u * z).sum(), reads, retain_graph=left > 0, allow_unused=True))
    found = zip(*gradients, strict=True)
    for name, one in watched.items():
        if any(read._version != version for read, version in zip(one.reads, one.versions, strict=True)):
            raise SeamError(f"layer {name}: its input is changed in place later on; such models are not supported")
        one.taken = [[g for g in next(found) if g is not None] for _ in one.reads]


@torch.no_grad()
def _squares(watched: Mapping[str, _Watched], count: int) -> Tensor:
    """[2, L, B] sum over draws and images of (u_i J_ti D)^2, from what `_propagate` left of `count` images."""
    layers = list(watched.values())
    width = len(layers[0].errors)
    squares = torch.zeros(2, len(layers), width, dtype=torch.float64, device=layers[0].errors[0].device)
    for i, one in enumerate(layers):
        calls = [(g, partial(one.moved, x)) for x, g in zip(one.reads, one.given, strict=True)]
        squares[0, i] = _projected(calls, width, count)
        readers = [other for other in layers if other.group == i]  # of a shared input, all at the group's first layer
        pairs = (pair for other in readers for pair in zip(other.reads, other.taken, strict=True))
        squares[1, i] = _projected([(g, partial(one.inputs.error, x)) for x, g in pairs], width, count)
    return squares


def _projected(calls: Iterable[tuple[list[Tensor], Callable[[int], Tensor]]], width: int, count: int) -> Tensor:
    """[B] sum over draws and images of (sum over calls of g D_b)^2, for calls (g, one a draw; b -> D_b).

    Images are told apart where the first axis has their number: it is taken to be theirs. Elsewhere (windows of a Swin
    transformer) all images are summed first: their u_i are independent, so this is unbiased too, but rougher.
    """
    calls = [(torch.stack(gradients), error) for gradients, error in calls if gradients]
    if not calls:
        return torch.zeros(width)
    images = count if all(g.shape[1] == count for g, _ in calls) else 1
    rows = [(g.reshape(len(g), images, -1).transpose(0, 1), error) for g, error in calls]
    moved = [sum(torch.bmm(g, error(b).reshape(images, -1, 1)) for g, error in rows) for b in range(width)]
    return torch.stack([one.double().square().sum() for one in moved])
