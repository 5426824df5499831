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
    calibration: the level at which the policy will be calibrated. With norm (the default), BatchNorm's statistics will
        be re-estimated, which gives each channel of a layer's output its mean and variance back. So of the error e that
        a tensor's D makes in an output o, only that part counts which they leave, to first order
        e - mean(e) - (o - mean(o)) cov(o, e) / var(o), a channel, over a batch. With steps all counts.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seam.errors import SeamError, unknown
from seam.models.features import capture_features, extract_features, feature_count
from seam.models.find import classifier_layer
from seam.models.norms import norms_behind
from seam.models.shared_inputs import watch
from seam.runtime.distributed import share_out
from seam.search.problem import Problem
from seam.search.tensors import Grid, View, Watched, check_unchanged, falling, negated, view

DATA = True
QUANTIZERS = False  # their errors are taken here, at steps of their own
OPTIONS = ("images", "draws", "directions", "calibration", "start")  # the last one is `seam`'s
IMAGES = 128
DRAWS = 2
BATCH = 16


def preferences(problem: Problem) -> np.ndarray:
    """[L, B, B] minus the error of the features, to first order, of each layer's (weight bits, activation bits)."""
    return negated(feature_errors(problem, view(problem, OPTIONS, IMAGES, DRAWS)))


def feature_errors(problem: Problem, seen: View) -> np.ndarray:
    """[2, L, B] how far, to first order, each layer's weight and input at each bit-width move the features, squared."""
    settings, (x, labels, draws, watched) = problem.settings, seen
    with problem.meter.part("setup"):
        across = _across(problem, x, labels)
        normalised = _mark_normalised(problem, x, watched)
    noise = torch.Generator(problem.device).manual_seed(problem.seed)
    # Evenly: the statistics of a small rest would tell nothing.
    parts = x.tensor_split(-(-len(x) // BATCH)) if normalised else x.split(BATCH)
    batches = [(part, _directions(problem, len(part), draws, across, noise)) for part in parts]
    errors = torch.zeros(2, len(watched), len(settings.bits), dtype=torch.float64, device=problem.device)

    def squares(batch: tuple[Tensor, Tensor]) -> Tensor:
        _propagate(problem.model, *batch, watched)
        found = _squares(watched, len(batch[0]))
        for one in watched.values():
            one.forget()
        return found

    with problem.meter.part("sensitivity"):
        errors = share_out(batches, squares, errors, "jacobian")
    # A forward pass; a backward pass without gradients of weights for each draw; all layers for each bit-width, and
    # again for the errors of inputs where these are seen in outputs.
    problem.meter.look(len(x), forwards=1 + draws + len(settings.bits) * (2 if normalised else 1))
    # More bits are never worse; where estimates say so it is noise.
    return np.apply_along_axis(falling, 2, errors.cpu().numpy() / (len(x) * draws))


def _across(problem: Problem, x: Tensor, labels: Tensor) -> Tensor | None:
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


def _mark_normalised(problem: Problem, x: Tensor, watched: Mapping[str, Watched]) -> bool:
    """Mark the layers whose outputs BatchNorm will give their means and variances back; whether there are any."""
    level = problem.settings.options.get("calibration", "norm")
    if level not in ("steps", "norm"):
        raise unknown("calibration", str(level), ("steps", "norm"), "options")
    for name in norms_behind(problem.model, watched, x[:1]) if level == "norm" else ():
        watched[name].normalised = True
    return any(one.normalised for one in watched.values())


def _directions(problem: Problem, count: int, draws: int, across: Tensor | None, noise: torch.Generator) -> Tensor:
    """[draws, count, F] u_i of `count` images."""
    found = torch.empty(draws, count, feature_count(problem.model), device=problem.device)
    for u in found:
        torch.randn(u.shape, generator=noise, out=u)
        if across is not None:
            u += torch.randn(count, len(across), generator=noise, device=u.device) @ across
    return found


def _propagate(model: nn.Module, x: Tensor, directions: Tensor, watched: Mapping[str, Watched]) -> None:
    """One forward pass of images x and a backward pass for each of the draws of directions [draws, N, F].

    Leaves in `watched` what layers read, and gradients.
    """
    with (
        torch.enable_grad(),
        capture_features(model) as features,
        watch(model, watched, lambda *_: None, lambda name, output, _: watched[name].note(output)),
    ):
        model(x)
        z = F.normalize(features[-1].float(), dim=1)
        reads = [read for one in watched.values() for read in one.reads]
        gradients = []
        for left, u in zip(reversed(range(len(directions))), directions, strict=True):
            gradients.append(torch.autograd.grad((u * z).sum(), reads, retain_graph=left > 0, allow_unused=True))
    found = zip(*gradients, strict=True)
    check_unchanged(watched)
    for one in watched.values():
        one.taken = [[g for g in next(found) if g is not None] for _ in one.reads]


@torch.no_grad()
def _squares(watched: Mapping[str, Watched], count: int) -> Tensor:
    """[2, L, B] sum over draws and images of (u_i J_ti D)^2, from what `_propagate` left of `count` images."""
    layers = list(watched.values())
    width = len(layers[0].errors)
    squares = torch.zeros(2, len(layers), width, dtype=torch.float64, device=layers[0].errors[0].device)
    for i, one in enumerate(layers):
        calls = [(g, partial(one.moved, x)) for x, g in zip(one.reads, one.given, strict=True)]
        if one.normalised:
            calls = [(g, _less_moments(error, o)) for (g, error), o in zip(calls, one.outputs, strict=True)]
        squares[0, i] = _projected(calls, width, count)
        readers = [other for other in layers if other.group == i]  # of a shared input, all at the group's first layer
        squares[1, i] = _projected([call for reader in readers for call in _carried(reader, one.inputs)], width, count)
    return squares


def _carried(reader: Watched, inputs: Grid) -> list[tuple[list[Tensor], Callable[[int], Tensor]]]:
    """For each call of a layer that reads a quantized input: gradients, one a draw, and the error that they are of.

    That is the input's own, but where part of what it becomes in the output is taken away the output's.
    """
    errors = [partial(inputs.error, x) for x in reader.reads]
    if not reader.normalised:
        return [*zip(reader.taken, errors, strict=True)]
    outputs = [
        _less_moments(lambda b, e=e: reader.carried(e(b)), o) for e, o in zip(errors, reader.outputs, strict=True)
    ]
    return [*zip(reader.given, outputs, strict=True)]


def _less_moments(error: Callable[[int], Tensor], output: Tensor) -> Callable[[int], Tensor]:
    """What is left of error(b), of an output [N, C, ...], where each channel gets its mean and variance back."""
    over = [0, *range(2, output.dim())]
    if output.numel() <= 2 * output.shape[1]:  # of two values nothing would be left
        return error
    centred = output - output.mean(over, keepdim=True)
    variance = centred.square().mean(over, keepdim=True).clamp_(min=1e-12)

    def left(b: int) -> Tensor:
        found = error(b)
        shared = (found * centred).mean(over, keepdim=True).div_(variance)
        return found.sub_(found.mean(over, keepdim=True)).addcmul_(centred, shared, value=-1)

    return left


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
