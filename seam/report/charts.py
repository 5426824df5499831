"""Interactive charts of the report page, by plotly: a figure a model."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from seam.experiment.results import JobResult, Results, curves
from seam.report.style import COLOURS, REFERENCE, Style

SYMBOLS = {"o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "P": "cross"}
SYMBOLS |= {"X": "x", "p": "pentagon", "h": "hexagon", "*": "star", "<": "triangle-left", ">": "triangle-right"}
SYMBOLS |= {"d": "diamond-tall", "8": "octagon"}
SCALE = ("#f7fbff", "#c6dbef", "#6baed6", "#2171b5", "#08306b")  # bits, few to many; lightness alone tells them apart
GRID = "#e8e8e8"
_PART_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999933", "#882255")


def accuracy_bitops(results: Results, model: str, chosen: Mapping[str, Style]) -> go.Figure:
    """Top-1 after finetuning against GBitOPs, with the Pareto front of the means over seeds and the budgets."""
    figure = _figure("GBitOPs (searchable layers)", "top-1 after finetuning (%)")
    found = [r for r in results if r.job.model == model]
    _full_precision(figure, found)
    _points(figure, found, chosen, lambda r: r.metrics["bitops_g"], "%{x:.4g} GBitOPs")
    means: dict[tuple[str, str], list[JobResult]] = {}
    for r in found:
        means.setdefault((r.job.search, r.job.budget), []).append(r)
    front = pareto([(fmean(r.metrics["bitops_g"] for r in g), fmean(r.top1 for r in g)) for g in means.values()])
    if len(front) > 1:
        x, y = zip(*front, strict=True)
        line = {"color": "#666666", "width": 1, "dash": "dot", "shape": "hv"}
        figure.add_scatter(x=x, y=y, mode="lines", line=line, name="Pareto front", hoverinfo="skip")
    for limit in sorted({r.policy["budget"]["limit"] for r in found if "budget" in r.policy}):
        line = {"color": "#999999", "width": 1, "dash": "dash"}
        figure.add_vline(x=limit, line=line, annotation_text="budget", annotation_position="bottom left")
    return figure


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, value) that no other beats at a cost as low, by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def accuracy_seconds(results: Results, model: str, chosen: Mapping[str, Style]) -> go.Figure:
    """Top-1 after finetuning against the seconds of the search, where it looked at images."""
    figure = _figure("search time (s, from process start)", "top-1 after finetuning (%)")
    found = [r for r in results if r.job.model == model]
    _full_precision(figure, found)
    _points(figure, [r for r in found if r.searched], chosen, lambda r: r.search_cost["seconds"], "%{x:.3g} s")
    seconds = [r.search_cost["seconds"] for r in found if r.searched] or [1.0]
    for search, style in chosen.items():
        if blind := [r.top1 for r in found if r.job.search == search and not r.searched]:
            figure.add_scatter(
                x=[min(seconds), max(seconds)],
                y=[fmean(blind)] * 2,
                mode="lines",
                line={"color": style.colour, "width": 1, "dash": "dot"},
                name=f"{plain(search)} (no search)",
                hovertemplate="%{fullData.name}<br>mean %{y:.2f} %<extra></extra>",
            )
    steps = (1,) if max(seconds) / min(seconds) > 1000 else (1, 2, 5)
    ticks = [step * 10.0**power for power in range(-2, 8) for step in steps]
    shown = [math.log10(min(seconds) / 1.6), math.log10(max(seconds) * 1.6)]  # wide enough for one of the ticks
    figure.update_xaxes(type="log", range=shown, tickvals=ticks, ticktext=[f"{tick:,.10g}" for tick in ticks])
    return figure


def calibrated_finetuned(results: Results, model: str, chosen: Mapping[str, Style]) -> go.Figure:
    """Top-1 after finetuning against top-1 of the same policy calibrated only."""
    figure = _figure("top-1, calibrated only (%)", "top-1 after finetuning (%)")
    found = [r for r in results if r.job.model == model]
    _full_precision(figure, found)
    _points(figure, found, chosen, lambda r: r.metrics["calibrated_top1"], "calibrated %{x:.2f} %")
    return figure


def bits(results: Results, model: str, chosen: Mapping[str, Style]) -> go.Figure:
    """Bits of weights and of inputs, layer by layer: a row a policy, equal ones of several seeds in one."""
    rows: dict[tuple, list[JobResult]] = {}
    for r in results:
        if r.job.model == model:
            rows.setdefault((r.job.search, r.job.budget, tuple(r.bits.items())), []).append(r)
    names = list(next(iter(rows.values()))[0].bits)
    budgets = len({budget for _, budget, _ in rows}) > 1
    labels = [
        f"{plain(search)}{f' {budget}' if budgets else ''}, seed {', '.join(str(r.job.seed) for r in found)}"
        for (search, budget, _), found in rows.items()
    ]
    figure = go.Figure()
    for place, (kind, column) in enumerate((("weights", 0), ("inputs", 1))):
        figure.add_heatmap(
            z=[[layers[name][column] for name in names] for layers in (dict(key[2]) for key in rows)],
            x=[f"{i + 1}  {plain(name)}" for i, name in enumerate(names)],
            y=[f"{label} " for label in labels],
            colorscale=[[i / (len(SCALE) - 1), colour] for i, colour in enumerate(SCALE)],
            zmin=2,
            zmax=8,
            xgap=1,
            ygap=1,
            visible=not place,
            colorbar={"title": "bits", "dtick": 1, "thickness": 12},
            hovertemplate=f"%{{y}}<br>%{{x}}<br>%{{z}} bits of {kind}<extra></extra>",
        )
    buttons = [
        {"label": f"bits of {kind}", "method": "restyle", "args": [{"visible": [i == place for i in range(2)]}]}
        for place, kind in enumerate(("weights", "inputs"))
    ]
    longest = max(len(name) for name in names)
    _lay_out(figure, height=110 + 24 * len(labels) + 6 * longest)
    figure.update_layout(
        updatemenus=[{"type": "buttons", "direction": "right", "buttons": buttons, "x": 0, "y": 1.02, "xanchor": "left",
                      "yanchor": "bottom", "showactive": True}],
        margin={"l": 10, "r": 10, "t": 50, "b": 10},
    )  # fmt: skip
    figure.update_xaxes(tickangle=90, tickfont={"size": 9}, automargin=True, dtick=1 if len(names) <= 80 else None)
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def class_margins(results: Results, model: str, chosen: Mapping[str, Style]) -> go.Figure:
    """The class margin of the test images in full precision, calibrated only and finetuned; a mark a job."""
    figure = _figure("", "class margin (normalised features)")
    kinds = {"fp_class_margin": "full precision", "calibrated_class_margin": "calibrated only",
             "class_margin": "finetuned"}  # fmt: skip
    found = [r for r in results if r.job.model == model and kinds.keys() <= r.metrics.keys()]
    for search, style in chosen.items():
        for first, r in enumerate(r for r in found if r.job.search == search):
            figure.add_scatter(
                x=list(kinds.values()),
                y=[r.metrics[key] for key in kinds],
                mode="lines+markers",
                line={"color": style.colour, "width": 1},
                marker={"symbol": SYMBOLS[style.marker], "size": 8, "color": style.colour},
                name=plain(search),
                legendgroup=search,
                showlegend=not first,
                hovertemplate=f"{plain(r.job.name)}<br>%{{x}}: %{{y:.3f}}<extra></extra>",
            )
    return figure


def _networks(results: Results, model: str) -> dict[str, tuple[list[str], Mapping[str, Any]]]:
    """Full precision, and of the policies calibrated only the best that was searched for and the worst one: title ->
    (names of classes, geometry); empty where there is none."""
    found = sorted(
        (r for r in results if r.job.model == model), key=lambda r: (r.metrics["calibrated_top1"], r.job.name)
    )
    best = next((r for r in reversed(found) if r.searched), found[-1])
    shown = {"full precision": (best, "full_precision")}
    for r in (best, found[0]):  # of one policy, one title
        title = f"{plain(r.job.search)}, seed {r.job.seed}: {r.metrics['calibrated_top1']:.1f} %"
        shown[title] = (r, "calibrated")
    return {
        title: (r.classes["names"], r.classes[key]) for title, (r, key) in shown.items() if r.classes[key]["distances"]
    }


def class_distances(results: Results, model: str, chosen: Mapping[str, Style]) -> go.Figure | None:
    """Distances between the classes' centroids: full precision, the best searched policy, the worst policy."""
    shown = _networks(results, model)
    if not shown:
        return None
    figure = make_subplots(1, len(shown), subplot_titles=list(shown), horizontal_spacing=0.08)
    most = max(max(map(max, geometry["distances"])) for _, geometry in shown.values())
    for place, (names, geometry) in enumerate(shown.values()):
        labels = [plain(name) for name in names]
        figure.add_heatmap(
            z=geometry["distances"],
            x=labels,
            y=labels,
            colorscale=[[i / (len(SCALE) - 1), colour] for i, colour in enumerate(SCALE)],
            zmin=0,
            zmax=most,
            showscale=place == len(shown) - 1,
            colorbar={"title": "distance", "thickness": 12},
            hovertemplate="%{y} to %{x}: %{z:.3f}<extra></extra>",
            row=1,
            col=place + 1,
        )
    _lay_out(figure, height=420)
    figure.update_layout(margin={"t": 40})
    every = {"type": "category", "tickfont": {"size": 10}, "automargin": True}
    every |= {"dtick": 1} if len(labels) <= 30 else {}
    figure.update_xaxes(tickangle=90, **every)
    figure.update_yaxes(autorange="reversed", **every)
    return figure


