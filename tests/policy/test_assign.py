import itertools

import numpy as np
import pytest

from seam.errors import SeamError
from seam.models.layers import Layer
from seam.policy.assign import assign, raise_free
from seam.policy.budget import parse_budget, parse_budgets

BITS = (2, 3, 4, 5, 6)


def layers(macs, names=None):
    names = names or [f"layer{i}" for i in range(len(macs))]
    inner = [Layer(n, m, 10, False) for n, m in zip(names, macs, strict=True)]
    return [Layer("stem", 5, 5, True), *inner, Layer("head", 5, 5, True)]


def brute_force(preferences, budget, bits, floor):
    pairs = list(itertools.product(range(len(bits)), repeat=2))
    best = None
    for choice in itertools.product(pairs, repeat=len(preferences)):
        cost = sum(budget.table[i, w, a] for i, (w, a) in enumerate(choice))
        if floor * budget.limit <= cost <= budget.limit * (1 + 1e-12):
            value = sum(preferences[i, w, a] for i, (w, a) in enumerate(choice))
            best = max(best or (value, choice), (value, choice))
    return best[0]


@pytest.mark.parametrize("seed", range(5))
def test_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    bits = (2, 4, 6)
    budget = parse_budget("w4a4", layers(rng.integers(100, 1000, 4)), bits)
    preferences = rng.normal(size=(4, 3, 3))
    assigned = assign(preferences, ["a", "b", "c", "d"], bits, [budget], spend=0.9)
    index = {b: i for i, b in enumerate(bits)}
    value = sum(preferences[i, index[w], index[a]] for i, (w, a) in enumerate(assigned))
    assert value == pytest.approx(brute_force(preferences, budget, bits, 0.9), abs=1e-4)


@pytest.mark.parametrize("spec", ["w2a2", "w3a3", "w4a2", "w5a6", "0.00004 GBitOPs", "3.3 bits"])
def test_never_over_budget_and_spends_it(spec):
    rng = np.random.default_rng(1)
    some = layers(rng.integers(1000, 100_000, 12))
    budget = parse_budget(spec, some, BITS) if "G" not in spec else parse_budget("0.008 GBitOPs", some, BITS)
    # A preference for few bits: without the floor the budget would stay unspent.
    preferences = -np.add.outer(BITS, BITS)[None].repeat(12, 0).astype(float)
    share = budget.cost(assign(preferences, [f"l{i:02}" for i in range(12)], BITS, [budget])) / budget.limit
    assert 0.97 - 1e-9 <= share <= 1 + 1e-9


def best_of_all(preferences, budgets, bits, groups, floor, pairs=()):
    """Value of the best policy by enumeration, None if there is none."""
    pairs = [(bits.index(w), bits.index(a)) for w, a in pairs or itertools.product(bits, repeat=2)]
    values = []
    for choice in itertools.product(pairs, repeat=len(preferences)):
        tied = {}
        if any(tied.setdefault(group, a) != a for group, (_, a) in zip(groups, choice, strict=True)):
            continue
        costs = [b.base + sum(b.table[i, w, a] for i, (w, a) in enumerate(choice)) for b in budgets]
        if all(cost <= b.limit * (1 + 1e-12) for cost, b in zip(costs, budgets, strict=True)):
            value = sum(preferences[i, w, a] for i, (w, a) in enumerate(choice))
            values.append((costs[0] >= floor * budgets[0].limit, value))
    return max(values)[1] if values else None


@pytest.mark.parametrize("seed", range(12))
def test_equals_brute_force_with_ties_locks_and_two_budgets(seed):
    rng = np.random.default_rng(seed)
    bits = (2, 4, 6)
    groups = [["a", "a", "b", "b"], ["a", "b", "a", "a"], ["a", "b", "c", "a"]][seed % 3]
    some = [
        Layer(name, int(m), int(p), False, group)
        for name, m, p, group in zip("wxyz", rng.integers(100, 999, 4), rng.integers(10, 99, 4), groups, strict=True)
    ]
    some.append(Layer("lock", 300, 30, True, bits=(8, 3), counted=True))
    if seed % 2:
        budgets = [parse_budget("w4a5", some, bits), parse_budget("3.6 bits", some, bits)]
    else:
        budgets = [parse_budget("4 bits", some, bits), parse_budget("w4a3", some, bits)]
    preferences = rng.normal(size=(4, 3, 3))
    assigned = assign(preferences, list("wxyz"), bits, budgets, spend=0.9)
    assert assigned == assign(preferences, list("wxyz"), bits, budgets, spend=0.9)
    tied = {}
    assert all(tied.setdefault(group, a) == a for group, (_, a) in zip(groups, assigned, strict=True))
    index = {b: i for i, b in enumerate(bits)}
    value = sum(preferences[i, index[w], index[a]] for i, (w, a) in enumerate(assigned))
    assert value == pytest.approx(best_of_all(preferences, budgets, bits, groups, 0.9), abs=1e-4)
    assert all(budget.cost(assigned) <= budget.limit for budget in budgets)


