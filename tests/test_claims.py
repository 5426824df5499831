"""Claims: the arithmetic on small results with known answers, and the whole stage on a real run."""

import numpy as np
import pytest
from handmade import make_params, write_results
from scipy import stats

from seam import claims
from seam.errors import SeamError
from seam.io import read_json
from seam.results import load
from seam.stats import FAILS, HOLDS, OPEN, above, estimate, every


def assess(params, top1, **rest):
    write_results(params, top1, **rest)
    result = claims.assess(load(params))
    return result, {claim["id"]: claim for claim in result["claims"]}


def table(**values):
    """search (underscore for dash) -> one top-1 a seed, for every model."""
    return lambda job: values.get(job.search.replace("-", "_"), [80.0] * 9)[job.seed]


def test_gap_is_the_paired_t_interval(tmp_path):
    near, direct = [90.1, 89.8, 90.3], [90.0, 90.1, 90.2]
    _, found = assess(make_params(tmp_path / "r", seeds=(0, 1, 2)), table(near=near, direct=direct))
    claim = found["not_worse/near/direct/a/w3a3"]
    test = stats.ttest_rel(near, direct).confidence_interval(0.95)
    assert claim["estimate"]["value"] == pytest.approx(np.mean(near) - np.mean(direct))
    assert claim["estimate"]["interval"] == pytest.approx([test.low, test.high], rel=1e-5)
    assert (claim["estimate"]["n"], claim["estimate"]["unit"]) == (3, "seed")
    assert claim["top1"] == pytest.approx({"near": np.mean(near), "direct": np.mean(direct)})


@pytest.mark.parametrize(
    ("gaps", "margin", "verdict"),
    [
        ([0.1, -0.1, 0.0], 0.5, HOLDS),  # interval +-0.25
        ([0.1, -0.1, 0.0], 0.2, OPEN),
        ([-1.1, -0.9, -1.0], 0.5, FAILS),  # -1 +- 0.25
        ([-0.6, -0.4, -0.5], 0.5, OPEN),
    ],
)
def test_non_inferiority_follows_interval_and_margin(tmp_path, gaps, margin, verdict):
    params = make_params(tmp_path / "r", seeds=(0, 1, 2), margin_points=margin)
    _, found = assess(params, table(near=[90 + gap for gap in gaps], direct=[90.0] * 3))
    assert found["not_worse/near/direct/a/w3a3"]["verdict"] == verdict


def test_confidence_is_the_parameters(tmp_path):
    params = make_params(tmp_path / "r", seeds=(0, 1, 2), confidence=0.8)
    _, found = assess(params, table(near=[90.1, 89.9, 90.0], direct=[90.0] * 3))
    low, high = found["not_worse/near/direct/a/w3a3"]["estimate"]["interval"]
    assert high - low == pytest.approx(2 * stats.t.ppf(0.9, 2) * 0.1 / np.sqrt(3), rel=1e-5)


def test_single_pair_decides_no_accuracy_claim(tmp_path):
    result, found = assess(make_params(tmp_path / "r"), table(near=[95.0], direct=[90.0]))
    claim = found["not_worse/near/direct/a/w3a3"]
    assert (claim["verdict"], claim["estimate"]["interval"]) == (OPEN, None)
    assert "single seed" in claim["reason"]
    assert any("one seed" in line for line in result["missing"])


def test_equal_replicates_give_no_interval(tmp_path):
    _, found = assess(make_params(tmp_path / "r", seeds=(0, 1)), table(near=[91.0, 91.0], direct=[90.0, 90.0]))
    claim = found["not_worse/near/direct/a/w3a3"]
    assert (claim["verdict"], claim["estimate"]["interval"]) == (OPEN, None)
    assert "no spread" in claim["reason"]


def test_pooled_over_models_is_the_mean_for_each_seed(tmp_path):
    tops = {
        ("a", "near"): [90.0, 91.0],
        ("b", "near"): [80.0, 82.0],
        ("a", "direct"): [89.0, 91.5],
        ("b", "direct"): [81.0, 81.0],
    }
    params = make_params(tmp_path / "r", models=("a", "b"), seeds=(0, 1))
    _, found = assess(params, lambda job: tops.get((job.model, job.search), [70.0, 70.0])[job.seed])
    pooled = found["not_worse/near/direct/all models/w3a3"]["estimate"]
    assert pooled["values"] == {"0": 0.0, "1": 0.25}  # ((1 - 1) / 2, (-0.5 + 1) / 2)
    assert (pooled["n"], pooled["value"]) == (2, 0.125)