def class_points(results: Results, model: str, chosen: Mapping[str, Style]) -> go.Figure | None:
    """Test images on the plane of their classes' centroids, for the same networks."""
    shown = _networks(results, model)
    if not shown:
        return None
    figure = make_subplots(1, len(shown), subplot_titles=list(shown), horizontal_spacing=0.06)
    for place, (names, geometry) in enumerate(shown.values()):
        for label, name in enumerate(names):
            points = [(x, y) for x, y, own in geometry["points"] if own == label]
            if points:
                x, y = zip(*points, strict=True)
                style = {
                    "color": COLOURS[label % len(COLOURS)],
                    "symbol": list(SYMBOLS.values())[label % 14],
                    "size": 6,
                }
                figure.add_scatter(
                    x=x,
                    y=y,
                    mode="markers",
                    marker=style,
                    name=plain(name),
                    legendgroup=str(label),
                    showlegend=not place,
                    hovertemplate=f"{plain(name)}<extra></extra>",
                    row=1,
                    col=place + 1,
                )
    _lay_out(figure, height=420)
    figure.update_layout(margin={"t": 40}, legend={"y": -0.12})
    figure.update_xaxes(scaleratio=1)
    return figure


def search_curves(results: Results, model: str, chosen: Mapping[str, Style]) -> go.Figure | None:
    """Expected cost as a share of the budget over the searches that train; None where there are none."""
    return _curves(results, model, chosen, "search", "budget", "expected cost / budget")


