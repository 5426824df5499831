"""Sets of images that give normalised batches: in memory (small images) or read from files (large ones)."""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from seam.data.sampling import sample_indices
from seam.errors import SeamError

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL's "L"


class ImageSet(ABC):
    """Labelled images of one size.

    labels: int64 [N]; classes: their names; image_size: (H, W) in pixels; channels: 1 or 3; mean, std: a float a
    channel, of the dataset's training images on the scale 0..1, after conversion to `channels`.
    """

    labels: Tensor
    classes: list[str]
    image_size: tuple[int, int]
    channels: int
    mean: list[float]
    std: list[float]
    name: str = "images"  # of the folder or dataset
    by_name: bool = False  # a known dataset, not a folder of the user's own

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.channels, *self.image_size

    def balanced(self, count: int | None, seed: int = 0) -> "ImageSet":
        """At most `count` images, the same of each class as far as there are; all in their order if None."""
        if count is None or count >= len(self):
            return self
        return self.subset(sample_indices(self.labels.numpy(), count, "balanced", seed))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """How an image becomes the network's input when nothing is augmented, in JSON types.

        colour: Pillow's mode, "RGB" or "L". resize: (H, W) in pixels, to the least size that covers it if keep_shape,
        else to exactly that; interpolation: Pillow's filter. crop: (H, W) around the centre, or None. mean, std: a
        float a channel, on the scale 0..1.
        """

    @abstractmethod
    def subset(self, indices: Sequence[int] | Tensor) -> "ImageSet":
        """The images at these positions, in this order."""

    @abstractmethod
    def _epoch(
        self, order: Tensor, draw: "Draw", spans: list[tuple[int, int]], device, workers: int
    ) -> Iterator[Tensor]:
        """For each span of `order`: the images as float32 [B, H, W, C] on the scale 0..255, on `device`."""

    def batches(
        self,
        batch_size: int,
        *,
        seed: int | None = None,
        augment: bool = False,
        device: str | torch.device = "cpu",
        drop_last: bool = False,
        workers: int = 0,
        channels_last: bool = True,
        skip: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> "Batches":
        """One pass over the images, as an iterable that knows its length.

        Each batch is (float32 [B, C, H, W], zero mean and unit variance over the training set; int64 [B]) on `device`.
        seed None keeps the order; equal seeds give the equal order and augmentation, whatever the device, the number of
        workers or the batch size. `skip` leaves out the first batches, for a resumed epoch. `workers` processes read
        files (bounded by the cores at hand); sets in memory ignore it. `share` (number, of how many) gives that part of
        each batch alone, all of one size; `batch_size` stays that of the whole.
        """
        return Batches(
            self, batch_size, seed, augment, torch.device(device), drop_last, workers, channels_last, skip, share
        )


class Draw:
    """The random numbers of one epoch, a row an image: drawn at once, so that they do not depend on the batches."""

    def __init__(self, count: int, seed: int | None, augment: bool):
        generator = torch.Generator().manual_seed(0 if seed is None else seed)
        self.order = torch.arange(count) if seed is None else torch.randperm(count, generator=generator)
        self.augment = augment
        if augment:
            self.shift = torch.rand(count, 2, generator=generator)  # 0..1: scaled to the range of shifts
            self.flip = torch.rand(count, generator=generator) < 0.5
            self.seeds = torch.randint(2**62, (count,), generator=generator)  # for transforms that draw by themselves


class Batches:
    """Iterable over one epoch of an `ImageSet`; iterating again gives the same epoch again."""

    def __init__(self, images, batch_size, seed, augment, device, drop_last, workers, channels_last, skip, share):
        if batch_size < 1:
            raise SeamError(f"batch_size must be at least 1 (found {batch_size})")
        self.images, self.batch_size, self.seed, self.augment = images, batch_size, seed, augment
        self.device, self.drop_last, self.workers, self.channels_last = device, drop_last, workers, channels_last
        self.skip, self.share = skip, share

    def __len__(self) -> int:
        whole, rest = divmod(len(self.images), self.batch_size)
        return max(0, whole + (rest > 0 and not self.drop_last) - self.skip)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count, size = len(self.images), self.batch_size
        draw = Draw(count, self.seed, self.augment)
        spans = [(i * size, min((i + 1) * size, count)) for i in range(self.skip, self.skip + len(self))]
        number, parts = self.share
        widths = [(start, (stop - start) // parts) for start, stop in spans]
        spans = [(start + number * width, start + (number + 1) * width) for start, width in widths]
        labels = self.images.labels[draw.order].to(self.device)
        mean = torch.tensor(self.images.mean, device=self.device) * 255
        scale = 1 / (torch.tensor(self.images.std, device=self.device) * 255).clamp_min(1e-6)
        # One fused multiply-add a batch: (x - mean) / std = x * scale - mean * scale.
        offset = -mean * scale
        epoch = self.images._epoch(draw.order, draw, spans, self.device, self.workers)
        for (start, stop), x in zip(spans, epoch, strict=True):
            x = torch.addcmul(offset, x, scale).permute(0, 3, 1, 2)
            # Channels were innermost all along: the permuted view is channels_last as it is.
            yield (x if self.channels_last else x.contiguous()), labels[start:stop]


class TensorSet(ImageSet):
    """Images in memory: uint8 [N, H, W, C].

    `resize` (H, W): enlarge each batch on the way, for sets that would be too large in memory at that size.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, classes, mean, std, flip: bool = True, resize=None):
        self.pixels, self.labels, self.classes = pixels, labels, list(classes)
        self.mean, self.std, self.flip, self.resize = list(mean), list(std), flip, resize
        self.image_size = tuple(resize or pixels.shape[1:3])
        self.channels = pixels.shape[3]
        self._on: dict[torch.device, Tensor] = {}  # copies on accelerators

    @property
    def preprocessing(self):
        return describe_preprocessing(self, list(self.image_size), False, "bilinear", None)

    def subset(self, indices):
        images, indices = copy.copy(self), torch.as_tensor(indices, dtype=torch.int64)
        images.pixels, images.labels, images._on = self.pixels[indices], self.labels[indices], {}
        return images

    def enlarged(self, size: tuple[int, int]) -> "TensorSet":
        """The same images at another size (H, W), kept at it."""
        images = copy.copy(self)
        images.pixels, images.resize, images._on = resize_pixels(self.pixels, size), None, {}
        images.image_size = tuple(size)
        return images

    def sha256(self) -> str:
        """Of the pixels and labels: what was seen, wherever it lay."""
        digest = hashlib.sha256(self.pixels.numpy().tobytes())
        digest.update(self.labels.numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def _epoch(self, order, draw, spans, device, workers):
        pixels = self.pixels
        if device.type != "cpu":
            pixels = self._on[device] = self._on[device] if device in self._on else pixels.to(device)
            order = order.to(device)
        if draw.augment:
            shift, flip = draw.shift.to(device), draw.flip.to(device)
        for start, stop in spans:
            x = pixels[order[start:stop]]
            if draw.augment:
                x = _shift_and_flip(x, shift[start:stop], flip[start:stop] if self.flip else None)
            x = x.to(torch.float32)
            if self.resize:
                x = _resize(x, self.resize)
            yield x


def _shift_and_flip(x: Tensor, shift: Tensor, flip: Tensor | None) -> Tensor:
    """Shift each image of [B, H, W, C] by up to H // 8 and W // 8 pixels (black moves in), then mirror where `flip`."""
    count, height, width, _ = x.shape
    reach_h, reach_w = height // 8, width // 8
    padded = F.pad(x, (0, 0, reach_w, reach_w, reach_h, reach_h))
    top = (shift[:, 0] * (2 * reach_h + 1)).to(torch.int64).clamp_max(2 * reach_h)
    left = (shift[:, 1] * (2 * reach_w + 1)).to(torch.int64).clamp_max(2 * reach_w)
    rows = top[:, None] + torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device).expand(count, width)
    if flip is not None:
        columns = torch.where(flip[:, None], width - 1 - columns, columns)
    columns = left[:, None] + columns
    images = torch.arange(count, device=x.device)[:, None, None]
    return padded[images, rows[:, :, None], columns[:, None, :]]


def describe_preprocessing(
    images: ImageSet, resize: list[int], keep_shape: bool, interpolation: str, crop: list[int] | None
):
    """`ImageSet.preprocessing`."""
    return {
        "colour": "RGB" if images.channels == 3 else "L",
        "resize": resize,
        "keep_shape": keep_shape,
        "interpolation": interpolation,
        "crop": crop,
        "mean": list(images.mean),
        "std": list(images.std),
    }


def in_memory(images: ImageSet) -> TensorSet:
    """The same images decoded once, for work that goes over them again and again."""
    mean, std = torch.tensor(images.mean) * 255, torch.tensor(images.std) * 255
    parts = [(x.permute(0, 2, 3, 1) * std + mean).round().clamp(0, 255).to(torch.uint8) for x, _ in images.batches(64)]
    held = TensorSet(torch.cat(parts), images.labels, images.classes, images.mean, images.std, images.flip)
    held.name, held.by_name = images.name, images.by_name
    return held


def luma(pixels: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] -> [N, H, W, 1]."""
    gray = np.empty((*pixels.shape[:3], 1), dtype=np.uint8)
    for start in range(0, len(pixels), 4096):  # in parts: the float copy is four times as large
        part = pixels[start : start + 4096]
        gray[start : start + 4096, ..., 0] = np.rint(part @ np.array(LUMA, dtype=np.float32))
    return gray


def resize_pixels(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [N, H, W, C] to [N, *size, C], bilinear, antialiased."""
    parts = [
        _resize(part.to(torch.float32), size).round_().clamp_(0, 255).to(torch.uint8) for part in pixels.split(2048)
    ]
    return torch.cat(parts)


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """float [B, H, W, C] to [B, *size, C]."""
    x = F.interpolate(x.permute(0, 3, 1, 2), size, mode="bilinear", antialias=True)
    return x.permute(0, 2, 3, 1).contiguous()
