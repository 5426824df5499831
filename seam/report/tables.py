"""Tables: results as CSV and Markdown, claims as Markdown and on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from seam.pairs import ALL
from seam.results import JobResult, Results
from seam.stats import FAILS, HOLDS, OPEN

if TYPE_CHECKING:
    from rich.table import Table

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
    """claims.md: the five claims about the headline, then all others by scope, how the numbers are made, and what this
    grid cannot say."""
    design = claims["design"]
    counts = ", ".join(f"{count} {verdict}" for verdict, count in claims["verdicts"].items())
    lines = ["# Claims", "", f"{len(claims['claims'])} claims: {counts}.", ""]
    first = [c for c in claims["claims"] if "question" in c]
    if first:
        lines += [f"## {claims['headline']}: the five claims", ""]
        lines += _claims_tables(first, design)
    rest = [c for c in claims["claims"] if "question" not in c]
    if rest:
        lines += ["## All other claims", ""]
        lines += _claims_tables(rest, design)
    if claims["missing"]:
        lines += ["## What this grid cannot say", "", *(f"- {line}" for line in claims["missing"]), ""]
    lines += ["## How", ""]
    lines += [f"- {key.replace('_', ' ')}: {value}" for key, value in design.items() if isinstance(value, str)]
    margin = design["roles"]["margin_points"]
    lines += [f"- non-inferiority margin: {margin:g} points of top-1; 'of budget' above 1 is over the budget"]
    lines += ["- calibrated, finetuned: top-1 before and after finetuning, search / other side, in percent"]
    return "\n".join(lines) + "\n"


def _claims_tables(chosen: Sequence[Mapping[str, Any]], design: Mapping[str, Any]) -> list[str]:
    """A table a scope, a row a claim."""
    head = ["Claim", "Verdict", "Measured", "Calibrated %", "Finetuned %", "Of budget", "Why"]
    lines = []
    for scope in dict.fromkeys((claim["model"], claim["budget"]) for claim in chosen):
        body = [
            [
                c["statement"],
                f"**{c['verdict']}**",
                measured(c),
                sides(c, "calibrated_top1", 2),
                sides(c, "top1", 2),
                sides(c, "budget_share", 3),
                _why(c),
            ]
            for c in chosen
            if (c["model"], c["budget"]) == scope
        ]
        lines += [f"### {_scope_title(*scope, design)}", "", *markdown(head, body, left=len(head)), ""]
    return lines


def measured(claim: Mapping[str, Any]) -> str:
    """The estimate of a claim in words: value, interval, n and what n counts."""
    if claim["claim"] == "paper":
        share, gap = claim["measured"]["share"], claim["measured"]["top1_difference"]
        time, macs = claim["measured"]["speedup_seconds"], claim["measured"]["speedup_image_macs"]
        parts = [f"{share:.1%} of the data", f"{gap:+.2f} points" if gap is not None else "no direct search"]
        if time is not None:
            parts.append(f"{factor(time)} in seconds, {factor(macs)} in image-MACs")
        return "; ".join(parts)
    if claim["claim"] == "share":
        return f"{claim['images']:,} of {claim['target_images']:,} images = {claim['estimate']['value']:.2%}"
    return f"{interval(claim)} ({replicates(claim)})"


def interval(claim: Mapping[str, Any]) -> str:
    """Value and interval of a claim: points with a sign, or a factor."""
    estimate = claim["estimate"]
    show = factor if claim["claim"].startswith("speedup") else lambda value: f"{value:+.2f}"
    text = show(estimate["value"])
    if estimate["interval"]:
        text += f" [{show(estimate['interval'][0])}, {show(estimate['interval'][1])}]"
    return text


def replicates(claim: Mapping[str, Any]) -> str:
    """n of a claim's estimate and what it counts, e.g. `3 seeds`."""
    n, unit = claim["estimate"]["n"], claim["estimate"]["unit"]
    units = {"random policy": "random policies"}.get(unit, f"{unit}s")
    return f"{n:,} {unit if n == 1 else units}"


def sides(claim: Mapping[str, Any], key: str, digits: int) -> str:
    """`search / against` of a claim's key, or a dash."""
    values = claim.get(key)
    return " / ".join(f"{value:.{digits}f}" for value in values.values()) if values else "–"


