"""Uniform policies: every layer at the widest single (weight, activation) pair that the budget allows. Sees no data."""

import numpy as np

from seam.errors import SeamError
from seam.search.problem import Problem

NETWORK = False
SPEND = 0.0  # one pair for all layers: part of the budget may stay unspent
RAISE = False  # and where a single layer could have more at no cost, it does not


def preferences(problem: Problem) -> np.ndarray:
    """[L, B, B] with the preferred pair of all layers at 0 and all others far below.

    Among the pairs within all budgets, those are left out for which a wider one costs no more: a budget in MB leaves
    activations the widest bits. Of the rest the costliest is taken; of equal ones the most balanced, then the one with
    more weight bits.
    """
    bits = problem.settings.bits
    costs = [(b.base + b.table.sum(0), b.limit * (1 + 1e-9)) for b in problem.budgets]
    place = {b: i for i, b in enumerate(bits)}
    every = [(place[w], place[a]) for w, a in problem.budgets[0].pairs()]
    within = [pair for pair in every if all(cost[pair] <= limit for cost, limit in costs)]

    def beaten(pair: tuple[int, int]) -> bool:
        wider = (more for more in within if more != pair and more[0] >= pair[0] and more[1] >= pair[1])
        return any(all(cost[more] <= cost[pair] for cost, _ in costs) for more in wider)

    pairs = [(costs[0][0][i, j], -abs(bits[i] - bits[j]), bits[i], i, j) for i, j in within if not beaten((i, j))]
    if not pairs:
        specs = ", ".join(budget.spec for budget in problem.budgets)
        raise SeamError(f"budget {specs}: no uniform policy of {list(bits)} bits meets it")
    *_, i, j = max(pairs)
    table = np.full(problem.budgets[0].table.shape, -1.0)
    table[:, i, j] = 0.0
    problem.report["uniform"] = [bits[i], bits[j]]
    return table
