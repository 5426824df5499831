"""Images as a model wants them, from a folder or a dataset's name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seam.data.datasets import DATASETS
from seam.errors import SeamError
from seam.models.find import default_input_size

PROXY_SIZE = 64  # pixels: the largest side of the images that a search sees, unless told otherwise
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
    return len(images.classes) == model.num_classes


def _stated(model: nn.Module) -> Mapping[str, Any]:
    """What timm states about a model's weights."""
    return getattr(model, "pretrained_cfg", None) or {}


def preprocessing(model: nn.Module) -> dict[str, Any]:
    """How `open_images` makes an input of an image file at the model's size (`ImageSet.preprocessing`)."""
    from seam.data.loaders import FileSet, prepare_as_trained

    channels, *size = default_input_size(model)
    blank = FileSet([], torch.empty(0), [], [0.5] * channels, [0.25] * channels, size)
    return prepare_as_trained(blank, _stated(model)).preprocessing


def input_size(model: nn.Module) -> tuple[int, int, int]:
    """(C, H, W) at which a model's MACs are counted and at which it is finetuned, evaluated and exported."""
    return default_input_size(model)
