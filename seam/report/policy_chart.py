"""One policy as a figure: weight bits upwards and input bits downwards, layer by layer, fixed layers hatched."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot as plt

from seam.errors import SeamError
from seam.policy.file import entries, file_totals
from seam.policy.show import describe_model
from seam.report.figures import draw_bits
from seam.report.style import COLOURS, RC, save

FORMATS = ("png", "svg")
_LAYER = 0.15  # inches


def draw_policy(policy: Mapping[str, Any], path: str | Path, colour: str = COLOURS[0], dpi: int = 150) -> None:
    """Write the bit chart of a policy file's content; the same policy gives the same bytes.

    A layer in full precision has no bar. Raises SeamError if the path ends in neither .png nor .svg.
    """
    path = Path(path)
    suffix = path.suffix.removeprefix(".")
    if suffix not in FORMATS:
        raise SeamError(f"{path}: a figure's name must end in .png or .svg")
    layers = entries(policy)
    bars = [
        {"w": 0, "a": 0, "fixed": True}
        if layer.full_precision
        else {"w": layer.w, "a": layer.a, "fixed": layer.fixed or layer.locked}
        for layer in layers
    ]
    with matplotlib.rc_context(RC):
        # Margins by hand: a layout engine would draw everything twice, and the log stage makes a chart for each run.
        names = 0.2 + 0.05 * max(len(layer.name) for layer in layers)
        width, height = max(7.0, _LAYER * len(layers) + 0.8), 2.9 + names
        figure, axes = plt.subplots(figsize=(width, height))
        figure.subplots_adjust(0.6 / width, names / height, 1 - 0.1 / width, 1 - 0.55 / height)
        draw_bits(axes, {"layers": dict(enumerate(bars))}, colour)
        axes.set_xticks(range(len(layers)), [layer.name for layer in layers], rotation=90, fontsize=6)
        axes.set_ylabel("input | weight bits")
        hatched = any(bar["fixed"] for bar in bars)
        axes.set_title("\n".join(_title(policy, hatched)), fontsize=8.5, loc="left")
    save(figure, path.parent, path.stem, [suffix], dpi)


def _title(policy: Mapping[str, Any], hatched: bool) -> list[str]:
    """Two lines: the model and the search; what the policy costs."""
    budget, counted = policy.get("budget"), file_totals(policy)
    parts = [describe_model(policy["model"])] if "model" in policy else []
    parts += [str(policy[key]) for key in ("search", "method") if key in policy][:1]
    lines = [", ".join(parts) or "policy", ""]
    if counted:
        lines[1] = f"{counted['bitops_g']:.4g} GBitOPs in the budget, {counted['size_mb']:.3g} MB of weights"
    if budget:
        share = f" ({budget['share']:.1%} spent)" if "share" in budget else ""
        lines[1] += f"{', ' if lines[1] else ''}budget {budget['spec']}{share}"
    if hatched:
        lines[0] += "; hatched: bits not searched"
    return lines
