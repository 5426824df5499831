"""Uniform policies: every layer at the widest single (weight, activation) pair that the budget allows. Sees no data."""

import numpy as np

from seam.errors import SeamError
from seam.search.problem import Problem

NETWORK = False
SPEND = 0.0  # one pair for all layers: part of the budget may stay unspent


def preferences(problem: Problem) -> np.ndarray:
    """[L, B, B] with the preferred pair of all layers at 0 and all others far below.

    Among the pairs within all budgets the costliest is taken; of equal ones the most balanced, then the one with more
    weight bits.
    """
    bits = problem.settings.bits
    costs = [(b.base + b.table.sum(0), b.limit * (1 + 1e-9)) for b in problem.budgets]
    pairs = [
        (costs[0][0][i, j], -abs(w - a), w, i, j)
        for i, w in enumerate(bits)
        for j, a in enumerate(bits)
        if all(cost[i, j] <= limit for cost, limit in costs)
    ]
    if not pairs:
        specs = ", ".join(budget.spec for budget in problem.budgets)
        raise SeamError(f"budget {specs}: no uniform policy of {list(bits)} bits meets it")
    *_, i, j = max(pairs)
    table = np.full(problem.budgets[0].table.shape, -1.0)
    table[:, i, j] = 0.0
    problem.report["uniform"] = [bits[i], bits[j]]
    return table
