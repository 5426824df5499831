"""Steps of least output error: those with which what a layer computes, not what it reads, errs least.

The least squared error of a tensor weighs all its elements alike. In a layer's output large inputs and large weights
count more, and a weight's error meets the inputs that are really there (Wu et al. 2020, EasyQuant; Nahshan et al. 2021,
LAPQ).
"""

from collections.abc import Callable, Container

import torch
from torch import Tensor, nn

from seam.models.shared_inputs import watch
from seam.quant.apply import input_quantizers
from seam.quant.quantizer import Quantizer, weight_quantizer

_FACTORS = torch.linspace(0.55, 1.45, 13)  # of the steps that are there; 1 is among them
_ELEMENTS = 2**21  # of a layer's input that the search looks at, ...
_IMAGES = 4  # ... and of how many images at least


@torch.no_grad()
def fit_to_outputs(
    model: nn.Module,
    x: Tensor,
    means_return: Container[str] = (),
    after: Callable[[str, Tensor, bool], None] = lambda name, output, functional: None,
) -> None:
    """Choose the steps of each layer anew, in place: its input's, then its weight's, a step a channel.

    One pass over the images x [N, C, H, W] in order of execution: a layer reads what the layers before it hand on with
    their new steps. Wanted is its full-precision output for this input. Layers that share an input quantizer read it
    with the step that the first of them chose. Call `seam.quant.apply.calibrate` first.

    means_return: layers whose error's mean, a channel, does not count, since BatchNorm will take it away. after: of
    `seam.models.shared_inputs.watch`, called when a layer's steps are there.
    """
    modules = dict(model.named_modules())
    chosen: set[int] = set()
    done: set[str] = set()

    def choose(name: str, read: Tensor) -> None:
        if name in done:  # a layer that is called again
            return
        done.add(name)
        layer, inputs = modules[name], modules[name].input_quantizer
        some = read[: max(_IMAGES, _ELEMENTS // read[0].numel())]
        first = id(inputs) not in chosen
        chosen.add(id(inputs))
        _fit_layer(layer, inputs, weight_quantizer(layer), some, first, name in means_return)

    model.eval()
    with watch(model, input_quantizers(model), choose, after):
        model(x)


def _fit_layer(
    layer: nn.Module, inputs: Quantizer, weight: Quantizer, x: Tensor, own_input: bool, mean_returns: bool
) -> None:
    def output(given: Tensor) -> Tensor:
        inputs.enabled = False  # `given` is as the layer is to see it
        try:
            return layer.forward(given)  # without the hooks that a call would run
        finally:
            inputs.enabled = True

    def errors(given: Tensor, channels: bool) -> Tensor:
        error, conv = output(given) - wanted, isinstance(layer, nn.Conv2d)
        if mean_returns and len(error) > 1:  # of one image there may be no other error
            error -= error.mean((0, 2, 3), keepdim=True) if conv else error.flatten(0, -2).mean(0)
        error.square_()
        if not channels:
            return error.sum()
        return error.sum((0, 2, 3)) if conv else error.flatten(0, -2).sum(0)

    factors = _FACTORS.to(x.device)
    weight.enabled = False
    wanted = output(x)
    if own_input:
        start, found = inputs.log_step.clone(), []
        for factor in factors:
            inputs.log_step.copy_(start + factor.log())
            found.append(errors(inputs(x), channels=False))
        inputs.log_step.copy_(start + factors[torch.stack(found).argmin()].log())
    weight.enabled = True
    given = inputs(x)
    start, found = weight.log_step.clone(), []
    for factor in factors:
        weight.log_step.copy_(start + factor.log())
        found.append(errors(given, channels=True))
    weight.log_step.copy_(start + factors[torch.stack(found).argmin(0)].log())
