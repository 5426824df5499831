"""Models by timm's name and a file of weights, or as a policy names them; in full precision and quantized."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seam.errors import SeamError
from seam.tool.images import full_size, set_preprocessing

PREPROCESSING = ("mean", "std", "crop_pct", "interpolation")  # in a policy's `model`, by timm's names


def open_model(
    name: str,
    weights: str | Path | None = None,
    classes: int | None = None,
    *,
    channels: int | None = None,
    untrained: bool = False,
    input_size: Sequence[int] | None = None,
    **preprocessing: Any,
) -> nn.Module:
    """A timm model in full precision, in evaluation mode.

    Args:
        name: timm's.
        weights: a .safetensors file or a checkpoint; None: timm's pretrained ones, or none if `untrained`.
        classes: their number; None: that of the weights.
        channels: of its images, where `input_size` does not say; None: those of the weights, as far as these tell.
        input_size, preprocessing: what the weights were trained for, where that is not what timm says of the name
            (`set_preprocessing`). A transformer is built for that size.

    Raises SeamError as `seam.models.build.build` and `set_preprocessing`.
    """
    import timm

    from seam.models.build import build
    from seam.settings import Model

    kwargs: dict[str, Any] = {}
    if input_size is not None:
        if len(input_size) == 3:
            channels = input_size[0]
        known = timm.get_pretrained_cfg(name, allow_unregistered=True)
        side = full_size(input_size)[1:]
        if known and known.fixed_input_size and tuple(known.input_size[1:]) != side:
            kwargs["img_size"] = side
    spec = Model(
        name=name, weights=str(weights) if weights else None, pretrained=not weights and not untrained, kwargs=kwargs
    )
    return set_preprocessing(build(spec, classes, channels), input_size=input_size, **preprocessing)


def model_of(
    policy: Mapping[str, Any] | str | Path,
    weights: str | Path | None = None,
    *,
    name: str = "",
    untrained: bool = False,
) -> nn.Module:
    """The full-precision model that a policy is for, with the preprocessing that it was searched with.

    Args:
        policy: a file, or its content.
        weights, untrained: as in `open_model`. Others than the policy was searched for are told on stderr.
        name: timm's; by default the policy's.

    Raises SeamError where neither names a model, for timm's own weights of another number of classes, and as
    `open_model`.
    """
    import timm

    from seam.policy.file import read_policy

    where = policy if isinstance(policy, str | Path) else "policy"
    about = (read_policy(policy) if isinstance(policy, str | Path) else policy).get("model", {})
    name = name or about.get("name", "")
    if not name:
        raise SeamError(f"{where}: does not name its model; give --model")
    classes = about.get("num_classes")
    if weights is None and not untrained:
        known = timm.get_pretrained_cfg(name, allow_unregistered=True)
        if known and classes not in (None, known.num_classes):  # they come with a classifier that was never trained
            raise SeamError(
                f"{where}: is for {classes} classes, timm's weights of {name} have {known.num_classes}; give --weights"
            )
    stated = {key: about[key] for key in ("input_size", *PREPROCESSING) if key in about}
    model = open_model(name, weights, classes, channels=about.get("in_chans"), untrained=untrained, **stated)
    if not untrained and about.get("weights_sha256", digest := weights_sha256(model)) != digest:
        print(
            f"{where}: was searched for other weights than {weights or 'those of timm'}, which may cost accuracy: "
            "search again, or compare it with uniform bits",
            file=sys.stderr,
        )
    return model


def weights_sha256(model: nn.Module) -> str:
    """Digest of a model's parameters and buffers: their names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
