"""The kinds of claim: each compares two sides over its pairs, estimates, and judges the estimate."""

import math
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from seam.claims.comparison import ALL, Groups, by_image, context_of, machines_of, mean_gap, parts_of, sides
from seam.claims.statistics import FAILS, HOLDS, OPEN, Verdict, above, estimate, every, over_images

# The paper's abstract (arXiv 2302.06845). What exactly its 300x compares is not known to us.
PAPER = {"text": "4 % of the data, the same accuracy, up to 300x cheaper", "share": 0.04, "speedup": 300.0}
COSTS = {"seconds": "seconds", "image_macs": "images x MACs"}
CALIBRATED = "_calibrated"  # ends the kind of a claim about the accuracy before finetuning
TOP1 = {"": "top1", CALIBRATED: "calibrated_top1"}  # end of a kind -> key in metrics.json


STATEMENTS = {
    "share": "{search} searches on at most {bound:.0%} as many images as the target has for training",
    "not_worse": "{search}: {top1} is not more than {points:g} points below {against} (direct search)",
    "margin_helps": "{search}: {top1} is higher than that of {against}, the same search without the margin term",
    "better_than": "{search}: {top1} is higher than that of {against}",
    "beats_random": "{search}: {top1} is higher than the mean of random policies",
    "beats_random_once": "{search}, this one run: {top1} is higher than the mean of random policies",
    "speedup_seconds": "{search} takes less time than {against} (direct search)",
    "speedup_image_macs": "{search} does fewer images x MACs than {against} (direct search)",
    "paper": "{search}: {text}",
}


def _claim(
    kind: str, scope: str, budget: str | None, search: str, against: str | None, verdict: Verdict, **rest
) -> dict:
    top1 = "calibrated-only top-1" if kind.endswith(CALIBRATED) else "top-1 after finetuning"
    words = {"search": search, "against": against, "top1": top1, **rest.pop("words", {})}
    return {
        "id": "/".join(filter(None, [kind, search, against, scope, budget])),
        "claim": kind,
        "model": scope,
        "budget": budget,
        "search": search,
        "against": against,
        "statement": STATEMENTS[kind.removesuffix(CALIBRATED)].format(**words),
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        **rest,
    }


def shares(groups: Groups) -> Iterator[dict[str, Any]]:
    """How much of the target's data each proxy search saw, against the paper's 4 %."""
    for search in groups.params.claims.proxies:
        found = {r.job.model: r for r in groups.results if r.job.search == search and r.share is not None}
        if not found:
            continue
        share = max(result.share for result in found.values())
        ok = share <= PAPER["share"] + 1e-9
        verdict = Verdict(HOLDS if ok else FAILS, f"{share:.2%} against {PAPER['share']:.0%}, the paper's figure")
        seen = max(found.values(), key=lambda result: result.share)
        yield _claim(
            "share", ALL, None, search, None, verdict, words={"bound": PAPER["share"]},
            estimate={"value": share, "interval": None, "no_interval": "counted, not sampled", "n": 1, "unit": "count"},
            bound=PAPER["share"], images=seen.proxy["count"], target_images=round(seen.proxy["count"] / share),
            proxy=seen.proxy_name,
        )  # fmt: skip


def gap(
    groups: Groups, kind: str, scope: str, budget: str, search: str, against: str, bound: float
) -> dict[str, Any] | None:
    """Top-1 of `search` minus top-1 of `against` in percentage points; None when no pair exists."""
    pairs = groups.pairs(scope, search, against, budget)
    if not pairs:
        return None
    key = TOP1[CALIBRATED if kind.endswith(CALIBRATED) else ""]
    flat = [pair for group in pairs.values() for pair in group]
    more = {**sides(search, against, flat, key), **context_of(groups, search, against)}
    # Finetuning has a seed of its own, calibration has none: without other policies its seeds are copies.
    words: dict[str, Any] = {"points": -bound}
    if key == TOP1[CALIBRATED] and set(more["policies"].values()) == {1}:
        estimated = over_images(by_image(flat, key), groups.params.claims.confidence)
        words["search"] = f"{search} as searched here"
    else:
        values = {n: mean_gap(group, key) for n, group in pairs.items()}
        estimated = estimate(values, groups.params.claims.confidence, "seed")
    return _claim(
        kind, scope, budget, search, against, above(estimated, bound), words=words,
        estimate={**estimated, "of": f"{key} difference, percentage points"}, bound=bound, **more,
    )  # fmt: skip


