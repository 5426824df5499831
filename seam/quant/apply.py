"""Applying a policy to a model: each layer gets a weight and an input quantizer; steps are set from data."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seam.errors import SeamError, did_you_mean
from seam.models.find import find_layers
from seam.models.layers import FLOAT_BITS, Layer, check_ties, group_names
from seam.models.padding_taps import without_unreached_taps
from seam.models.shared_inputs import watch
from seam.models.strided_pointwise import read_fewer_pixels
from seam.policy.file import fit_policy, policy_layers
from seam.quant.quantizer import Quantizer, attach, check_weight, standardize, tensor_samples


def quantize(
    model: nn.Module,
    bits: Mapping[str, tuple[int, int]],
    layers: Sequence[Layer] = (),
    size: tuple[int, int, int] | None = None,
) -> nn.Module:
    """Fake-quantize layers in place: weights per output channel, inputs per tensor; returns the model, trainable.

    Each layer keeps its own forward (`seam.quant.quantizer`). Weight steps are set here from the weights; call
    `calibrate` to set input steps from data. A layer's quantizers are `weight_quantizer(layer)` and
    `layer.input_quantizer`; layers of one group share the latter, and the state dict holds it under the first.

    Args:
        bits: layer name -> (weight bits, activation bits) of 2 to 8; layers at 32/32 stay in full precision.
        layers: of `seam.models.find.find_layers`, for their groups and for how they are called; without them no layer
            shares its input quantizer.
        size: (C, H, W) of the images that the model is for: steps are fitted to the weights that they reach
            (`seam.models.padding_taps`). None: to all.

    Raises: SeamError naming a layer that the model does not have or that cannot be quantized, and layers of one group
        with different activation bits.
    """
    modules, groups = dict(model.named_modules()), group_names(layers)
    functional = {layer.name for layer in layers if layer.functional}
    bits = {name: tuple(pair) for name, pair in bits.items() if tuple(pair) != FLOAT_BITS}
    for name in bits:
        if name not in modules:
            hint = did_you_mean(name, modules)
            raise SeamError(f"policy: the model has no layer {name}" + (f"; {hint}" if hint else ""))
        check_weight(name, modules[name])
    check_ties(bits, groups)
    shared: dict[str, Quantizer] = {}
    with without_unreached_taps(model, size) if size else nullcontext():
        for name, (w, a) in bits.items():
            layer, group = modules[name], groups.get(name, name)
            standardize(layer)
            device = layer.weight.device
            quantizer = Quantizer(w, channels=layer.weight.shape[0]).to(device)
            quantizer.fit(layer.weight)
            if group in shared:
                vars(layer)["input_quantizer"] = shared[group]  # not a submodule: safetensors refuses shared tensors
            else:
                layer.input_quantizer = shared[group] = Quantizer(a, channels=None).to(device)
            attach(layer, quantizer, _quantize_input, name in functional)
    read_fewer_pixels(model)
    return model


def apply_policy(
    model: nn.Module, policy: Mapping[str, Any], size: tuple[int, int, int], where: str | Path = "policy"
) -> tuple[list[Layer], dict[str, tuple[int, int]]]:
    """`quantize` a model in place as the content of a policy file says; returns its layers, as the policy has them, and
    their bits.

    size: (C, H, W) of the model's images; where: names the policy in messages. SeamError: the policy does not fit.
    """
    layers = find_layers(model, size)
    bits = fit_policy(policy, layers, where)
    layers = policy_layers(policy, layers)
    quantize(model, bits, layers, size)
    return layers, bits


def _quantize_input(layer: nn.Module, x: Tensor) -> Tensor:
    return layer.input_quantizer(x)


@torch.no_grad()
def input_samples(
    model: nn.Module, names: Iterable[str], batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Samples of each named layer's input over the batches, layer name -> [1, K]; one evaluation pass.

    Inputs are taken before any quantizer of the layer. Raises SeamError naming a layer that no image reaches.
    """
    samples: dict[str, list[Tensor]] = {name: [] for name in names}
    training = model.training
    model.eval()
    try:
        with watch(model, samples, lambda name, x: samples[name].append(tensor_samples(x))):
            for x, _ in batches:
                model(x)
    finally:
        model.train(training)
    for name, kept in samples.items():
        if not kept:
            raise SeamError(
                f"layer {name} was not used in calibration: give quantize the layers of find_layers, or exclude it"
            )
    return {name: torch.cat(kept, dim=1) for name, kept in samples.items()}


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Set the range and step of every input quantizer from data: one pass, weights quantized, inputs not."""
    readers = input_quantizers(model)
    quantizers = {id(q): q for q in readers.values()}
    for quantizer in quantizers.values():
        quantizer.enabled = False
    try:
        samples = input_samples(model, readers, batches)
    finally:
        for quantizer in quantizers.values():
            quantizer.enabled = True
    fit_inputs(readers, samples)


def input_quantizers(model: nn.Module) -> dict[str, Quantizer]:
    """Layer name -> its input quantizer; layers of one group have the same."""
    return {name: m.input_quantizer for name, m in model.named_modules() if hasattr(m, "input_quantizer")}


def fit_inputs(readers: Mapping[str, Quantizer], samples: Mapping[str, Tensor]) -> None:
    """Fit each input quantizer to the samples of all layers that use it."""
    of: dict[int, list[str]] = {}
    for name, quantizer in readers.items():
        of.setdefault(id(quantizer), []).append(name)
    for names in of.values():
        readers[names[0]].fit(torch.cat([samples[name] for name in names], dim=1))
