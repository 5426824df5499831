"""Figures of the report: accuracy against BitOPs and against search cost, bits a layer, curves of search and QAT."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullFormatter

from seam.experiment.params import Report
from seam.experiment.results import JobResult, Results, curves
from seam.report.style import RC, REFERENCE, Style, legend, save, styles

ROW, BLOCK = 0.5, 1.35  # inches: a policy's row in the bits chart; title and layer names of a block


def draw_all(results: Results, folder: Path, report: Report) -> None:
    """Draw every figure named in `seam.experiment.graph.FIGURES` into `folder`, in each of the report's formats."""
    for name, draw in FIGURES.items():
        with matplotlib.rc_context(RC):
            figure = draw(results, styles(results.params))
        save(figure, folder, name, report.formats, report.dpi)


def accuracy_bitops(results: Results, chosen: Mapping[str, Style]) -> Figure:
    """Top-1 after finetuning against GBitOPs; a point a job, lines join the mean over seeds of one search's budgets."""
    figure, panels = _panels(results, 1)
    for model, (axes,) in panels.items():
        _precise(axes, results, model)
        for search, style in chosen.items():
            found = [r for r in results if (r.job.model, r.job.search) == (model, search)]
            _points(axes, [r.metrics["bitops_g"] for r in found], found, style)
            by_budget: dict[str, list[JobResult]] = {}
            for r in found:
                by_budget.setdefault(r.job.budget, []).append(r)
            if len(by_budget) > 1:
                means = sorted(
                    (fmean(r.metrics["bitops_g"] for r in g), fmean(r.top1 for r in g)) for g in by_budget.values()
                )
                axes.plot(*zip(*means, strict=True), color=style.colour, linewidth=0.9, alpha=0.7, zorder=2)
        for limit in sorted({r.policy["budget"]["limit"] for r in results if r.job.model == model}):
            axes.axvline(limit, color="#999999", linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        axes.margins(x=0.15, y=0.12)
        axes.set_xlabel("GBitOPs (searchable layers)")
    _outer_label(panels, "top-1 after finetuning (%)")
    limit = Line2D([], [], color="#999999", linewidth=0.9, linestyle=(0, (1, 2)), label="budget")
    legend(figure, dict(chosen), extra=[_precise_handle(), limit])
    return figure


def accuracy_cost(results: Results, chosen: Mapping[str, Style]) -> Figure:
    """Top-1 after finetuning against the search's cost, in seconds and in images x MACs, on logarithmic axes.

    Methods that see no images stand in a strip of their own at the left.
    """
    figure, panels = _panels(results, 2)
    labels = {"seconds": "search time (s)", "image_macs": "search cost (images × MACs)"}
    for model, column in panels.items():
        for axes, (key, label) in zip(column, labels.items(), strict=True):
            _precise(axes, results, model)
            mine = [r for r in results if r.job.model == model]
            costs = [r.search_cost[key] for r in mine if r.searched] or [1.0]
            least, most = min(costs), max(costs)
            if most / least < 10:  # at least a decade, so that small differences look small
                middle = (least * most) ** 0.5
                least, most = middle / 10**0.5, middle * 10**0.5
            decade = (most / least) ** 0.1  # a tenth of the axis, as a factor
            strip = least / decade**2  # where methods that see no images stand
            axes.set_xscale("log")
            blind = [search for search in chosen if any(r.job.search == search and not r.searched for r in mine)]
            axes.set_xlim(strip / decade if blind else least / decade**0.5, most * decade**0.5)
            for search, style in chosen.items():
                found = [r for r in mine if r.job.search == search]
                spread = decade ** (0.7 * _spread(blind, search))
                _points(axes, [r.search_cost[key] if r.searched else strip * spread for r in found], found, style)
            if blind:
                axes.axvspan(strip / decade, strip * decade, color="#f1f1f1", zorder=0, linewidth=0)
            _log_ticks(axes, least / decade**0.8, most * decade**0.5, {strip: "no\nsearch"} if blind else {})
            axes.margins(y=0.12)
            axes.set_xlabel(label)
    _outer_label(panels, "top-1 after finetuning (%)")
    legend(figure, dict(chosen), extra=[_precise_handle()])
    return figure


def _spread(names: Sequence[str], name: str) -> float:
    """Position of a name among names, in -1 to 1, so that points at one place do not cover each other."""
    return 2 * names.index(name) / (len(names) - 1) - 1 if name in names and len(names) > 1 else 0.0


def _log_ticks(axes: Axes, low: float, high: float, named: Mapping[float, str]) -> None:
    """Ticks of a logarithmic x axis between low and high, besides named ones; 1, 2, 5 where decades are too few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = [10.0**e for e in range(first, last + 1) if low <= 10.0**e <= high]
    steps = (1, 2, 5) if len(decades) < 2 else (1,)
    ticks = [m * 10.0**e for e in range(first, last + 1) for m in steps if low <= m * 10.0**e <= high]
    minor = [m * 10.0**e for e in range(first, last + 1) for m in range(2, 10) if low <= m * 10.0**e <= high]
    if high < 1e5 and low >= 1e-2:
        labels = [f"{tick:g}" for tick in ticks]
    else:
        powers = [math.floor(math.log10(tick) + 1e-9) for tick in ticks]
        factors = [round(tick / 10.0**e) for tick, e in zip(ticks, powers, strict=True)]
        labels = [
            f"$10^{{{e}}}$" if m == 1 else rf"${m}{{\times}}10^{{{e}}}$" for m, e in zip(factors, powers, strict=True)
        ]
    axes.xaxis.set_major_locator(FixedLocator([*named, *ticks]))
    axes.xaxis.set_major_formatter(FixedFormatter([*named.values(), *labels]))
    axes.xaxis.set_minor_locator(FixedLocator(minor))
    axes.xaxis.set_minor_formatter(NullFormatter())


def bits(results: Results, chosen: Mapping[str, Style]) -> Figure:
    """Bits a layer: a row a search, weights upwards and activations downwards, a block a model (first seed)."""
    seed = results.params.grid.seeds[0]
    blocks = {
        model: [r for r in results if r.job.model == model and r.job.seed == seed]
        for model in results.params.grid.models
    }
    blocks = {model: found for model, found in blocks.items() if found}
    heights = [ROW * len(found) + BLOCK for found in blocks.values()]
    figure = plt.figure(figsize=(9.5, sum(heights)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.035, hspace=0.0)
    parts = np.atleast_1d(figure.subfigures(len(blocks), 1, height_ratios=heights))
    for (model, found), part in zip(blocks.items(), parts, strict=True):
        rows = np.atleast_1d(part.subplots(len(found), 1, sharex=True))
        for axes, result in zip(rows, found, strict=True):
            draw_bits(axes, result.policy, chosen[result.job.search].colour)
            name = result.job.search + (f" ({result.job.budget})" if len(results.params.grid.budgets) > 1 else "")
            axes.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=6)
            if axes is not rows[-1]:
                axes.spines["bottom"].set_visible(False)
                axes.tick_params(axis="x", length=0)
        _layer_names(rows[-1], found[0].policy)
        part.suptitle(
            f"{model}: bits of weights (up) and activations (down, lighter); hatched: fixed layers", fontsize=9.5
        )
    return figure


def draw_bits(axes: Axes, policy: Mapping[str, Any], colour: str) -> None:
    """One policy as paired bars: weight bits upwards, activation bits downwards; fixed layers hatched."""
    layers = list(policy["layers"].values())
    x = np.arange(len(layers))
    shared = {"width": 0.82, "linewidth": 0}
    free = np.array([not layer["fixed"] for layer in layers])
    for key, sign, alpha in (("w", 1, 1.0), ("a", -1, 0.45)):
        height = sign * np.array([layer[key] for layer in layers])
        axes.bar(x[free], height[free], color=colour, alpha=alpha, **shared)
        axes.bar(x[~free], height[~free], color="#ededed", hatch="////", edgecolor="#aaaaaa", width=0.82, linewidth=0)
    most = max(8, *(max(layer["w"], layer["a"]) for layer in layers))
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_ylim(-most - 0.5, most + 0.5)
    axes.set_xlim(-0.6, len(layers) - 0.4)
    axes.set_yticks([-8, -4, 4, 8], ["8", "4", "4", "8"], fontsize=6)
    axes.grid(visible=False, axis="x")


def search_curves(results: Results, chosen: Mapping[str, Style]) -> Figure:
    """Loss, expected cost / budget and entropy of the bit-width logits over the search; a line a job.

    A method that has no such column has no line there.
    """
    rows = {
        "loss": ("loss", _smooth),
        "budget": ("expected cost / budget", None),
        "entropy": ("logit entropy (bits)", None),
    }
    return _curves(results, chosen, "search", rows, "share of the search's steps")


def finetune_curves(results: Results, chosen: Mapping[str, Style]) -> Figure:
    """Loss and training top-1 over quantization-aware training; a line a job."""
    rows = {"loss": ("finetuning loss", _smooth), "top1": ("training top-1 (%)", _smooth)}
    return _curves(results, chosen, "finetune", rows, "step")


def _curves(
    results: Results,
    chosen: Mapping[str, Style],
    stage: str,
    rows: Mapping[str, tuple[str, Callable | None]],
    xlabel: str,
) -> Figure:
    figure, panels = _panels(results, len(rows), height=1.75, share=True)
    drawn, took_steps = set(), set()
    for result in results:
        history = result.history(stage)
        if not history:
            continue
        took_steps.add(result.job.model)
        style = chosen[result.job.search]
        for axes, (key, (_, smooth)) in zip(panels[result.job.model], rows.items(), strict=True):
            if key not in history:
                continue
            drawn.add(result.job.search)
            values = smooth(history[key]) if smooth else history[key]
            x = history["step"]
            if stage == "search":  # searches differ in length by orders of magnitude
                x = (np.arange(len(values)) + 1) / len(values)
            line = curves({"x": list(x), "y": list(values)}, most=400)
            axes.plot(line["x"], line["y"], color=style.colour, linestyle=style.line, linewidth=1.1, alpha=0.85)
    for model, column in panels.items():
        for axes, (key, (label, _)) in zip(column, rows.items(), strict=True):
            if model == next(iter(panels)):
                axes.set_ylabel(label)
            if key == "budget":
                axes.axhline(1, color=REFERENCE, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)
            if not axes.lines or (key == "budget" and len(axes.lines) == 1):
                said = "not recorded" if model in took_steps else "no steps"
                axes.text(0.5, 0.5, said, transform=axes.transAxes, ha="center", va="center", color="#888888")
        column[-1].set_xlabel(xlabel)
    legend(figure, {search: style for search, style in chosen.items() if search in drawn}, lines=True)
    return figure


def _smooth(values: Sequence[float]) -> np.ndarray:
    """Centred moving average over a thirtieth of the run: the noise of single batches hides the course."""
    half = len(values) // 60
    if not half:
        return np.asarray(values, dtype=float)
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _panels(
    results: Results, rows: int, height: float = 2.7, share: bool = False
) -> tuple[Figure, dict[str, list[Axes]]]:
    """A column of panels a model, titled; rows share their y axis only where the models' values are comparable."""
    models = results.params.grid.models
    width = 4.6 if len(models) == 1 else 3.9
    figure, grid = plt.subplots(
        rows, len(models), figsize=(width * len(models), height * rows + 0.5), layout="constrained",
        squeeze=False, sharex="col" if share else False,
    )  # fmt: skip
    for column, model in enumerate(models):
        grid[0][column].set_title(model)
    return figure, {model: [grid[row][column] for row in range(rows)] for column, model in enumerate(models)}


def _points(axes: Axes, x: Sequence[float], found: Sequence[JobResult], style: Style) -> None:
    size = 75 if style.marker == "*" else 34
    axes.scatter(x, [r.top1 for r in found], s=size, color=style.colour, marker=style.marker, alpha=0.9,
                 edgecolors="white", linewidths=0.5, zorder=3)  # fmt: skip


def _precise(axes: Axes, results: Results, model: str) -> None:
    top1 = {r.metrics["fp_top1"] for r in results if r.job.model == model}
    for value in top1:
        axes.axhline(value, color=REFERENCE, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
    axes.yaxis.set_major_locator(MaxNLocator(6))


def _precise_handle() -> Line2D:
    return Line2D([], [], color=REFERENCE, linewidth=1.0, linestyle=(0, (4, 2)), label="full precision")


def _outer_label(panels: Mapping[str, list[Axes]], label: str) -> None:
    for axes in next(iter(panels.values())):
        axes.set_ylabel(label)


def _layer_names(axes: Axes, policy: Mapping[str, Any]) -> None:
    names = list(policy["layers"])
    every = -(-len(names) // 70)  # more names than that would overlap
    size = 6.5 if len(names) <= 30 else 5.5
    axes.set_xticks(range(0, len(names), every), names[::every], rotation=90, fontsize=size)


FIGURES: dict[str, Callable[[Results, Mapping[str, Style]], Figure]] = {
    draw.__name__: draw for draw in (accuracy_bitops, accuracy_cost, bits, search_curves, finetune_curves)
}