def random_gap(groups: Groups, scope: str, budget: str, search: str, end: str) -> dict[str, Any] | None:
    """`search` against the mean of all random policies: seeds are the unit, or the policies when there is one seed.

    A search by the method `random` gives another policy for each seed and draw, so that one such search will do.
    """
    draws = [r for r in groups.params.claims.references if groups.params.method(r) == "random" and r != search]
    paired = {draw: groups.pairs(scope, search, draw, budget) for draw in draws}
    paired = {draw: pairs for draw, pairs in paired.items() if pairs}
    key = TOP1[end]
    by_draw = {draw: {n: mean_gap(group, key) for n, group in pairs.items()} for draw, pairs in paired.items()}
    seeds = sorted(set.intersection(*map(set, by_draw.values()))) if by_draw else []
    if not seeds:
        return None
    if len(seeds) > 1:
        values = {n: fmean(gaps[n] for gaps in by_draw.values()) for n in seeds}
        kind, unit = "beats_random", "seed"
    else:
        values = {draw: gaps[seeds[0]] for draw, gaps in by_draw.items()}
        kind, unit = "beats_random_once", "random policy"
    estimated = estimate(values, groups.params.claims.confidence, unit)
    flat = [pair for pairs in paired.values() for n in seeds for pair in pairs[n]]
    name = f"random (mean of {len(paired)})" if len(paired) > 1 else next(iter(paired))
    return _claim(
        kind + end, scope, budget, search, name, above(estimated, 0.0),
        estimate={**estimated, "of": f"{key} difference, percentage points"},
        bound=0.0, **sides(search, name, flat, key),
    )  # fmt: skip


def speedup(groups: Groups, cost: str, scope: str, budget: str, search: str, against: str) -> dict[str, Any] | None:
    """cost(against) / cost(search): above 1 is cheaper. None when no pair exists or the search sees no images."""
    pairs = groups.pairs(scope, search, against, budget)
    flat = [pair for group in pairs.values() for pair in group]
    if not flat or not all(result.searched for pair in flat for result in pair):
        return None
    values = {
        n: math.exp(fmean(math.log(b.search_cost[cost] / a.search_cost[cost]) for a, b in group))
        for n, group in pairs.items()
    }
    unit = {"seconds": "timed pair", "image_macs": "counted pair"}[cost]
    estimated = estimate(values, groups.params.claims.confidence, unit, ratio=True)
    verdict, machines = above(estimated, 1.0, point_decides=True), machines_of(flat)
    rest = {"estimate": {**estimated, "of": f"ratio of {COSTS[cost]}, direct / proxy"}, "bound": 1.0}
    rest["cost"] = {name: fmean(pair[i].search_cost[cost] for pair in flat) for i, name in enumerate((search, against))}
    if cost == "seconds":
        rest["machine"] = machines
        rest["seconds_by_part"] = {name: parts_of([p[i] for p in flat]) for i, name in enumerate((search, against))}
        if len(machines) > 1:
            verdict = Verdict(OPEN, f"timed on different machines: {'; '.join(machines)}")
    return _claim(
        f"speedup_{cost}", scope, budget, search, against, verdict, **rest, **context_of(groups, search, against)
    )


def paper(claims: list[dict], groups: Groups, scopes: list[str]) -> Iterator[dict[str, Any]]:
    """The abstract's sentence beside what was measured here, part by part."""
    known = {claim["id"]: claim for claim in claims}
    roles = groups.params.claims
    for budget in groups.params.grid.budgets:
        for scope in scopes:
            for search in roles.proxies:
                share = known.get(f"share/{search}/{ALL}")
                if not share or search == roles.baseline:
                    continue
                parts, measured = {"share": share["verdict"]}, {"share": share["estimate"]["value"]}
                worse = known.get(f"not_worse/{search}/{roles.baseline}/{scope}/{budget}")
                parts["accuracy"] = worse["verdict"] if worse else OPEN
                measured["top1_difference"] = worse["estimate"]["value"] if worse else None
                for cost, words in COSTS.items():
                    ratio = known.get(f"speedup_{cost}/{search}/{roles.baseline}/{scope}/{budget}")
                    part = f"{PAPER['speedup']:g}x in {words}"
                    comparable = ratio and len(ratio.get("machine", [""])) == 1
                    parts[part] = (
                        above(ratio["estimate"], PAPER["speedup"], point_decides=True).verdict if comparable else OPEN
                    )
                    measured[f"speedup_{cost}"] = ratio["estimate"]["value"] if ratio else None
                yield _claim(
                    "paper", scope, budget, search, roles.baseline if worse else None, every(parts),
                    words={"text": PAPER["text"]}, parts=parts, measured=measured,
                    note="our measurement on the datasets and models of this grid, not the paper's experiment",
                )  # fmt: skip
