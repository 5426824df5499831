"""Exact bit assignment: from a table of preferences to the best policy within the budgets, by an integer programme."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, csr_array

from seam.cost import Budget
from seam.errors import SeamError

# Preferences are rounded to this share of their spread: below it, two choices count as a tie, broken by name.
_RESOLUTION = 1e-5
_SCALE = 1e4  # lifts the tie-break above HiGHS's absolute gap of 1e-6


def assign(
    preferences: np.ndarray,
    names: Sequence[str],
    bits: Sequence[int],
    budgets: Sequence[Budget],
    spend: float = 0.97,
    allowed: np.ndarray | None = None,
) -> list[tuple[int, int]]:
    """Choose (weight bits, activation bits) for each layer: the greatest sum of preferences within all budgets.

    Solves  max sum_lwa P_lwa x_lwa  s.t.  sum_wa x_lwa = 1,  sum C_lwa x_lwa <= limit,  x binary  (HiGHS, exact).
    The first budget is also spent to at least the share `spend` where some policy does so; where none does, the
    programme is solved without that floor. Ties go to the layer whose name comes first.

    Args:
        preferences: [L, B, B], higher is better.
        names: of the L layers.
        bits: the B candidate bit-widths, ascending.
        budgets: limits with tables [L, B, B].
        allowed: optional [L, B, B] mask of permitted choices.

    Raises: SeamError if no policy meets all budgets.
    """
    count, width = preferences.shape[0], preferences[0].size
    spread = float(np.ptp(preferences)) or 1.0
    gain = np.round((preferences - preferences.min()) / spread / _RESOLUTION) * _RESOLUTION
    gain = gain.reshape(count, width) + _tie_break(names, bits)
    one_each = csr_array(
        coo_array((np.ones(count * width), (np.repeat(np.arange(count), width), np.arange(count * width))))
    )
    upper = np.ones(count * width) if allowed is None else allowed.reshape(-1).astype(float)
    # Least costs are subtracted and limits scaled to 1, so that the solver's absolute tolerance means the same for all.
    rows = [budget.table.reshape(1, -1) / budget.limit for budget in budgets]

    def solve(floor: float) -> np.ndarray | None:
        constraints = [LinearConstraint(one_each, 1, 1)]
        for i, row in enumerate(rows):
            constraints.append(LinearConstraint(row, floor if i == 0 else -np.inf, 1 + 1e-10))
        result = milp(
            -_SCALE * gain.reshape(-1),
            integrality=np.ones(count * width),
            bounds=Bounds(0, upper),
            constraints=constraints,
            options={"mip_rel_gap": 0.0, "time_limit": 120},
        )
        return None if result.x is None else result.x.reshape(count, width).argmax(1)

    chosen = None
    if rows and rows[0].reshape(count, width).max(1).sum() >= spend:
        chosen = solve(spend)
    if chosen is None:
        chosen = solve(-np.inf)
    if chosen is None:
        limits = ", ".join(budget.spec for budget in budgets)
        raise SeamError(f"no policy meets all of: {limits}; loosen one of them or unlock layers")
    assigned = [(bits[c // len(bits)], bits[c % len(bits)]) for c in chosen.tolist()]
    for budget in budgets:
        spent = budget.cost(assigned)
        if spent > budget.limit * (1 + 1e-9):
            raise AssertionError(f"the solver's policy costs {spent}, over the budget of {budget.limit}")
    return assigned


def _tie_break(names: Sequence[str], bits: Sequence[int]) -> np.ndarray:
    """[L, B*B] bonus far below the resolution of preferences: bits go to layers that come first by name."""
    rank = np.empty(len(names))
    rank[np.argsort(np.array(names, dtype=str), kind="stable")] = np.arange(len(names), 0, -1) / len(names)
    levels = np.add.outer(np.array(bits, float) * 1.001, np.array(bits, float)).reshape(-1) / max(bits)
    return rank[:, None] * levels[None] * _RESOLUTION * 0.1
