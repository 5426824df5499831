"""The policy file: layer name -> (weight bits, activation bits), with what it is for and what it costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seam.cost import CONVENTION, Budget, searchable
from seam.errors import SeamError
from seam.io import read_json
from seam.models import Layer

SCHEMA = "seam-policy/1"
FIXED_BITS = (8, 8)


def policy_bits(layers: Sequence[Layer], assigned: Sequence[tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """All layers' bits: the assigned ones of the searchable layers, 8/8 for the fixed ones."""
    bits = iter(assigned)
    return {layer.name: FIXED_BITS if layer.fixed else next(bits) for layer in layers}


def totals(layers: Sequence[Layer], bits: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """Cost of a policy: GBitOPs of the searchable and of the fixed layers apart, size in MB, mean bits."""

    def bitops(chosen: Sequence[Layer]) -> float:
        return sum(layer.macs * bits[layer.name][0] * bits[layer.name][1] for layer in chosen) / 1e9

    searched = searchable(layers)
    macs, weights = sum(layer.macs for layer in searched), sum(layer.params for layer in searched)
    return {
        "bitops_g": round(bitops(searched), 9),
        "bitops_g_fixed": round(bitops([layer for layer in layers if layer.fixed]), 9),
        "size_mb": round(sum(layer.params * bits[layer.name][0] for layer in layers) / 8e6, 9),
        "mean_w": round(sum(layer.params * bits[layer.name][0] for layer in searched) / weights, 6),
        "mean_a": round(sum(layer.macs * bits[layer.name][1] for layer in searched) / macs, 6),
    }


def make_policy(
    layers: Sequence[Layer],
    assigned: Sequence[tuple[int, int]],
    budget: Budget,
    model: Mapping[str, Any],
    **about: Any,
) -> dict[str, Any]:
    """The content of policy.json.

    Args:
        layers: all quantizable layers, MACs at the target's input size.
        assigned: bits of the searchable layers, in order.
        model: alias, name, num_classes, in_chans, input_size.
        about: method, search, seed, proxy.
    """
    bits = policy_bits(layers, assigned)
    spent = budget.cost(assigned)
    return {
        "schema": SCHEMA,
        "model": dict(model),
        "budget": {
            "spec": budget.spec,
            "unit": budget.UNITS[budget.kind],
            "convention": CONVENTION,
            "limit": round(budget.limit, 9),
            "spent": round(spent, 9),
            "share": round(spent / budget.limit, 6),
        },
        **about,
        "layers": {
            layer.name: {
                "w": bits[layer.name][0],
                "a": bits[layer.name][1],
                "macs": layer.macs,
                "params": layer.params,
                "fixed": layer.fixed,
            }
            for layer in layers
        },
        "totals": totals(layers, bits),
    }


def load_policy(path: str | Path, layers: Sequence[Layer]) -> dict[str, tuple[int, int]]:
    """Read a policy file for a model with these layers: layer name -> (weight bits, activation bits).

    Raises SeamError naming an unknown schema, layers that are missing or surplus, a layer of another shape, or bits
    out of range.
    """
    policy = read_json(path)
    if not isinstance(policy, dict) or policy.get("schema") != SCHEMA:
        found = policy.get("schema") if isinstance(policy, dict) else type(policy).__name__
        raise SeamError(f"{path}: not a policy of schema {SCHEMA} (found {found!r})")
    entries = policy.get("layers", {})
    names = [layer.name for layer in layers]
    for problem, wrong in (
        ("lacks", [name for name in names if name not in entries]),
        ("has surplus", [name for name in entries if name not in names]),
    ):
        if wrong:
            raise SeamError(f"{path}: the policy {problem} layers {', '.join(wrong[:5])}; it is for another model")
    bits = {}
    for layer in layers:
        entry = entries[layer.name]
        if entry.get("params") != layer.params:
            raise SeamError(
                f"{path}: layer {layer.name} has {entry.get('params')} weights, the model's has {layer.params}"
            )
        for key in ("w", "a"):
            if not isinstance(entry.get(key), int) or not 2 <= entry[key] <= 8:
                raise SeamError(f"{path}: layer {layer.name}: {key} must be 2 to 8 bits, found {entry.get(key)!r}")
        bits[layer.name] = (entry["w"], entry["a"])
    return bits
