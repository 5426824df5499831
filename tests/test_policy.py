import json

import pytest

from seam.cost import parse_budget
from seam.errors import SeamError
from seam.models import Layer
from seam.policy import load_policy, make_policy

BITS = (2, 3, 4)
LAYERS = [
    Layer("stem", 100, 10, True),
    Layer("a", 1000, 20, False),
    Layer("b", 500, 40, False),
    Layer("fc", 30, 30, True),
]


def policy(assigned=((2, 3), (4, 2))):
    budget = parse_budget("w4a4", LAYERS, BITS)
    return make_policy(LAYERS, assigned, budget, {"name": "toy"}, method="seam", seed=0, proxy=None)


def test_totals_by_hand():
    totals = policy()["totals"]
    assert totals["bitops_g"] == pytest.approx((1000 * 6 + 500 * 8) / 1e9)
    assert totals["bitops_g_fixed"] == pytest.approx((100 + 30) * 64 / 1e9)
    assert totals["size_mb"] == pytest.approx((10 * 8 + 20 * 2 + 40 * 4 + 30 * 8) / 8e6)
    assert totals["mean_w"] == pytest.approx((20 * 2 + 40 * 4) / 60)
    assert totals["mean_a"] == pytest.approx((1000 * 3 + 500 * 2) / 1500, abs=1e-6)


def test_budget_names_its_convention_and_share():
    budget = policy()["budget"]
    assert "8/8" in budget["convention"] and budget["unit"] == "GBitOPs"
    assert budget["share"] == pytest.approx(10000 / (1500 * 16), abs=1e-6)


def test_round_trip(tmp_path):
    (tmp_path / "policy.json").write_text(json.dumps(policy()))
    assert load_policy(tmp_path / "policy.json", LAYERS) == {"stem": (8, 8), "a": (2, 3), "b": (4, 2), "fc": (8, 8)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(schema="seam-policy/9"), "seam-policy/9"),
        (lambda p: p["layers"].pop("a"), "lacks layers a"),
        (lambda p: p["layers"].update(zzz={}), "surplus layers zzz"),
        (lambda p: p["layers"]["b"].update(params=41), "layer b has 41 weights, the model's has 40"),
        (lambda p: p["layers"]["b"].update(w=9), "layer b: w must be 2 to 8 bits, found 9"),
        (lambda p: p["layers"]["b"].update(a="4"), "layer b: a must be"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    content = policy()
    change(content)
    (tmp_path / "policy.json").write_text(json.dumps(content))
    with pytest.raises(SeamError, match=message):
        load_policy(tmp_path / "policy.json", LAYERS)
