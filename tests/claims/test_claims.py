"""Claims: the arithmetic on small results with known answers, and the whole stage on a real run."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import yaml
from engines import REPOSITORY, environment
from handmade import make_params, write_results
from scipy import stats

from seam.claims import claims
from seam.claims.statistics import FAILS, HOLDS, OPEN, above, estimate, every, over_images
from seam.errors import SeamError
from seam.experiment.results import load, pack, unpack
from seam.io import read_json, write_json, write_text
from seam.report.claims import print_claims
from seam.report.text import factor
from seam.stages.claims import claims as claims_stage


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


def test_calibrated_gap_is_over_seeds_where_they_give_policies(tmp_path):
    near, direct = [70.1, 69.8, 70.3], [70.0, 71.1, 70.2]
    _, found = assess(
        make_params(tmp_path / "r", seeds=(0, 1, 2)),
        table(),
        calibrated=table(near=near, direct=direct, uniform=[9.0] * 3),
    )
    claim = found["not_worse_calibrated/near/direct/a/w3a3"]
    test = stats.ttest_rel(near, direct).confidence_interval(0.95)
    assert claim["estimate"]["interval"] == pytest.approx([test.low, test.high], rel=1e-5)
    assert claim["policies"] == {"near": 3, "direct": 3}
    assert claim["calibrated_top1"]["near"] == pytest.approx(np.mean(near))
    assert "calibrated-only" in claim["statement"]
    one = found["better_than_calibrated/near/uniform/a/w3a3"]  # one policy on one side only
    assert (one["estimate"]["unit"], one["policies"]) == ("seed", {"near": 3, "uniform": 1})


def test_calibrated_gap_of_two_single_policies_is_over_test_images(tmp_path):
    params = make_params(tmp_path / "r", seeds=(0, 1, 2), models=("a", "b"))
    before = {("a", "near"): 70.0, ("a", "uniform"): 69.0, ("b", "near"): 60.0, ("b", "uniform"): 60.0}
    result, found = assess(
        params,
        table(near=[90.0, 90.2, 90.1]),
        calibrated=lambda job: before.get((job.model, job.search), 50.0),
        bits=lambda job: 3,
    )
    claim = found["better_than_calibrated/near/uniform/a/w3a3"]
    assert (claim["estimate"]["n"], claim["estimate"]["unit"], claim["estimate"]["value"]) == (10000, "test image", 1.0)
    # Agresti and Min: 100 images are right on one side only, none on the other, and half an image more in each cell.
    b, c, n = 100.5, 0.5, 10002
    half = 1.959964 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    assert claim["estimate"]["interval"] == pytest.approx([100 * ((b - c) / n - half), 100 * ((b - c) / n + half)])
    assert claim["verdict"] == HOLDS
    equal = found["better_than_calibrated/near/uniform/b/w3a3"]
    assert (equal["verdict"], equal["estimate"]["value"]) == (OPEN, 0.0)
    assert equal["estimate"]["interval"][0] < 0 < equal["estimate"]["interval"][1]
    pooled = found["better_than_calibrated/near/uniform/all models/w3a3"]["estimate"]
    assert (pooled["value"], pooled["n"]) == (0.5, 10000)  # the images are the same for both models
    # Finetuning has a seed of its own.
    assert found["better_than/near/uniform/a/w3a3"]["estimate"]["unit"] == "seed"


def test_standard_error_of_the_test_images_is_paired(tmp_path):
    _, found = assess(make_params(tmp_path / "r"), table(near=[90.5], direct=[90.0]))
    # 50 images of 10,000 are right on one side only.
    assert found["not_worse/near/direct/a/w3a3"]["test_standard_error"] == 0.071


def test_interval_over_images_covers():
    """95 of 100 intervals hold the true difference: sets of 300 images of which few are right on one side only."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(2000):
        low, high = over_images(rng.choice([1, 0, -1], 300, p=[0.04, 0.94, 0.02]), 0.95)["interval"]
        inside += low <= 2.0 <= high
    assert 0.94 <= inside / 2000 <= 0.97


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
    assert claim["settings_that_differ"] == {"margin_weight": [None, 0.0]}
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


def test_one_random_search_with_several_seeds_is_several_random_policies(tmp_path):
    params = make_params(tmp_path / "r", seeds=(0, 1, 2), references=["uniform", "random-0"])
    near, random = [90.0, 90.5, 90.2], [88.0, 88.2, 88.9]
    _, found = assess(params, table(near=near, random_0=random), bits=lambda job: 3 + job.seed * (job.search != "near"))
    claim = found["beats_random/near/random-0/a/w3a3"]
    test = stats.ttest_rel(near, random).confidence_interval(0.95)
    assert claim["estimate"]["interval"] == pytest.approx([test.low, test.high], rel=1e-5)
    assert (claim["estimate"]["unit"], claim["estimate"]["n"]) == ("seed", 3)
    assert claim["policies"] == {"near": 1, "random-0": 3}
    assert found["beats_random_calibrated/near/random-0/a/w3a3"]["estimate"]["unit"] == "seed"
    assert not [key for key in found if key.startswith("better_than") and "random" in key]


def test_one_random_policy_decides_nothing(tmp_path):
    _, found = assess(make_params(tmp_path / "r", references=["random-0"]), table(near=[95.0]))
    for kind in ("beats_random_once", "beats_random_once_calibrated"):
        claim = found[f"{kind}/near/random-0/a/w3a3"]
        assert (claim["verdict"], claim["estimate"]["no_interval"]) == (OPEN, "a single random policy")


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
    claims_stage(params, tmp_path / "r/claims.json")


