"""docs/img/ranks.svg: the scores of benchmarks/ranks.csv against the top-1 of the policies in ranks_policies.csv.

    python docs/figures.py

A panel for each score that saw digits; a point is a drawn policy, at the share of policies with lower scores.
"""

from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import rankdata
from tables import drawn, place_name, places_of_ranks, rank_rows, scored

from seam.report.style import COLOURS, GREY_MARKERS, GREYS, MARKERS, RC, save

IMAGES = Path(__file__).parent / "img"
PROXY = "digits"
KINDS = (  # of policies, as they are named in the CSV: their label, colour and marker
    ("random", "random", GREYS[1], GREY_MARKERS[0]),
    ("jacobian", "drawn around jacobian", COLOURS[0], MARKERS[0]),
    ("fit", "drawn around fit", COLOURS[1], MARKERS[1]),
    ("sensitivity", "drawn around sensitivity", COLOURS[2], MARKERS[2]),
)


def ranks(model: str, budget: str) -> Figure:
    """Scatter of top-1 (%) over the rank of each score (%), for one network and budget."""
    policies = drawn(model, budget)
    found = [row for row in rank_rows() if (row["model"], row["budget"], row["proxy"]) == (model, budget, PROXY)]
    kinds = {kind: Line2D([], [], linestyle="none", color=c, marker=m, label=text) for kind, text, c, m in KINDS}
    columns = -(-len(found) // 2)
    figure, axes = plt.subplots(2, columns, figsize=(8, 4.2), sharex=True, sharey=True, layout="constrained")
    for panel, row in zip(axes.flat, found, strict=False):
        scores = [float(score) for score in row["scores"].split()]
        below = 100 * (rankdata(scores) - 1) / (len(scores) - 1)
        for kind, style in kinds.items():
            mine = [n for n, policy in enumerate(policies) if policy["kind"].startswith(kind)]
            top1 = [float(policies[n]["top1"]) for n in mine]
            panel.scatter(below[mine], top1, s=11, color=style.get_color(), marker=style.get_marker(), linewidths=0)
        panel.set_title(f"{scored(row['method']).replace('`', '')}: {float(row['spearman']):.2f}")
    for panel in axes.flat[len(found) :]:
        panel.remove()
    axes[-1, columns // 2].set_xlabel("policies with lower scores (%)")
    figure.supylabel(f"top-1, calibrated only (%), {place_name(model, budget)}", fontsize=RC["axes.labelsize"])
    figure.legend(handles=list(kinds.values()), loc="outside lower center", ncols=len(kinds))
    return figure


def main() -> None:
    with matplotlib.rc_context(RC):
        figure = ranks(*places_of_ranks()[0])
    save(figure, IMAGES, "ranks", ["svg"], 150)


if __name__ == "__main__":
    main()
