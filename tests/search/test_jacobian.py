import copy
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from architectures import MODELS, create
from search_problems import BITS, CPU, Images, images, problem, whole
from torch import nn

from seam.errors import SeamError
from seam.models.build import build
from seam.models.features import capture_features
from seam.models.layers import Layer
from seam.models.norms import norms_behind
from seam.policy.budget import parse_budget
from seam.quant.apply import fit_inputs, input_quantizers, input_samples, quantize
from seam.quant.kernels import use_kernels
from seam.quant.quantizer import weight_quantizer
from seam.runtime.meter import Meter
from seam.search import jacobian
from seam.search.problem import Problem
from seam.settings import Model, SearchSettings


@pytest.fixture(autouse=True)
def eager():
    use_kernels("eager")
    torch.set_num_threads(1)


def input_steps_of_full_precision(net, x):
    """`calibrate` would read inputs with quantized weights; here all weight quantizers are off."""
    readers = input_quantizers(net)
    fit_inputs(readers, input_samples(net, readers, [(part, None) for part in x.split(64)]))


def features(model, x):
    with torch.no_grad(), capture_features(model) as captured:
        model(x)
    return F.normalize(captured[-1], dim=1)


@contextmanager
def with_moments_of(net, x, names):
    """The named layers' outputs keep, a channel, the mean and standard deviation that they have now for images x."""
    wanted = {}

    def keep(name, output):
        spread, mean = torch.std_mean(output, (0, 2, 3), keepdim=True)
        if name not in wanted:
            wanted[name] = spread, mean
        return (output - mean) / spread * wanted[name][0] + wanted[name][1]

    modules = dict(net.named_modules())
    hooks = [modules[n].register_forward_hook(lambda _, args, y, n=n: keep(n, y)) for n in names]
    features(net, x)
    yield
    for hook in hooks:
        hook.remove()


def brute_force(model, given, widths=BITS, share=1e-3, normalised=()):
    """[2, L, B] mean_i ||J_ti D||^2 by central differences: a small part of each tensor's own quantization error.

    normalised: layers whose outputs' means and variances the error does not change.
    """
    searched = [layer for layer in given.layers if not layer.fixed]
    result = np.zeros((2, len(searched), len(widths)))
    model = copy.deepcopy(model).double()
    every = given.images.x.double()
    x = every[:8]  # the rest repeats them
    for b, bits in enumerate(widths):
        net = quantize(copy.deepcopy(model), {layer.name: (bits, bits) for layer in searched}, searched).eval()
        modules = dict(net.named_modules())
        quantizers = [(weight_quantizer(modules[one.name]), modules[one.name].input_quantizer) for one in searched]
        for quantizer in (q for pair in quantizers for q in pair):
            quantizer.enabled = False
        input_steps_of_full_precision(net, every)
        for i, pair in enumerate(quantizers):
            for kind, quantizer in enumerate(pair):
                if kind and given.groups.index(given.groups[i]) != i:
                    continue
                readers = [
                    one.name for one, group in zip(searched, given.groups, strict=True) if group == given.groups[i]
                ]
                kept = {searched[i].name} if kind == 0 else set(readers)
                moved = []
                for sign in (1, -1):
                    forward = type(quantizer).forward

                    def partly(t, q=quantizer, sign=sign, forward=forward):
                        q.enabled = True
                        error = forward(q, t) - t
                        return t + sign * share * error

                    with with_moments_of(net, x, kept.intersection(normalised)):
                        quantizer.forward = partly
                        moved.append(features(net, x))
                    del quantizer.forward
                    quantizer.enabled = False
                result[kind, i, b] = ((moved[0] - moved[1]) / (2 * share)).square().sum(1).mean()
    return result


@pytest.mark.parametrize("name", ["test_resnet", "resnet10t", "beit_base_patch16_224"])
def test_equals_brute_force(name):
    torch.manual_seed(0)
    model = whole(create(name) if name in MODELS else build(Model(name=name), 10, 3))
    given = problem(model, images().repeat(50, 1, 1, 1), draws=4, calibration="steps")
    table = jacobian.preferences(given)
    weights, inputs = brute_force(model, given, BITS[:2])
    # Of E_w + E_a only differences along the bit-widths can be told apart; the first two bit-widths show them best.
    for i in range(len(table)):
        for found, true in ((-table[i, :, -1], weights[i]), (-table[i, -1, :], inputs[i])):
            assert found[0] - found[1] == pytest.approx(true[0] - true[1], rel=0.3, abs=1e-7)
    assert -table[:, 0, 0].sum() == pytest.approx(weights[:, 0].sum() + inputs[:, 0].sum(), rel=0.05)


@pytest.mark.parametrize("name", ["test_resnet", "resnet10t"])
def test_what_re_estimated_statistics_take_away_does_not_count(name):
    torch.manual_seed(0)
    model = whole(create(name) if name in MODELS else build(Model(name=name), 10, 3))
    plain = jacobian.preferences(problem(model, images(), draws=200, calibration="steps"))
    given = problem(model, images(), draws=200)
    table = jacobian.preferences(given)
    names = [layer.name for layer in given.layers if not layer.fixed]
    weights, inputs = brute_force(model, given, BITS[:2], normalised=norms_behind(model, names, given.images.x))
    for i in range(len(table)):
        for found, true in ((-table[i, :, -1], weights[i]), (-table[i, -1, :], inputs[i])):
            assert found[0] - found[1] == pytest.approx(true[0] - true[1], rel=0.4, abs=1e-7)
    assert -table[:, 0, 0].sum() == pytest.approx(weights[:, 0].sum() + inputs[:, 0].sum(), rel=0.1)
    assert table[:, 0, 0].sum() > 0.9 * plain[:, 0, 0].sum()  # less error


