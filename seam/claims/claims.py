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
  "Better" means: the interval lies above 0. An interval that includes the bound decides nothing, nor does a single
  value without an interval.
- Speed-up = cost(direct search) / cost(proxy search) of one pair, in seconds and in images x MACs; geometric mean.
- First come the five claims that a reader came for, about the headline, the first of `claims.proxies`: `QUESTIONS`.
"""

from collections.abc import Iterator
from typing import Any

from seam.claims.comparison import ALL, Groups
from seam.claims.kinds import CALIBRATED, COSTS, TOP1, gap, paper, random_gap, shares, speedup
from seam.claims.statistics import FAILS, HOLDS, OPEN
from seam.experiment.results import Results

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
    claims = list(shares(groups))
    for budget in params.grid.budgets:
        for scope in scopes:
            claims += [claim for claim in _scope_claims(groups, scope, budget) if claim]
    claims += list(paper(claims, groups, scopes))
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
                yield gap(groups, "not_worse" + end, scope, budget, proxy, baseline, -roles.margin_points)
            for cost in COSTS:
                yield speedup(groups, cost, scope, budget, proxy, baseline)
    for with_margin, without in roles.without_margin.items():
        for end in TOP1:
            yield gap(groups, "margin_helps" + end, scope, budget, with_margin, without, 0.0)
    for proxy in roles.proxies:
        for reference in references:
            if reference != proxy:
                for end in TOP1:
                    yield gap(groups, "better_than" + end, scope, budget, proxy, reference, 0.0)
        for end in TOP1:
            yield random_gap(groups, scope, budget, proxy, end)


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
        yield (
            "grid.seeds holds one seed: accuracies after finetuning have no interval and are not decided, "
            "but against several random policies"
        )
