"""Bias correction: the mean error that quantization gives an output channel is taken off (Nagel et al. 2019, DFQ, 4.2).

A layer without a bias that BatchNorm follows has it in BatchNorm's running mean: correcting that is the part of
BatchNorm's re-estimation (Sun et al. 2019) that adds no noise of its own to the scale.
"""

import torch
from torch import Tensor, nn

from seam.models.shared_inputs import watch
from seam.quant.apply import input_quantizers


@torch.no_grad()
def correct_biases(model: nn.Module, teacher: nn.Module, x: Tensor) -> list[str]:
    """Give each layer's output channels, in place, the means that they have in full precision; returns which layers.

    One pass of the full-precision `teacher` and one of the model over the images x [N, C, H, W], in order of execution:
    a layer's correction holds with those before it in force. Layers without a bias whose output no BatchNorm reads stay
    as they are.
    """
    modules, names = dict(model.named_modules()), list(input_quantizers(model))
    norms = _norms_behind(model, names, x[:1])
    wanted: dict[str, Tensor] = {}
    corrected: dict[str, None] = {}

    def note(name: str, output: Tensor, functional: bool) -> None:
        wanted.setdefault(name, _means(modules[name], output))

    def correct(name: str, output: Tensor, functional: bool) -> None:
        layer = modules[name]
        if name in corrected or (layer.bias is None or functional) and name not in norms:
            return
        corrected[name] = None
        error = _means(layer, output) - wanted[name]
        if name in norms:
            norms[name].running_mean += error
        else:
            layer.bias -= error
            output -= error[:, None, None] if isinstance(layer, nn.Conv2d) else error

    for network, after in ((teacher, note), (model, correct)):
        network.eval()
        with watch(network, names, lambda name, x: None, after):
            network(x)
    return list(corrected)


def _means(layer: nn.Module, output: Tensor) -> Tensor:
    return output.mean((0, 2, 3)) if isinstance(layer, nn.Conv2d) else output.flatten(0, -2).mean(0)


def _norms_behind(model: nn.Module, names: list[str], x: Tensor) -> dict[str, nn.Module]:
    """Layer name -> the BatchNorm, if one with running statistics reads its output."""
    outputs: dict[int, str] = {}
    alive: list[Tensor] = []  # else a freed tensor's identity could be another's
    found: dict[str, nn.Module] = {}

    def note(name: str, output: Tensor, functional: bool) -> None:
        alive.append(output)
        outputs[id(output)] = name

    def read(norm: nn.Module, args: tuple) -> None:
        if args and id(args[0]) in outputs:
            found[outputs[id(args[0])]] = norm

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    hooks = [norm.register_forward_pre_hook(read) for norm in norms if norm.running_mean is not None]
    try:
        with watch(model, names, lambda name, x: None, note):
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found
