"""What a policy costs: BitOPs, size and latency, and the budgets that limit them.

BitOPs of a layer = MACs x weight bits x activation bits; size = sum of weights x bits / 8; latency is the sum of a
table of measured milliseconds. MACs are those of one image at the target's input size, also when the search sees a
smaller proxy. The first and the last layer are fixed at 8/8 and counted apart: a budget limits the searchable layers,
and those that the user locked, at the bits they are locked to. Excluded layers stay in full precision and are counted
apart too.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from seam.errors import SeamError, shortened, unknown
from seam.io import read_text
from seam.models.layers import Layer

CONVENTION = "searched and locked layers; first and last layer fixed at 8/8 and counted apart, as are excluded ones"

_MOST_MS = 1e9  # of a layer

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
        allowed: [B, B] which (weight bits, activation bits) a layer may have; None: any.
    """

    spec: str
    kind: str
    bits: tuple[int, ...]
    table: np.ndarray
    limit: float
    base: float = 0.0
    groups: tuple[str, ...] = ()
    allowed: np.ndarray | None = None

    UNITS: ClassVar[dict[str, str]] = {"bitops": "GBitOPs", "size": "MB", "bits": "bits", "latency": "ms"}

    def cost(self, assigned: Sequence[tuple[int, int]]) -> float:
        """Cost of (weight bits, activation bits) of each searchable layer, with the locked ones."""
        index = {b: i for i, b in enumerate(self.bits)}
        return self.base + float(sum(self.table[i, index[w], index[a]] for i, (w, a) in enumerate(assigned)))

    def reach(self) -> tuple[float, float]:
        """Least and greatest cost of any policy that honours the groups, of allowed pairs."""
        groups = self.groups or tuple(map(str, range(len(self.table))))
        numbers = {name: i for i, name in enumerate(dict.fromkeys(groups))}
        least, most = np.zeros((2, len(numbers), len(self.bits)))
        rows = [numbers[name] for name in groups]
        allowed = True if self.allowed is None else self.allowed
        # Weight bits are free, activation bits common to a group.
        np.add.at(least, rows, np.where(allowed, self.table, np.inf).min(1))
        np.add.at(most, rows, np.where(allowed, self.table, -np.inf).max(1))
        return self.base + float(least.min(1).sum()), self.base + float(most.max(1).sum())

    def pairs(self) -> list[tuple[int, int]]:
        """The (weight bits, activation bits) that a layer may have."""
        every = np.ones((len(self.bits),) * 2) if self.allowed is None else self.allowed
        return [(self.bits[w], self.bits[a]) for w, a in zip(*every.nonzero(), strict=True)]

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


def read_latency(path: str | Path, layers: Sequence[Layer]) -> dict[tuple[str, int, int], float]:
    """Read a latency table: a CSV with columns layer, w, a, ms; lines that start with # are comments.

    A policy's latency is the sum over its layers. Rows for the first, the last and excluded layers may be there and
    are not used. Raises SeamError naming the line for unknown layers, unreadable numbers and repeated rows.
    """
    lines = read_text(path).splitlines()
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    names = {layer.name for layer in layers}
    table: dict[tuple[str, int, int], float] = {}
    number, line = 1, ""  # the last one that was read

    def read() -> Iterator[str]:
        nonlocal number, line
        for row in rows:
            number, line = row
            yield line

    reader = csv.DictReader(read())
    try:
        columns = reader.fieldnames or []
        if not {"layer", "w", "a", "ms"} <= set(columns):
            raise SeamError(f"{path}: the columns must be layer,w,a,ms; found {shortened(','.join(columns))}")
        for row in reader:
            if row["layer"] not in names:
                raise unknown("layer", row["layer"], names, f"{path}, line {number}")
            try:
                key, ms = (row["layer"], int(row["w"]), int(row["a"])), float(row["ms"])
            except (TypeError, ValueError):
                raise SeamError(f"{path}, line {number}: not layer,w,a,ms with numbers: {shortened(line)}") from None
            if not 0 <= ms <= _MOST_MS:
                raise SeamError(
                    f"{path}, line {number}: ms must be 0 or more, at most {_MOST_MS:g}, found {shortened(row['ms'])}"
                )
            if key in table:
                raise SeamError(f"{path}, line {number}: a second row for {key[0]} at w{key[1]}a{key[2]}")
            table[key] = ms
    except csv.Error as error:
        raise SeamError(f"{path}, line {number}: not CSV ({error})") from None
    return table


def latency_template(layers: Sequence[Layer], pairs: Sequence[tuple[int, int]]) -> str:
    """The rows that a latency table must have, as CSV with `ms` left empty.

    Args:
        pairs: the (weight bits, activation bits) that a searchable layer may have; locked layers have their own.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["layer", "w", "a", "ms", "macs", "params"])
    for layer in layers:
        for w, a in pairs if not layer.fixed else [layer.fixed_bits] if layer.counted else []:
            writer.writerow([layer.name, w, a, "", layer.macs, layer.params])
    return text.getvalue()


def latency_table(
    spec: str,
    searched: Sequence[Layer],
    kept: Sequence[Layer],
    bits: Sequence[int],
    latency: Latency,
    allowed: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """[L, B, B] milliseconds of the searchable layers, and those of the locked ones.

    A pair that is not `allowed` needs no row; it counts as the layer's slowest, since some searches weigh all pairs.
    """

    def look_up(name: str, w: int, a: int) -> float:
        if (name, w, a) not in latency:
            raise SeamError(f"budget '{spec}': the latency table has no row for layer {name} at w={w}, a={a}")
        return latency[name, w, a]

    pairs = list(np.ndindex(len(bits), len(bits)) if allowed is None else zip(*allowed.nonzero(), strict=True))
    table = np.full((len(searched), len(bits), len(bits)), np.nan)
    for rows, layer in zip(table, searched, strict=True):
        for w, a in pairs:
            rows[w, a] = look_up(layer.name, bits[w], bits[a])
        rows[np.isnan(rows)] = np.nanmax(rows)
    return table, float(sum(look_up(layer.name, *layer.fixed_bits) for layer in kept))
