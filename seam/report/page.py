"""report.html: claims, tables and interactive charts in one file that needs no network."""

import html
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from plotly.offline import get_plotlyjs

from seam.experiment.results import JobResult, Results
from seam.io import software
from seam.report import charts
from seam.report.claims import interval, measured, replicates
from seam.report.style import styles
from seam.report.text import factor, seconds

_BADGES = {"holds": "yes", "does not hold": "no", "not decided": "open"}
_HINT = "Point at a mark for its numbers; click a name in a legend to hide it, drag to zoom, double-click to zoom out."
# A chart is drawn before those beside it are there, at the width that it then has.
_RESIZE = "for (const chart of document.querySelectorAll('.plotly-graph-div')) Plotly.Plots.resize(chart)"
_MEANS = (
    "Mean ± standard deviation over seeds. GBitOPs: sum of MACs x weight bits x input bits over the searchable layers, "
    "at the target's input size. Faster: cost of the baseline search / cost of this one."
)
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto; max-width: 1240px;
       padding: 1rem 1.2rem 4rem; }
h1 { font-size: 1.6rem; margin: .6rem 0 .2rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .2rem; } p { margin: .3rem 0 .8rem; max-width: 60rem; }
.note { color: #555; font-size: .9rem; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #e4e4e4; text-align: right; vertical-align: top; }
th { font-weight: 600; border-bottom: 2px solid #bbb; } td.text, th.text { text-align: left; }
tr.model td { font-weight: 600; background: #f6f7f9; text-align: left; }
.badge { display: inline-block; padding: 0 .5rem; border-radius: .7rem; font-size: .82rem; white-space: nowrap; }
.yes { background: #d7efe3; color: #00543a; } .no { background: #fbe0d2; color: #8a3b00; }
.open { background: #ececec; color: #444; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: .5rem 1.2rem; }
.charts.wide { grid-template-columns: minmax(0, 1fr); } .chart { min-width: 0; }
nav a { margin-right: 1rem; } details { margin: .6rem 0; } summary { cursor: pointer; }
"""


def report_page(results: Results, rows: Sequence[Mapping[str, Any]], claims: Mapping[str, Any], title: str = "") -> str:
    """The page's HTML; the same results give the same bytes.

    Args:
        rows: of `seam.report.tables.rows`.
        claims: content of claims.json.
    """
    parameters, chosen = results.params, styles(results.params)
    models, name = parameters.grid.models, title or parameters.name
    parts = [f"<h1>{_text(name)}</h1>", _summary(results), "<nav>"]
    parts += [f'<a href="#{key}">{key}</a>' for key in ("claims", "results", "charts", "environment")]
    parts += ["</nav>", '<h2 id="claims">Claims</h2>', *_claims(claims), '<h2 id="results">Results</h2>']
    parts += _results(results, rows)
    parts += ['<h2 id="charts">Charts</h2>', f'<p class="note">{_HINT}</p>']
    for number, (heading, caption, wide, draw) in enumerate(charts.CHARTS):
        figures = [(model, draw(results, model, chosen)) for model in models]
        drawn = [(model, figure) for model, figure in figures if figure is not None]
        if not drawn:
            continue
        parts += [f"<h3>{heading}</h3>", f'<p class="note">{caption}</p>', f'<div class="charts{" wide" * wide}">']
        for place, (model, figure) in enumerate(drawn):
            chart = figure.to_html(
                full_html=False,
                include_plotlyjs=False,
                div_id=f"chart-{number}-{place}",
                config={"displayModeBar": False, "responsive": True},
            )
            parts.append(f'<div class="chart"><strong>{_text(model)}</strong>{chart}</div>')
        parts.append("</div>")
    parts += ['<h2 id="environment">Environment</h2>', *_environment(results)]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{_text(name)}</title>'
    script = f"<script>{get_plotlyjs()}</script>"
    body = "\n".join(parts)
    head = f"<head>{head}<style>{_STYLE}</style>{script}</head>"
    return f'<!doctype html>\n<html lang="en">{head}\n<body>{body}<script>{_RESIZE}</script></body></html>\n'


def _text(value: Any) -> str:
    return html.escape(str(value))


def _table(head: Sequence[str], body: Iterable[Sequence[str]], text: int) -> str:
    """An HTML table of ready cells; the first `text` columns are text. A row of one cell spans all."""
    kind = [' class="text"' if i < text else "" for i in range(len(head))]
    top = "".join(f"<th{k}>{_text(cell)}</th>" for k, cell in zip(kind, head, strict=True))
    lines = []
    for row in body:
        if len(row) == 1:
            lines.append(f'<tr class="model"><td colspan="{len(head)}">{row[0]}</td></tr>')
        else:
            lines.append(f"<tr>{''.join(f'<td{k}>{c}</td>' for k, c in zip(kind, row, strict=True))}</tr>")
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _summary(results: Results) -> str:
    parameters = results.params
    grid, count = parameters.grid, sum(1 for _ in results)
    images = next((int(r.metrics["images"]) for r in results if "images" in r.metrics), 0)
    return (
        f"<p>{count} policies of {', '.join(map(_text, grid.models))} at {', '.join(map(_text, grid.budgets))}, by "
        f"{', '.join(map(_text, grid.searches))}; {len(grid.seeds)} seed{'s' * (len(grid.seeds) > 1)}. Target: "
        f"{_text(parameters.target.dataset)}, measured on {images:,} test images.</p>"
    )


def _claims(claims: Mapping[str, Any]) -> list[str]:
    """The claims about the headline; all others folded."""
    first = [c for c in claims["claims"] if "question" in c]
    rest = [c for c in claims["claims"] if "question" not in c]
    counts = ", ".join(f"{count} {verdict}" for verdict, count in claims["verdicts"].items())
    lines = []
    if first:
        lines += [f"<p>About <strong>{_text(claims['headline'])}</strong>; intervals are at "
                  f"{claims['design']['roles']['confidence']:.0%}.</p>", _claims_table(first)]  # fmt: skip
    lines.append(f'<p class="note">{len(claims["claims"])} claims in all: {_text(counts)}.</p>')
    if rest:
        lines += [f"<details><summary>The others ({len(rest)})</summary>{_claims_table(rest)}</details>"]
    if claims["missing"]:
        lines += ["<p>What this grid cannot say:</p><ul>"]
        lines += [*(f"<li>{_text(line)}</li>" for line in claims["missing"]), "</ul>"]
    return lines


def _claims_table(chosen: Sequence[Mapping[str, Any]]) -> str:
    body: list[list[str]] = []
    for scope in dict.fromkeys((c["model"], c["budget"]) for c in chosen):
        body.append([_text(", ".join(filter(None, scope)))])
        for c in chosen:
            if (c["model"], c["budget"]) == scope:
                badge = f'<span class="badge {_BADGES[c["verdict"]]}">{_text(c["verdict"])}</span>'
                counted = c["claim"] in ("paper", "share")
                value = measured(c) if counted else f"{interval(c)}, {replicates(c)}"
                body.append([_text(c["statement"]), badge, _text(value)])
    return _table(["Claim", "Verdict", "Measured"], body, text=3)


def _results(results: Results, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Means over the seeds; each run folded."""
    head = ["Search", "Budget", "Seeds", "Proxy", "Calibrated top-1 %", "Finetuned top-1 %", "GBitOPs", "Of budget"]
    head += ["Size MB", "Search s", "Faster: s", "Faster: image-MACs"]
    body: list[list[str]] = []
    precise = {result.job.model: result.metrics["fp_top1"] for result in results}
    for model, top1 in precise.items():
        body.append([f"{_text(model)}: full precision {top1:.2f} %"])
        mine = [row for row in rows if row["model"] == model]
        for key in dict.fromkeys((row["search"], row["budget"]) for row in mine):
            group = [row for row in mine if (row["search"], row["budget"]) == key]
            body.append(
                [
                    *map(_text, key),
                    str(len(group)),
                    _text(group[0]["proxy"]),
                    *(_spread([row[column] for row in group]) for column in ("calibrated_top1", "top1")),
                    f"{fmean(row['bitops_g'] for row in group):.4g}",
                    f"{fmean(row['budget_share'] for row in group):.3f}",
                    f"{fmean(row['size_mb'] for row in group):.3f}",
                    seconds(fmean(row["search_seconds"] for row in group)),
                    *(_faster([row[column] for row in group]) for column in ("speedup", "speedup_image_macs")),
                ]
            )
    columns = list(rows[0])
    every = _table(columns, [[_text(row[column]) for column in columns] for row in rows], text=6)
    return [
        f'<p class="note">{_MEANS}</p>',
        _table(head, body, text=4),
        f"<details><summary>Every run (results.csv)</summary>{every}</details>",
    ]


def _spread(values: Sequence[float | str]) -> str:
    numbers = [float(value) for value in values if value != ""]
    if not numbers:
        return "–"
    return f"{fmean(numbers):.2f}" + (f" ± {stdev(numbers):.2f}" if len(set(numbers)) > 1 else "")


def _faster(values: Sequence[float | str]) -> str:
    numbers = [float(value) for value in values if value != ""]
    return factor(fmean(numbers)) if numbers else "–"


def _environment(results: Results) -> list[str]:
    """Machines, software, and the parameters that hold for all."""
    machines = sorted({_machine(r) for r in results})
    facts = {"machine": "; ".join(machines), **software()}
    facts |= {"results": str(results.root), "seeds": ", ".join(map(str, results.params.grid.seeds))}
    body = [[_text(key), _text(value)] for key, value in facts.items() if isinstance(value, str | int | float)]
    return [_table(["", ""], body, text=2), '<p class="note">Each result has a provenance.json beside it: parameters, '
            "inputs, versions. <code>python -m seam verify</code> checks them all.</p>"]  # fmt: skip


def _machine(result: JobResult) -> str:
    cost = result.search_cost
    return f"{' '.join(str(cost.get('device_name', 'unknown')).split())}, {cost.get('threads', '?')} threads"