def test_ties_change_the_choice():
    preferences = np.zeros((2, 5, 5))
    preferences[0, :, 4] = preferences[1, :, 0] = 1.0
    some = layers([1000, 1000])
    free = assign(preferences, ["a", "b"], BITS, [parse_budget("w6a6", some, BITS)], spend=0)
    assert [a for _, a in free] == [6, 2]
    tied = assign(preferences, ["a", "b"], BITS, [parse_budget("w6a6", some, BITS)], spend=0, groups=["g", "g"])
    assert tied[0][1] == tied[1][1]


def test_a_budget_that_cannot_be_spent_is_left_unspent():
    budget = parse_budget("100 GBitOPs", layers([1000, 1000]), BITS)
    share = budget.cost(assign(np.zeros((2, 5, 5)), ["a", "b"], BITS, [budget])) / budget.limit
    assert share < 0.97


@pytest.mark.parametrize("names", [["a", "b", "c"], ["c", "b", "a"], ["b", "a", "c"]])
def test_ties_are_broken_by_name(names):
    bits = (2, 4)
    some = layers([1000, 1000, 1000], names)
    # Room for one layer at 4/4 and the others at 2/2; no preference among equal layers.
    budget = parse_budget("0.000024 GBitOPs", some, bits)
    table = np.zeros((3, 2, 2))
    table[:, 1, 1] = 1.0
    assigned = dict(zip(names, assign(table, names, bits, [budget]), strict=True))
    assert assigned == {"a": (4, 4), "b": (2, 2), "c": (2, 2)}


PAIRS = [(4, 6), (6, 6), (4, 4), (2, 4)]


@pytest.mark.parametrize("seed", range(6))
def test_only_allowed_pairs_are_chosen_and_the_best_of_them(seed):
    rng = np.random.default_rng(seed)
    bits, groups = (2, 4, 6), ["a", "b", "a", "c"]
    some = [
        Layer(name, int(m), 10, False, group)
        for name, m, group in zip("wxyz", rng.integers(100, 999, 4), groups, strict=True)
    ]
    budgets = [parse_budget("w4a5", some, bits, pairs=PAIRS), parse_budget("4.6 bits", some, bits, pairs=PAIRS)]
    preferences = rng.normal(size=(4, 3, 3))
    assigned = assign(preferences, list("wxyz"), bits, budgets, spend=0)
    assert set(assigned) <= set(PAIRS)
    value = sum(preferences[i, bits.index(w), bits.index(a)] for i, (w, a) in enumerate(assigned))
    assert value == pytest.approx(best_of_all(preferences, budgets, bits, groups, 0, PAIRS), abs=1e-4)


def test_the_reach_of_a_budget_is_that_of_allowed_pairs():
    some = [Layer("a", 1000, 10, False, "g"), Layer("b", 500, 10, False, "g"), Layer("c", 100, 10, False)]
    budget = parse_budget("w6a6", some, (2, 4, 6), pairs=[(4, 6), (6, 6), (6, 2)])
    assert budget.reach() == pytest.approx((1600 * 12 / 1e9, 1600 * 36 / 1e9))
    with pytest.raises(SeamError, match="no policy can meet"):
        parse_budget("w4a4", some, (2, 4, 6), pairs=[(4, 6), (6, 6)])
    together = [parse_budget(spec, some, (2, 4, 6), pairs=[(2, 6), (6, 2)]) for spec in ("w6a2", "5 bits")]
    assert together[1].reach()[0] == 2  # though not where inputs have 2 bits, nor with others
    free = assign(np.zeros((3, 3, 3)), list("abc"), (2, 4, 6), together, spend=0)
    assert set(free) <= {(2, 6), (6, 2)}


def test_bits_are_raised_to_allowed_pairs_only():
    some = layers([1000, 1000])
    budget = parse_budget("8 bits", some, BITS, pairs=[(2, 4), (3, 3), (3, 5), (4, 6)])
    assert raise_free([(3, 3), (2, 4)], BITS, [budget]) == [(3, 5), (2, 4)]


def test_budgets_that_allowed_pairs_do_not_meet_together_are_refused():
    some = layers([1000, 1000])
    with pytest.raises(SeamError, match="no policy meets all of: 2 bits, w2a3"):
        parse_budgets("2 bits, w2a3", some, BITS, pairs=[(2, 6), (3, 2)])