def test_margin_that_does_not_help_is_said_so(tmp_path):
    params = make_params(tmp_path / "r", seeds=(0, 1, 2))
    _, found = assess(params, table(near=[89.0, 89.1, 88.9], plain=[90.0, 90.0, 90.1]))
    claim = found["margin_helps/near/plain/a/w3a3"]
    assert claim["verdict"] == FAILS
    assert claim["settings_that_differ"] == {"margin_weight": [1.0, 0.0]}
    _, found = assess(params, table(near=[91.0, 91.1, 90.9], plain=[90.0, 90.0, 90.1]))
    assert found["margin_helps/near/plain/a/w3a3"]["verdict"] == HOLDS


def test_speedup_in_seconds_and_image_macs(tmp_path):
    seconds = {("near", 0): 2.0, ("near", 1): 4.0, ("direct", 0): 40.0, ("direct", 1): 360.0}
    params = make_params(tmp_path / "r", seeds=(0, 1))
    _, found = assess(params, table(), seconds=lambda job: seconds.get((job.search, job.seed), 1.0))
    time = found["speedup_seconds/near/direct/a/w3a3"]
    assert time["estimate"]["value"] == pytest.approx(np.sqrt(20 * 90))
    low, high = time["estimate"]["interval"]
    assert low * high == pytest.approx(20 * 90, rel=1e-5)  # symmetric on the logarithm
    assert time["settings_that_differ"] == {"epochs": [3, 1]}
    macs = found["speedup_image_macs/near/direct/a/w3a3"]
    assert macs["estimate"]["value"] == pytest.approx(60000 * 1e7 / (1797 * 1e6), rel=1e-6)
    assert macs["verdict"] == HOLDS


def test_slower_proxy_search_does_not_hold(tmp_path):
    _, found = assess(make_params(tmp_path / "r"), table(), seconds=lambda job: 50.0 if job.search == "near" else 40.0)
    assert found["speedup_seconds/near/direct/a/w3a3"]["verdict"] == FAILS


def test_seconds_of_different_machines_are_not_compared(tmp_path):
    _, found = assess(make_params(tmp_path / "r"), table(), device=lambda job: "gpu" if job.search == "near" else "cpu")
    claim = found["speedup_seconds/near/direct/a/w3a3"]
    assert claim["verdict"] == OPEN
    assert "different machines" in claim["reason"]
    assert found["speedup_image_macs/near/direct/a/w3a3"]["verdict"] == HOLDS


def test_random_policies_are_the_unit_when_there_is_one_seed(tmp_path):
    _, found = assess(make_params(tmp_path / "r"), table(near=[90.0], random_0=[88.0], random_1=[88.4]))
    claim = found["beats_random_once/near/random (mean of 2)/a/w3a3"]
    assert (claim["estimate"]["unit"], claim["estimate"]["n"]) == ("random policy", 2)
    assert claim["estimate"]["value"] == pytest.approx(1.8)
    assert "this one run" in claim["statement"]


def test_seeds_are_the_unit_against_random_when_there_are_several(tmp_path):
    params = make_params(tmp_path / "r", seeds=(0, 1))
    _, found = assess(params, table(near=[90.0, 90.5], random_0=[88.0, 88.2], random_1=[88.4, 88.6]))
    claim = found["beats_random/near/random (mean of 2)/a/w3a3"]
    assert claim["estimate"]["values"] == pytest.approx({"0": 1.8, "1": 2.1})


def test_unequal_spending_is_shown(tmp_path):
    share = {"near": 0.98, "uniform": 1.13}
    _, found = assess(make_params(tmp_path / "r"), table(), share=lambda job: share.get(job.search, 1.0))
    assert found["better_than/near/uniform/a/w3a3"]["budget_share"] == share


def test_paper_sentence_is_judged_part_by_part(tmp_path):
    params = make_params(tmp_path / "r", seeds=(0, 1, 2))
    accuracy = {"near": [90.0, 90.1, 89.9], "direct": [90.0] * 3}
    _, found = assess(params, table(**accuracy), seconds=lambda job: 1.0 if job.search == "near" else 400.0 + job.seed)
    claim = found["paper/near/direct/a/w3a3"]
    assert claim["verdict"] == HOLDS
    assert "not the paper's" in claim["note"]
    _, found = assess(params, table(**accuracy), seconds=lambda job: 10.0 if job.search == "near" else 400.0 + job.seed)
    claim = found["paper/near/direct/a/w3a3"]
    assert claim["verdict"] == FAILS
    assert claim["parts"] == {
        "share": HOLDS,
        "accuracy": HOLDS,
        "300x in seconds": FAILS,
        "300x in images x MACs": HOLDS,
    }


