"""Sets of image files that are decoded on the way, by worker processes."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seam.data.decode import read_image
from seam.data.image_sets import ImageSet, describe_preprocessing
from seam.data.readers import Files
from seam.errors import SeamError
from seam.runtime.cores import available_cores
from seam.runtime.progress import progress

CROP_SHARE = 0.875  # of the shorter side, kept by the test crop


class FileSet(ImageSet):
    """Image files, decoded on the way by worker processes.

    Augmented: a random resized crop and a flip; else: resized, and the middle `crop_share` of the shorter side taken.
    `crop_share` and `interpolation` (a filter of Pillow) may be set to what the model was trained for.
    """

    def __init__(self, paths: list[str], labels: Tensor, classes, mean, std, image_size, flip: bool = True):
        self.paths, self.labels, self.classes = paths, labels, list(classes)
        self.mean, self.std, self.flip = list(mean), list(std), flip
        self.image_size, self.channels = tuple(image_size), len(self.mean)
        self.crop_share, self.interpolation = CROP_SHARE, "bilinear"

    @property
    def preprocessing(self):
        size = _uncropped(self.image_size, self.crop_share)
        return describe_preprocessing(self, size, True, self.interpolation, list(self.image_size))

    def subset(self, indices):
        images = copy.copy(self)
        indices = torch.as_tensor(indices, dtype=torch.int64)
        images.paths, images.labels = [self.paths[i] for i in indices.tolist()], self.labels[indices]
        return images

    def _epoch(self, order, draw, spans, device, workers):
        from torch.utils.data import DataLoader

        paths = [self.paths[i] for i in order.tolist()]
        seeds = draw.seeds.tolist() if draw.augment else None
        decoder = _Decoder(paths, seeds, self.image_size, self.channels, self.flip, self.crop_share, self.interpolation)
        loader = DataLoader(
            decoder,
            batch_sampler=[range(start, stop) for start, stop in spans],
            num_workers=min(workers, available_cores(), len(spans)),
            collate_fn=_collate,
            generator=torch.Generator(),  # its own: the global one must not depend on how data is loaded
            pin_memory=device.type == "cuda",
        )
        for batch in loader:
            if isinstance(batch, str):
                raise SeamError(batch)
            yield batch.to(device, non_blocking=True).to(torch.float32)


class _Decoder:
    """Position in the epoch -> uint8 [H, W, C], or the message of a file that cannot be read."""

    def __init__(
        self, paths, seeds, image_size, channels, flip, crop_share: float = CROP_SHARE, interpolation: str = "bilinear"
    ):
        from torchvision.transforms import v2

        self.paths, self.seeds, self.channels = paths, seeds, channels
        if seeds is None:
            sides = _uncropped(image_size, crop_share)
            self.transform = v2.Compose([_ResizeToCover(sides, interpolation), v2.CenterCrop(image_size)])
        else:
            crop = v2.RandomResizedCrop(image_size, interpolation=v2.InterpolationMode(interpolation))
            self.transform = v2.Compose([crop, v2.RandomHorizontalFlip(0.5 if flip else 0.0)])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> np.ndarray | str:
        try:
            image = read_image(self.paths[i], self.channels)
        except SeamError as error:
            return str(error)  # as a value: an exception would arrive wrapped in the worker's traceback
        if self.seeds is not None:
            # A seed an image: the same crops whichever worker makes them, and whatever else draws numbers.
            state = torch.default_generator.get_state()
            torch.default_generator.manual_seed(self.seeds[i])
            image = self.transform(image)
            torch.default_generator.set_state(state)
        else:
            image = self.transform(image)
        return np.asarray(image).reshape(image.height, image.width, self.channels)


class _ResizeToCover:
    """Resize a PIL image, its shape kept, to the least size that covers (H, W)."""

    def __init__(self, size, interpolation):
        self.size, self.interpolation = size, interpolation

    def __call__(self, image):
        from PIL import Image

        scale = max(self.size[0] / image.height, self.size[1] / image.width)
        size = (max(self.size[1], int(image.width * scale)), max(self.size[0], int(image.height * scale)))
        return image.resize(size, Image.Resampling[self.interpolation.upper()])


def prepare_as_trained(images: ImageSet, about: Mapping[str, Any]) -> ImageSet:
    """Give a set the mean, deviation, centre crop and interpolation that timm states for a model's weights
    (`pretrained_cfg`), as far as the set has a choice; returns the set."""
    for key in ("mean", "std"):
        if len(about.get(key) or ()) == images.channels:
            setattr(images, key, list(about[key]))
    if isinstance(images, FileSet):
        images.crop_share = about.get("crop_pct") or images.crop_share
        if about.get("interpolation") in ("bilinear", "bicubic"):
            images.interpolation = about["interpolation"]
    return images


def _uncropped(size: Sequence[int], crop_share: float) -> list[int]:
    """(H, W) of an image of which a centre crop of `size` is `crop_share` of each side."""
    return [round(side / crop_share) for side in size]


def _collate(items: list) -> Tensor | str:
    broken = next((item for item in items if isinstance(item, str)), None)
    return broken if broken is not None else torch.from_numpy(np.stack(items))


def read_sample(files: Files, image_size: tuple[int, int], channels: int, count: int) -> np.ndarray:
    """uint8 [N, H, W, C]: at most `count` images, evenly spaced, as the test crop shows them."""
    from torch.utils.data import DataLoader

    paths = files.paths[:: -(-len(files.paths) // count)]
    decoder = _Decoder(paths, None, image_size, channels, False)
    workers = available_cores() if len(paths) > 200 else 0
    loader = DataLoader(decoder, 50, num_workers=workers, collate_fn=_collate)
    batches = []
    for batch in progress(loader, len(loader), "mean and std"):
        if isinstance(batch, str):
            raise SeamError(batch)
        batches.append(batch.numpy())
    return np.concatenate(batches)