def test_no_roles_at_all(tmp_path, capsys):
    params = make_params(tmp_path / "r", proxies=[], without_margin={}, references=[])
    write_results(params, table())
    result = claims_stage(params, tmp_path / "r/claims.json")
    assert result["claims"] == []
    assert "claims.proxies is empty" in capsys.readouterr().out


def test_run_writes_prints_and_is_deterministic(tmp_path, capsys):
    params = make_params(tmp_path / "r", models=("a", "b"), seeds=(0, 1, 2))
    write_results(params, table(near=[90.1, 89.9, 90.0], direct=[90.0] * 3))
    out = tmp_path / "r/claims.json"
    assert claims_stage(params, out) == read_json(out)
    first = out.read_bytes()
    printed = capsys.readouterr().out
    assert "top-1 - direct > -0.5" in printed
    assert HOLDS in printed
    assert read_json(tmp_path / "r/claims.provenance.json")["outputs"].keys() == {"claims.json"}
    claims_stage(params, out)
    assert out.read_bytes() == first


def test_five_claims_about_the_headline_come_first(tmp_path):
    params = make_params(tmp_path / "r", models=("a", "b"), seeds=(0, 1), proxies=["plain", "near"])
    result, _ = assess(params, table())
    assert result["headline"] == "plain"
    asked = [(c["model"], c["question"], c["claim"], c["search"]) for c in result["claims"] if "question" in c]
    assert asked[0] == ("all models", 1, "share", "plain")
    kinds = [
        (2, "not_worse", "plain"),
        (2, "not_worse_calibrated", "plain"),
        (3, "speedup_seconds", "plain"),
        (3, "speedup_image_macs", "plain"),
        (4, "margin_helps", "near"),  # the headline has no margin term to leave out
        (4, "margin_helps_calibrated", "near"),
        (5, "better_than", "plain"),
        (5, "better_than_calibrated", "plain"),
        (5, "beats_random", "plain"),
        (5, "beats_random_calibrated", "plain"),
    ]
    for scope, start in (("all models", 1), ("a", 11), ("b", 21)):
        assert asked[start : start + 10] == [(scope, *kind) for kind in kinds]
    assert len(asked) == 31
    assert all("question" in claim for claim in result["claims"][:31])
    assert sum(result["verdicts"].values()) == len(result["claims"])


def test_an_ascii_terminal_shows_the_table_too(tmp_path):
    params = make_params(tmp_path / "r", models=("a", "b"), seeds=(0, 1), proxies=["near", "plain"])
    write_results(params, table())
    write_text(tmp_path / "params.yaml", yaml.safe_dump(params.dump()))
    command = [sys.executable, "-m", "seam", "claims", "--params", str(tmp_path / "params.yaml")]
    command += ["--out", str(tmp_path / "r/claims.json")]
    environ = {**environment(REPOSITORY), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and "near at w3a3" in done.stdout


def test_printed_table_is_the_five_claims_in_eighty_columns(tmp_path, capsys):
    params = make_params(tmp_path / "r", models=("a", "b"), seeds=(0, 1, 2), proxies=["near", "plain"])
    top1 = {"near": [90.1, 89.9, 90.0], "direct": [90.0] * 3, "uniform": [50.0] * 3}
    write_results(params, lambda job: top1.get(job.search, [80.0, 80.1, 80.2])[job.seed])
    result = claims.assess(load(params))
    for name in ("direct", "uniform"):  # long names, too
        result = json.loads(json.dumps(result).replace(f'"{name}"', f'"{name}-with-some-words-more"'))
    print_claims(result)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    for claim in result["claims"]:
        if "question" in claim and claim["claim"] != "share" and claim["model"] == "all models":
            value, bounds = claim["estimate"]["value"], claim["estimate"]["interval"]
            ratio = claim["claim"].startswith("speedup")
            assert (factor(value) if ratio else f"{value:+.2f} [{bounds[0]:+.2f}, {bounds[1]:+.2f}]") in printed
    assert "3.00% of 60,000" in printed
    assert printed.count("calibrated only") == 4  # direct, margin, uniform, random; each model is in the report
    assert len(printed.splitlines()) < 25
    assert "(also about plain)" in printed.replace("\n", " ")


def test_broken_hits_are_named(tmp_path):
    params = make_params(tmp_path / "r")
    write_results(params, table())
    path = tmp_path / "r/evaluate/a/near/w3a3/0/hits.json"
    for text in ("xyz", "ff"):
        write_json(path, {"images": 10000, "top1": text, "calibrated_top1": text})
        with pytest.raises(SeamError, match=r"a/near/w3a3/0/hits.json: \w+ is broken .*seam evaluate"):
            claims.assess(load(params))
    path.unlink()
    with pytest.raises(SeamError, match=r"hits.json \(made by `seam evaluate`\)"):
        load(params)


@pytest.mark.parametrize("count", [1, 8, 359])
def test_hits_survive_packing(count):
    hits = np.random.default_rng(0).random(count) < 0.5
    assert (unpack(pack(hits), count) == hits).all()


def test_missing_result_names_file_and_stage(tmp_path):
    params = make_params(tmp_path / "r")
    write_results(params, table())
    (tmp_path / "r/evaluate/a/near/w3a3/0/metrics.json").unlink()
    with pytest.raises(SeamError, match=r"a/near/w3a3/0/metrics.json \(made by `seam evaluate`\)"):
        claims_stage(params, tmp_path / "r/claims.json")
    assert not (tmp_path / "r/claims.json").exists()


def test_broken_result_names_the_key(tmp_path):
    params = make_params(tmp_path / "r")
    write_results(params, table())
    (tmp_path / "r/evaluate/a/near/w3a3/0/metrics.json").write_text('{"top1": 90.0}')
    with pytest.raises(SeamError, match=r"metrics.json: holds no fp_top1, bitops_g"):
        claims_stage(params, tmp_path / "r/claims.json")


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
