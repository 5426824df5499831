"""Applying a policy to a model: each layer gets a weight and an input quantizer; steps are set from data."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from seam.errors import SeamError
from seam.quant.modules import Quantizer, channel_samples, tensor_samples


def quantize(model: nn.Module, bits: Mapping[str, tuple[int, int]]) -> nn.Module:
    """Fake-quantize layers in place: weights per output channel, inputs per tensor; returns the model, trainable.

    The weight quantizer is a parametrization of `weight`, the input quantizer a forward pre-hook, so a layer keeps
    its own forward. Weight steps are set here from the weights; call `calibrate` to set input steps from data.

    Args:
        bits: layer name -> (weight bits, activation bits).

    Raises: SeamError naming a layer that the model does not have.
    """
    modules = dict(model.named_modules())
    for name, (w, a) in bits.items():
        if name not in modules:
            raise SeamError(f"policy: the model has no layer {name}")
        layer = modules[name]
        device = layer.weight.device
        weight_quantizer = Quantizer(w, channels=layer.weight.shape[0]).to(device)
        weight_quantizer.fit(channel_samples(layer.weight))
        parametrize.register_parametrization(layer, "weight", weight_quantizer, unsafe=True)
        layer.input_quantizer = Quantizer(a, channels=None).to(device)
        layer.register_forward_pre_hook(_quantize_input)
    return model


def _quantize_input(layer: nn.Module, args: tuple) -> tuple:
    return (layer.input_quantizer(args[0]), *args[1:])


@torch.no_grad()
def input_samples(
    model: nn.Module, names: Iterable[str], batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Samples of each named layer's input over the batches, layer name -> [1, K]; one evaluation pass."""
    modules = dict(model.named_modules())
    samples: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = [
        # Before any quantizer of the layer, so that samples are of the unquantized input.
        modules[name].register_forward_pre_hook(
            lambda _, args, kept=kept: kept.append(tensor_samples(args[0])), prepend=True
        )
        for name, kept in samples.items()
    ]
    training = model.training
    model.eval()
    try:
        for x, _ in batches:
            model(x)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(kept, dim=1) for name, kept in samples.items()}


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Set the range and step of every input quantizer from data: one pass, weights quantized, inputs not."""
    layers = {name: m for name, m in model.named_modules() if hasattr(m, "input_quantizer")}
    for layer in layers.values():
        layer.input_quantizer.enabled = False
    samples = input_samples(model, layers, batches)
    for name, layer in layers.items():
        layer.input_quantizer.fit(samples[name])
        layer.input_quantizer.enabled = True
