"""What a search method is given. Imports no torch, for the methods that need no network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seam.cost import Budget
from seam.layers import Layer, group_names
from seam.params import SearchSettings
from seam.runtime import Meter

if TYPE_CHECKING:
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
        images: the proxy's training images (seam.data.loaders.ImageSet); None for methods that see no data.
        budgets: linear limits over the searchable layers; the first one is the one to be spent.
        resume: file for checkpoints.
        history: rows for history.csv, filled by the method.
        report: extra entries for cost.json (e.g. logit_entropy), filled by the method.
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

    @property
    def names(self) -> list[str]:
        """The searchable layers' names, in order of execution: the rows of the preference table."""
        return [layer.name for layer in self.layers if not layer.fixed]

    @property
    def groups(self) -> list[str]:
        """The group of each searchable layer, in the same order: layers of one group share their activation bits."""
        groups = group_names(self.layers)
        return [groups[name] for name in self.names]
