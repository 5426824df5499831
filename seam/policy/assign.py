"""Exact bit assignment: from a table of preferences to the best policy within the budgets, by an integer programme."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, csr_array

from seam.errors import SeamError
from seam.policy.cost import Budget

# Preferences are rounded to this share of their spread: below it, two choices count as a tie, broken by name.
_RESOLUTION = 1e-5
_TOLERANCE = 2e-6  # HiGHS takes a row that is exceeded by 1e-6 for met
_SCALE = 1e4  # lifts the tie-break above HiGHS's absolute gap of 1e-6


def assign(
    preferences: np.ndarray,
    names: Sequence[str],
    bits: Sequence[int],
    budgets: Sequence[Budget],
    spend: float = 0.97,
    groups: Sequence[str] | None = None,
) -> list[tuple[int, int]]:
    """Choose (weight bits, activation bits) for each layer: the greatest sum of preferences within all budgets.

    Solves  max sum_lwa P_lwa x_lwa  s.t.  sum_wa x_lwa = 1,  sum C_lwa x_lwa <= limit,  x binary  (HiGHS, exact),
    and  sum_w x_lwa = sum_w x_kwa  for all a where layers l and k are of one group (`seam.models`). The first budget is
    also spent to at least the share `spend` where some policy does so; where none does, the programme is solved without
    that floor. Ties go to the layer whose name comes first. To trace a curve, call it with one budget after another.

    Args:
        preferences: [L, B, B], higher is better.
        names: of the L layers.
        bits: the B candidate bit-widths, ascending.
        budgets: limits with tables [L, B, B], and the pairs of bits that are allowed.
        groups: group of each of the L layers; those of one group get the same activation bits. None: as the budgets
            say.

    Raises: SeamError if no policy meets all budgets.
    """
    count, width = preferences.shape[0], preferences[0].size
    spread = float(np.ptp(preferences)) or 1.0
    gain = np.round((preferences - preferences.min()) / spread / _RESOLUTION) * _RESOLUTION
    gain = gain.reshape(count, width) + _tie_break(names, bits)
    upper = _upper(budgets, count, width)
    if groups is None:
        groups = next((budget.groups for budget in budgets if budget.groups), names)
    structure = _structure(groups, len(bits))
    rows = [_row(budget) for budget in budgets]

    def solve(floor: float, slack: float) -> np.ndarray | None:
        limits = [
            LinearConstraint(row, floor - used if i == 0 else -np.inf, 1 - used - slack)
            for i, (row, used) in enumerate(rows)
        ]
        return _solve(-_SCALE * gain.reshape(-1), upper, [*structure, *limits], count)

    floors = [-np.inf]
    if budgets and budgets[0].reach()[1] >= spend * budgets[0].limit:
        floors = [spend, -np.inf]
    for floor in floors:
        for slack in (-1e-10, _TOLERANCE):  # exact as far as floats go; else safe from the solver's tolerance
            chosen = solve(floor, slack)
            if chosen is None:
                break
            assigned = [(bits[c // len(bits)], bits[c % len(bits)]) for c in chosen.tolist()]
            if all(budget.cost(assigned) <= budget.limit * (1 + 1e-9) for budget in budgets):
                return assigned
    limits = ", ".join(budget.spec for budget in budgets)
    raise SeamError(f"no policy meets all of: {limits}; loosen one of them or unlock layers")


def raise_free(
    assigned: Sequence[tuple[int, int]],
    bits: Sequence[int],
    budgets: Sequence[Budget],
    groups: Sequence[str] | None = None,
) -> list[tuple[int, int]]:
    """Raise bits that cost nothing: each layer keeps to its cost in every budget with the widest bits there are.

    A budget in MB leaves activations free, a latency table of max(w, a) the narrower of the two. Preferences are not
    asked: at equal cost wider is never worse, only an estimate, or a random number, may say so. No bits are lowered. Of
    several ways up the balanced one is taken: the greatest sum of min(w, a), then of w + a, over the layers of a group.

    Args:
        assigned: (weight bits, activation bits) of the L layers, as `assign` returns them.
        bits, budgets, groups: as for `assign`.
    """
    if groups is None:
        groups = next((budget.groups for budget in budgets if budget.groups), range(len(assigned)))
    raised, place = list(assigned), {b: i for i, b in enumerate(bits)}
    pairs = budgets[0].pairs()

    def cost(layer: int, w: int, a: int) -> np.ndarray:
        return np.array([budget.table[layer, place[w], place[a]] for budget in budgets])

    for name in dict.fromkeys(groups):
        layers = [i for i, group in enumerate(groups) if group == name]
        found = []
        for a in (b for b in bits if b >= assigned[layers[0]][1]):
            widest = [
                max(
                    (
                        w
                        for w in bits
                        if w >= assigned[i][0] and (w, a) in pairs and (cost(i, w, a) <= cost(i, *assigned[i])).all()
                    ),
                    default=0,
                )
                for i in layers
            ]
            if all(widest):
                found.append((sum(min(w, a) for w in widest), sum(w + a for w in widest), a, widest))
        *_, a, widest = max(found)
        for i, w in zip(layers, widest, strict=True):
            raised[i] = w, a
    return raised


def check_together(budgets: Sequence[Budget], names: Sequence[str]) -> None:
    """Raise SeamError unless some policy meets all budgets, naming the first that its predecessors rule out.

    Args:
        names: of the L searchable layers.
    """
    count, width = budgets[0].table.shape[0], budgets[0].table[0].size
    structure = _structure(budgets[0].groups or names, len(budgets[0].bits))
    for i, budget in enumerate(budgets[1:], start=1):
        limits = []
        for earlier in budgets[:i]:
            row, used = _row(earlier)
            limits.append(LinearConstraint(row, -np.inf, 1 - used + 1e-10))
        row, used = _row(budget)
        chosen = _solve(row.reshape(-1), _upper(budgets, count, width), [*structure, *limits], count)
        if chosen is None:  # the earlier ones were found to go together within the solver's tolerance only
            raise SeamError(f"no policy meets all of: {', '.join(b.spec for b in budgets)}")
        least = row.reshape(count, width)[np.arange(count), chosen].sum() + used
        if least > 1 + 1e-9:
            unit = budget.UNITS[budget.kind]
            within = ", ".join(earlier.spec for earlier in budgets[:i])
            raise SeamError(
                f"no policy meets all of: {', '.join(b.spec for b in budgets)}; within {within} the reachable range "
                f"starts at {least * budget.limit:.6g} {unit}, over {budget.spec}"
            )


def _row(budget: Budget) -> tuple[np.ndarray, float]:
    """[1, L*B*B] share of the limit that each choice costs, and the share that locked layers cost.

    In shares, the solver's absolute tolerance means the same for all budgets.
    """
    return budget.table.reshape(1, -1) / budget.limit, budget.base / budget.limit


def _upper(budgets: Sequence[Budget], count: int, width: int) -> np.ndarray:
    """[L*B*B] bounds of the choices: 0 where a pair of bits is not allowed."""
    allowed = next((budget.allowed for budget in budgets if budget.allowed is not None), np.ones(width))
    return np.tile(allowed.reshape(-1).astype(float), count)


def _structure(groups: Sequence[str], width: int) -> list[LinearConstraint]:
    """One choice a layer, and equal activation bits within a group; over variables [L, width, width]."""
    index = np.arange(len(groups) * width**2).reshape(len(groups), width, width)
    each = coo_array((np.ones(index.size), (np.repeat(np.arange(len(groups)), width**2), index.reshape(-1))))
    constraints = [LinearConstraint(csr_array(each), 1, 1)]
    first: dict[str, int] = {}
    pairs = [(first.setdefault(name, i), i) for i, name in enumerate(groups)]
    ties = [(one, other, a) for one, other in pairs if one != other for a in range(width)]
    if ties:
        columns = np.concatenate([np.concatenate([index[one, :, a], index[other, :, a]]) for one, other, a in ties])
        signs = np.tile(np.repeat([1.0, -1.0], width), len(ties))
        places = np.repeat(np.arange(len(ties)), 2 * width)
        matrix = csr_array(coo_array((signs, (places, columns)), shape=(len(ties), index.size)))
        constraints.append(LinearConstraint(matrix, 0, 0))
    return constraints


def _solve(costs: np.ndarray, upper: np.ndarray, constraints: list, count: int) -> np.ndarray | None:
    """[L] index of each layer's choice at least cost, None where the programme has no solution."""
    result = milp(
        costs,
        integrality=np.ones(len(costs)),
        bounds=Bounds(0, upper),
        constraints=constraints,
        options={"mip_rel_gap": 0.0, "time_limit": 600},
    )
    if result.status == 1:
        raise SeamError("the bit assignment is not solved after 10 minutes; use fewer budgets, or lock some layers")
    return None if result.x is None else result.x.reshape(count, -1).argmax(1)


def _tie_break(names: Sequence[str], bits: Sequence[int]) -> np.ndarray:
    """[L, B*B] bonus far below the resolution of preferences: bits go to layers that come first by name."""
    rank = np.empty(len(names))
    rank[np.argsort(np.array(names, dtype=str), kind="stable")] = np.arange(len(names), 0, -1) / len(names)
    levels = np.add.outer(np.array(bits, float) * 1.001, np.array(bits, float)).reshape(-1) / max(bits)
    return rank[:, None] * levels[None] * _RESOLUTION * 0.1
