"""What holds for all policies, budgets and costs."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seam.models.layers import Layer
from seam.policy.assign import assign, raise_free
from seam.policy.budget import parse_budget
from seam.policy.cost import locked, searchable
from seam.policy.file import policy_bits, totals

BITS = (2, 4, 6)
quick = settings(derandomize=True, deadline=None, max_examples=25, database=None)


@st.composite
def networks(draw):
    """Two to four searched layers, some of one group, between fixed ends; perhaps a locked one."""
    count = draw(st.integers(2, 4))
    sizes = st.tuples(st.integers(1, 10**6), st.integers(1, 10**5))
    inner = [
        Layer(f"l{i}", *draw(sizes), False, draw(st.sampled_from(["l0", f"l{i}"])) if i else "l0") for i in range(count)
    ]
    lock = (
        [Layer("lock", *draw(sizes), True, bits=(draw(st.integers(2, 8)), 3), counted=True)]
        if draw(st.booleans())
        else []
    )
    return [Layer("stem", *draw(sizes), True), *inner, *lock, Layer("head", *draw(sizes), True)]


@st.composite
def problems(draw):
    """A network, preferences [L, B, B], and two limits in GBitOPs, MB or bits, the second no lower, both reachable."""
    layers = draw(networks())
    unit, kind = draw(st.sampled_from([("GBitOPs", "bitops"), ("MB", "size"), ("bits", "bits")]))
    least, most = parse_budget(f"9999 {unit}", layers, BITS).reach()
    shares = sorted(draw(st.floats(0.001, 1.2)) for _ in range(2))
    specs = [f"{least + share * (most - least):.12f} {unit}" for share in shares]
    seed = draw(st.integers(0, 2**32 - 1))
    values = np.random.default_rng(seed).normal(size=(len(searchable(layers)), len(BITS), len(BITS)))
    return layers, kind, specs, values.round(draw(st.sampled_from([0, 1, 9])))


def budget_of(spec, layers):
    return parse_budget(spec, layers, BITS, check=False)


def value(preferences, assigned):
    place = {b: i for i, b in enumerate(BITS)}
    return sum(preferences[i, place[w], place[a]] for i, (w, a) in enumerate(assigned))


def tied(layers, assigned):
    first = {}
    return all(first.setdefault(x.group, a) == a for x, (_, a) in zip(searchable(layers), assigned, strict=True))


def policies(layers):
    """All policies in which the layers of a group have the same activation bits."""
    pairs = list(itertools.product(BITS, repeat=2))
    return [p for p in itertools.product(pairs, repeat=len(searchable(layers))) if tied(layers, p)]


@quick
@given(problems())
def test_a_policy_never_exceeds_its_budget_and_keeps_groups(problem):
    layers, _, specs, preferences = problem
    budget = budget_of(specs[0], layers)
    if budget.reach()[0] > budget.limit:  # by the rounding of its text
        return
    names = [layer.name for layer in searchable(layers)]
    assigned = assign(preferences, names, BITS, [budget])
    raised = raise_free(assigned, BITS, [budget])
    for found in (assigned, raised):
        assert budget.cost(found) <= budget.limit * (1 + 1e-9)
        assert tied(layers, found)
    assert all(w >= x and a >= y for (w, a), (x, y) in zip(raised, assigned, strict=True))


@quick
@given(problems())
def test_more_budget_is_never_worse_and_none_is_better(problem):
    """In the objective, without the floor on what is spent (which asks for more bits than are preferred)."""
    layers, _, specs, preferences = problem
    budgets = [budget_of(spec, layers) for spec in specs]
    if budgets[0].reach()[0] > budgets[0].limit:
        return
    names = [layer.name for layer in searchable(layers)]
    found = [value(preferences, assign(preferences, names, BITS, [budget], spend=0.0)) for budget in budgets]
    resolution = 1e-4 * (float(np.ptp(preferences)) or 1.0)
    assert found[1] >= found[0] - resolution
    if len(names) < 4:
        within = [p for p in policies(layers) if budgets[0].cost(p) <= budgets[0].limit * (1 - 1e-5)]
        assert all(found[0] >= value(preferences, p) - resolution for p in within)


@quick
@given(networks(), st.data())
def test_costs_equal_brute_force(layers, data):
    count = len(searchable(layers))
    assigned = data.draw(
        st.lists(st.tuples(st.sampled_from(BITS), st.sampled_from(BITS)), min_size=count, max_size=count)
    )
    bits = policy_bits(layers, assigned)
    macs, params = ({layer.name: n for layer in layers for n in [getattr(layer, key)]} for key in ("macs", "params"))
    counted = [layer.name for layer in (*searchable(layers), *locked(layers))]
    expected = {
        "GBitOPs": sum(macs[n] * bits[n][0] * bits[n][1] for n in counted) / 1e9,
        "MB": sum(params[n] * bits[n][0] for n in counted) / 8e6,
        "bits": sum(params[n] * bits[n][0] for n in counted) / sum(params[n] for n in counted),
    }
    for unit, cost in expected.items():
        assert parse_budget(f"9999 {unit}", layers, BITS).cost(assigned) == pytest.approx(cost, rel=1e-12)
    found = totals(layers, bits)
    assert found["bitops_g"] == pytest.approx(expected["GBitOPs"], abs=1e-9)
    assert found["mean_w"] == pytest.approx(expected["bits"], abs=1e-6)
    assert found["size_mb"] == pytest.approx(sum(params[n] * bits[n][0] for n in bits) / 8e6, abs=1e-9)


@quick
@given(networks())
def test_the_reachable_range_is_that_of_all_policies(layers):
    for unit in ("GBitOPs", "bits"):
        budget = parse_budget(f"9999 {unit}", layers, BITS)
        costs = [budget.cost(p) for p in policies(layers)]
        assert budget.reach() == pytest.approx((min(costs), max(costs)), rel=1e-9)
