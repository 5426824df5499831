"""Methods of published papers: their curvatures and errors against definitions, on networks of every kind."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from architectures import MODELS, create
from search_problems import BITS, images, problem, whole
from torch import nn

from seam.errors import SeamError
from seam.models.build import build
from seam.quant.apply import calibrate, input_samples, quantize
from seam.quant.functional import initial_steps, input_grids, integer_bounds
from seam.quant.kernels import use_kernels
from seam.quant.mixture import Mixture
from seam.search import fit, hawq, jacobian, jacobian_fit, limpq, sensitivity, sqnr
from seam.search.tensors import view
from seam.settings import Model

METHODS = {"fit": fit, "hawq": hawq, "jacobian_fit": jacobian_fit, "sqnr": sqnr}


@pytest.fixture(autouse=True)
def eager():
    use_kernels("eager")
    torch.set_num_threads(1)


@pytest.fixture
def small():
    """Two layers, smooth between them: (logits [6, 3], [weight, what the second layer reads])."""
    torch.manual_seed(0)
    first, second = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()
    read = F.softplus(first(torch.randn(6, 4, dtype=torch.float64))).detach().requires_grad_()
    return second, read


def test_fisher_traces_are_those_of_all_labels_weighed_by_the_predictions(small):
    layer, read = small
    exact = torch.zeros(2)
    p = layer(read).softmax(1)
    for i, y in ((i, y) for i in range(6) for y in range(3)):
        loss = F.cross_entropy(layer(read)[i : i + 1], torch.tensor([y]))
        exact += p[i, y] * torch.stack([g.square().sum() for g in torch.autograd.grad(loss, [layer.weight, read])])
    noise = torch.Generator().manual_seed(0)
    found = fit.fisher_traces(layer(read), [layer.weight, read], 4000, noise) / 4000
    assert found.tolist() == pytest.approx(exact.tolist(), rel=0.05)


def test_hessian_traces_are_those_of_the_whole_hessian(small):
    layer, read = small
    y = layer(read).argmax(1)

    def of_weight(w):
        return F.cross_entropy(F.linear(read.detach(), w, layer.bias), y, reduction="sum")

    def of_read(x):
        return F.cross_entropy(layer(x), y, reduction="sum")

    exact = [
        torch.autograd.functional.hessian(f, t.detach()).reshape(t.numel(), -1).trace().item()
        for f, t in ((of_weight, layer.weight), (of_read, read))
    ]
    noise = torch.Generator().manual_seed(0)
    found = hawq.hessian_traces(layer(read), [layer.weight, read], 4000, noise) / 4000
    assert found.tolist() == pytest.approx(exact, rel=0.05)


def test_sqnr_is_the_noise_of_each_tensor_as_a_share_of_its_signal():
    torch.manual_seed(0)
    model = build(Model(name="test_resnet"), 10, 3)
    given = problem(model, images(4))
    given.settings.options.pop("draws")
    table = sqnr.preferences(given)
    layer = dict(model.named_modules())[given.names[0]]
    bounds = integer_bounds(BITS, signed=True)
    steps = initial_steps(layer.weight.detach().flatten(1), bounds)
    share = []
    for b in range(len(BITS)):
        step = steps[b].view(-1, 1, 1, 1)
        rounded = (layer.weight / step).round().clamp(*bounds[:, b].tolist()) * step
        share.append(((rounded - layer.weight).square().sum() / layer.weight.square().sum()).item())
    assert np.diff(-table[0, :, -1]) == pytest.approx(np.diff(share), rel=1e-4)
    assert 0 < share[-1] < 0.01 < share[0] < 1


def test_inputs_have_the_ranges_of_the_quantizers_that_a_policy_gets():
    """GELU's outputs: zero points, one for each bit-width, as in a mixture and in the network quantized at last."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )
    given = problem(copy.deepcopy(net), images(40))
    x, *_, watched = view(given, jacobian.OPTIONS, 128, 1)
    layers, samples = given.layers, input_samples(copy.deepcopy(net), ["2"], [(x, None)])["2"]
    ranges, steps = input_grids(samples, BITS)
    assert (ranges[0] > integer_bounds(BITS, True)[0]).all()
    assert torch.equal(watched["2"].inputs.bounds, ranges) and torch.equal(watched["2"].inputs.steps[:, 0], steps)
    mixed = Mixture(copy.deepcopy(net), layers, BITS)
    mixed.calibrate([(x, None)])
    for b, bits in enumerate(BITS):
        last = quantize(copy.deepcopy(net), {"2": (8, bits)}, layers)
        calibrate(last, [(x, None)])
        quantizer = last[2].input_quantizer
        torch.testing.assert_close(quantizer.bounds[:, 0], ranges[:, b])
        torch.testing.assert_close(quantizer.log_step.exp()[0], steps[b], rtol=0.01, atol=0)  # its stem is quantized
    torch.testing.assert_close(mixed.input_bounds[0], ranges)
    torch.testing.assert_close(mixed.input_log_steps[0].exp(), steps, rtol=0.01, atol=0)


