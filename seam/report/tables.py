"""Tables: results as CSV and Markdown, claims as Markdown and on the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from seam.pairs import ALL
from seam.results import JobResult, Results
from seam.stats import FAILS, HOLDS, OPEN

CONVENTION = (
    "GBitOPs = sum of MACs x weight bits x activation bits / 1e9 over the searchable layers at the target's input "
    "size; the first and the last layer are fixed at 8/8 and counted apart (`bitops_g_fixed` in results.csv)."
)
Row = dict[str, Any]


def rows(results: Results, baseline: str) -> list[Row]:
    """One row a job, in grid order: the columns of results.csv. Empty text where a value does not exist.

    baseline: the search that speed-ups are measured against, at the same model, budget and seed.
    """
    return [_row(result, results.get(result.job.model, baseline, *result.job[2:])) for result in results]


def _row(result: JobResult, baseline: JobResult | None) -> Row:
    job, metrics, cost, totals = result.job, result.metrics, result.search_cost, result.policy["totals"]
    compare = result.searched and baseline is not None and baseline.searched
    return {
        "model": job.model,
        "search": job.search,
        "budget": job.budget,
        "seed": job.seed,
        "method": result.method,
        "proxy": result.proxy_name,
        "proxy_images": result.proxy["count"],
        "proxy_share": _number(result.share),
        "images_seen": cost.get("images", ""),
        "top1": _number(metrics["top1"]),
        "delta_fp": _number(metrics["top1"] - metrics["fp_top1"]),
        "top5": _number(metrics.get("top5")),
        "calibrated_top1": _number(metrics.get("calibrated_top1")),
        "class_margin": _number(metrics.get("class_margin")),
        "bitops_g": _number(metrics["bitops_g"]),
        "bitops_g_fixed": _number(metrics.get("bitops_g_fixed")),
        "budget_share": _number(metrics["budget_share"]),
        "size_mb": _number(metrics["size_mb"]),
        "mean_w": _number(totals.get("mean_w")),
        "mean_a": _number(totals.get("mean_a")),
        "search_seconds": _number(cost["seconds"]),
        "search_seconds_once": _number(cost["seconds_once"]),
        "search_image_macs": cost["image_macs"],
        "speedup": _number(baseline.search_cost["seconds"] / cost["seconds"]) if compare else "",
        "speedup_image_macs": _number(baseline.search_cost["image_macs"] / cost["image_macs"]) if compare else "",
        "finetune_seconds": _number(result.finetune_cost["seconds"]),
        "peak_memory_mb": _number(cost.get("peak_memory_mb")),
        "logit_entropy": _number(cost.get("logit_entropy")),
    }


def _number(value: float | None) -> float | str:
    return "" if value is None else float(f"{value:.6g}")


def results_markdown(results: Results, table: Sequence[Row], title: str = "") -> str:
    """results.md: the full-precision accuracy, then one row a job, then the conventions."""
    head = [
        "Model",
        "Search",
        "Budget",
        "Seed",
        "Method",
        "Proxy",
        "Images seen",
        "Calibrated top-1 %",
        "Top-1 %",
        "Δ FP",
    ]
    head += ["Class margin", "GBitOPs ¹", "Of budget", "Size MB"]
    head += ["Search s ²", "Image-MACs ³", "Speed-up ⁴ s (image-MACs)"]
    body = []
    for row in table:
        speed = f"{factor(row['speedup'])} ({factor(row['speedup_image_macs'])})" if row["speedup"] else "–"
        body.append(
            [row["model"], row["search"], row["budget"], row["seed"], row["method"], row["proxy"],
             f"{row['images_seen']:,}" if row["images_seen"] else "–",
             fixed(row["calibrated_top1"], 2), fixed(row["top1"], 2), fixed(row["delta_fp"], 2, sign=True),
             fixed(row["class_margin"], 3), fixed(row["bitops_g"], 4), fixed(row["budget_share"], 3),
             fixed(row["size_mb"], 3), seconds(row["search_seconds"]),
             f"{row['search_image_macs']:.2e}" if row["search_image_macs"] else "–", speed]
        )  # fmt: skip
    compiling = sum(row["search_seconds_once"] for row in table)
    precise = {result.job.model: result.metrics["fp_top1"] for result in results}
    lines = [
        f"# {title or 'Results'}",
        "",
        *(f"- {model}: full precision {top1:.2f} % top-1" for model, top1 in precise.items()),
        "",
        *markdown(head, body, left=6),
        "",
        f"¹ {CONVENTION}",
        "",
        "² From the start of the process to the policy, loading of kernels included. Compiling them is done once on a "
        f"machine and is not in it, nor in the speed-ups: {seconds(compiling)} s here.",
        "",
        "³ Images seen by the search x MACs of one forward pass at the size they were seen at.",
        "",
        "⁴ Cost of the baseline search (claims.baseline) / cost of this search, at the same model, budget and seed.",
        "– where a search sees no images or the grid holds no baseline.",
        "",
        "Top-1 is after finetuning, calibrated top-1 before it; both on the target's test images.",
    ]
    return "\n".join(lines) + "\n"


def claims_markdown(claims: Mapping[str, Any]) -> str:
    """claims.md: one table a scope, then how the numbers are made and what this grid cannot say."""
    design = claims["design"]
    counts = ", ".join(f"{count} {verdict}" for verdict, count in claims["verdicts"].items())
    lines = ["# Claims", "", f"{len(claims['claims'])} claims: {counts}.", ""]
    for model, budget in _scopes(claims):
        chosen = [c for c in claims["claims"] if (c["model"], c["budget"]) == (model, budget)]
        lines += [f"## {_scope_title(model, budget, design)}", ""]
        head = ["Claim", "Verdict", "Measured", "Top-1 %", "Of budget", "Why"]
        body = [
            [
                c["statement"],
                f"**{c['verdict']}**",
                measured(c),
                sides(c, "top1", 2),
                sides(c, "budget_share", 3),
                _why(c),
            ]
            for c in chosen
        ]
        lines += [*markdown(head, body, left=6), ""]
    if claims["missing"]:
        lines += ["## What this grid cannot say", "", *(f"- {line}" for line in claims["missing"]), ""]
    lines += ["## How", ""]
    lines += [f"- {key.replace('_', ' ')}: {value}" for key, value in design.items() if isinstance(value, str)]
    margin = design["roles"]["margin_points"]
    lines += [f"- non-inferiority margin: {margin:g} points of top-1; 'of budget' above 1 is over the budget"]
    return "\n".join(lines) + "\n"


def measured(claim: Mapping[str, Any], brief: bool = False) -> str:
    """The estimate of a claim in words: value, interval, n and (unless brief) what n counts."""
    if claim["claim"] == "paper":
        share, gap = claim["measured"]["share"], claim["measured"]["top1_difference"]
        time, macs = claim["measured"]["speedup_seconds"], claim["measured"]["speedup_image_macs"]
        parts = [f"{share:.1%} of the data", f"{gap:+.2f} points" if gap is not None else "no direct search"]
        if time is not None:
            parts.append(f"{factor(time)} in seconds, {factor(macs)} in image-MACs")
        return "; ".join(parts)
    estimate, n = claim["estimate"], claim["estimate"]["n"]
    if claim["claim"] == "share":
        return f"{claim['images']:,} of {claim['target_images']:,} images = {estimate['value']:.2%}"
    ratio = claim["claim"].startswith("speedup")
    show = factor if ratio else lambda value: f"{value:+.2f}"
    text = show(estimate["value"])
    if estimate["interval"]:
        text += f" [{show(estimate['interval'][0])}, {show(estimate['interval'][1])}]"
    if brief:
        return f"{text}, n={n}"
    units = {"random policy": "random policies"}.get(estimate["unit"], f"{estimate['unit']}s")
    return f"{text} ({n} {estimate['unit'] if n == 1 else units})"


def sides(claim: Mapping[str, Any], key: str, digits: int) -> str:
    """`search / against` of a claim's key, or a dash."""
    values = claim.get(key)
    return " / ".join(f"{value:.{digits}f}" for value in values.values()) if values else "–"


