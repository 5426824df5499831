"""timm models: building them, their weights, and the layers that can be quantized."""

import os
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from seam.errors import SeamError, unknown
from seam.groups import Readers, layer_input, run_once, watch, weight_parameter
from seam.io import load_tensors
from seam.layers import Layer, settle
from seam.params import Model


def build(spec: Model, num_classes: int | None, in_chans: int) -> nn.Module:
    """Create a timm model for `num_classes` classes and `in_chans` channels, in evaluation mode.

    num_classes: None takes that of the given weights, else timm's. Where the weights are for others, a model that is to
    be trained (`train`) keeps a classifier of its own, at random.

    Raises SeamError for a name timm does not know (with close ones), for options the model refuses, and for weights
    that cannot be read or do not fit.
    """
    if spec.name.split(".")[0] not in timm.list_models():  # after a dot: which of timm's pretrained weights
        raise unknown("timm model", spec.name, timm.list_models(), "models")
    state = read_weights(spec.weights) if spec.weights else None
    try:
        model = timm.create_model(
            spec.name, pretrained=spec.pretrained, num_classes=num_classes, in_chans=in_chans, **spec.kwargs
        )
    except (TypeError, ValueError, AssertionError, RuntimeError, NotImplementedError) as error:
        raise SeamError(f"models: timm refuses to build {spec.name} with {spec.kwargs}: {error}") from None
    except OSError as error:
        raise SeamError(
            f"models: the pretrained weights of {spec.name} cannot be downloaded ({error}); "
            "give a local file with weights"
        ) from None
    if spec.small_stem:
        _shrink_stem(model, spec.name)
    if state is not None:
        found = _class_count(model, state)
        if found not in (None, model.num_classes):
            if num_classes is None:
                replace_head(model, found)
            elif spec.train:  # the classifier stays as it was made
                own = model.state_dict()
                state |= {name: own[name] for name in _head_entries(model)}
        _load(model, state, spec.weights)
    return model.eval()


def _head_entries(model: nn.Module) -> set[str]:
    """Names of the parameters of the model's classifiers."""
    inside = {id(parameter) for module in _classifiers(model) for parameter in module.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in inside}


def _shrink_stem(model: nn.Module, name: str) -> None:
    """Give a ResNet the usual stem for 32x32 images: 3x3, stride 1, no pooling (He et al. 2016, 4.2)."""
    if not isinstance(getattr(model, "conv1", None), nn.Conv2d) or not hasattr(model, "maxpool"):
        raise SeamError(f"models: small_stem is for ResNets with one stem convolution; {name} has none")
    first = model.conv1
    model.conv1 = nn.Conv2d(first.in_channels, first.out_channels, 3, padding=1, bias=first.bias is not None)
    model.maxpool = nn.Identity()


def load_weights(model: nn.Module, path: str | os.PathLike) -> None:
    """Load a file of weights; SeamError names the first missing, surplus or misshapen entries."""
    _load(model, read_weights(path), path)


def read_weights(path: str | os.PathLike) -> dict[str, Tensor]:
    """The state dict in a .safetensors file, or in a checkpoint of `torch.save` as timm reads them.

    Of a checkpoint that holds more: what is under state_dict_ema, model_ema, state_dict or model, the first that is
    there. Prefixes of wrappers (`module.`, `_orig_mod.`) are taken off. A checkpoint is only read as far as this runs
    none of its code (`torch.load(weights_only=True)`).

    Raises SeamError for a missing or broken file, one that holds more than tensors, and one without a state dict.
    """
    if Path(path).suffix == ".safetensors":
        return load_tensors(path)
    if not Path(path).is_file():
        raise SeamError(f"{path}: no such file")
    try:
        state = timm.models.load_state_dict(str(path))
    except Exception as error:  # torch.load raises many types for what it cannot read
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SeamError(
            f"{path}: neither a .safetensors file nor a checkpoint that can be read without running code in it "
            f"({reason}); load it where you trust it and save the weights alone: "
            'safetensors.torch.save_file(model.state_dict(), "NAME.safetensors")'
        ) from None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        keys = f"; its keys are {', '.join(map(str, list(state)[:5]))}" if isinstance(state, dict) and state else ""
        raise SeamError(f"{path}: holds no state dict, neither by itself nor under state_dict or model{keys}")
    return state


def _load(model: nn.Module, state: dict[str, Tensor], path: str | os.PathLike) -> None:
    own = model.state_dict()
    if any("input_quantizer" in key for key in state):
        raise SeamError(f"{path}: weights of a quantized model (seam finetune); give full-precision ones")
    if (found := _class_count(model, state)) not in (None, model.num_classes):
        raise SeamError(f"{path}: weights for {found} classes, the model has {model.num_classes}")
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


def _class_count(model: nn.Module, state: dict[str, Tensor]) -> int | None:
    """The number of classes that a state dict of the model is for; None where it does not tell."""
    layer = classifier_layer(model)
    names = [name for name, module in model.named_modules() if module is layer]
    weight = state.get(f"{names[0]}.weight")
    # Another width is another model, of which nothing can be said.
    return len(weight) if weight is not None and weight.shape[1:] == layer.weight.shape[1:] else None


