"""What a search method is given. Imports no torch, for the methods that need no network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from seam.errors import SeamError
from seam.models.layers import Layer, group_names
from seam.policy.cost import Budget
from seam.runtime.meter import Meter
from seam.runtime.progress import phase
from seam.search.interface import (
    least_share,
    needs_classifier,
    needs_images,
    needs_kernels,
    raises_free_bits,
)
from seam.settings import SearchSettings

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn


@dataclass
class Problem:
    """One search: the model, the data, the budget, and where to report.

    Attributes:
        model: full-precision network on `device`, with the target's classifier, or one for the proxy's classes where
            the method asks for it (`seam.search`); the method may change it. None, and no device either, for a method
            that needs no network and sees no data.
        layers: all quantizable layers, MACs at the target's input size.
        images: the proxy's training images (seam.data.image_sets.ImageSet); None for methods that see no data.
        budgets: linear limits over the searchable layers; the first one is the one to be spent.
        resume: file for checkpoints.
        history: rows for history.csv, filled by the method.
        report: extra entries for cost.json (e.g. logit_entropy), filled by the method.
        live: called with (step, **metrics) for each row of the history.
        own_classes: the proxy's classes are the model's; else a method that asks for one has got a new classifier.
    """

    model: nn.Module | None
    layers: Sequence[Layer]
    images: Any
    budgets: Sequence[Budget]
    settings: SearchSettings
    seed: int
    device: torch.device | None
    meter: Meter
    resume: Path | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    live: Callable[..., None] = lambda step, **metrics: None
    own_classes: bool = True

    @property
    def names(self) -> list[str]:
        """The searchable layers' names, in order of execution: the rows of the preference table."""
        return [layer.name for layer in self.layers if not layer.fixed]

    @property
    def groups(self) -> list[str]:
        """The group of each searchable layer, in the same order: layers of one group share their activation bits."""
        groups = group_names(self.layers)
        return [groups[name] for name in self.names]


def prepare(
    method: ModuleType,
    model: nn.Module | None,
    images: Any,
    layers: Sequence[Layer],
    budgets: Sequence[Budget],
    settings: SearchSettings,
    seed: int,
    device: torch.device | None,
    meter: Meter,
    *,
    own_classes: bool = True,
    kernels: bool = True,
) -> Problem:
    """Make a full-precision network and a proxy's images ready for a method; the model may be changed or copied.

    The network gets the images' size, a classifier for the proxy's classes where the method scores them, and loses what
    such images never reach.

    Args:
        own_classes: the proxy's classes are the model's.
        kernels: load those that the method needs.
    """
    if images is None and needs_images(method):
        raise SeamError("proxy: 'none', but the method looks at images: give a block with a dataset")
    if images is not None:
        from seam.models.build import replace_head
        from seam.models.find import total_macs
        from seam.models.padding_taps import cut_taps

        with meter.part("setup"):
            model, images = _at_size(model, images)
            if needs_classifier(method) and not own_classes:
                replace_head(model, len(images.classes))
            cut_taps(model, images.shape)
            meter.macs_per_image = total_macs(model, images.shape)
    if model is not None:
        import torch

        from seam.models.strided_pointwise import read_fewer_pixels

        read_fewer_pixels(model)
        model = model.to(device, memory_format=torch.channels_last)
    if images is not None and kernels and needs_kernels(method):
        from seam.quant.kernels import use_kernels

        with meter.part("kernels"), phase("prepare kernels"):
            meter.kernels, meter.seconds_once = use_kernels(settings.kernels, (1, len(settings.bits)), device)
    return Problem(model, layers, images, budgets, settings, seed, device, meter, own_classes=own_classes)


def _at_size(model: nn.Module, images: Any) -> tuple[nn.Module, Any]:
    """The model (timm's transformers, built for one size: a copy) for the images' size; else images of the model's.

    SeamError: the model does not take the size, and the images cannot be enlarged.
    """
    from seam.models.find import default_input_size
    from seam.models.shared_inputs import REFUSALS, run_once

    try:
        fitted = model
        if hasattr(model, "set_input_size"):
            fitted = copy.deepcopy(model)
            fitted.set_input_size(img_size=images.image_size)
        run_once(fitted, images.shape)
        return fitted, images
    except REFUSALS as error:
        full = default_input_size(model)[1:]
        if not hasattr(images, "enlarged"):
            raise SeamError(f"the model refuses images of {images.image_size} ({error}); give it {full}") from None
        return model, images.enlarged(full)


def solve(method: ModuleType, problem: Problem, table: np.ndarray, budgets: Sequence[Budget]) -> list[tuple[int, int]]:
    """The best policy within the budgets for a method's table of preferences, bits that cost nothing at the widest."""
    from seam.policy.assign import assign, raise_free

    spend = least_share(method, problem.settings.spend)
    bits, groups = problem.settings.bits, problem.groups
    assigned = assign(table, problem.names, bits, budgets, spend, groups=groups)
    return raise_free(assigned, bits, budgets, groups) if raises_free_bits(method) else assigned
