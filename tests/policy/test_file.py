"""The policy file: its schema, what a search writes, and what loading refuses."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from policies import BITS, COST, LAYERS, MINIMAL, PROXY, policy

from seam.errors import SeamError
from seam.models.build import build
from seam.models.find import find_layers
from seam.models.layers import Layer
from seam.models.locks import apply_locks
from seam.policy.budget import parse_budget
from seam.policy.file import (
    entries,
    file_totals,
    fit_policy,
    load_policy,
    make_policy,
    policy_bits,
    policy_layers,
    read_policy,
    stale_totals,
    stored_mb,
    totals,
)
from seam.policy.schema import check_schema, schema
from seam.quant.apply import quantize
from seam.settings import Model


def write(tmp_path: Path, content) -> Path:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(content))
    return path


def test_the_schema_is_a_valid_one_and_describes_every_key():
    Draft202012Validator.check_schema(schema())
    assert schema()["$schema"].endswith("2020-12/schema") and schema()["$id"]

    def undescribed(node, place):
        for key, value in node.get("properties", {}).items():
            if "description" not in value:
                yield f"{place}.{key}"
            yield from undescribed(value, f"{place}.{key}")

    definitions = schema()["$defs"]
    assert not [name for node in (schema(), *definitions.values()) for name in undescribed(node, "")]


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
    path = write(tmp_path, policy())
    assert load_policy(path, LAYERS) == {"stem": (8, 8), "a": (2, 3), "b": (4, 2), "fc": (8, 8)}


def test_all_that_a_search_can_say_fits_the_schema_and_is_deterministic():
    size = parse_budget("1 MB", LAYERS, BITS)
    first, second = (
        policy(more_budgets=[size], proxy=PROXY, cost={**COST, "seconds": s}, versions=True) for s in (1.5, 2.5)
    )
    assert json.dumps(first) == json.dumps(second)
    check_schema(first, "policy")
    assert first["more_budgets"][0]["unit"] == "MB"
    assert first["more_budgets"][0]["spent"] == pytest.approx((20 * 2 + 40 * 4) / 8e6)
    assert first["cost"] == {"images": 640, "steps": 10, "image_macs": 640000}
    assert first["proxy"] == {key: value for key, value in PROXY.items() if key != "indices"}
    assert set(first["software"]) == {"seam", "torch", "timm", "python"}


def test_a_misspelt_layer_is_named_with_its_likeliest_name():
    layers = [*LAYERS[:1], *(layer._replace(name=f"blocks.0.conv{layer.name}") for layer in LAYERS[1:])]
    content = policy(layers=layers)
    content["layers"]["blocks.0.cnova"] = content["layers"].pop("blocks.0.conva")
    with pytest.raises(SeamError, match=r"lacks .*conva; has surplus .*cnova; did you mean blocks.0.conva\?"):
        fit_policy(content, layers)
    model = build(Model(name="test_resnet"), 10, 3)
    with pytest.raises(SeamError, match=r"no layer layer1.0.convv1; did you mean layer1.0.conv1"):
        quantize(model, {"layer1.0.convv1": (4, 4)})


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [("block.0.*", "blocks.0.*"), ("blocks.9.*", "blocks.1.*"), ("blocks.0.cnv", "blocks.0.conv"), ("haed", "head")],
)
def test_a_pattern_that_matches_nothing_is_named_with_a_close_one(pattern, meant):
    layers = [Layer(name, 1, 1, False) for name in ("blocks.0.conv", "blocks.1.conv", "head")]
    with pytest.raises(
        SeamError, match=rf"unknown layer '.*'; did you mean ({re.escape(meant)}|.* or {re.escape(meant)})"
    ):
        apply_locks(layers, exclude=[pattern])


def test_onnx_stores_3_bits_as_4_and_5_to_7_as_8():
    layers = {f"l{w}": {"w": w, "a": 4, "macs": 1, "params": 1000} for w in range(2, 9)}
    layers["float"] = {"w": 32, "a": 32, "macs": 1, "params": 1000}
    assert stored_mb(entries({"layers": layers})) == pytest.approx(1e-3 * (2 + 4 + 4 + 8 * 4 + 32) / 8)


def test_threads_stand_beside_the_versions():
    with_threads = policy(cost={**COST, "threads": 3}, versions=True)
    check_schema(with_threads, "policy")
    assert with_threads["threads"] == 3
    assert "threads" not in policy(cost=COST, versions=True) and "threads" not in policy(cost={**COST, "threads": 3})
    with pytest.raises(SeamError, match="threads"):
        check_schema({**with_threads, "threads": 0}, "policy")


def test_a_search_without_data_has_no_proxy():
    assert policy()["proxy"] is None
    assert policy(proxy={"dataset": None, "count": 0})["proxy"] is None


def test_every_policy_of_the_pipeline_is_valid(smoke_results):
    params, root = smoke_results
    paths = sorted((root / params.results).glob("search/**/policy.json"))
    assert paths
    for path in paths:
        content = read_policy(path)
        assert stale_totals(content) == [] and file_totals(content) == content["totals"]


def test_tied_locked_and_full_precision_layers(tmp_path):
    found = [
        Layer("stem", 100, 10, True),
        *(Layer(name, 1000, 20, False, "a") for name in ("a", "b", "c", "d")),
        Layer("fc", 30, 30, True),
    ]
    layers = apply_locks(found, lock=["b=3/4"], exclude=["c"])
    content = policy(((2, 3), (4, 3)), layers)
    check_schema(content, "policy")
    entry = content["layers"]
    assert entry["a"]["group"] == entry["d"]["group"] == "a" and not any("group" in entry[n] for n in ("b", "c", "fc"))
    assert [name for name in entry if entry[name].get("locked")] == ["b"]
    assert (entry["c"]["w"], entry["c"]["a"], entry["c"]["fixed"]) == (32, 32, True)
    counted = (1000 * 6 + 1000 * 12 + 1000 * 12) / 1e9
    assert content["totals"]["bitops_g"] == content["budget"]["spent"] == pytest.approx(counted)
    assert content["totals"]["bitops_g_fixed"] == pytest.approx((130 * 64 + 1000 * 32 * 32) / 1e9)
    assert file_totals(content) == content["totals"]

    path = write(tmp_path, content)  # the model itself ties a to d and knows of no lock
    bits = load_policy(path, found)
    assert bits == policy_bits(layers, ((2, 3), (4, 3)))
    assert [layer._replace(bits=layer.fixed_bits) for layer in policy_layers(content, found)] == [
        layer._replace(bits=layer.fixed_bits) for layer in layers
    ]
    assert totals(policy_layers(content, found), bits) == content["totals"]

    untied = copy.deepcopy(content)
    untied["layers"]["d"]["a"] = 4
    with pytest.raises(SeamError, match=r"layers a and d are tied \(group a\).* found 3 and 4"):
        read_policy(write(tmp_path, untied))
    for name in ("a", "d"):  # not even a file that does not know the group may break it
        del untied["layers"][name]["group"]
    del untied["totals"]
    with pytest.raises(SeamError, match="layers a and d read the same tensor"):
        load_policy(write(tmp_path, untied), found)


def test_a_file_with_bits_alone_is_enough(tmp_path):
    path = write(tmp_path, MINIMAL)
    assert load_policy(path, LAYERS, same_size=True) == {layer.name: (4, 4) for layer in LAYERS}
    assert file_totals(MINIMAL) is None and stale_totals(MINIMAL) == []
    assert [layer.fixed for layer in policy_layers(MINIMAL, LAYERS)] == [True, False, False, True]


def test_files_of_earlier_searches_stay_valid(tmp_path):
    """As `seam search` wrote them before keys such as cost, software and group came."""
    content = policy()
    content["proxy"] = {"dataset": "digits", "count": 1797, "image_size": [8, 8]}
    for layer in content["layers"].values():
        assert set(layer) == {"w", "a", "macs", "params", "fixed"}
    assert set(content) == {
        *("schema", "model", "budget", "method", "search", "seed", "proxy", "layers", "totals"),
    }
    assert load_policy(write(tmp_path, content), LAYERS)["a"] == (2, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(schema="seam-policy/9"), "found schema 'seam-policy/9', needs \"schema\": seam-policy/1"),
        (lambda p: p.pop("schema"), "found schema None"),
        (lambda p: p.update(schema=["seam-policy/1"]), "not a policy that this version of seam reads"),
        (lambda p: p.pop("layers"), "lacks 'layers'"),
        (lambda p: p.update(layers={}), "layers: .*non-empty"),
        (lambda p: p.update(layers=["a"]), r"layers: must be an object, found \['a'\]"),
        (lambda p: p.update(buget={}), "unknown key 'buget'; did you mean budget"),
        (lambda p: p["budget"].update(unit="GB"), "budget: unit: must be one of GBitOPs, MB, bits, ms, found 'GB'"),
        (lambda p: p.update(seed=-1), "seed: -1 is less than the minimum of 0"),
        (lambda p: p.update(cost={"seconds": 3}), "cost: unknown key 'seconds'"),
        (lambda p: p["layers"].pop("a"), "another model .toy, 10 classes.: lacks layers a"),
        (lambda p: p["layers"].update(zzz={"w": 4, "a": 4}), "has surplus layers zzz"),
        (lambda p: p["layers"]["b"].update(params=41), "layer b has 41 weights, the model's has 40"),
        (
            lambda p: p["layers"]["b"].update(w=9),
            "layer b: w: must be one of 2, .* 8, 32, found 9 .2 to 8 bits, or 32 for",
        ),
        (lambda p: p["layers"]["b"].update(a="4"), "layer b: a: must be one of 2, .* found '4'"),
        (lambda p: p["layers"]["b"].update(w=True), "layer b: w: must be one of 2, .* found True"),
        (lambda p: p["layers"]["b"].update(w=2.5), "layer b: w: must be one of 2, .* found 2.5"),
        (lambda p: p["layers"]["b"].update(w=32), "layer b: 32 bits mean full precision.* found w 32, a 2"),
        (lambda p: p["layers"]["b"].pop("w"), "layer b: lacks 'w'"),
        (lambda p: p["layers"]["b"].update(weight=4), "layer b: unknown key 'weight'"),
        (
            lambda p: p["layers"]["b"].update(w=3),
            "totals: bitops_g is 1e-05, but the layers give 9e-06.*delete the keys",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    content = policy()
    change(content)
    path = write(tmp_path, content)
    with pytest.raises(SeamError, match=message) as error:
        load_policy(path, LAYERS)
    assert str(path) in str(error.value)


def test_all_problems_come_in_one_message(tmp_path):
    content = policy()
    del content["layers"]["a"]
    content["layers"]["extra"] = {"w": 2, "a": 2}
    content["layers"]["fc"]["params"] = 300
    with pytest.raises(SeamError, match="lacks layers a; has surplus layers extra; layer fc has 300 weights"):
        load_policy(write(tmp_path, content), LAYERS)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[]", "found a JSON list"), ("{", "not valid JSON"), (None, "no such file")],
)
def test_what_is_no_policy_is_named(tmp_path, text, message):
    path = tmp_path / "policy.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SeamError, match=f"policy.json: .*{message}"):
        read_policy(path)
    with pytest.raises(SeamError, match="directory"):
        read_policy(tmp_path)


@pytest.mark.parametrize("limit", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
def test_a_budget_is_a_finite_number(tmp_path, limit):
    content = policy()
    content["budget"]["limit"] = "LIMIT"
    path = write(tmp_path, content)
    path.write_text(path.read_text().replace('"LIMIT"', limit))
    with pytest.raises(SeamError, match="policy.json: not valid JSON .*(finite number|401 digits)"):
        read_policy(path)


def test_messages_on_giant_values_are_short(tmp_path):
    for change in (
        {"schema": "x" * 10**5},
        {"x" * 10**5: 1},
        {f"key{i}": 1 for i in range(10**4)},
        {"comment": ["x"] * 10**5},
        {"layers": {"x" * 10**5: {"w": "y" * 10**5}}},
    ):
        with pytest.raises(SeamError) as error:
            read_policy(write(tmp_path, policy() | change))
        assert len(str(error.value)) < 3000


def test_macs_at_another_input_size_are_refused_only_if_asked(tmp_path):
    network = build(Model(name="test_resnet"), 10, 1)
    small, large = (find_layers(network, (1, side, side)) for side in (32, 64))
    budget = parse_budget("w3a3", small, BITS)
    content = make_policy(
        small,
        [(3, 3) for layer in small if not layer.fixed],
        budget,
        {"name": "test_resnet", "input_size": [1, 32, 32]},
    )
    path = write(tmp_path, content)
    assert load_policy(path, large) == load_policy(path, small, same_size=True)
    with pytest.raises(SeamError, match=r"another input size \(model.input_size is \[1, 32, 32\]\): layer"):
        load_policy(path, large, same_size=True)


def test_a_policy_for_other_classes_is_refused(tmp_path):
    ten, five = (find_layers(build(Model(name="test_resnet"), classes, 1), (1, 32, 32)) for classes in (10, 5))
    content = make_policy(
        ten, [(3, 3) for layer in ten if not layer.fixed], parse_budget("w3a3", ten, BITS), {"name": "test_resnet"}
    )
    with pytest.raises(SeamError, match=f"layer {five[-1].name} has {ten[-1].params} weights, .* {five[-1].params}"):
        load_policy(write(tmp_path, content), five)


def test_whole_numbers_written_as_floats_become_integers(tmp_path):
    content = copy.deepcopy(MINIMAL)
    content["layers"]["a"] = {"w": 3.0, "a": 4.0}
    bits = load_policy(write(tmp_path, content), LAYERS)["a"]
    assert bits == (3, 4) and all(type(b) is int for b in bits)
    assert entries(content)[1].w == 3


@pytest.mark.parametrize("module", ["seam.policy", "seam.policy.show", "seam.policy.convert"])
def test_looking_at_a_file_needs_no_torch(module):
    code = f"import sys, {module}; print(*{{'torch', 'timm', 'matplotlib', 'scipy', 'jsonschema'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
