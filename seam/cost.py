"""What a policy costs: BitOPs and size, and the budgets that limit them.

BitOPs of a layer = MACs x weight bits x activation bits; size = sum of weights x bits / 8. MACs are those of one image
at the target's input size, also when the search sees a smaller proxy. The first and the last layer are fixed at 8/8 and
counted apart: a budget limits the searchable layers only.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from seam.errors import SeamError
from seam.models import Layer

CONVENTION = "searchable layers only; first and last layer fixed at 8/8 and counted apart"

_UNIFORM = re.compile(r"w(\d)a(\d)")
_BITOPS = re.compile(r"([\d.]+) ?G(?:BitOPs|bops)?", re.IGNORECASE)
_SIZE = re.compile(r"([\d.]+) ?MB", re.IGNORECASE)
_MEAN = re.compile(r"([\d.]+) ?bits?", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """A linear limit on a policy of the searchable layers.

    Attributes:
        spec: as the user wrote it.
        kind: "bitops" (GBitOPs), "size" (MB) or "bits" (mean weight bits).
        bits: the B candidate bit-widths.
        table: [layers, weight bits, activation bits] cost of each choice, in the unit of `kind`.
        limit: the most that a policy may cost, in the same unit.
    """

    spec: str
    kind: str
    bits: tuple[int, ...]
    table: np.ndarray
    limit: float

    UNITS: ClassVar[dict[str, str]] = {"bitops": "GBitOPs", "size": "MB", "bits": "bits"}

    def cost(self, assigned: Sequence[tuple[int, int]]) -> float:
        """Cost of (weight bits, activation bits) of each searchable layer."""
        index = {b: i for i, b in enumerate(self.bits)}
        return float(sum(self.table[i, index[w], index[a]] for i, (w, a) in enumerate(assigned)))

    def reach(self) -> tuple[float, float]:
        """Least and greatest cost of any policy."""
        flat = self.table.reshape(len(self.table), -1)
        return float(flat.min(1).sum()), float(flat.max(1).sum())

    def check(self) -> None:
        """Raise SeamError, with the reachable range, when no policy can meet the budget."""
        least, most = self.reach()
        if self.limit < least * (1 - 1e-9):
            raise SeamError(
                f"budget {self.spec}: no policy can meet {self.limit:.6g} {self.UNITS[self.kind]}; "
                f"the reachable range is {least:.6g} to {most:.6g} {self.UNITS[self.kind]} ({CONVENTION})"
            )


def searchable(layers: Sequence[Layer]) -> list[Layer]:
    """The layers whose bits are searched."""
    return [layer for layer in layers if not layer.fixed]


def bitops_table(layers: Sequence[Layer], bits: Sequence[int]) -> np.ndarray:
    """[L, B, B] GBitOPs of each layer at each (weight, activation) bit-width."""
    macs = np.array([layer.macs for layer in layers], dtype=float)
    return macs[:, None, None] * np.multiply.outer(bits, bits)[None] / 1e9


def parse_budget(spec: str, layers: Sequence[Layer], bits: Sequence[int]) -> Budget:
    """Turn `w3a3`, `1.2 GBitOPs`, `0.8 MB` or `3.5 bits` into a limit over the searchable layers.

    Raises SeamError for any other text, and for a limit that no policy can meet.
    """
    layers = searchable(layers)
    if not layers:
        raise SeamError("the model has no searchable layer: only its first and last layer have weights")
    text = str(spec).strip()
    weights = np.array([layer.params for layer in layers], dtype=float)
    widths = np.array(bits, dtype=float)
    by_weight_bits = np.broadcast_to(widths[None, :, None], (len(layers), len(bits), len(bits)))
    if match := _UNIFORM.fullmatch(text):
        w, a = map(int, match.groups())
        budget = Budget(
            text, "bitops", tuple(bits), bitops_table(layers, bits), sum(layer.macs for layer in layers) * w * a / 1e9
        )
    elif match := _BITOPS.fullmatch(text):
        budget = Budget(text, "bitops", tuple(bits), bitops_table(layers, bits), float(match[1]))
    elif match := _SIZE.fullmatch(text):
        budget = Budget(text, "size", tuple(bits), weights[:, None, None] * by_weight_bits / 8e6, float(match[1]))
    elif match := _MEAN.fullmatch(text):
        budget = Budget(
            text, "bits", tuple(bits), weights[:, None, None] / weights.sum() * by_weight_bits, float(match[1])
        )
    else:
        raise SeamError(
            f"budget '{spec}': write w3a3 (as uniform 3/3), 1.2 GBitOPs, 0.8 MB or 3.5 bits (mean weight bits)"
        )
    budget.check()
    return budget
