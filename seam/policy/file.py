"""The policy file: layer name -> (weight bits, activation bits), with what it is for and what it costs.

`seam/policy/policy-1.json` is the format; `seam.policy.schema` checks it. Importing this module loads no torch, so
that looking at a file is quick.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from seam.errors import SeamError, did_you_mean
from seam.io import read_json, software
from seam.policy.schema import SCHEMA, check_schema

if TYPE_CHECKING:
    from seam.models.layers import Layer
    from seam.policy.cost import Budget

FLOAT = 32  # bits of a layer in full precision
COST_KEYS = ("images", "steps", "image_macs")  # of cost.json: what is the same on every machine
PROXY_KEYS = ("dataset", "count", "image_size", "sha256", "data_sha256")
SOFTWARE_KEYS = ("seam", "torch", "timm", "python")
_MOST = 10  # problems in one message


class Entry(NamedTuple):
    """A layer of a policy file; `macs` and `params` are None where the file does not say."""

    name: str
    w: int
    a: int
    macs: int | None
    params: int | None
    fixed: bool
    locked: bool
    group: str

    @property
    def full_precision(self) -> bool:
        """Whether the layer stays in full precision."""
        return self.w == FLOAT

    @property
    def counted(self) -> bool:
        """Whether its cost is part of the budget: searched and locked layers are, others are counted apart."""
        return not self.full_precision and (self.locked or not self.fixed)

    @property
    def bitops(self) -> int | None:
        """MACs x weight bits x activation bits."""
        return None if self.macs is None else self.macs * self.w * self.a


def entries(policy: Mapping[str, Any]) -> list[Entry]:
    """The layers of a policy file's content, in its order."""
    return [
        Entry(
            name,
            int(layer["w"]),
            int(layer["a"]),
            layer.get("macs"),
            layer.get("params"),
            layer.get("fixed", False),
            layer.get("locked", False),
            layer.get("group", ""),
        )
        for name, layer in policy["layers"].items()
    ]


