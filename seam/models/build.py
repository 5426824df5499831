"""timm models: building them, their weights, and the layers that can be quantized."""

import os
from pathlib import Path

import timm
from torch import Tensor, nn

from seam.errors import SeamError, shortened, shown, unknown
from seam.io import load_tensors
from seam.models.find import CHANNELS, _classifiers, classifier_layer
from seam.models.strided_pointwise import read_fewer_pixels
from seam.settings import Model

_REFUSED = {  # of timm's options
    "checkpoint_path": "give the file as weights, so that results say what they were made from",
    "features_only": "a classifier is needed",
}


def build(spec: Model, num_classes: int | None, in_chans: int | None) -> nn.Module:
    """Create a timm model for `num_classes` classes and `in_chans` channels, in evaluation mode.

    num_classes: None takes that of the given weights, else timm's. Where the weights are for others, a model that is to
    be trained (`train`) keeps a classifier of its own, at random.
    in_chans: None takes those of the given weights, as far as they tell, else 3.

    Raises SeamError for a name timm does not know (with close ones), for options the model refuses, and for weights
    that cannot be read or do not fit.
    """
    if spec.name.split(".")[0] not in timm.list_models():  # after a dot: which of timm's pretrained weights
        raise unknown("timm model", spec.name, timm.list_models(), "models")
    for key, why in _REFUSED.items():
        if key in spec.kwargs:
            raise SeamError(f"models: {spec.name}: kwargs.{key} cannot be used: {why}")
    state = read_weights(spec.weights) if spec.weights else None
    in_chans = in_chans or _channels(spec.name, state or {})
    try:
        model = timm.create_model(
            spec.name, pretrained=spec.pretrained, num_classes=num_classes, in_chans=in_chans, **spec.kwargs
        )
    except Exception as error:  # kwargs reach any line of timm: all types come
        if spec.pretrained and isinstance(error, OSError):
            raise SeamError(
                f"models: the pretrained weights of {spec.name} cannot be downloaded ({error}); "
                "give a local file with weights"
            ) from None
        reason = shortened(str(error)) or type(error).__name__
        raise SeamError(f"models: timm refuses to build {spec.name} with {shown(spec.kwargs)}: {reason}") from None
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
    read_fewer_pixels(model)
    return model.eval()


def _channels(name: str, state: dict[str, Tensor]) -> int:
    """Image channels of weights for a model, by the shape of its first convolution; 3 where that does not tell."""
    known = timm.get_pretrained_cfg(name, allow_unregistered=True)
    weight = state.get(f"{known.first_conv}.weight") if known else None
    return weight.shape[1] if weight is not None and weight.dim() == 4 and weight.shape[1] in CHANNELS else 3


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
    if not Path(path).is_file():
        raise SeamError(f"{path}: {'not a file' if Path(path).exists() else 'no such file'}")
    if Path(path).suffix == ".safetensors":
        return load_tensors(path)
    try:
        state = timm.models.load_state_dict(str(path))
    except Exception as error:  # torch.load raises many types for what it cannot read
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SeamError(
            f"{path}: neither a .safetensors file nor a checkpoint that can be read without running code in it "
            f"({reason}); load it where you trust it and save the weights alone: "
            'safetensors.torch.save_file(model.state_dict(), "NAME.safetensors")'
        ) from None
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items())
    ):
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
    problems += [
        f"{k} holds {str(state[k].dtype).removeprefix('torch.')}, not floating-point numbers"
        for k in own
        if k in state and own[k].is_floating_point() and not state[k].is_floating_point()
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise SeamError(f"{path}: weights do not fit the model: {'; '.join(problems[:3])}{more}")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:  # sparse tensors, and those that hold no numbers
        raise SeamError(
            f"{path}: weights cannot be copied into the model: {shortened(' '.join(str(error).split()))}"
        ) from None
    if broken := [k for k, value in own.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise SeamError(f"{path}: weights hold NaN or infinity: {', '.join(broken[:3])}")


def _class_count(model: nn.Module, state: dict[str, Tensor]) -> int | None:
    """The number of classes that a state dict of the model is for; None where it does not tell."""
    layer = classifier_layer(model)
    names = [name for name, module in model.named_modules() if module is layer]
    weight = state.get(f"{names[0]}.weight")
    # Another width is another model, of which nothing can be said.
    return len(weight) if weight is not None and weight.shape[1:] == layer.weight.shape[1:] else None


def replace_head(model: nn.Module, num_classes: int) -> None:
    """Give the model a new classifier for `num_classes` classes (initialised by timm)."""
    device = next(model.parameters()).device
    model.reset_classifier(num_classes)
    model.to(device)
