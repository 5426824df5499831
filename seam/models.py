"""timm models: building them, their weights, and the layers that can be quantized."""

import os
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn

from seam.errors import SeamError, unknown
from seam.io import load_tensors
from seam.params import Model


class Layer(NamedTuple):
    """A layer with weights: name, multiply-accumulates of one image, weight count, and whether it stays at 8/8."""

    name: str
    macs: int
    params: int
    fixed: bool


def build(spec: Model, num_classes: int, in_chans: int) -> nn.Module:
    """Create a timm model for `num_classes` classes and `in_chans` channels, in evaluation mode.

    Raises SeamError for a name timm does not know (with close ones) and for options the model refuses.
    """
    if spec.name not in timm.list_models():
        raise unknown("timm model", spec.name, timm.list_models(), "models")
    try:
        model = timm.create_model(
            spec.name, pretrained=spec.pretrained, num_classes=num_classes, in_chans=in_chans, **spec.kwargs
        )
    except (TypeError, ValueError) as error:
        raise SeamError(f"models: timm refuses to build {spec.name} with {spec.kwargs}: {error}") from None
    except OSError as error:
        raise SeamError(
            f"models: the pretrained weights of {spec.name} cannot be downloaded ({error}); "
            "set pretrained: false, or weights: to a local .safetensors file"
        ) from None
    if spec.small_stem:
        _shrink_stem(model, spec.name)
    if spec.weights:
        load_weights(model, spec.weights)
    return model.eval()


def _shrink_stem(model: nn.Module, name: str) -> None:
    """Give a ResNet the usual stem for 32x32 images: 3x3, stride 1, no pooling (He et al. 2016, 4.2)."""
    if not isinstance(getattr(model, "conv1", None), nn.Conv2d) or not hasattr(model, "maxpool"):
        raise SeamError(f"models: small_stem is for ResNets with one stem convolution; {name} has none")
    first = model.conv1
    model.conv1 = nn.Conv2d(first.in_channels, first.out_channels, 3, padding=1, bias=first.bias is not None)
    model.maxpool = nn.Identity()


def load_weights(model: nn.Module, path: str | os.PathLike) -> None:
    """Load a safetensors state dict; SeamError names the first missing, surplus or misshapen entries."""
    state, own = load_tensors(path), model.state_dict()
    problems = [f"missing {k}" for k in own if k not in state] + [f"surplus {k}" for k in state if k not in own]
    problems += [
        f"{k} has shape {tuple(state[k].shape)}, the model needs {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise SeamError(f"{path}: weights do not fit the model: {'; '.join(problems[:3])}{more}")
    model.load_state_dict(state)


def input_size(channels: int, image_size: Iterable[int] | int) -> tuple[int, int, int]:
    """(C, H, W) from a channel count and a side length or (H, W)."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return channels, height, width


def find_layers(model: nn.Module, size: tuple[int, int, int]) -> list[Layer]:
    """Convolutions and linear layers in order of execution, with their MACs for an input of `size` (C, H, W).

    The first and the last one executed are fixed at 8/8, the usual convention. Layers that the forward pass never
    calls, or whose weight another layer owns, are left out.
    """
    macs: dict[str, int] = {}
    weights: dict[int, str] = {}
    hooks = []

    def count(name: str) -> Callable:
        def hook(module: nn.Module, _: object, output: Tensor) -> None:
            positions = output.numel() // (
                module.out_channels if isinstance(module, nn.Conv2d) else module.out_features
            )
            macs[name] = macs.get(name, 0) + positions * module.weight.numel()

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and weights.setdefault(id(module.weight), name) == name:
            hooks.append(module.register_forward_hook(count(name)))
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            device = next(model.parameters()).device
            model(torch.zeros(1, *size, device=device))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise SeamError(f"the model cannot run on an input of {size} (channels, height, width): {error}") from None
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    modules = dict(model.named_modules())
    names = list(macs)
    ends = {names[0], names[-1]}
    return [Layer(n, macs[n], modules[n].weight.numel(), n in ends) for n in names]


def total_macs(model: nn.Module, size: tuple[int, int, int]) -> int:
    """Multiply-accumulates of one forward pass on one image of `size` (C, H, W), all weighted layers."""
    return sum(layer.macs for layer in find_layers(model, size))


@contextmanager
def capture_features(model: nn.Module):
    """Within the context, `features[-1]` is the last forward's pre-logits [N, F]: the input of the classifier."""
    features: list[Tensor] = []
    classifier = model.get_classifier()

    def keep(_: nn.Module, args: tuple) -> None:
        features[:] = [args[0].flatten(1)]

    # First among the pre-hooks: the features before the classifier's input quantizer.
    hook = classifier.register_forward_pre_hook(keep, prepend=True)
    try:
        yield features
    finally:
        hook.remove()


@torch.no_grad()
def extract_features(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Pre-logits [N, F] and labels [N] of all batches, in evaluation mode, on the CPU."""
    training = model.training
    model.eval()
    rows, labels = [], []
    with capture_features(model) as features:
        for x, y in batches:
            model(x)
            rows.append(features[-1].float().cpu())
            labels.append(y.cpu())
    model.train(training)
    return torch.cat(rows), torch.cat(labels)


def replace_head(model: nn.Module, num_classes: int) -> None:
    """Give the model a new classifier for `num_classes` classes (initialised by timm)."""
    device = next(model.parameters()).device
    model.reset_classifier(num_classes)
    model.to(device)
