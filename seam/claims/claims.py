"""What the grid's results say about the method's claims: estimates, intervals and computed verdicts.

Nothing here is a fixed answer: roles (baseline, proxies, ablations, references) come from `params.claims`, and every
verdict from the numbers. How the numbers are made:

- Accuracies are compared pairwise: the same model, budget and seed on both sides, calibrated only (the policy's own
  effect) and after the same finetuning. The unit of replication is a seed (one search and its finetuning); intervals
  are two-sided Student t over seeds.
- Seeds do not act on the calibrated-only accuracy of a search that gives one policy. If both sides have one policy, the
  unit is a test image: a paired interval for the difference between these policies (`over_images`).
- Pooled over models (`"model": "all models"`): the mean over the models for each seed, then as above. The models are
  those of the grid, not a sample of all models.
- "Not worse than the direct search" means: the interval of (proxy - direct) lies above -margin_points.
  "Better" means: the interval lies above 0. An interval that includes the bound, or a single pair, decides nothing.
- Speed-up = cost(direct search) / cost(proxy search) of one pair, in seconds and in images x MACs; geometric mean.
- First come the five claims that a reader came for, about the headline, the first of `claims.proxies`: `QUESTIONS`.
"""

import math
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from seam.claims.comparison import ALL, Groups, by_image, context_of, machines_of, mean_gap, parts_of, sides
from seam.claims.statistics import FAILS, HOLDS, OPEN, Verdict, above, estimate, every, over_images
from seam.experiment.results import Results

# The paper's abstract (arXiv 2302.06845). What exactly its 300x compares is not known to us.
PAPER = {"text": "4 % of the data, the same accuracy, up to 300x cheaper", "share": 0.04, "speedup": 300.0}
COSTS = {"seconds": "seconds", "image_macs": "images x MACs"}
CALIBRATED = "_calibrated"  # ends the kind of a claim about the accuracy before finetuning
TOP1 = {"": "top1", CALIBRATED: "calibrated_top1"}  # end of a kind -> key in metrics.json

# The five claims that a reader came for, and the kinds of claim that answer each.
QUESTIONS = {
    1: ("share",),
    2: ("not_worse", "not_worse_calibrated"),
    3: ("speedup_seconds", "speedup_image_macs"),
    4: ("margin_helps", "margin_helps_calibrated"),
    5: ("better_than", "better_than_calibrated")
    + tuple(kind + end for kind in ("beats_random", "beats_random_once") for end in ("", CALIBRATED)),
}


def assess(results: Results) -> dict[str, Any]:
    """All claims about these results, as plain JSON values."""
    params, roles = results.params, results.params.claims
    models = list(params.grid.models)
    scopes = [*models, ALL] if len(models) > 1 else models
    groups = Groups(results)
    claims = list(_shares(groups))
    for budget in params.grid.budgets:
        for scope in scopes:
            claims += [claim for claim in _scope_claims(groups, scope, budget) if claim]
    claims += list(_paper(claims, groups, scopes))
    headline = next((search for search in roles.proxies if groups.present(search)), None)
    claims = _ordered(claims, groups, headline, scopes)
    return {
        "schema": "seam-claims/1",
        "design": {
            "models": models,
            "budgets": {alias: params.budget(alias) for alias in params.grid.budgets},
            "seeds": list(params.grid.seeds),
            "roles": roles.model_dump(mode="json"),
            "unit_of_replication": "seed: one search and its finetuning, paired by model, budget and seed; where both "
            "sides have one policy, calibrated-only accuracies are paired by test image, and the claim is about these "
            "policies",
            "pooling": "mean over the grid's models for each seed; the models are fixed, not a sample of models",
            "interval": f"two-sided, {roles.confidence:g}, over the units named in each estimate: Student t; over test "
            "images Wald's for pairs, adjusted by Agresti and Min",
            "multiple_comparisons": "each claim is judged by itself, without a correction for their number",
            "not_in_the_interval": "over seeds: sampling of the test images (see test_standard_error); over test "
            "images: other runs of the searches; in either: sampling of pretrained weights",
            "costs": "of the search alone; fetching, pretraining and finetuning are the same for every search, and "
            "kernels are compiled once on a machine",
        },
        "headline": headline,
        "missing": list(_missing(results)),
        "verdicts": {v: sum(c["verdict"] == v for c in claims) for v in (HOLDS, FAILS, OPEN)},
        "claims": claims,
    }