def finetune_curves(results: Results, model: str, chosen: Mapping[str, Style]) -> go.Figure | None:
    """The loss over finetuning."""
    return _curves(results, model, chosen, "finetune", "loss", "finetuning loss")


def _curves(
    results: Results, model: str, chosen: Mapping[str, Style], stage: str, key: str, label: str
) -> go.Figure | None:
    figure = _figure("share of the steps", label)
    for search, style in chosen.items():
        first = True
        for r in results:
            if (r.job.model, r.job.search) != (model, search):
                continue
            values = list(r.history(stage).get(key, ()))
            if not values:
                continue
            line = curves({"x": [(i + 1) / len(values) for i in range(len(values))], "y": values}, most=200)
            figure.add_scatter(
                x=line["x"],
                y=line["y"],
                mode="lines",
                line={"color": style.colour, "width": 1.5},
                name=plain(search),
                legendgroup=search,
                showlegend=first,
                hovertemplate=f"{plain(r.job.name)}<br>%{{y:.4g}}<extra></extra>",
            )
            first = False
    return figure if figure.data else None


def seconds_by_part(results: Results, model: str, chosen: Mapping[str, Style]) -> go.Figure:
    """Mean seconds of a search, by part, and of finetuning; a bar a search."""
    figure = _figure("seconds (mean over seeds and budgets)", "")
    found = {s: [r for r in results if (r.job.model, r.job.search) == (model, s)] for s in chosen}
    found = {search: rows for search, rows in found.items() if rows}
    parts = list(dict.fromkeys(part for rows in found.values() for r in rows for part in _parts(r)))
    bars = [(part, [fmean(_parts(r).get(part, 0) for r in rows) for rows in found.values()]) for part in parts]
    bars += [("finetuning", [fmean(r.finetune_cost["seconds"] for r in rows) for rows in found.values()])]
    for i, (part, values) in enumerate(bars):
        colour = "#cccccc" if part == "finetuning" else _PART_COLOURS[i % len(_PART_COLOURS)]
        name = part if part == "finetuning" else f"search: {part}"
        figure.add_bar(
            y=[plain(search) for search in found],
            x=values,
            orientation="h",
            name=name,
            marker={"color": colour},
            hovertemplate=f"%{{y}}<br>{name} %{{x:.1f}} s<extra></extra>",
        )
    figure.update_layout(barmode="stack", height=180 + 32 * len(found))
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def _parts(result: JobResult) -> Mapping[str, float]:
    """Seconds of a search by part; of one that was recorded in a whole: all of them."""
    return result.search_cost.get("parts") or {"all": result.search_cost["seconds"]}