def test_of_one_image_something_is_left():
    given = problem(whole(build(Model(name="test_resnet"), 10, 3)), images(1))
    given.settings.options["images"] = 1
    table = jacobian.preferences(given)
    assert all(np.ptp(layer) > 0 for layer in table)


def test_without_batch_norm_the_level_of_calibration_makes_no_difference():
    model = create("test_convnext")
    tables = []
    for level in ("steps", "norm"):
        given = problem(model, images(), draws=2, calibration=level)
        tables.append(jacobian.preferences(given))
    assert np.array_equal(*tables)
    given.settings.options["calibration"] = "nrom"
    with pytest.raises(SeamError, match="did you mean norm"):
        jacobian.preferences(given)


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_of_every_architecture_has_an_error(name):
    given = problem(whole(create(name)), images(16), draws=4)
    table = jacobian.preferences(given)
    assert np.isfinite(table).all() and (table <= 0).all()
    assert (np.diff(table, axis=1) >= 0).all() and (np.diff(table, axis=2) >= 0).all()  # more bits are never worse
    for i, group in enumerate(given.groups):
        shared = given.groups.index(group) != i  # the input's error is counted once, with the group's first layer
        assert (np.ptp(table[i], axis=1).max() == 0) == shared
        assert np.ptp(table[i], axis=0).max() > 0
    batch_norm = any(isinstance(module, nn.BatchNorm2d) for module in given.model.modules())
    assert given.meter.images == 16
    assert given.meter.forwards == 16 * (1 + 1 + 4 + len(BITS) * (2 if batch_norm else 1))


def test_the_same_seed_gives_the_same_table_and_labels_do_not_matter():
    model = create("test_convnext")
    first, again, other = (jacobian.preferences(problem(model, images(), seed=seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    unlabelled = problem(model, images())
    unlabelled.images.labels = torch.zeros(len(unlabelled.images), dtype=torch.int64)
    assert np.array_equal(first, jacobian.preferences(unlabelled))


def test_the_margin_s_directions_count_more():
    model = create("test_convnext")
    tables = {}
    for kind in ("features", "centroids", "classifier"):
        given = problem(model, images(), draws=8)
        given.settings.options["directions"] = kind
        tables[kind] = jacobian.preferences(given)
    assert tables["centroids"][:, 0, 0].sum() < tables["features"][:, 0, 0].sum() > tables["classifier"][:, 0, 0].sum()
    given.settings.options["directions"] = "centroid"
    with pytest.raises(SeamError, match="did you mean centroids"):
        jacobian.preferences(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "options.draws: must be a whole number of at least 1"),
        ({"images": 2.5}, "options.images: must be a whole number"),
        ({"drwas": 3}, "did you mean draws"),
    ],
)
def test_wrong_options_are_named(options, message):
    given = problem(create("test_convnext"), images(2))
    given.settings = given.settings.model_copy(update={"options": options})
    with pytest.raises(SeamError, match=message):
        jacobian.preferences(given)


def test_centroids_of_one_class_are_refused():
    given = problem(create("test_convnext"), images(1))
    given.settings.options["directions"] = "centroids"
    with pytest.raises(SeamError, match="needs at least two classes"):
        jacobian.preferences(given)


class Chain(nn.Module):
    """Layers behind one another, the second called twice; the features of its classifier are what it gives."""

    num_classes = 3

    def __init__(self, in_place=False):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.in_place = in_place

    def get_classifier(self):
        return self.head

    def forward(self, x):
        y = self.first(x.flatten(1))
        z = self.second(torch.tanh(self.second(y)))
        if self.in_place:
            y += z
            z = y
        return self.head(z)


def chained(model):
    layers = [Layer(name, 64, 64, name != "second", name) for name in ("first", "second", "head")]
    settings = SearchSettings(bits=BITS, options={"images": 4000, "draws": 1})
    x = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(0)).repeat(500, 1, 1, 1)
    budgets = [parse_budget("w4a4", layers, BITS)]
    return Problem(copy.deepcopy(model), layers, Images(x), budgets, settings, 0, CPU, Meter(CPU))


def test_a_layer_that_is_called_twice_moves_the_features_in_all():
    torch.manual_seed(0)
    model = Chain().eval()
    given = chained(model)
    table = jacobian.preferences(given)
    weights, inputs = brute_force(model, given)
    assert -table[0, 0, 0] + table[0, -1, 0] == pytest.approx(weights[0, 0] - weights[0, -1], rel=0.1)
    assert -table[0, 0, 0] + table[0, 0, -1] == pytest.approx(inputs[0, 0] - inputs[0, -1], rel=0.1)


def test_an_input_that_is_changed_in_place_later_is_refused():
    with pytest.raises(SeamError, match="layer second: its input is changed in place later on"):
        jacobian.preferences(chained(Chain(in_place=True).eval()))


def test_a_frozen_network_has_gradients_too():
    model = create("test_convnext")
    table = jacobian.preferences(problem(model, images()))
    assert np.array_equal(jacobian.preferences(problem(model.requires_grad_(False), images())), table)
