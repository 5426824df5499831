"""How figures look: one colour, marker and line for each search in all figures; deterministic files."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from seam.experiment.params import Params
from seam.io import write_atomic

# Okabe and Ito's colours, which stay apart under the common kinds of colour blindness; yellow is too pale on white.
# The last four, from Paul Tol's muted set, serve grids of more than six searched policies.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#332288", "#999933", "#44AA99")
GREYS = ("#8c8c8c", "#606060", "#a6a6a6", "#757575")  # references that search nothing
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p", "h", "*")
GREY_MARKERS = ("<", ">", "d", "8")
REFERENCE = "#000000"  # uniform policies, and full precision
RC = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "svg.hashsalt": "seam",
    "svg.fonttype": "path",
    "path.simplify": True,
}


class Style(NamedTuple):
    colour: str
    marker: str
    line: Any  # matplotlib line style


def styles(params: Params) -> dict[str, Style]:
    """Search alias -> style, by position in grid.searches: the same in every figure of the experiment.

    Searched policies take the palette, random ones greys, uniform ones black.
    """
    result, searched, random = {}, 0, 0
    for alias in params.grid.searches:
        method = params.method(alias)
        if method == "uniform":
            result[alias] = Style(REFERENCE, "*", "-")
        elif method == "random":
            result[alias] = Style(GREYS[random % len(GREYS)], GREY_MARKERS[random % len(GREY_MARKERS)], "-")
            random += 1
        else:
            line = ("-", (0, (4, 1.5)), (0, (1, 1)))[searched // len(COLOURS) % 3]
            result[alias] = Style(COLOURS[searched % len(COLOURS)], MARKERS[searched % len(MARKERS)], line)
            searched += 1
    return result


def save(figure: Figure, folder: Path, name: str, formats: Iterable[str], dpi: int) -> None:
    """Write the figure in each format, atomically and without dates: the same data give the same bytes."""
    formats = list(formats)
    if len(formats) > 1:  # lay out once and keep it: otherwise each format draws twice
        with matplotlib.rc_context(RC):
            figure.draw_without_rendering()
        figure.set_layout_engine(None)
    for suffix in formats:
        metadata = {"Date": None, "Creator": None} if suffix == "svg" else {"Software": None}
        with matplotlib.rc_context(RC), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # an alias in a script the font lacks
            write_atomic(
                folder / f"{name}.{suffix}",
                lambda path, suffix=suffix, metadata=metadata: figure.savefig(
                    path, format=suffix, dpi=dpi, metadata=metadata
                ),
            )
    plt.close(figure)


def legend(figure: Figure, chosen: dict[str, Style], *, lines: bool = False, extra: Iterable[Line2D] = ()) -> None:
    """One legend for the whole figure, below the panels."""
    handles = [
        Line2D([], [], color=s.colour, linestyle=s.line, linewidth=1.8, label=alias)
        if lines
        else Line2D([], [], color=s.colour, marker=s.marker, linestyle="none", markersize=6, label=alias)
        for alias, s in chosen.items()
    ]
    handles += list(extra)
    if not handles:
        return
    width = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), int(figure.get_figwidth() * 12 / (width + 6))))
    columns = -(-len(handles) // -(-len(handles) // columns))  # even rows
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handletextpad=0.5, columnspacing=1.4)
