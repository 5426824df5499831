"""Budgets from text: `w3a3`, `1.2 GBitOPs`, `0.8 MB`, `3.5 bits`, `4 ms`."""

import math
import re
from collections.abc import Sequence

import numpy as np

from seam.errors import SeamError, shortened
from seam.models.layers import Layer
from seam.policy.cost import Budget, Latency, bitops_table, latency_table, locked, searchable

_UNIFORM = re.compile(r"w([1-9])a([1-9])")
_NUMBER = r"(\d+\.?\d*|\.\d+)"
_BITOPS = re.compile(_NUMBER + r" ?G(?:BitOPs|bops)?", re.IGNORECASE)
_SIZE = re.compile(_NUMBER + r" ?MB", re.IGNORECASE)
_MEAN = re.compile(_NUMBER + r" ?bits?", re.IGNORECASE)
_LATENCY = re.compile(_NUMBER + r" ?ms", re.IGNORECASE)
_ABSOLUTE = {"bitops": _BITOPS, "size": _SIZE, "bits": _MEAN, "latency": _LATENCY}  # kind of a limit -> its text


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
                raise SeamError(f"budget '{shortened(text)}': must be more than 0")
            if math.isinf(float(match[1])):
                raise SeamError(f"budget '{shortened(text)}': must be a finite number")
            if kind == "latency" and not latency:
                raise SeamError(f"budget '{spec}': needs a latency table (CSV with columns layer,w,a,ms)")
            return kind, float(match[1])
    raise SeamError(
        f"budget '{shortened(text)}': write w3a3 (as uniform 3/3), 1.2 GBitOPs, 0.8 MB, 3.5 bits (mean weight bits) or "
        "4 ms (with a latency table)"
    )


def parse_budget(
    spec: str,
    layers: Sequence[Layer],
    bits: Sequence[int],
    latency: Latency | None = None,
    check: bool = True,
    pairs: Sequence[tuple[int, int]] = (),
) -> Budget:
    """Turn `w3a3`, `1.2 GBitOPs`, `0.8 MB`, `3.5 bits` or `4 ms` into a limit on the searchable and locked layers.

    Args:
        latency: of `read_latency`; needed for a budget in ms.
        check: refuse a limit that no policy can meet.
        pairs: the (weight bits, activation bits) that a layer may have; empty: any two of `bits`.

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
    allowed = np.array([[(w, a) in pairs for a in bits] for w in bits]) if pairs else None
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
        table, base = latency_table(text, searched, kept, bits, latency, allowed)
    groups = tuple(layer.group or layer.name for layer in searched)
    budget = Budget(text, kind, bits, table, limit, base, groups, allowed)
    if check:
        budget.check()
    return budget


def parse_budgets(
    specs: str | Sequence[str],
    layers: Sequence[Layer],
    bits: Sequence[int],
    latency: Latency | None = None,
    pairs: Sequence[tuple[int, int]] = (),
) -> list[Budget]:
    """Several budgets to be met at once, as `"w3a3, 0.8 MB"` or a list; the first is the one that is spent.

    Raises SeamError as `parse_budget`, and where no policy meets all of them together.
    """
    from seam.policy.assign import check_together  # scipy's solvers take long to import

    specs = specs.split(",") if isinstance(specs, str) else list(specs)
    budgets = [parse_budget(spec, layers, bits, latency, pairs=pairs) for spec in specs]
    if len(budgets) > 1:
        check_together(budgets, [layer.name for layer in searchable(layers)])
    return budgets
