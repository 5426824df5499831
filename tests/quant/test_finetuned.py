"""Weights of a finetuned network fit one policy, and nothing broken is loaded."""

import pytest
import timm
import torch

import seam.tool as seam
from seam.errors import SeamError
from seam.io import save_tensors
from seam.quant.finetuned import is_finetuned, load_finetuned


@pytest.fixture
def model():
    return timm.create_model("test_resnet", num_classes=10).eval()


def test_finetuned_weights_are_told_by_their_names(model, tmp_path):
    tuned = seam.quantize(model, seam.search(model, budget="w3a3", method="uniform"))
    for name, network in (("full", model), ("tuned", tuned)):
        save_tensors(tmp_path / f"{name}.safetensors", network.state_dict())
        assert is_finetuned(tmp_path / f"{name}.safetensors") == (name == "tuned")


def test_weights_tuned_under_other_bits_are_refused(model, tmp_path):
    policies = [seam.search(model, budgets=["w2a2", "w5a5"], method="random")[i] for i in (0, 1)]
    tuned = seam.quantize(model, policies[0])
    save_tensors(tmp_path / "tuned.safetensors", tuned.state_dict())
    assert load_finetuned(seam.quantize(model, policies[0]), tmp_path / "tuned.safetensors")
    with pytest.raises(SeamError, match="tuned under another policy"):
        load_finetuned(seam.quantize(model, policies[1]), tmp_path / "tuned.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bounds: bounds[:1], "holds no range of integers"),
        (lambda bounds: bounds > 0, "holds no range of integers"),
        (lambda bounds: bounds * torch.nan, "holds no range of integers"),
        (lambda bounds: bounds.flip(0), "holds no range of integers"),
    ],
)
def test_weights_with_broken_quantizers_are_refused(model, tmp_path, change, message):
    found = seam.search(model, budget="w3a3", method="uniform")
    state = seam.quantize(model, found).state_dict()
    name = next(name for name in state if name.endswith(".bounds"))
    save_tensors(tmp_path / "w.safetensors", {**state, name: change(state[name])})
    with pytest.raises(SeamError, match=f"w.safetensors: .*{message}"):
        load_finetuned(seam.quantize(model, found), tmp_path / "w.safetensors")
    weight = next(name for name in state if name.endswith("weight.original"))
    save_tensors(tmp_path / "w.safetensors", {**state, weight: state[weight] * torch.nan})
    with pytest.raises(SeamError, match="weights hold NaN"):
        load_finetuned(seam.quantize(model, found), tmp_path / "w.safetensors")