def plain(text: str) -> str:
    """A user's name as plotly shows it: plotly reads a little HTML in all its texts."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _points(
    figure: go.Figure,
    found: Sequence[JobResult],
    chosen: Mapping[str, Style],
    x: Callable[[JobResult], float],
    shown: str,
) -> None:
    """A mark a job, a trace a search."""
    for search, style in chosen.items():
        mine = [r for r in found if r.job.search == search]
        if mine:
            figure.add_scatter(
                x=[x(r) for r in mine],
                y=[r.top1 for r in mine],
                mode="markers",
                marker={"symbol": SYMBOLS[style.marker], "size": 10, "color": style.colour,
                        "line": {"color": "white", "width": 0.5}},
                name=plain(search),
                text=[plain(r.job.name) for r in mine],
                hovertemplate=f"%{{text}}<br>{shown}<br>top-1 %{{y:.2f}} %<extra></extra>",
            )  # fmt: skip


def _full_precision(figure: go.Figure, found: Sequence[JobResult]) -> None:
    for value in sorted({r.metrics["fp_top1"] for r in found}):
        line = {"color": REFERENCE, "width": 1, "dash": "dash"}
        figure.add_hline(y=value, line=line, annotation_text=f"full precision {value:.2f}")


def _figure(xlabel: str, ylabel: str) -> go.Figure:
    figure = go.Figure()
    _lay_out(figure, height=400)
    figure.update_xaxes(title={"text": xlabel, "standoff": 6})
    figure.update_yaxes(title=ylabel)
    return figure


def _lay_out(figure: go.Figure, height: int) -> None:
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 12},
        legend={"orientation": "h", "y": -0.24, "yanchor": "top"},
        hovermode="closest",
    )
    figure.update_xaxes(gridcolor=GRID, zeroline=False, linecolor="#999999", ticks="outside", tickcolor="#999999")
    figure.update_yaxes(gridcolor=GRID, zeroline=False, linecolor="#999999", automargin=True)


# Title, what it shows, whether it takes the whole width, and the figure, in the page's order.
CHARTS: list[tuple[str, str, bool, Callable[[Results, str, Mapping[str, Style]], Any]]] = [
    ("Accuracy against BitOPs", "A mark a run, right of the budget line nothing may stand; "
     "the dotted line is the Pareto front of the means over seeds.", False, accuracy_bitops),
    ("Accuracy against search time", "Start-up included; policies without a search are horizontal lines.", False,
     accuracy_seconds),
    ("Calibrated only and finetuned", "Calibrated top-1 tells policies apart far better than top-1 after finetuning.",
     False, calibrated_finetuned),
    ("Class margins", "How far classes are apart in the features, before and after quantization.", False,
     class_margins),
    ("Distances between classes", "Of the centroids of the normalised features; policies calibrated only: the best "
     "that was searched, the worst.", True, class_distances),
    ("Classes in the features", "Test images on the first two principal axes of their classes' centroids, each "
     "network's own.", True, class_points),
    ("Bits of each layer", "A row a policy; equal policies of several seeds share one. Darker: more bits.", True, bits),
    ("Expected cost during the search", "1 is the budget. Methods that train nothing have no curve.", False,
     search_curves),
    ("Finetuning loss", "Quantization-aware training, the same for all policies.", False, finetune_curves),
    ("Where the seconds go", "Each search from process start, and the finetuning after it.", True, seconds_by_part),
]  # fmt: skip