def _ordered(claims: list[dict], groups: Groups, headline: str | None, scopes: list[str]) -> list[dict]:
    """The claims with those of `QUESTIONS` about the headline in front, each with the number of its question.

    The fourth is about the headline's own margin term, or the first ablation that was run if it has none.
    """
    pairs = groups.params.claims.without_margin
    ablated = next((search for search in (headline, *pairs) if search in pairs and groups.present(search)), None)
    budgets, places = list(groups.params.grid.budgets), [*scopes[-1:], *scopes[:-1]]  # pooled first
    for claim in claims:
        number = next((n for n, kinds in QUESTIONS.items() if claim["claim"] in kinds), None)
        if number and claim["search"] == (ablated if number == 4 else headline):
            claim["question"] = number

    def place(claim: dict) -> tuple[int, int, int]:
        budget = budgets.index(claim["budget"]) if claim["budget"] else 0
        return budget, places.index(claim["model"]) if claim["question"] > 1 else -1, claim["question"]

    first = sorted((claim for claim in claims if "question" in claim), key=place)
    return first + [claim for claim in claims if "question" not in claim]


def _scope_claims(groups: Groups, scope: str, budget: str) -> Iterator[dict[str, Any] | None]:
    roles = groups.params.claims
    baseline = roles.baseline
    references = [name for name in roles.references if groups.params.method(name) != "random"]
    for proxy in roles.proxies:
        if proxy != baseline:
            for end in TOP1:
                yield _gap(groups, "not_worse" + end, scope, budget, proxy, baseline, -roles.margin_points)
            for cost in COSTS:
                yield _speedup(groups, cost, scope, budget, proxy, baseline)
    for with_margin, without in roles.without_margin.items():
        for end in TOP1:
            yield _gap(groups, "margin_helps" + end, scope, budget, with_margin, without, 0.0)
    for proxy in roles.proxies:
        for reference in references:
            if reference != proxy:
                for end in TOP1:
                    yield _gap(groups, "better_than" + end, scope, budget, proxy, reference, 0.0)
        for end in TOP1:
            yield _random_group(groups, scope, budget, proxy, end)


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


def _shares(groups: Groups) -> Iterator[dict[str, Any]]:
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


def _gap(
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


def _random_group(groups: Groups, scope: str, budget: str, search: str, end: str) -> dict[str, Any] | None:
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


def _speedup(groups: Groups, cost: str, scope: str, budget: str, search: str, against: str) -> dict[str, Any] | None:
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


def _paper(claims: list[dict], groups: Groups, scopes: list[str]) -> Iterator[dict[str, Any]]:
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
                gap = known.get(f"not_worse/{search}/{roles.baseline}/{scope}/{budget}")
                parts["accuracy"] = gap["verdict"] if gap else OPEN
                measured["top1_difference"] = gap["estimate"]["value"] if gap else None
                for cost, words in COSTS.items():
                    ratio = known.get(f"speedup_{cost}/{search}/{roles.baseline}/{scope}/{budget}")
                    part = f"{PAPER['speedup']:g}x in {words}"
                    comparable = ratio and len(ratio.get("machine", [""])) == 1
                    parts[part] = (
                        above(ratio["estimate"], PAPER["speedup"], point_decides=True).verdict if comparable else OPEN
                    )
                    measured[f"speedup_{cost}"] = ratio["estimate"]["value"] if ratio else None
                yield _claim(
                    "paper", scope, budget, search, roles.baseline if gap else None, every(parts),
                    words={"text": PAPER["text"]}, parts=parts, measured=measured,
                    note="our measurement on the datasets and models of this grid, not the paper's experiment",
                )  # fmt: skip


def _missing(results: Results) -> Iterator[str]:
    """Roles that this grid leaves empty, and what cannot be said without them."""
    params, roles = results.params, results.params.claims
    grid = params.grid.searches
    if not roles.proxies:
        yield "claims.proxies is empty: no search is looked at as a proxy search"
    for search in roles.proxies:
        if search not in grid:
            yield f"proxy search '{search}' is not in grid.searches: nothing is claimed about it"
    if roles.baseline not in grid:
        yield f"baseline '{roles.baseline}' is not in grid.searches: no gap to direct search and no speed-up"
    elif any(r.share is not None and r.share < 1 for r in results if r.job.search == roles.baseline):
        yield f"baseline '{roles.baseline}' saw only a part of the target's training images"
    if not roles.without_margin:
        yield "claims.without_margin is empty: nothing is said about the margin term"
    for pair in roles.without_margin.items():
        for search in pair:
            if search not in grid:
                yield f"'{search}' (claims.without_margin) is not in grid.searches: no comparison {' / '.join(pair)}"
    for search in roles.references:
        if search not in grid:
            yield f"reference '{search}' is not in grid.searches: no comparison with it"
    if len(params.grid.seeds) == 1:
        yield "grid.seeds holds one seed: accuracies after finetuning have no interval and are not decided"
