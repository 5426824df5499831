"""What a policy costs: BitOPs, size and latency, and the budgets that limit them.

BitOPs of a layer = MACs x weight bits x activation bits; size = sum of weights x bits / 8; latency is the sum of a
table of measured milliseconds. MACs are those of one image at the target's input size, also when the search sees a
smaller proxy. The first and the last layer are fixed at 8/8 and counted apart: a budget limits the searchable layers,
and those that the user locked, at the bits they are locked to. Excluded layers stay in full precision and are counted
apart too.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from seam.errors import SeamError, unknown
from seam.layers import Layer

CONVENTION = "searched and locked layers; first and last layer fixed at 8/8 and counted apart, as are excluded ones"

_UNIFORM = re.compile(r"w([1-9])a([1-9])")
_NUMBER = r"(\d+\.?\d*|\.\d+)"
_BITOPS = re.compile(_NUMBER + r" ?G(?:BitOPs|bops)?", re.IGNORECASE)
_SIZE = re.compile(_NUMBER + r" ?MB", re.IGNORECASE)
_MEAN = re.compile(_NUMBER + r" ?bits?", re.IGNORECASE)
_LATENCY = re.compile(_NUMBER + r" ?ms", re.IGNORECASE)
_ABSOLUTE = {"bitops": _BITOPS, "size": _SIZE, "bits": _MEAN, "latency": _LATENCY}  # kind of a limit -> its text

Latency = Mapping[tuple[str, int, int], float]  # (layer, weight bits, activation bits) -> milliseconds


@dataclass(frozen=True)
class Budget:
    """A linear limit on a policy.

    Attributes:
        spec: as the user wrote it.
        kind: "bitops" (GBitOPs), "size" (MB), "bits" (mean weight bits) or "latency" (ms).
        bits: the B candidate bit-widths.
        table: [L, B, B] cost of each searchable layer's (weight bits, activation bits), in the unit of `kind`.
        limit: the most that a policy may cost, in the same unit.
        base: what the locked layers cost, part of every policy's cost.
        groups: of each searchable layer; those of one group share their activation bits. Empty: none do.
    """

    spec: str
    kind: str
    bits: tuple[int, ...]
    table: np.ndarray
    limit: float
    base: float = 0.0
    groups: tuple[str, ...] = ()

    UNITS: ClassVar[dict[str, str]] = {"bitops": "GBitOPs", "size": "MB", "bits": "bits", "latency": "ms"}

    def cost(self, assigned: Sequence[tuple[int, int]]) -> float:
        """Cost of (weight bits, activation bits) of each searchable layer, with the locked ones."""
        index = {b: i for i, b in enumerate(self.bits)}
        return self.base + float(sum(self.table[i, index[w], index[a]] for i, (w, a) in enumerate(assigned)))

    def reach(self) -> tuple[float, float]:
        """Least and greatest cost of any policy that honours the groups."""
        groups = self.groups or tuple(map(str, range(len(self.table))))
        numbers = {name: i for i, name in enumerate(dict.fromkeys(groups))}
        least, most = np.zeros((2, len(numbers), len(self.bits)))
        rows = [numbers[name] for name in groups]
        np.add.at(least, rows, self.table.min(1))  # weight bits are free, activation bits common to a group
        np.add.at(most, rows, self.table.max(1))
        return self.base + float(least.min(1).sum()), self.base + float(most.max(1).sum())

    def limits_inputs(self) -> bool:
        """Whether any layer's cost depends on its activation bits."""
        return bool((self.table != self.table[:, :, :1]).any())

    def check(self) -> None:
        """Raise SeamError, with the reachable range, when no policy can meet the budget."""
        least, most = self.reach()
        if self.limit < least * (1 - 1e-9):
            unit = self.UNITS[self.kind]
            locked = f", of which {self.base:.6g} {unit} in locked layers" if self.base else ""
            raise SeamError(
                f"budget {self.spec}: no policy can meet {self.limit:.6g} {unit}; "
                f"the reachable range is {least:.6g} to {most:.6g} {unit}{locked} ({CONVENTION})"
            )


def searchable(layers: Sequence[Layer]) -> list[Layer]:
    """The layers whose bits are searched."""
    return [layer for layer in layers if not layer.fixed]


def locked(layers: Sequence[Layer]) -> list[Layer]:
    """The layers whose bits the user locked, counted in budgets."""
    return [layer for layer in layers if layer.fixed and layer.counted]


def bitops_table(layers: Sequence[Layer], bits: Sequence[int]) -> np.ndarray:
    """[L, B, B] GBitOPs of each layer at each (weight, activation) bit-width."""
    macs = np.array([layer.macs for layer in layers], dtype=float)
    return macs[:, None, None] * np.multiply.outer(bits, bits)[None] / 1e9


def read_spec(spec: str, latency: bool = True) -> tuple[str, float]:
    """Kind (of `Budget`) and amount of a limit by its text; w3a3 is ("bitops", 9), in multiples of the MACs.

    It needs no network, so that a limit that cannot be read is refused at once.

    Args:
        latency: whether there is a latency table; without one milliseconds are refused.

    Raises SeamError for any other text.
    """
    text = str(spec).strip()
    if match := _UNIFORM.fullmatch(text):
        return "bitops", float(int(match[1]) * int(match[2]))
    for kind, form in _ABSOLUTE.items():
        if match := form.fullmatch(text):
            if float(match[1]) <= 0:
                raise SeamError(f"budget '{spec}': must be more than 0")
            if kind == "latency" and not latency:
                raise SeamError(f"budget '{spec}': needs a latency table (CSV with columns layer,w,a,ms)")
            return kind, float(match[1])
    raise SeamError(
        f"budget '{spec}': write w3a3 (as uniform 3/3), 1.2 GBitOPs, 0.8 MB, 3.5 bits (mean weight bits) or "
        "4 ms (with a latency table)"
    )