def input_size(channels: int, image_size: Iterable[int] | int) -> tuple[int, int, int]:
    """(C, H, W) from a channel count and a side length or (H, W)."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return channels, height, width


def default_input_size(model: nn.Module) -> tuple[int, int, int]:
    """(C, H, W) that timm states for the model; 3x224x224 where it states none."""
    return tuple(getattr(model, "pretrained_cfg", {}).get("input_size") or (3, 224, 224))


def find_layers(model: nn.Module, size: tuple[int, int, int]) -> list[Layer]:
    """Convolutions and linear layers (with their subclasses) in order of execution, for an input of `size` (C, H, W).

    The first one executed and the classifier are fixed at 8/8, the usual convention. A layer whose weight a parent
    applies itself (BEiT's qkv) counts as a layer. `seam.groups` says how layers are grouped.

    Layers that the forward pass never uses are left out. So is what is neither nn.Conv2d nor nn.Linear (recurrent
    cells, 1-D, 3-D and transposed convolutions, nn.MultiheadAttention, bare parameters) or has a weight made of several
    parameters (weight_norm): it stays in full precision.

    Raises SeamError if the model cannot run on this size, or if two of its layers share one weight.
    """
    modules = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    macs: dict[str, int] = {}
    functional: set[str] = set()
    readers = Readers()

    def count(name: str, output: Tensor, by_parent: bool) -> None:
        weight = weight_parameter(modules[name])
        macs[name] = macs.get(name, 0) + output.numel() // weight.shape[0] * weight.numel()
        if by_parent:
            functional.add(name)

    usable = [name for name, m in modules.items() if weight_parameter(m) is not None]
    try:
        with watch(model, usable, readers.read, count):
            run_once(model, size)
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        raise SeamError(
            f"the model cannot run on an input of {size} (channels, height, width): {error or type(error).__name__}; "
            f"its default size is {default_input_size(model)}"
        ) from None
    if not macs:
        raise SeamError("the model has no convolution or linear layer")
    owners: dict[int, str] = {}
    for name in macs:
        owner = owners.setdefault(id(weight_parameter(modules[name])), name)
        if owner != name:
            raise SeamError(f"layers {owner} and {name} share one weight; such models are not supported")
    names, groups = list(macs), readers.groups()
    ends = {names[0], *(_classifier_layers(model, names) or names[-1:])}
    return settle(
        Layer(n, macs[n], weight_parameter(modules[n]).numel(), n in ends, groups[n], functional=n in functional)
        for n in names
    )


def _classifiers(model: nn.Module) -> list[nn.Module]:
    """What timm calls the model's classifier: one module, or several (a head for distillation beside the first)."""
    found = model.get_classifier() if hasattr(model, "get_classifier") else None
    found = found if isinstance(found, list | tuple | nn.ModuleList) else [found]
    return [module for module in found if isinstance(module, nn.Module)]


def _classifier_layers(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Of the layers `names`, in order of execution, the last one inside each of the model's classifiers."""
    modules = dict(model.named_modules())
    ends = []
    for module in _classifiers(model):
        inside = {id(m) for m in module.modules()}
        ends += [name for name in names if id(modules[name]) in inside][-1:]
    return ends


def classifier_layer(model: nn.Module) -> nn.Module:
    """The layer that makes class scores from pre-logits: the last convolution or linear layer of timm's classifier.

    Raises SeamError if the model has none (built for 0 classes).
    """
    for classifier in _classifiers(model):
        layers = [m for m in classifier.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        if layers:
            return layers[-1]
    raise SeamError("the model has no classifier: build it for at least one class")


def feature_count(model: nn.Module) -> int:
    """F, the width of the pre-logits [N, F] that `capture_features` takes."""
    layer = classifier_layer(model)
    return layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features


def total_macs(model: nn.Module, size: tuple[int, int, int]) -> int:
    """Multiply-accumulates of one forward pass on one image of `size` (C, H, W), all weighted layers."""
    return sum(layer.macs for layer in find_layers(model, size))


@contextmanager
def capture_features(model: nn.Module):
    """Within the context, `features[-1]` is the last forward's pre-logits [N, F]: the input of the classifier.

    Where the classifier scores positions (a map [N, F, H, W] or tokens [N, T, F]), their mean is taken.
    """
    features: list[Tensor] = []
    layer = classifier_layer(model)

    def keep(_: nn.Module, args: tuple, kwargs: dict) -> None:
        x = layer_input(args, kwargs)
        x = x.flatten(2).mean(2) if isinstance(layer, nn.Conv2d) else x.flatten(1, -2).mean(1) if x.dim() > 2 else x
        features[:] = [x]

    # First among the pre-hooks: the features before the classifier's input quantizer.
    hook = layer.register_forward_pre_hook(keep, prepend=True, with_kwargs=True)
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