@pytest.mark.parametrize("level", ["steps", "norm"])
def test_jacobian_fit_is_the_geometric_mean_of_the_errors_of_both(level):
    torch.manual_seed(0)
    model = whole(build(Model(name="test_resnet"), 10, 3))

    def alone(errors, *more):  # of a copy of the network that no other method has looked at
        given = problem(copy.deepcopy(model), images(40), draws=3, calibration=level)
        return errors(given, view(given, jacobian.OPTIONS, 128, 1), *more)

    moved, diverged = alone(jacobian.feature_errors), alone(fit.trace_times_error, fit.fisher_traces, "fit")
    both = jacobian_fit.preferences(problem(copy.deepcopy(model), images(40), draws=3, calibration=level))
    for i, w, a in np.ndindex(both.shape):
        expected = sum((moved[k, i, b] * diverged[k, i, b]) ** 0.5 for k, b in ((0, w), (1, a)))
        assert both[i, w, a] == pytest.approx(-expected, rel=1e-5)
    assert moved.shape == (2, len(both), len(BITS)) and (moved[0] > 0).all() and (diverged[0] > 0).all()


@pytest.mark.parametrize("method", [jacobian, jacobian_fit])
def test_searches_are_for_re_estimated_statistics_by_default(method):
    model = whole(build(Model(name="test_resnet"), 10, 3))
    given = ({}, {"calibration": "norm"}, {"calibration": "steps"})
    default, norm, steps = (method.preferences(problem(copy.deepcopy(model), images(8), **one)) for one in given)
    assert np.array_equal(default, norm) and not np.allclose(default, steps)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_every_layer_of_every_architecture_has_an_error(method, name):
    given = problem(whole(create(name)), images(4), draws=2)
    if method == "sqnr":
        given.settings.options.pop("draws")
    table = METHODS[method].preferences(given)
    assert np.isfinite(table).all() and (table <= 0).all()
    assert (np.diff(table, axis=1) >= 0).all() and (np.diff(table, axis=2) >= 0).all()
    for i, group in enumerate(given.groups):
        shared = given.groups.index(group) != i  # the input's error is counted once, with the group's first layer
        assert (np.ptp(table[i], axis=1).max() == 0) >= shared
        if method != "hawq":  # a Hessian of a piecewise linear network may be 0 or less
            assert np.ptp(table[i], axis=0).max() > 0
    assert np.ptp(table) > 0 and given.meter.images == 4 * (1 + (method == "jacobian_fit"))  # it looks twice


@pytest.mark.parametrize("method", METHODS)
def test_unknown_options_are_named(method):
    given = problem(build(Model(name="test_resnet"), 10, 3), images(4))
    given.settings.options.clear()
    given.settings.options["image"] = 3
    with pytest.raises(SeamError, match="option.*'?image'?.*did you mean images"):
        METHODS[method].preferences(given)


def test_divergence_of_predictions_as_a_distance():
    """Quantizing one layer: the divergence that `sensitivity` sums is that of the networks' own answers."""
    torch.manual_seed(0)
    model = build(Model(name="test_resnet"), 10, 3)
    given, other = problem(model, images(4)), problem(model, images(4))
    given.settings.options.update(distance="kl")
    other.settings.options.clear()
    table, features = sensitivity.preferences(given), sensitivity.preferences(other)
    assert np.isfinite(table).all() and (table <= 1e-6).all() and not np.allclose(table, features)
    p, q = torch.randn(2, 5, 3, dtype=torch.float64).softmax(2).log()
    far = sensitivity._DISTANCES["kl"][1]
    assert far(q, p).item() == pytest.approx((p.exp() * (p - q)).sum().item())
    given.settings.options.update(distance="lk")
    with pytest.raises(SeamError, match="distance.*did you mean kl"):
        sensitivity.preferences(given)


def test_learned_steps_fall_with_the_bits_and_differ_from_the_first_ones():
    torch.manual_seed(0)
    x = images(32)
    given = problem(build(Model(name="test_resnet"), 10, 3), x)
    given.settings = given.settings.model_copy(
        update={"options": {}, "epochs": 2, "batch_size": 8, "calibration_images": 8, "kernels": "eager"}
    )
    given.images = _Batches(x)
    table = limpq.preferences(given)
    assert np.isfinite(table).all() and (table < 0).all() and len(given.history) > 0
    assert (np.diff(table.mean(0), axis=0) > 0).all() and (np.diff(table.mean(0), axis=1) > 0).all()


class _Batches:
    """Images as `fit` asks for them."""

    def __init__(self, x):
        self.x, self.labels, self.classes, self.shape = x, torch.arange(len(x)) % 10, list("0123456789"), x.shape[1:]

    def __len__(self):
        return len(self.x)

    def batches(self, size, **_):
        yield from zip(self.x.split(size), self.labels.split(size), strict=True)