def test_large_proxy_fails_the_share(tmp_path):
    params = make_params(tmp_path / "r", proxies=["direct"], baseline="near")
    _, found = assess(params, table())
    assert found["share/direct/all models"]["verdict"] == FAILS
    assert found["share/direct/all models"]["estimate"]["value"] == 1.0


@pytest.mark.parametrize(
    ("searches", "said", "absent"),
    [
        (("near", "uniform"), "baseline 'direct' is not in grid.searches", "not_worse"),
        (("direct", "uniform"), "proxy search 'near' is not in grid.searches", "better_than"),
        (("near", "direct"), "'plain' (claims.without_margin) is not in grid.searches", "margin_helps"),
        (("uniform",), "proxy search 'near' is not in grid.searches", "share"),
    ],
)
def test_missing_roles_are_named_and_nothing_crashes(tmp_path, searches, said, absent):
    params = make_params(tmp_path / "r", searches=searches)
    result, _ = assess(params, table())
    assert any(said in line for line in result["missing"])
    assert absent not in {claim["claim"] for claim in result["claims"]}
    claims.run(params, tmp_path / "r/claims.json")


def test_no_roles_at_all(tmp_path, capsys):
    params = make_params(tmp_path / "r", proxies=[], without_margin={}, references=[])
    write_results(params, table())
    result = claims.run(params, tmp_path / "r/claims.json")
    assert result["claims"] == []
    assert "claims.proxies is empty" in capsys.readouterr().out


def test_run_writes_prints_and_is_deterministic(tmp_path, capsys):
    params = make_params(tmp_path / "r", models=("a", "b"), seeds=(0, 1, 2))
    write_results(params, table(near=[90.1, 89.9, 90.0], direct=[90.0] * 3))
    out = tmp_path / "r/claims.json"
    assert claims.run(params, out) == read_json(out)
    first = out.read_bytes()
    printed = capsys.readouterr().out
    assert "top-1 - direct > -0.5" in printed
    assert HOLDS in printed
    assert read_json(tmp_path / "r/claims.provenance.json")["outputs"].keys() == {"claims.json"}
    claims.run(params, out)
    assert out.read_bytes() == first


def test_missing_result_names_file_and_stage(tmp_path):
    params = make_params(tmp_path / "r")
    write_results(params, table())
    (tmp_path / "r/evaluate/a/near/w3a3/0/metrics.json").unlink()
    with pytest.raises(SeamError, match=r"a/near/w3a3/0/metrics.json \(made by `seam evaluate`\)"):
        claims.run(params, tmp_path / "r/claims.json")
    assert not (tmp_path / "r/claims.json").exists()


def test_broken_result_names_the_key(tmp_path):
    params = make_params(tmp_path / "r")
    write_results(params, table())
    (tmp_path / "r/evaluate/a/near/w3a3/0/metrics.json").write_text('{"top1": 90.0}')
    with pytest.raises(SeamError, match=r"metrics.json: holds no fp_top1, bitops_g"):
        claims.run(params, tmp_path / "r/claims.json")


def test_estimate_and_verdict_edges():
    assert above(estimate({0: 5.0}, 0.95, "pair"), 1.0, point_decides=True).verdict == HOLDS
    assert above(estimate({0: 0.5}, 0.95, "pair"), 1.0, point_decides=True).verdict == FAILS
    assert above(estimate({0: 5.0}, 0.95, "seed"), 1.0).verdict == OPEN
    assert every({"a": HOLDS, "b": HOLDS}).verdict == HOLDS
    assert every({"a": HOLDS, "b": OPEN}).verdict == OPEN
    assert every({"a": FAILS, "b": OPEN}).verdict == FAILS


def test_claims_of_the_real_run(smoke_results):
    params, root = smoke_results
    result = read_json(root / params.results / "claims.json")
    found = {claim["id"]: claim for claim in result["claims"]}
    model, budget = params.grid.models[0], params.grid.budgets[0]
    proxy, baseline = params.claims.proxies[0], params.claims.baseline
    where = f"{model}/{{}}/{budget}/{params.grid.seeds[0]}"
    tops = {
        s: read_json(root / params.results / "evaluate" / where.format(s) / "metrics.json")["top1"]
        for s in (proxy, baseline)
    }
    gap = found[f"not_worse/{proxy}/{baseline}/{model}/{budget}"]
    assert gap["estimate"]["value"] == pytest.approx(tops[proxy] - tops[baseline], abs=1e-4)
    costs = {s: read_json(root / params.results / "search" / where.format(s) / "cost.json") for s in (proxy, baseline)}
    for key in ("seconds", "image_macs"):
        ratio = found[f"speedup_{key}/{proxy}/{baseline}/{model}/{budget}"]["estimate"]["value"]
        assert ratio == pytest.approx(costs[baseline][key] / costs[proxy][key], rel=1e-5)