def policy_bits(layers: Sequence[Layer], assigned: Sequence[tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """All layers' bits: the assigned ones of the searchable layers; of fixed ones their own, usually 8/8."""
    bits = iter(assigned)
    return {layer.name: layer.fixed_bits if layer.fixed else next(bits) for layer in layers}


def totals(layers: Sequence[Layer], bits: Mapping[str, tuple[int, int]]) -> dict[str, float | None]:
    """Cost of a policy: GBitOPs in the budget and apart from it, size in MB, mean bits.

    In the budget are searched and locked layers; apart from it the first, the last, and those in full precision.
    """
    return _totals(
        Entry(layer.name, *bits[layer.name], layer.macs, layer.params, layer.fixed, layer.counted, layer.group)
        for layer in layers
    )


def _totals(layers: Iterable[Entry]) -> dict[str, float | None]:
    layers = list(layers)
    counted = [layer for layer in layers if layer.counted]
    macs, params = sum(layer.macs for layer in counted), sum(layer.params for layer in counted)
    return {
        "bitops_g": round(sum(layer.bitops for layer in counted) / 1e9, 9),
        "bitops_g_fixed": round(sum(layer.bitops for layer in layers if not layer.counted) / 1e9, 9),
        "size_mb": round(sum(layer.params * layer.w for layer in layers) / 8e6, 9),
        "mean_w": round(sum(layer.params * layer.w for layer in counted) / params, 6) if params else None,
        "mean_a": round(sum(layer.macs * layer.a for layer in counted) / macs, 6) if macs else None,
    }


def file_totals(policy: Mapping[str, Any]) -> dict[str, float | None] | None:
    """`totals` by a file's own layers; None where it does not say all MACs and weight counts."""
    layers = entries(policy)
    if any(layer.macs is None or layer.params is None for layer in layers):
        return None
    return _totals(layers)


def stored_mb(layers: Iterable[Entry]) -> float:
    """MB that ONNX's types take for the weights: 3 bits are stored as 4, 5 to 7 as 8; 32 for full precision."""
    width = {2: 2, 3: 4, 4: 4, FLOAT: FLOAT}
    return sum(layer.params * width.get(layer.w, 8) for layer in layers) / 8e6


def stale_totals(policy: Mapping[str, Any]) -> list[str]:
    """What a file's `totals` claim that its layers do not give, in words; the file was changed by hand then."""
    given, counted = policy.get("totals", {}), file_totals(policy)
    if counted is None:
        return []

    def same(key: str, value: float | None) -> bool:
        step = 2e-6 if key.startswith("mean") else 2e-9  # how they are rounded
        return value == counted[key] or (None not in (value, counted[key]) and abs(value - counted[key]) < step)

    return [
        f"totals: {key} is {value}, but the layers give {counted[key]}"
        for key, value in given.items()
        if not same(key, value)
    ]


def make_policy(
    layers: Sequence[Layer],
    assigned: Sequence[tuple[int, int]],
    budget: Budget,
    model: Mapping[str, Any],
    *,
    more_budgets: Sequence[Budget] = (),
    proxy: Mapping[str, Any] | None = None,
    cost: Mapping[str, Any] | None = None,
    versions: bool = False,
    **about: Any,
) -> dict[str, Any]:
    """The content of policy.json. The same arguments, software and number of threads give the same content.

    Args:
        layers: all quantizable layers, MACs at the target's input size.
        assigned: bits of the searchable layers, in order.
        budget: the one that is spent.
        model: alias, name, num_classes, in_chans, input_size.
        more_budgets: others that are met at the same time.
        proxy: content of proxy.json, of which what identifies the images is kept; None or count 0 for no data.
        cost: content of cost.json, of which the numbers that do not depend on the machine are kept.
        versions: write the versions of seam, torch, timm and Python, and how many threads computed, if `cost` says so.
        about: method, search, seed.
    """
    bits = policy_bits(layers, assigned)
    tied = [layer.group for layer in layers if layer.group]
    policy = {"schema": SCHEMA, "model": dict(model), "budget": _budget(budget, assigned)}
    if more_budgets:
        policy["more_budgets"] = [_budget(more, assigned) for more in more_budgets]
    policy |= {**about, "proxy": {k: proxy[k] for k in PROXY_KEYS if k in proxy} if proxy and proxy["count"] else None}
    if cost is not None:
        policy["cost"] = {key: cost[key] for key in COST_KEYS if key in cost}
    if versions:
        policy["software"] = {key: software()[key] for key in SOFTWARE_KEYS}
        if cost is not None and "threads" in cost:
            policy["threads"] = cost["threads"]
    policy["layers"] = {
        layer.name: {
            "w": bits[layer.name][0],
            "a": bits[layer.name][1],
            "macs": layer.macs,
            "params": layer.params,
            "fixed": layer.fixed,
            **({"group": layer.group} if tied.count(layer.group) > 1 else {}),
            **({"locked": True} if layer.fixed and layer.counted else {}),
        }
        for layer in layers
    }
    policy["totals"] = totals(layers, bits)
    return policy


def _budget(budget: Budget, assigned: Sequence[tuple[int, int]]) -> dict[str, Any]:
    from seam.policy.cost import CONVENTION

    spent = budget.cost(assigned)
    return {
        "spec": budget.spec,
        "unit": budget.UNITS[budget.kind],
        "convention": CONVENTION,
        "limit": round(budget.limit, 9),
        "spent": round(spent, 9),
        "share": round(spent / budget.limit, 6),
    }


def read_policy(path: str | Path) -> dict[str, Any]:
    """Read a policy file, whatever its model.

    Raises SeamError naming the file and: an unknown version; keys that are unknown, missing or out of range; a layer in
    full precision only by half; layers of a tied group with different activation bits.
    """
    return check_policy(read_json(path), path)


def check_policy(policy: Any, path: str | Path = "policy") -> dict[str, Any]:
    """The content of a policy file, checked as `read_policy` does; `path` names it in messages."""
    check_schema(policy, path)
    first: dict[str, Entry] = {}
    for layer in entries(policy):
        if (layer.w == FLOAT) != (layer.a == FLOAT):
            raise SeamError(
                f"{path}: layer {layer.name}: {FLOAT} bits mean full precision, for w and a alike; "
                f"found w {layer.w}, a {layer.a}"
            )
        tied = first.setdefault(layer.group, layer) if layer.group else layer
        if tied.a != layer.a:
            raise SeamError(
                f"{path}: layers {tied.name} and {layer.name} are tied (group {layer.group}) and must have the same "
                f"activation bits; found {tied.a} and {layer.a}"
            )
    return policy


def load_policy(path: str | Path, layers: Sequence[Layer], same_size: bool = False) -> dict[str, tuple[int, int]]:
    """Read a policy file for a model with these layers: layer name -> (weight bits, activation bits), in their order.

    Raises SeamError as `read_policy` and `fit_policy`.
    """
    return fit_policy(read_policy(path), layers, path, same_size)


def fit_policy(
    policy: Mapping[str, Any], layers: Sequence[Layer], path: str | Path = "policy", same_size: bool = False
) -> dict[str, tuple[int, int]]:
    """As `load_policy`, for the content of a policy file.

    Args:
        layers: of `seam.models.find.find_layers`.
        path: names the policy in messages.
        same_size: refuse a policy whose MACs were counted at another input size than those of `layers`.

    Raises SeamError naming layers that are missing or surplus or have another number of weights, tied layers with
    different activation bits, and totals that the layers do not give.
    """
    found = {layer.name: layer for layer in entries(policy)}
    names = {layer.name for layer in layers}
    missing = [layer.name for layer in layers if layer.name not in found]
    surplus = [name for name in found if name not in names]
    problems = [
        f"{problem} layers {_some(wrong)}" for problem, wrong in (("lacks", missing), ("has surplus", surplus)) if wrong
    ]
    problems += [hint for name in surplus[:1] if (hint := did_you_mean(name, missing))]  # one letter is wrong, perhaps
    problems += [
        f"layer {layer.name} has {found[layer.name].params} weights, the model's has {layer.params}"
        for layer in layers
        if layer.name in found and found[layer.name].params not in (None, layer.params)
    ]
    if problems:
        more = f"; and {len(problems) - _MOST} more" if len(problems) > _MOST else ""
        raise SeamError(f"{path}: the policy is for another model{_named(policy)}: {'; '.join(problems[:_MOST])}{more}")
    if stale := stale_totals(policy):
        raise SeamError(f"{path}: {'; '.join(stale)}; after a change by hand, delete the keys totals and budget")
    if same_size:
        for layer in layers:
            if found[layer.name].macs not in (None, layer.macs):
                size = policy.get("model", {}).get("input_size", "unknown")
                raise SeamError(
                    f"{path}: the policy's MACs are for another input size (model.input_size is {size}): layer "
                    f"{layer.name} has {found[layer.name].macs}, the model {layer.macs} at the size in use"
                )
    bits = {layer.name: (found[layer.name].w, found[layer.name].a) for layer in layers}
    _check_ties(path, bits, policy_layers(policy, layers))
    return bits


def policy_layers(policy: Mapping[str, Any], layers: Sequence[Layer]) -> list[Layer]:
    """The model's layers as the policy has them: which are fixed, locked or in full precision, with groups to match.

    `policy` is the content of a file that `load_policy` accepts for `layers`; what it does not say is as in `layers`.
    Give these to `seam.quant.apply.quantize` and to `totals`.
    """
    from seam.models.layers import settle

    described = {layer.name: layer for layer in entries(policy)}
    result = []
    for layer in layers:
        entry = described[layer.name]
        fixed = policy["layers"][layer.name].get("fixed", layer.fixed) or entry.locked or entry.full_precision
        bits = (entry.w, entry.a) if fixed else None
        result.append(layer._replace(fixed=fixed, bits=bits, counted=entry.locked and not entry.full_precision))
    return settle(result)


def _check_ties(path: str | Path, bits: Mapping[str, tuple[int, int]], layers: Sequence[Layer]) -> None:
    from seam.models.layers import check_ties, group_names

    try:
        check_ties(bits, group_names(layers))
    except SeamError as error:
        raise SeamError(f"{path}: {error}") from None


def _named(policy: Mapping[str, Any]) -> str:
    """' (name, classes)' of the model that a policy is for, as far as it says."""
    model = policy.get("model", {})
    parts = [model.get("name"), f"{model['num_classes']} classes" if "num_classes" in model else None]
    parts = [part for part in parts if part]
    return f" ({', '.join(parts)})" if parts else ""


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more