def _why(claim: Mapping[str, Any]) -> str:
    notes = [claim["reason"]]
    if "methods" in claim and claim["claim"] != "better_than":
        notes.append(f"different methods: {' / '.join(claim['methods'])}")
    if claim["claim"] != "share" and (differ := claim.get("settings_that_differ")):
        notes.append("differing settings: " + ", ".join(f"{key} {a} / {b}" for key, (a, b) in differ.items()))
    if "parts" in claim:
        notes = [", ".join(f"{name}: {verdict}" for name, verdict in claim["parts"].items())]
    return "; ".join(filter(None, [*notes, claim.get("note")]))


SHORT = {
    "not_worse": "top-1 - {against} > {bound:g}",
    "margin_helps": "top-1 - {against} > 0: the margin term",
    "better_than": "top-1 - {against} > 0",
    "beats_random": "top-1 - {against} > 0",
    "beats_random_once": "top-1 - {against} > 0, this run",
    "speedup_seconds": "seconds: {against} / this > 1",
    "speedup_image_macs": "images x MACs: {against} / this > 1",
    "paper": "the paper's 4 %, same accuracy, 300x",
}
COLOURS = {HOLDS: "green", FAILS: "red", OPEN: "yellow"}


def print_claims(claims: Mapping[str, Any]) -> None:
    """Print the claims: a section a search, a row a claim, a column a model; then what the grid cannot say."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:  # an engine copies the output to its log: the error stream still knows the terminal
        screen = Console(stderr=True)
        console = Console(highlight=False, width=screen.width if screen.is_terminal else 180)
    models = claims["design"]["models"]
    shown = models if len(models) == 1 else [*models, ALL] if len(models) <= 3 else [ALL]
    for budget in claims["design"]["budgets"]:
        table = Table(title=f"Claims at {budget}, as measured here (top-1 in percentage points)", title_justify="left")
        table.add_column("claim")
        for model in shown:
            table.add_column(model)
        chosen = [claim for claim in claims["claims"] if claim["budget"] in (budget, None)]
        for search in dict.fromkeys(claim["search"] for claim in chosen):
            table.add_section()
            share = next((c for c in chosen if (c["claim"], c["search"]) == ("share", search)), None)
            data = f" on {share['proxy']}, {share['estimate']['value']:.2%} of the target" if share else ""
            table.add_row(f"[bold]{search}[/bold]{data}")
            rows: dict[tuple, dict[str, Any]] = {}
            for claim in chosen:
                if claim["search"] == search and claim["claim"] in SHORT:
                    rows.setdefault((claim["claim"], claim["against"]), {})[claim["model"]] = claim
            for (kind, against), cells in rows.items():
                bound = next(iter(cells.values())).get("bound", 0)
                label = "  " + SHORT[kind].format(against=against, bound=bound)
                table.add_row(label, *(_cell(cells.get(model)) for model in shown))
        console.print(table)
    for line in claims["missing"]:
        console.print(f"- {line}", style="yellow", markup=False)
    console.print(", ".join(f"{count} {verdict}" for verdict, count in claims["verdicts"].items()))


def _cell(claim: Mapping[str, Any] | None) -> str:
    if claim is None:
        return "–"
    if claim["claim"] == "paper":
        failed = [name for name, verdict in claim["parts"].items() if verdict == claim["verdict"] != HOLDS]
        text = ": " + ", ".join(failed) if failed else ""
    else:
        text = ": " + measured(claim, brief=True).replace("[", "\\[")  # no markup
    spent = list(claim.get("budget_share", {}).values())
    if spent and max(spent) - min(spent) > 0.01:
        text += f"\n[dim]of the budget {sides(claim, 'budget_share', 2)}[/dim]"
    return f"[{COLOURS[claim['verdict']]}]{claim['verdict']}[/]{text}"


def _scopes(claims: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    return list(dict.fromkeys((claim["model"], claim["budget"]) for claim in claims["claims"]))


def _scope_title(model: str, budget: str | None, design: Mapping[str, Any]) -> str:
    name = f"{ALL} ({', '.join(design['models'])})" if model == ALL else model
    return "Data" if budget is None else f"{name}, {budget}"


def markdown(head: Sequence[str], body: Iterable[Sequence[Any]], left: int) -> list[str]:
    """A Markdown table; the first `left` columns are left-aligned, the others right-aligned."""
    rule = ["---" if i < left else "---:" for i in range(len(head))]
    escaped = [[str(cell).replace("|", "\\|") for cell in line] for line in body]
    return [f"| {' | '.join(line)} |" for line in [list(head), rule, *escaped]]


def fixed(value: float | str, digits: int, sign: bool = False) -> str:
    """A number with fixed digits, or a dash for a missing one."""
    return "–" if value == "" else f"{value:{'+' if sign else ''}.{digits}f}"


def seconds(value: float) -> str:
    """Seconds with three significant digits where they matter."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def factor(value: float) -> str:
    """A ratio such as 37.2x."""
    return f"{value:.2f}x" if value < 10 else f"{value:.1f}x" if value < 100 else f"{value:,.0f}x"
