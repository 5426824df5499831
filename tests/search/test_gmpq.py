"""GMPQ: Grad-CAM by definition, on networks of every kind, and what its term does."""

import copy

import numpy as np
import pytest
import torch
from architectures import MODELS, SIZE, create
from torch import nn

from seam.data.loaders import load
from seam.errors import SeamError
from seam.models.build import build
from seam.models.find import find_layers
from seam.policy.budget import parse_budget
from seam.runtime.meter import Meter
from seam.search import gmpq
from seam.search.problem import Problem, solve
from seam.settings import Model, SearchSettings

CPU = torch.device("cpu")
BITS = (2, 3, 4, 5, 6)


def problem(model, images, seed=0, **settings):
    layers = find_layers(model, images.shape)
    given = {"epochs": 1, "batch_size": 64, "calibration_images": 128, "kernels": "eager", **settings}
    budgets = [parse_budget("w3a3", layers, BITS)]
    checked = SearchSettings(bits=BITS, **given)
    return Problem(copy.deepcopy(model), layers, images, budgets, checked, seed, CPU, Meter(CPU))


@pytest.fixture(scope="module")
def large(tmp_path_factory, digits):
    """Digits of 64x64, whose last maps have more than one place."""
    return load("digits", tmp_path_factory.mktemp("data"), "train", image_size=64).subset(range(320))


def test_the_map_of_a_pooled_linear_classifier_is_its_rows_times_the_features():
    """Grad-CAM is CAM (Zhou et al. 2016) there; and the axis of channels does not matter."""
    torch.manual_seed(0)
    layer, labels = nn.Linear(5, 3), torch.tensor([0, 2])
    features = torch.randn(2, 5, 4, 4, requires_grad=True)
    found = gmpq.attribution(layer(features.mean((2, 3))), labels, features)
    expected = torch.einsum("nc,nchw->nhw", layer.weight[labels], features).relu().flatten(1)
    assert torch.allclose(found, expected / expected.norm(dim=1, keepdim=True), atol=1e-6)
    tokens = features.detach().flatten(2).transpose(1, 2).requires_grad_()
    assert torch.allclose(found, gmpq.attribution(layer(tokens.mean(1)), labels, tokens, 2), atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_has_a_map(name):
    model = create(name)
    model.eval().requires_grad_(False)
    if getattr(model, "global_pool", "") == "token":
        with pytest.raises(SeamError, match="class token"), gmpq.capture_map(model):
            pass
        return
    with gmpq.capture_map(model) as found:
        scores = model(torch.randn(2, *(SIZE if "img_size" in MODELS[name][0] else (3, 64, 64))))
        features, channels, apart = found
        places = gmpq.attribution(scores, scores.argmax(1), *found)
    assert features.shape[channels] == model.num_features and apart == ("beit" in name)
    assert places.shape[1] == features[0].numel() // model.num_features - apart > 1
    assert torch.isfinite(places).all()
    assert "forward_features" not in vars(model)


def test_the_term_keeps_the_maps_nearer_within_the_budget(large, trained_model):
    ends = []
    for weight in (1e-6, 600.0):
        given = problem(trained_model, large, options={"attribution": weight}, batch_size=32, logit_lr=1e-9)
        table = gmpq.preferences(given)
        assigned = solve(gmpq, given, table, given.budgets)
        assert 0.9 < given.budgets[0].cost(assigned) / given.budgets[0].limit <= 1
        ends.append(np.mean([row["attribution"] for row in given.history[-3:]]))
    assert ends[1] < 0.8 * ends[0]


def test_the_same_seed_gives_the_same_policy(large, trained_model):
    tables = [gmpq.preferences(problem(trained_model, large, seed=seed)) for seed in (0, 0, 1)]
    assert (tables[0] == tables[1]).all() and (tables[0] != tables[2]).any()
    assert tables[0].shape[1:] == (len(BITS), len(BITS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"powr": 2}, "did you mean power"),
        ({"power": 0}, "options.power: must be a number above 0"),
        ({"attribution": True}, "options.attribution: must be a number"),
    ],
)
def test_bad_options_are_named(options, message, large, trained_model):
    with pytest.raises(SeamError, match=message):
        gmpq.preferences(problem(trained_model, large, options=options))


def test_the_map_to_keep_is_full_precision_s_to_the_power(large):
    """Mixtures of wide bit-widths look where full precision does (without BatchNorm, which training would change)."""
    torch.manual_seed(0)
    model = build(Model(name="test_convnext"), 10, 1)
    ends = []
    for power in (1.0, 3.0):
        given = problem(model, large, options={"power": power}, steps=1, temperature=1.0)
        given.settings = given.settings.model_copy(update={"bits": (7, 8)})
        given.budgets = [parse_budget("w8a8", given.layers, (7, 8))]
        gmpq.preferences(given)
        ends.append(given.history[0]["attribution"])
    assert ends[0] < 2e-3 and ends[1] > 10 * ends[0]


def test_new_classes_need_a_warm_up(large, trained_model):
    given = problem(trained_model, large)
    given.own_classes = False
    with pytest.raises(SeamError, match="warmup_epochs: must be at least 1 for gmpq"):
        gmpq.preferences(given)


def test_a_map_of_one_place_and_a_model_without_one_are_refused(digits, trained_model):
    with pytest.raises(SeamError, match=r"one place; give larger images than \(8, 8\)"):
        gmpq.preferences(problem(trained_model, digits.subset(range(64))))
    with pytest.raises(SeamError, match="no forward_features"), gmpq.capture_map(nn.Linear(2, 2)):
        pass
