"""Pairs of results to compare, and what is said about their two sides: means, spending, costs, settings."""

from __future__ import annotations

import math
from statistics import fmean
from typing import TYPE_CHECKING, Any

from seam.experiment.results import JobResult, Results

if TYPE_CHECKING:
    import numpy as np

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


def mean_gap(group: list[Pair], key: str) -> float:
    return fmean(a.metrics[key] - b.metrics[key] for a, b in group)


def by_image(flat: list[Pair], key: str) -> np.ndarray:
    """[N], -1 to 1: right on the first side - right on the second for each test image, as a mean over the pairs."""
    return sum(a.right(key).astype(float) - b.right(key) for a, b in flat) / len(flat)


def policies(flat: list[Pair], side: int) -> int:
    """How many different policies a side has: the most of any model. A search without randomness has one."""
    found: dict[str, list[dict]] = {}
    for pair in flat:
        known, bits = found.setdefault(pair[side].job.model, []), pair[side].bits
        if bits not in known:
            known.append(bits)
    return max(map(len, found.values()))


def sides(search: str, against: str, flat: list[Pair], key: str) -> dict[str, Any]:
    """Means of both sides: accuracy and what each policy really spends (a reference may spend more or less).

    test_standard_error: of the difference in `key`, in points, by the choice of the test images.
    """
    both: dict[str, Any] = {}
    names = list(enumerate((search, against)))
    for name in ("top1", "calibrated_top1", "class_margin", "bitops_g", "budget_share"):
        if all(result.metrics.get(name) is not None for pair in flat for result in pair):
            both[name] = {side: round(fmean(p[i].metrics[name] for p in flat), 6) for i, side in names}
    both["policies"] = {side: policies(flat, i) for i, side in names}
    differences = by_image(flat, key)
    both["test_standard_error"] = round(100 * float(differences.std()) / math.sqrt(len(differences)), 3)
    return both


def context_of(groups: Groups, search: str, against: str) -> dict[str, Any]:
    """What else differs between the sides, methods or else settings, lest a difference be credited to a wrong cause."""
    params, context = groups.params, {}
    methods = [params.method(search), params.method(against)]
    first, second = (params.settings(name).model_dump(mode="json") for name in (search, against))
    differing = {key: [first[key], second[key]] for key in first if first[key] != second[key]}
    if methods[0] != methods[1]:
        context["methods"] = methods
    elif differing:
        context["settings_that_differ"] = differing
    return context


def parts_of(results: list[JobResult]) -> dict[str, float]:
    """Mean seconds of each part of a search: process start, set-up, kernels, sensitivities, training, solving."""
    names = dict.fromkeys(name for result in results for name in result.search_cost.get("parts", {}))
    return {name: round(fmean(r.search_cost.get("parts", {}).get(name, 0.0) for r in results), 3) for name in names}


def machines_of(flat: list[Pair]) -> list[str]:
    names = set()
    for pair in flat:
        for cost in (result.search_cost for result in pair):
            names.add(f"{cost.get('device_name') or cost.get('device')}, {cost.get('threads')} threads")
    return sorted(names)