def parse_budget(
    spec: str, layers: Sequence[Layer], bits: Sequence[int], latency: Latency | None = None, check: bool = True
) -> Budget:
    """Turn `w3a3`, `1.2 GBitOPs`, `0.8 MB`, `3.5 bits` or `4 ms` into a limit on the searchable and locked layers.

    Args:
        latency: of `read_latency`; needed for a budget in ms.
        check: refuse a limit that no policy can meet.

    Raises SeamError for any other text, and for a limit that no policy can meet.
    """
    kind, limit = read_spec(spec, latency is not None)
    searched, kept, bits = searchable(layers), locked(layers), tuple(bits)
    if not searched:
        why = "all its layers are locked or excluded" if kept else "only its first and last layer have weights"
        raise SeamError(f"the model has no searchable layer: {why}")
    text = str(spec).strip()
    macs = sum(layer.macs for layer in (*searched, *kept))
    params = sum(layer.params for layer in (*searched, *kept))
    weights = np.array([layer.params for layer in searched], dtype=float)[:, None, None]
    by_bits = weights * np.broadcast_to(np.array(bits, dtype=float)[None, :, None], (1, len(bits), len(bits)))
    base_bits = float(sum(layer.params * layer.fixed_bits[0] for layer in kept))
    if kind == "bitops":
        if _UNIFORM.fullmatch(text):
            limit = macs * limit / 1e9
        base = sum(layer.macs * layer.fixed_bits[0] * layer.fixed_bits[1] for layer in kept) / 1e9
        table = bitops_table(searched, bits)
    elif kind == "size":
        table, base = by_bits / 8e6, base_bits / 8e6
    elif kind == "bits":
        table, base = by_bits / params, base_bits / params
    else:
        table, base = _latency_table(text, searched, kept, bits, latency)
    groups = tuple(layer.group or layer.name for layer in searched)
    budget = Budget(text, kind, bits, table, limit, base, groups)
    if check:
        budget.check()
    return budget


def parse_budgets(
    specs: str | Sequence[str], layers: Sequence[Layer], bits: Sequence[int], latency: Latency | None = None
) -> list[Budget]:
    """Several budgets to be met at once, as `"w3a3, 0.8 MB"` or a list; the first is the one that is spent.

    Raises SeamError as `parse_budget`, and where no policy meets all of them together.
    """
    from seam.assign import check_together  # scipy's solvers take long to import

    specs = specs.split(",") if isinstance(specs, str) else list(specs)
    budgets = [parse_budget(spec, layers, bits, latency) for spec in specs]
    if len(budgets) > 1:
        check_together(budgets, [layer.name for layer in searchable(layers)])
    return budgets


def read_latency(path: str | Path, layers: Sequence[Layer]) -> dict[tuple[str, int, int], float]:
    """Read a latency table: a CSV with columns layer, w, a, ms; lines that start with # are comments.

    A policy's latency is the sum over its layers. Rows for the first, the last and excluded layers may be there and
    are not used. Raises SeamError naming the line for unknown layers, unreadable numbers and repeated rows.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise SeamError(f"{path}: no such file") from None
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    names = {layer.name for layer in layers}
    table: dict[tuple[str, int, int], float] = {}
    reader = csv.DictReader(line for _, line in rows)
    if reader.fieldnames is None or not {"layer", "w", "a", "ms"} <= set(reader.fieldnames):
        raise SeamError(f"{path}: the columns must be layer,w,a,ms; found {','.join(reader.fieldnames or [])}")
    for (number, line), row in zip(rows[1:], reader, strict=True):
        if row["layer"] not in names:
            raise unknown("layer", row["layer"], names, f"{path}, line {number}")
        try:
            key, ms = (row["layer"], int(row["w"]), int(row["a"])), float(row["ms"])
        except (TypeError, ValueError):
            raise SeamError(f"{path}, line {number}: not layer,w,a,ms with numbers: {line}") from None
        if not 0 <= ms < float("inf"):
            raise SeamError(f"{path}, line {number}: ms must be 0 or more, found {row['ms']}")
        if key in table:
            raise SeamError(f"{path}, line {number}: a second row for {key[0]} at w{key[1]}a{key[2]}")
        table[key] = ms
    return table


def _latency_table(
    spec: str, searched: Sequence[Layer], kept: Sequence[Layer], bits: Sequence[int], latency: Latency
) -> tuple[np.ndarray, float]:
    """[L, B, B] milliseconds of the searchable layers, and those of the locked ones."""

    def look_up(name: str, w: int, a: int) -> float:
        if (name, w, a) not in latency:
            raise SeamError(f"budget '{spec}': the latency table has no row for layer {name} at w={w}, a={a}")
        return latency[name, w, a]

    table = np.array([[[look_up(layer.name, w, a) for a in bits] for w in bits] for layer in searched])
    return table, float(sum(look_up(layer.name, *layer.fixed_bits) for layer in kept))
