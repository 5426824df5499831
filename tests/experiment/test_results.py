"""Results of the wrong shape, as a hand or another version leaves them, are named with the key and the way out."""

import json
from pathlib import Path

import pytest
from handmade import make_params, write_results

from seam.claims.claims import assess
from seam.errors import SeamError
from seam.experiment.results import columns, load, read_claims, read_full_precision, read_layers, read_proxy
from seam.io import write_json
from seam.models.layers import Layer

LAYER = {"name": "a", "macs": 10, "params": 5, "fixed": False}
MODEL = {"name": "toy", "num_classes": 3, "in_chans": 1, "input_size": [1, 8, 8]}
PROXY = {"dataset": "digits", "count": 2, "image_size": [8, 8], "share_of_target": 0.5, "indices": [0, 1]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "valid dictionary"),
        ({}, "holds no dataset, count; run `seam sample` again"),
        ({**PROXY, "count": -1}, r"count: .*found -1"),
        ({**PROXY, "count": True}, r"count: .*found True"),
        ({**PROXY, "image_size": [8]}, r"image_size: .*at least 2"),
        ({**PROXY, "share_of_target": 0}, "share_of_target"),
        ({**PROXY, "indices": [0]}, "1 indices for 2 images"),
        ({**PROXY, "indices": ["0", 1]}, r"indices.0: .*found '0'"),
        ({"dataset": "digits", "count": 2}, "holds no image_size, share_of_target"),
    ],
)
def test_a_proxy_of_the_wrong_shape(tmp_path, content, message):
    write_json(tmp_path / "proxy.json", content)
    with pytest.raises(SeamError, match=rf"proxy.json: .*{message}"):
        read_proxy(tmp_path / "proxy.json")


def test_proxies_that_stages_write_are_read(tmp_path):
    for content in (PROXY, {**PROXY, "indices": None, "seed": 3}, {"dataset": None, "count": 0}):
        write_json(tmp_path / "proxy.json", content)
        assert read_proxy(tmp_path / "proxy.json") == content


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([[]], "layers.0: .*valid dictionary"),
        ([{"name": "a"}], "holds no layers.0.macs, layers.0.params, layers.0.fixed"),
        ([{**LAYER, "weights": 3}], "layers.0.weights: Extra"),
        ([{**LAYER, "macs": "10"}], "layers.0.macs: .*found '10'"),
        ([{**LAYER, "bits": [4]}], "layers.0.bits"),
        ([LAYER, LAYER], "two layers have one name"),
        (["x"] * 9, "and more; run `seam pretrain` again"),
    ],
)
def test_layers_of_the_wrong_shape(tmp_path, layers, message):
    write_json(tmp_path / "layers.json", {"model": MODEL, "layers": layers})
    with pytest.raises(SeamError, match=rf"layers.json: .*{message}") as error:
        read_layers(tmp_path / "layers.json")
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_layers_are_read(tmp_path):
    write_json(tmp_path / "layers.json", {"model": MODEL, "layers": [LAYER]})
    assert read_layers(tmp_path / "layers.json") == (MODEL, [Layer("a", 10, 5, False)])


def test_full_precision_metrics(tmp_path):
    write_json(tmp_path / "metrics.json", {"top1": 101.0, "top5": 1.0, "class_margin": 1.0})
    with pytest.raises(SeamError, match="metrics.json: top1: .*100.*seam pretrain"):
        read_full_precision(tmp_path / "metrics.json")


@pytest.fixture
def grid(tmp_path):
    params = make_params(tmp_path / "r", searches=("near", "direct"), references=[], without_margin={})
    write_results(params, lambda job: 90.0)
    return params, Path(params.results)


def change(path, **values):
    write_json(path, {**json.loads(path.read_text()), **values})


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("search/a/near/w3a3/0/cost.json", {"seconds": 0}, "seconds: .*seam search"),
        ("search/a/near/w3a3/0/cost.json", {"image_macs": 1e-300}, "image_macs: must be a whole number"),
        ("search/a/near/w3a3/0/policy.json", {"layers": {}}, "layers"),
        ("evaluate/a/near/w3a3/0/metrics.json", {"top1": "90"}, "top1: .*seam evaluate"),
        ("evaluate/a/near/w3a3/0/hits.json", {"images": 0}, "images"),
        ("evaluate/a/near/w3a3/0/hits.json", {"images": 9000}, "hits.json of 10000.*hits.json of 9000|9000.*10000"),
        ("proxies/a/near/proxy.json", {"count": None}, "count"),
    ],
)
def test_files_of_a_job_of_the_wrong_shape(grid, file, values, message):
    params, root = grid
    change(root / file, **values)
    with pytest.raises(SeamError, match=message):
        load(params)


def test_policies_without_a_budget_of_their_own_are_compared(grid):
    """As of a policy file of the user's own, which need not say its budget's share."""
    params, root = grid
    change(root / "evaluate/a/near/w3a3/0/metrics.json", budget_share=None)
    assert all("budget_share" not in claim for claim in assess(load(params))["claims"])


def test_claims_of_the_wrong_shape(grid, tmp_path):
    params, _ = grid
    claims, path = assess(load(params)), tmp_path / "claims.json"
    write_json(path, claims)
    assert read_claims(path) == claims
    for key, value, message in (
        ("claims", [{}], "holds no claims.0.id"),
        ("verdicts", [], "verdicts"),
        ("claims", [{**claims["claims"][0], "estimate": None}], "holds no estimate"),
        ("claims", [{**claims["claims"][0], "verdict": "perhaps"}], "verdict.*'does not hold'"),
    ):
        write_json(path, {**claims, key: value})
        with pytest.raises(SeamError, match=f"claims.json: .*{message}.*run `seam claims` again"):
            read_claims(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step,loss\n1,nan\n", "loss is not finite"),
        ("step,loss\n1,x\n", "not a table of numbers"),
        ("step,loss\n1\n", "not a table of numbers"),
        ("step,lost\n1,2\n", "no column loss"),
    ],
)
def test_histories_of_the_wrong_shape(tmp_path, text, message):
    (tmp_path / "history.csv").write_text(text)
    with pytest.raises(SeamError, match=f"history.csv: .*{message}"):
        columns(tmp_path / "history.csv", ("step", "loss"))
