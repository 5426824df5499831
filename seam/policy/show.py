"""Policies for the reader at a terminal: a table with a bit chart, and what two of them have not in common."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from seam.errors import printable
from seam.models.layers import Layer
from seam.policy.file import FLOAT, Entry, entries, file_totals, stale_totals, stored_mb

_NONE = "-"
_STYLE = {"box": box.SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1, 0, 0)}
_MODEL_KEYS = ("name", "num_classes", "in_chans", "input_size")  # the alias is only the user's word for it
_TOTALS = {
    "bitops_g": "GBitOPs in the budget",
    "bitops_g_fixed": "GBitOPs counted apart",
    "size_mb": "MB of weights",
    "mean_w": "mean weight bits",
    "mean_a": "mean input bits",
}


def terminal() -> Console:
    """Standard output, as wide as the text: names are never cut, a narrow terminal wraps the lines."""
    return Console(markup=False, highlight=False, width=10_000)


def show(policy: Mapping[str, Any], console: Console) -> None:
    """Print where a policy comes from, its layers with a bar for each bit-width, and what it costs."""
    policy = _printable(policy)
    for line in provenance(policy):
        console.print(line)
    console.print(_layers_table(entries(policy), "█" if console.encoding.startswith("utf") else "#"))
    for line in costs(policy):
        console.print(line)


def _printable(value: Any) -> Any:
    """A file's content with its texts such that the terminal shows them and obeys none of them."""
    if isinstance(value, Mapping):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def provenance(policy: Mapping[str, Any]) -> list[str]:
    """Lines on the model, the search, its images, its cost and the software, as far as the file says."""
    model, proxy = policy.get("model", {}), policy.get("proxy")
    lines = {"model": describe_model(model) if model else "", "input": _preprocessing(model)}
    parts = [policy.get("method", "")]
    parts += [f"{key} {policy[key]}" for key in ("search", "seed") if key in policy]
    lines["method"] = ", ".join(part for part in parts if part)
    if proxy:
        digest = f", sha256 {proxy['sha256'][:12]}" if "sha256" in proxy else ""
        lines["proxy"] = f"{proxy['dataset']}, {proxy['count']:,} images of {_by(proxy['image_size'])}{digest}"
    elif "proxy" in policy:
        lines["proxy"] = "no images"
    units = {"images": "images", "steps": "steps", "image_macs": "images x MACs"}
    lines["cost"] = ", ".join(f"{_short(value)} {units[key]}" for key, value in policy.get("cost", {}).items())
    software = {**policy.get("software", {}), "threads": policy.get("threads")}
    lines["software"] = ", ".join(f"{key} {value}" for key, value in software.items() if value)
    lines["comment"] = policy.get("comment", "")
    return [f"{key:<9} {line}" for key, line in lines.items() if line]


def _preprocessing(model: Mapping[str, Any]) -> str:
    """How the model's images are prepared, as far as the file says."""
    parts = [f"{key} {' '.join(f'{value:g}' for value in model[key])}" for key in ("mean", "std") if key in model]
    parts += [f"centre crop of {model['crop_pct']:g}"] if "crop_pct" in model else []
    return ", ".join([*parts, *([model["interpolation"]] if "interpolation" in model else [])])


def describe_model(model: Mapping[str, Any]) -> str:
    """A model's name, classes and input size, as far as the file says."""
    alias = f" ({model['alias']})" if model.get("alias", model["name"]) != model["name"] else ""
    parts = [f"{model['name']}{alias}"]
    if "num_classes" in model:
        parts.append(f"{model['num_classes']} classes")
    if "input_size" in model:
        parts.append(f"input {_by(model['input_size'])}")
    return ", ".join(parts)


def costs(policy: Mapping[str, Any]) -> list[str]:
    """Lines on the budgets and the totals; totals are counted from the layers."""
    lines = []
    for budget in filter(None, [policy.get("budget"), *policy.get("more_budgets", ())]):
        spent = f"{budget['spent']:.6g} of " if "spent" in budget else ""
        share = f" ({budget['share']:.1%})" if "share" in budget else ""
        convention = f"; {budget['convention']}" if "convention" in budget else ""
        lines.append(f"budget    {budget['spec']}: {spent}{budget['limit']:.6g} {budget['unit']}{share}{convention}")
    counted = file_totals(policy)
    if counted is None:
        lines.append("totals    unknown: the file does not say the MACs and weights of all layers")
    else:
        number = {key: _number(value) for key, value in counted.items()}
        lines.append(
            f"totals    {number['bitops_g']} GBitOPs in the budget, {number['bitops_g_fixed']} counted apart; "
            f"{number['size_mb']} MB; mean bits: weights {number['mean_w']}, inputs {number['mean_a']}"
        )
        whole = f"{_number(counted['bitops_g'] + counted['bitops_g_fixed'])} GBitOPs, {number['size_mb']} MB of weights"
        stored = f"{_number(stored_mb(entries(policy)))} MB in ONNX, which stores 3 bits as 4, 5 to 7 as 8"
        lines.append(f"network   {whole} in all, first, last and excluded layers included; {stored}")
    lines += [f"note      {text}; the file was changed by hand" for text in stale_totals(policy)]
    return lines


