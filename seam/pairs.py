"""Pairs of results to compare, and what is said about their two sides: means, spending, costs, settings."""

import math
from statistics import fmean
from typing import Any

from seam.results import JobResult, Results

ALL = "all models"  # the scope that pools the models of the grid; no alias can hold a space
Pair = tuple[JobResult, JobResult]


class Groups:
    """Results by scope, search and budget: seed -> one result a model, only for seeds that every model has."""

    def __init__(self, results: Results):
        self.results, self.params = results, results.params

    def seeds(self, scope: str, search: str, budget: str) -> dict[int, list[JobResult]]:
        models = self.params.grid.models if scope == ALL else (scope,)
        found = {n: [self.results.get(m, search, budget, n) for m in models] for n in self.params.grid.seeds}
        return {n: group for n, group in found.items() if all(group)}

    def pairs(self, scope: str, a: str, b: str, budget: str) -> dict[int, list[Pair]]:
        first, second = self.seeds(scope, a, budget), self.seeds(scope, b, budget)
        return {n: list(zip(first[n], second[n], strict=True)) for n in first if n in second}

    def present(self, search: str) -> bool:
        return any(result.job.search == search for result in self.results)


def mean_gap(group: list[Pair], key: str = "top1") -> float:
    return fmean(a.metrics[key] - b.metrics[key] for a, b in group)


def sides(search: str, against: str, flat: list[Pair]) -> dict[str, Any]:
    """Means of both sides: accuracy and what each policy really spends (a reference may spend more or less)."""
    both = {}
    for key in ("top1", "calibrated_top1", "class_margin", "bitops_g", "budget_share"):
        if all(key in result.metrics for pair in flat for result in pair):
            both[key] = {
                name: round(fmean(p[i].metrics[key] for p in flat), 6) for i, name in enumerate((search, against))
            }
    variance = fmean(sum(r.top1 * (100 - r.top1) / r.metrics["images"] for r in pair) for pair in flat)
    models = len({pair[0].job.model for pair in flat})
    both["test_standard_error"] = round(math.sqrt(variance / models), 3)
    return both


def context_of(groups: Groups, search: str, against: str, flat: list) -> dict[str, Any]:
    """What else differs between the two sides, so that a difference is not credited to the wrong cause."""
    params, context = groups.params, sides(search, against, flat) if flat else {}
    methods = [params.method(search), params.method(against)]
    first, second = (params.settings(name).model_dump(mode="json") for name in (search, against))
    differing = {key: [first[key], second[key]] for key in first if first[key] != second[key]}
    if methods[0] != methods[1]:
        context["methods"] = methods
    elif differing:
        context["settings_that_differ"] = differing
    return context


def parts_of(results: list[JobResult]) -> dict[str, float]:
    """Mean seconds of each part of a search: process start, set-up, compilation, training, solving."""
    names = dict.fromkeys(name for result in results for name in result.search_cost.get("parts", {}))
    return {name: round(fmean(r.search_cost.get("parts", {}).get(name, 0.0) for r in results), 3) for name in names}


def machines_of(flat: list[Pair]) -> list[str]:
    names = set()
    for pair in flat:
        for cost in (result.search_cost for result in pair):
            names.add(f"{cost.get('device_name') or cost.get('device')}, {cost.get('threads')} threads")
    return sorted(names)
