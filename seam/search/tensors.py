"""The tensors that a policy quantizes, as a training-free method looks at them: their quantizers' grids and errors at
each bit-width, and what layers read in a forward pass, with its gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor, nn
from torch.nn.utils import parametrize

from seam.errors import SeamError, unknown
from seam.models.shared_inputs import weight_parameter
from seam.quant.apply import input_samples
from seam.quant.functional import initial_steps, input_grids, integer_bounds
from seam.quant.quantizer import attach, check_weight, standardize
from seam.search.problem import Problem


@dataclass
class Grid:
    """The quantizers of one tensor. steps: [B, C] or [B, 1]; bounds: [2, B] (as for `seam.quant.functional.mix`)."""

    steps: Tensor
    bounds: Tensor

    def error(self, x: Tensor, b: int) -> Tensor:
        """Q_b(x) - x."""
        steps = self.steps[b].view(-1, *[1] * (x.dim() - 1))
        return (x / steps).clamp_(*self.bounds[:, b]).round_().mul_(steps).sub_(x)


@dataclass
class Watched:
    """A searched layer: its quantizers' grids, and what it read and gave in the last forward pass.

    errors: B tensors Q_b(weight) - weight. group: number of the first layer that reads the same input.
    reads: the input as the layer was given it at each call, a tensor of its own to autograd, so that its gradient is
    the one by way of this layer alone. versions: of the reads, to notice changes in place. taken: those gradients,
    given: those of the outputs, for each call one a draw (none where the features do not depend on it).
    normalised: whether BatchNorm will give its outputs their means and variances back; only then are `outputs` kept.
    """

    layer: nn.Module
    errors: list[Tensor]
    inputs: Grid
    group: int
    reads: list[Tensor] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    taken: list[list[Tensor]] = field(default_factory=list)
    given: list[list[Tensor]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    normalised: bool = False

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
        if self.normalised:
            self.outputs.append(output.detach())
        output.register_hook(lambda g: gradients.append(g.detach()))
        self.given.append(gradients)

    def forget(self) -> None:
        """Let go of the tensors of a pass."""
        for kept in (self.reads, self.versions, self.taken, self.given, self.outputs):
            kept.clear()

    def moved(self, x: Tensor, b: int) -> Tensor:
        """layer(x; Q_b(weight) - weight), without the bias: what the weight's error adds to the output."""
        return self._linear(x, self.errors[b])

    def carried(self, x: Tensor) -> Tensor:
        """layer(x), without the bias: what the error x of the input adds to the output."""
        return self._linear(x, weight_parameter(self.layer).data)

    def _linear(self, x: Tensor, weight_data: Tensor) -> Tensor:
        weight, bias = weight_parameter(self.layer), self.layer.bias
        whole = weight.data
        weight.data, self.layer.bias = weight_data, None
        try:
            return self.layer.forward(x)  # without hooks
        finally:
            weight.data, self.layer.bias = whole, bias


class View(NamedTuple):
    """What a training-free method looks at: images x and their labels, so many draws for each, the searched tensors."""

    x: Tensor
    labels: Tensor
    draws: int
    watched: dict[str, Watched]


def view(problem: Problem, known: Sequence[str], images: int, draws: int) -> View:
    """Make the network ready and take the images; `images` and `draws` are what counts without options, and `known` all
    options that the method has."""
    problem.model.eval().requires_grad_(False)
    draws, count = counts(problem.settings.options, known, images, draws)
    count = min(count, len(problem.images))
    x, labels = next(iter(problem.images.batches(count, seed=problem.seed, device=problem.device)))
    with problem.meter.part("setup"):
        return View(x, labels, draws, watch_tensors(problem, x))


def watch_tensors(problem: Problem, x: Tensor) -> dict[str, Watched]:
    """Prepare the L searched layers, by name: steps are set from the weights and from the inputs that images x give."""
    names, groups, bits = problem.names, problem.groups, problem.settings.bits
    modules = dict(problem.model.named_modules())
    functional = {layer.name for layer in problem.layers if layer.functional}
    samples = input_samples(problem.model, names, [(part, None) for part in x.split(64)])
    problem.meter.forwards += len(x)
    signed = integer_bounds(bits, signed=True).to(x.device)
    watched: dict[str, Watched] = {}
    for name, group in zip(names, groups, strict=True):
        layer, first = modules[name], groups.index(group)
        check_weight(name, layer)
        standardize(layer)
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight")  # its result becomes the weight
            layer.weight.requires_grad_(False)
        weights = Grid(initial_steps(layer.weight, signed), signed)
        if names[first] in watched:
            inputs = watched[names[first]].inputs
        else:
            read = torch.cat([samples[n] for n, g in zip(names, groups, strict=True) if g == group], dim=1)
            bounds, steps = input_grids(read, bits)
            inputs = Grid(steps[:, None], bounds)
        errors = [weights.error(layer.weight.detach(), b) for b in range(len(bits))]
        watched[name] = Watched(layer, errors, inputs, first)
        attach(layer, None, watched[name].read, name in functional)
    return watched


def negated(errors: np.ndarray) -> np.ndarray:
    """[L, B, B] preferences that are minus the sum of the errors of a layer's weight and input, errors [2, L, B]."""
    return -(errors[0][:, :, None] + errors[1][:, None, :])


def falling(errors: np.ndarray) -> np.ndarray:
    """[B] the closest errors, by least squares, that fall with the bits."""
    return isotonic_regression(errors, increasing=False).x


def check_unchanged(watched: Mapping[str, Watched]) -> None:
    """SeamError if what a layer read was changed in place afterwards: its error would be another tensor's."""
    for name, one in watched.items():
        if any(read._version != version for read, version in zip(one.reads, one.versions, strict=True)):
            raise SeamError(f"layer {name}: its input is changed in place later on; such models are not supported")


def counts(options: Mapping[str, Any], known: Sequence[str], images: int, draws: int) -> tuple[int, int]:
    """The options `draws` and `images`, checked; `known`: all options that the method has."""
    for key in options:
        if key not in known:
            raise unknown("option", key, known, "options")
    found = {"draws": draws, "images": images}
    for key in found.keys() & options.keys():
        found[key] = options[key]
        if not isinstance(found[key], int) or found[key] < 1:
            raise SeamError(f"options.{key}: must be a whole number of at least 1 (found {found[key]!r})")
    return found["draws"], found["images"]