def test_budgets_that_contradict_are_refused():
    some = layers([1000, 1000])
    budgets = [parse_budget(spec, some, BITS, check=False, pairs=[(6, 6)]) for spec in ("w6a6", "3 bits")]
    with pytest.raises(SeamError, match="w6a6, 3 bits"):
        assign(np.zeros((2, 5, 5)), ["a", "b"], BITS, budgets)


def test_unreachable_budget_names_the_reachable_range():
    with pytest.raises(SeamError, match=r"0\.008 to 0\.072 GBitOPs"):
        parse_budget("0.001 GBitOPs", layers([1_000_000, 1_000_000]), BITS)


@pytest.mark.parametrize("spec", ["w3", "fast", "3", "-1 MB"])
def test_unreadable_budget(spec):
    with pytest.raises(SeamError, match="write w3a3"):
        parse_budget(spec, layers([1000]), BITS)


def largest(limit_by, some):
    """A budget whose cost is that of the larger of a layer's two bit-widths, as on a device with kernels for a few."""
    table = {(x.name, w, a): limit_by(x.name, max(w, a)) for x in some for w in BITS for a in BITS}
    return parse_budget("1000 ms", some, BITS, table)


@pytest.mark.parametrize("spec", ["0.00004 MB", "3.5 bits"])
def test_inputs_that_a_budget_does_not_limit_get_the_widest_bits(spec):
    some = layers([1000, 2000, 3000])
    budget = parse_budget("0.000015 MB" if "MB" in spec else spec, some, BITS)
    # Few bits are preferred, as by a search that no budget keeps from it.
    assigned = assign(-np.add.outer(BITS, BITS)[None].repeat(3, 0).astype(float), list("abc"), BITS, [budget])
    raised = raise_free(assigned, BITS, [budget])
    assert [a for _, a in assigned] == [2, 2, 2] and [a for _, a in raised] == [6, 6, 6]
    assert [w for w, _ in raised] == [w for w, _ in assigned]
    assert budget.cost(raised) == budget.cost(assigned)


def test_the_narrower_of_two_is_raised_where_the_larger_is_paid():
    some = layers([1000, 1000, 1000])
    budget = largest(lambda name, most: float(most), some)
    assert raise_free([(5, 2), (2, 4), (3, 3)], BITS, [budget]) == [(5, 5), (4, 4), (3, 3)]


def test_a_second_budget_that_limits_inputs_keeps_them():
    some = layers([1000, 2000, 0])
    budgets = [parse_budget("4 bits", some, BITS), parse_budget("w4a4", some, BITS)]
    # The third has no MACs: its inputs cost nothing in either.
    assert raise_free([(5, 2), (2, 3), (4, 2)], BITS, budgets) == [(5, 2), (2, 3), (4, 6)]


def test_layers_that_share_their_input_are_raised_together_or_not_at_all():
    names = ["layer0", "layer1", "layer2"]
    some = layers([1000] * 3, names)
    budget = largest(lambda name, most: most if name == "layer1" else 1.0, some)
    # layer1 pays for the larger of its two, the others for nothing: with 3 and 3 it holds its group back.
    assigned = [(3, 3), (3, 3), (2, 2)]
    assert raise_free(assigned, BITS, [budget], ["g", "g", "h"]) == [(6, 3), (3, 3), (6, 6)]
    assert raise_free([(3, 3), (5, 3), (2, 2)], BITS, [budget], ["g", "g", "h"]) == [(6, 5), (5, 5), (6, 6)]


def test_of_several_ways_up_the_balanced_one_is_taken():
    some = layers([1000])
    free = {(2, 2), (2, 6), (6, 2), (4, 4)}
    table = {(x.name, w, a): 1.0 if (w, a) in free else 2.0 for x in some for w in BITS for a in BITS}
    assert raise_free([(2, 2)], BITS, [parse_budget("9 ms", some, BITS, table)]) == [(4, 4)]


def test_only_what_costs_nothing_is_raised():
    """No wider choice is as cheap, and none was lowered: by enumeration, on a random table with equal costs."""
    rng = np.random.default_rng(0)
    some = layers([1000] * 6)
    costs = {(x.name, w, a): float(rng.integers(1, 4)) for x in some for w in BITS for a in BITS}
    budget = parse_budget("1000 ms", some, BITS, costs)
    assigned = [BITS[i] for i in rng.integers(0, 5, 12)]
    assigned = list(zip(assigned[:6], assigned[6:], strict=True))
    raised = raise_free(assigned, BITS, [budget])
    assert raised != assigned and budget.cost(raised) <= budget.cost(assigned)
    for i, ((w, a), before) in enumerate(zip(raised, assigned, strict=True)):
        assert w >= before[0] and a >= before[1]
        wider = [(x, y) for x in BITS for y in BITS if x >= w and y >= a and (x, y) != (w, a)]
        assert all(costs[f"layer{i}", x, y] > costs[f"layer{i}", *before] for x, y in wider)
