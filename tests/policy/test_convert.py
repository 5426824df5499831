"""Policies for other tools."""

import json

import pytest
import torch
from policies import LAYERS, MINIMAL, policy

from seam.errors import SeamError
from seam.io import read_csv
from seam.policy.convert import convert, torchao


def test_csv_has_a_row_a_layer(tmp_path):
    convert(policy(), "csv", tmp_path / "policy.csv")
    rows = read_csv(tmp_path / "policy.csv")
    assert list(rows[0]) == ["layer", "w", "a", "macs", "params", "fixed"]
    assert [tuple(row.values()) for row in rows] == [
        ("stem", "8", "8", "100", "10", "1"),
        ("a", "2", "3", "1000", "20", "0"),
        ("b", "4", "2", "500", "40", "0"),
        ("fc", "8", "8", "30", "30", "1"),
    ]


def test_csv_leaves_empty_what_the_file_does_not_say(tmp_path):
    convert(MINIMAL, "csv", tmp_path / "policy.csv")
    assert [tuple(row.values())[1:] for row in read_csv(tmp_path / "policy.csv")] == [("4", "4", "", "", "0")] * 4


def test_torchao_has_a_dtype_of_torch_for_each_quantized_layer(tmp_path):
    content = policy()
    content["layers"]["b"].update(w=32, a=32)
    convert(content, "torchao", tmp_path / "torchao.json")
    written = json.loads((tmp_path / "torchao.json").read_text())
    assert written == torchao(content) and written["_type"] == "FqnToConfig"
    configs = written["_data"]["fqn_to_config"]
    assert list(configs) == ["stem", "a", "fc"]
    dtypes = [getattr(torch, config["_data"]["weight_dtype"]["_data"]) for config in configs.values()]
    assert dtypes == [torch.int8, torch.int2, torch.int8]


def test_torchao_reads_it_and_quantizes_a_model():
    """Runs where torchao is installed; it is not a dependency."""
    config_from_dict = pytest.importorskip("torchao.core.config").config_from_dict
    from torchao.quantization import FqnToConfig, quantize_

    bits = {"0": 3, "2": 2, "3": 32}
    layers = {name: {"w": w, "a": 32 if w == 32 else 4} for name, w in bits.items()}
    config = config_from_dict(torchao({"schema": "seam-policy/1", "layers": layers}))
    assert isinstance(config, FqnToConfig)
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 16), torch.nn.Linear(16, 5)
    )
    quantize_(network, config, filter_fn=None)
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 5)
    assert len(network[0].weight.qdata.unique()) <= 8 and len(network[2].weight.qdata.unique()) <= 4
    assert type(network[3].weight) is torch.nn.Parameter


def test_an_unknown_format_is_named(tmp_path):
    with pytest.raises(SeamError, match="unknown format 'cvs'; did you mean csv"):
        convert(policy(), "cvs", tmp_path / "x")
    assert not list(tmp_path.iterdir()) and LAYERS
