import copy

import pytest
import torch

from seam.errors import SeamError
from seam.models.find import find_layers
from seam.models.shared_inputs import weight_parameter
from seam.policy.budget import parse_budget
from seam.runtime.meter import Meter
from seam.search import jacobian, seam
from seam.search.problem import Problem, solve
from seam.settings import SearchSettings

CPU = torch.device("cpu")
BITS = (2, 3, 4, 5, 6)


@pytest.fixture
def trained(trained_model):
    return trained_model


def problem(model, images, budget="w3a3", **settings):
    layers = find_layers(model, (1, 28, 28))
    chosen = SearchSettings(bits=BITS, batch_size=64, calibration_images=128, kernels="eager", **settings)
    budgets = [parse_budget(budget, layers, BITS)]
    return Problem(copy.deepcopy(model), layers, images, budgets, chosen, 0, CPU, Meter(CPU))


def test_the_network_stays_as_it_was_trained(digits, trained):
    given = problem(trained, digits, epochs=1)
    seam.preferences(given)
    modules = dict(given.model.named_modules())
    for name, module in trained.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            weight = weight_parameter(modules[name])
            assert torch.equal(weight, module.weight) and weight.grad is None
        if isinstance(module, torch.nn.BatchNorm2d):
            assert torch.equal(modules[name].running_mean, module.running_mean)
            assert torch.equal(modules[name].weight, module.weight)


def test_it_starts_at_the_jacobian_s_policy_and_moves_on(digits, trained):
    few = problem(trained, digits, steps=1, logit_lr=1e-6)
    first = problem(trained, digits)
    expected = solve(jacobian, first, jacobian.preferences(first), first.budgets)
    assert solve(seam, few, seam.preferences(few), few.budgets) == expected
    zero = problem(trained, digits, steps=1, logit_lr=1e-6, options={"start": "zero"})
    assert solve(seam, zero, seam.preferences(zero), zero.budgets) != expected
    with pytest.raises(SeamError, match="did you mean jacobian"):
        seam.preferences(problem(trained, digits, options={"start": "jacobain"}))


@pytest.mark.parametrize("budget", ["w2a3", "w5a5"])
def test_it_ends_decided_at_its_budget_with_features_nearer(budget, digits, trained):
    given = problem(trained, digits, budget=budget, epochs=4, temperature=0.1)
    seam.preferences(given)
    first, last = given.history[0], given.history[-1]
    assert last["budget"] == pytest.approx(1, abs=0.03)
    assert given.report["logit_entropy"] < 0.25 * torch.tensor(5.0).log2()
    assert last["moved"] < first["moved"]


def test_only_what_falls_below_full_precision_s_margin_is_punished(digits, trained):
    """At the widest bits nothing falls below: margins cost nothing, whatever their weight."""
    given = problem(trained, digits, budget="w6a6", steps=1, margin_weight=1.0)
    given.settings = given.settings.model_copy(update={"options": {"start": "jacobian"}})
    seam.preferences(given)
    low = problem(trained, digits, budget="w2a2", steps=1, margin_weight=1.0)
    seam.preferences(low)
    assert 0 <= given.history[0]["margin"] < 0.05 < low.history[0]["margin"]