def layers(model: str, size: Sequence[int], found: Sequence[Layer], console: Console) -> None:
    """Print a model's layers, in order of execution: cost of an image of `size`, fixed bits, who share their input."""
    readers = Counter(layer.group for layer in found)
    table = Table(**_STYLE, show_footer=True)
    table.add_column("layer", f"{len(found)} layers")
    for name, total in (("MACs", sum(x.macs for x in found)), ("params", sum(x.params for x in found))):
        table.add_column(name, _short(total), justify="right")
    table.add_column("")
    for layer in found:
        w, a = layer.fixed_bits
        state = "full precision" if w == FLOAT else f"{'locked' if layer.counted else 'fixed'} {w}/{a}"
        notes = [state] if layer.fixed else []
        notes += [f"inputs tied: {layer.group}"] if readers[layer.group] > 1 else []
        table.add_row(layer.name, _short(layer.macs), _short(layer.params), ", ".join(notes))
    console.print(f"{'model':<9} {model}, input {_by(list(size))}")
    console.print(table)


def _layers_table(layers: Sequence[Entry], mark: str) -> Table:
    whole = sum(layer.bitops or 0 for layer in layers if layer.counted)
    table = Table(**_STYLE, show_footer=True)
    table.add_column("layer", f"{len(layers)} layers")
    table.add_column("MACs", _sum(layer.macs for layer in layers), justify="right")
    table.add_column("params", _sum(layer.params for layer in layers), justify="right")
    for name in ("w", "a", "BitOPs %"):
        table.add_column(name, justify="right")
    for name in ("weights", "inputs", ""):
        table.add_column(name)
    for layer in layers:
        share = f"{layer.bitops / whole:.1%}"[:-1] if layer.counted and layer.bitops is not None and whole else _NONE
        bars = ["" if layer.full_precision else mark * bits for bits in (layer.w, layer.a)]
        numbers = [_short(layer.macs), _short(layer.params), str(layer.w), str(layer.a), share]
        table.add_row(layer.name, *numbers, *bars, _note(layer))
    return table


def _note(layer: Entry) -> str:
    """What sets a layer apart from one whose two bit-widths were searched."""
    state = "full precision" if layer.full_precision else "locked" if layer.locked else "fixed" if layer.fixed else ""
    tied = f"inputs tied: {layer.group}" if layer.group else ""
    return ", ".join(part for part in (state, tied) if part)


def diff(policies: Sequence[Mapping[str, Any]], names: Sequence[str], console: Console) -> bool:
    """Print where two policies differ and their totals side by side; returns whether they are equal.

    Equal are policies for the same model (as far as both say) with the same bits in every layer. Who found them, and
    within which budget, is printed but does not count.
    """
    policies = [_printable(policy) for policy in policies]
    names = [printable(name) for name in names]
    one, other = ({layer.name: layer for layer in entries(policy)} for policy in policies)
    for name, path in zip(("first", "second"), names, strict=True):
        console.print(f"{name:<9} {path}")
    models = [
        f"{key}: {_by(a[key])} | {_by(b[key])}"
        for a, b in [[policy.get("model", {}) for policy in policies]]
        for key in _MODEL_KEYS
        if key in a and key in b and a[key] != b[key]
    ]
    if models:
        console.print(f"the models differ: {'; '.join(models)}")
    rows = [row for name in dict.fromkeys([*one, *other]) if (row := _differs(name, one.get(name), other.get(name)))]
    if rows:
        table = Table("layer", "w", "a", "", **_STYLE)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    common = len(one.keys() & other.keys())
    console.print(f"{len(rows)} of {len(one.keys() | other.keys())} layers differ ({common} are in both)")
    console.print(_side_by_side(policies))
    return not models and not rows


def _differs(name: str, one: Entry | None, other: Entry | None) -> tuple[str, str, str, str] | None:
    """A row on a layer that differs: name, weight bits, activation bits, what else; None for an equal one."""
    if one is None or other is None:
        return name, "", "", "only in the first" if other is None else "only in the second"
    bits = ["" if a == b else f"{a} -> {b}" for a, b in ((one.w, other.w), (one.a, other.a))]
    rest = [
        f"{label} {a} -> {b}"
        for label, a, b in (("weights", one.params, other.params), ("MACs", one.macs, other.macs))
        if None not in (a, b) and a != b
    ]
    return (name, *bits, ", ".join(rest)) if any(bits) or rest else None


def _side_by_side(policies: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("", "first", "second", **_STYLE)
    counted = [file_totals(policy) or {} for policy in policies]
    for key, label in _TOTALS.items():
        table.add_row(label, *(_number(values.get(key)) for values in counted))
    for key in ("method", "search", "seed"):
        if any(key in policy for policy in policies):
            table.add_row(key, *(str(policy.get(key, _NONE)) for policy in policies))
    if any("budget" in policy for policy in policies):
        table.add_row("budget", *(policy.get("budget", {}).get("spec", _NONE) for policy in policies))
    return table


def _sum(values: Iterable[int | None]) -> str:
    values = list(values)
    return _NONE if None in values else _short(sum(values))


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.6g}"


def _short(value: int | None) -> str:
    """A count in at most four digits, with k, M, G or T for thousands and so on."""
    if value is None:
        return _NONE
    for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * scale:
            return f"{value / scale:.3g}{letter}"
    return str(value)


def _by(value: Any) -> str:
    """3x224x224 for a size, text for all else."""
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)
