"""Images as a model wants them, from a folder or a dataset's name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seam.data.datasets import DATASETS
from seam.errors import SeamError, shown, unknown
from seam.models.find import CHANNELS, class_count, default_input_size

PROXY_SIZE = 64  # pixels: the largest side of the images that a search sees, unless told otherwise
INTERPOLATIONS = ("bilinear", "bicubic")
HELD_OUT_IMAGES = 512  # on which finetuning is measured, before and after


def open_images(
    data: str | Path | None,
    model: nn.Module,
    split: str = "train",
    *,
    full_size: bool = False,
    image_size: int | None = None,
    data_root: str | Path = "data",
) -> Any:
    """Images as `model` wants them, a seam.data.image_sets.ImageSet: its channels, mean and deviation, and, for
    folders, the centre crop and the interpolation that timm states for it.

    Args:
        data: a folder with train/ and val/ or test/ (test/ if it has both), each with one folder a class, or with
            archives of them (seam.data.archives); or a folder with one folder a class, then all of it whatever the
            split, as of one with only val/ or test/; or a dataset's name; None: scikit-learn's digits, all of them.
        split: "train" or "test".
        full_size: at the model's own input size, else at 64 pixels a side at most, which suffice for a search.
        image_size: of a side in pixels, in place of either.
        data_root: folder where datasets are kept that are given by name.

    Raises SeamError for a folder without classes, an empty class folder, unknown names, and broken files.
    """
    from seam.data.loaders import load, open_folder, prepare_as_trained

    channels, *full = default_input_size(model)
    height, width = full if full_size else (min(side, PROXY_SIZE) for side in full)
    size = (image_size, image_size) if image_size else (height, width)
    if data is None:
        images = load("digits", data_root, "all", None, image_size=size, channels=channels)
    elif Path(data).is_dir():
        images = open_folder(Path(data), split, size, channels)
    else:
        if str(data) not in DATASETS or str(data) == "folder":
            known = ", ".join(name for name in DATASETS if name != "folder")
            raise SeamError(f"--data {data}: neither a folder nor a dataset; datasets: {known}")
        images = load(str(data), data_root, split, None, image_size=size, channels=channels)
    images.name, images.by_name = str(data or "digits"), data is None or not Path(data).is_dir()
    return prepare_as_trained(images, _stated(model))


def held_out(
    data: str | Path, model: nn.Module, *, count: int = HELD_OUT_IMAGES, data_root: str | Path = "data"
) -> Any | None:
    """At most `count` class-balanced images that `finetune` does not see, as `open_images` gives them at full size.

    None for a folder that does not hold train/ beside val/ or test/: all its images are there to train on. None, too,
    where their classes are not the model's: they tell nothing of its top-1.
    """
    from seam.data.files import class_folders

    if Path(data).is_dir() and not class_folders(Path(data)):
        return None
    images = open_images(data, model, "test", full_size=True, data_root=data_root)
    return images.balanced(count) if has_classes_of(model, images) else None


def has_classes_of(model: nn.Module, images: Any) -> bool:
    """Whether the images have as many classes as the model: their labels are then taken to be its own."""
    return len(images.classes) == class_count(model)


def _stated(model: nn.Module) -> Mapping[str, Any]:
    """What timm states about a model's weights."""
    return getattr(model, "pretrained_cfg", None) or {}


def preprocessing(model: nn.Module) -> dict[str, Any]:
    """How `open_images` makes an input of an image file at the model's size (`ImageSet.preprocessing`)."""
    return dict(_no_images(model).preprocessing)


def preprocessing_settings(model: nn.Module) -> dict[str, Any]:
    """The same as `set_preprocessing` takes it, without the size."""
    images = _no_images(model)
    return {
        "mean": images.mean,
        "std": images.std,
        "crop_pct": images.crop_share,
        "interpolation": images.interpolation,
    }


def _no_images(model: nn.Module) -> Any:
    """An empty set of files, prepared as `open_images` prepares them at the model's size."""
    from seam.data.loaders import FileSet, prepare_as_trained

    channels, *size = default_input_size(model)
    return prepare_as_trained(
        FileSet([], torch.empty(0), [], [0.5] * channels, [0.25] * channels, size), _stated(model)
    )


def set_preprocessing(
    model: nn.Module,
    *,
    input_size: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop_pct: float | None = None,
    interpolation: str | None = None,
) -> nn.Module:
    """Say what a model's weights were trained for, where timm's `pretrained_cfg` says something else; returns it.

    Args:
        input_size: (C, H, W), at which MACs are counted and the model is finetuned, evaluated and exported; or one
            side in pixels.
        mean, std: a number a channel, or one for all, on the scale 0 to 1.
        crop_pct: share of the shorter side that the centre crop of a file keeps.
        interpolation: of resizing: bilinear or bicubic.

    What is None stays as it is. Raises SeamError for values that cannot be.
    """
    stated = dict(_stated(model))
    if input_size is not None:
        stated["input_size"] = full_size(input_size, default_input_size(model)[0])
    channels = stated.get("input_size", default_input_size(model))[0]
    for key, values, least in (("mean", mean, 0.0), ("std", std, 1e-3)):
        if values is None:
            continue
        if len(values) not in (1, channels) or not all(least <= value <= 1 for value in values):
            raise SeamError(
                f"{key} {shown(values)}: write a number a channel ({channels}) from {least:g} to 1, or one for all: "
                "pixels are scaled to 0..1 first"
            )
        stated[key] = list(values) * (channels // len(values))
    if crop_pct is not None and not 0 < crop_pct <= 1:
        raise SeamError(f"crop {crop_pct:g}: must be above 0, at most 1")
    if interpolation not in (None, *INTERPOLATIONS):
        raise unknown("interpolation", interpolation, INTERPOLATIONS)
    more = {"crop_pct": crop_pct, "interpolation": interpolation}
    stated |= {key: value for key, value in more.items() if value is not None}
    model.pretrained_cfg = stated  # type: ignore[assignment]
    return model


def full_size(size: Sequence[int], channels: int = 3) -> tuple[int, int, int]:
    """(C, H, W), of a square where one side is given. Raises SeamError for other lengths, and sizes that cannot be."""
    full = (channels, *size, *size) if len(size) == 1 else tuple(size)
    if len(full) != 3 or full[0] not in CHANNELS or not all(1 <= side <= 4096 for side in full[1:]):
        raise SeamError(
            f"input size {','.join(map(str, size))}: write channels (1 or 3), height and width, such as 3,224,224, or "
            "one side, such as 224"
        )
    return full


def input_size(model: nn.Module) -> tuple[int, int, int]:
    """(C, H, W) at which a model's MACs are counted and at which it is finetuned, evaluated and exported."""
    return default_input_size(model)
