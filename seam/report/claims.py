"""The claims as text: Markdown, and the table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from seam.claims.comparison import ALL
from seam.claims.statistics import FAILS, HOLDS, OPEN
from seam.report.text import factor, markdown

if TYPE_CHECKING:
    from rich.table import Table

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


def print_claims(claims: Mapping[str, Any]) -> None:
    """Print the five claims about the headline, a row each: verdict, estimate with its interval, n; then the rest in
    numbers. Pooled over the models where there are several; the report's files hold each of them."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal or console.width > WIDTH:  # an engine copies the output to its log
        console = Console(highlight=False, width=WIDTH)
    design, headline = claims["design"], claims["headline"]
    models = design["models"]
    scopes = [ALL] if len(models) > 1 else models
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
    console.print(f"All {len(claims['claims'])} claims{also}: {counts}; see report/report.html.", markup=False)
    for line in claims["missing"]:
        console.print(f"- {line}", style="yellow", markup=False)


def _five(claims: Mapping[str, Any], budget: str, scopes: Sequence[str]) -> Table:
    """The headline's claims at one budget."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    headline, confidence = claims["headline"], claims["design"]["roles"]["confidence"]
    over = f", mean of {len(claims['design']['models'])} models" if scopes == [ALL] else ""
    title = f"{headline} at {budget}{over}: top-1 after finetuning, in points"
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