def _why(claim: Mapping[str, Any]) -> str:
    notes = [claim["reason"]]
    if "methods" in claim and not claim["claim"].startswith("better_than"):
        notes.append(f"different methods: {' / '.join(claim['methods'])}")
    if claim["claim"] != "share" and (differ := claim.get("settings_that_differ")):
        notes.append("differing settings: " + ", ".join(f"{key} {a} / {b}" for key, (a, b) in differ.items()))
    if "parts" in claim:
        notes = [", ".join(f"{name}: {verdict}" for name, verdict in claim["parts"].items())]
    return "; ".join(filter(None, [*notes, claim.get("note")]))


SHORT = {
    "share": "images <= {bound:.0%} of the target's",
    "not_worse": "top-1 - {against} > {bound:g}",
    "margin_helps": "margin{of}: top-1 - {against} > 0",
    "better_than": "top-1 - {against} > 0",
    "beats_random": "top-1 - mean of random > 0",
    "beats_random_once": "top-1 - mean of random > 0",
    "speedup_seconds": "seconds: {against} / this > 1",
    "speedup_image_macs": "images x MACs: the same",
}
COLOURS = {HOLDS: "green", FAILS: "red", OPEN: "yellow"}
WIDTH = 80  # of the printed table, at most


def print_claims(claims: Mapping[str, Any]) -> None:
    """Print the five claims about the headline, a row each: verdict, estimate with its interval, n; then the rest in
    numbers. Pooled over the models first, then each model of at most three."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal or console.width > WIDTH:  # an engine copies the output to its log
        console = Console(highlight=False, width=WIDTH)
    design, headline = claims["design"], claims["headline"]
    models = design["models"]
    scopes = [*([ALL] if len(models) > 1 else []), *(models if len(models) <= 3 else [])]
    for budget in design["budgets"] if headline else ():
        console.print(_five(claims, budget, scopes))
        spent: dict[str, float] = {}
        for claim in claims["claims"]:
            if "question" in claim and (claim["model"], claim["budget"]) == (scopes[0], budget):
                spent |= claim.get("budget_share", {})
        if spent and max(spent.values()) - min(spent.values()) > 0.01:
            shares = ", ".join(f"{name} {share:.2f}" for name, share in spent.items())
            console.print(f"Of the budget: {shares}.", markup=False)
    others = [search for search in design["roles"]["proxies"] if search != headline]
    counts = ", ".join(f"{count} {verdict}" for verdict, count in claims["verdicts"].items())
    also = f" (also about {', '.join(others)})" if others else ""
    console.print(f"All {len(claims['claims'])} claims{also}: {counts}; see report/claims.md.", markup=False)
    for line in claims["missing"]:
        console.print(f"- {line}", style="yellow", markup=False)


def _five(claims: Mapping[str, Any], budget: str, scopes: Sequence[str]) -> Table:
    """The headline's claims at one budget."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    headline, confidence = claims["headline"], claims["design"]["roles"]["confidence"]
    title = f"{headline} at {budget}: top-1 after finetuning, in points"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("")
    table.add_column("claim", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    table.add_column(f"estimate [{confidence:.0%} interval]", no_wrap=True)
    table.add_column("n")
    chosen = [c for c in claims["claims"] if "question" in c]
    rows: list[tuple[str, list]] = [("", [c for c in chosen if c["budget"] is None])]
    rows += [(scope, [c for c in chosen if (c["model"], c["budget"]) == (scope, budget)]) for scope in scopes]
    for scope, found in rows:
        if found and scope and len(scopes) > 1:
            table.add_row("", Text(scope, style="bold"))
        asked = None
        for claim in found:
            number, kind = claim["question"], claim["claim"]
            of = f" of {claim['search']}" if claim["search"] != headline else ""
            label = "  calibrated only"
            if not kind.endswith("_calibrated"):
                label = SHORT[kind].format(against=claim["against"], bound=claim["bound"], of=of)
            text, count = interval(claim), replicates(claim).replace(",000 ", "k ")
            for word in ("timed ", "counted ", "test ", "random "):
                count = count.replace(word, "")
            if kind == "share":
                text, count = f"{claim['estimate']['value']:.2%} of {claim['target_images']:,}", ""
            verdict = Text(claim["verdict"], style=COLOURS[claim["verdict"]])
            table.add_row(str(number) if number != asked else "", Text(label), verdict, Text(text), count)
            asked = number
    return table


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
