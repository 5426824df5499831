"""Trainings that diverge end at once, with where and what to lower."""

import math

import pytest
import torch
import torch.nn.functional as F
from digit_training import CPU, network

from seam.errors import SeamError
from seam.runtime.meter import Meter
from seam.settings import Finetune, Training
from seam.training import loop
from seam.training.divergence import first_infinite_layer, infinite_tensors, layer_name
from seam.training.evaluate import evaluate
from seam.training.loop import fit
from seam.training.optimizers import Group
from seam.training.supervised import cross_entropy
from seam.training.supervised import train as train_supervised


def breaking(model, at, value=math.nan):
    """The cross-entropy of a model whose layer layer2.0.conv1 breaks just before step `at`."""
    plain, seen = cross_entropy(model), []

    def loss(x, y, done):
        seen.append(1)
        if len(seen) == at:
            with torch.no_grad():
                model.layer2[0].conv1.weight[0] = value
        return plain(x, y, done)

    return loss


@pytest.mark.parametrize(
    ("once_a_row", "taken", "layer"),
    # On a GPU the steps up to the next row are taken in vain, and the first of them breaks all weights.
    [(False, 23, "layer2.0.conv1"), (True, 27, "conv1.0")],
)
def test_it_stops_at_the_first_loss_that_is_not_finite(images, tmp_path, monkeypatch, once_a_row, taken, layer):
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "_ROWS_PER_EPOCH", 4)  # not at the next row
    monkeypatch.setattr(loop, "_looks_once_a_row", lambda device: once_a_row)
    model, meter, resume = network(), Meter(CPU), tmp_path / "run.safetensors"
    groups = [Group(list(model.parameters()), 0.05)]
    with pytest.raises(SeamError) as raised:
        fit(model, breaking(model, 24), images[0], 2, 64, groups, 0, CPU, meter, resume=resume, section="pretrain")
    assert str(raised.value) == (
        f"train: the training diverged at step 24 of 44, epoch 2 (loss nan, first in layer {layer}); "
        "lower pretrain.lr (now 0.05)"
    )
    assert meter.steps == taken
    model = network()
    groups = [Group(list(model.parameters()), 0.05)]
    history = fit(model, cross_entropy(model), images[0], 2, 64, groups, 0, CPU, Meter(CPU), resume=resume)
    assert all(math.isfinite(value) for row in history for value in row.values())
    assert not infinite_tensors(model)


def test_losses_are_read_at_each_step_on_a_cpu_alone():
    assert not loop._looks_once_a_row(CPU) and loop._looks_once_a_row(torch.device("cuda", 1))


@pytest.mark.parametrize("lr", [1e6, 1e30, math.inf])
def test_a_learning_rate_that_is_far_too_high(images, lr):
    settings = Training(epochs=3, lr=1.0, threads=1).model_copy(update={"lr": lr})
    model = network()
    with pytest.raises(SeamError, match=r"the training diverged at step \d+ of 33, .* lower lr \(now (1e\+|inf)"):
        train_supervised(model, settings, images[0].subset(range(1438)), 0, CPU, Meter(CPU))
        evaluate(model, images[1], 359, CPU)
        pytest.skip("this network withstood it")


def test_the_term_of_the_loss_is_named(images):
    model = network()

    def loss(x, y, done):
        margin = torch.tensor(math.inf if done > 0.5 else 0.0)
        ce = F.cross_entropy(model(x), y)
        return ce + margin, {"ce": ce, "margin": margin}

    groups = [Group([model.fc.weight], 0.05), Group([model.fc.bias], 0.01, "adam", key="step_lr")]
    with pytest.raises(SeamError, match=r"\(loss inf, margin inf\); lower lr \(now 0.05\) or step_lr \(now 0.01\)"):
        fit(model, loss, images[0], 1, 64, groups, 0, CPU, Meter(CPU))


def test_weights_that_break_in_the_last_step_are_no_result(images):
    model = network()
    model.fc.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(SeamError, match="at step 1 of 1, epoch 1 .the weights are not finite, first in layer fc"):
        fit(
            model, cross_entropy(model), images[0], 1, 64, [Group([model.fc.weight], 0.05)], 0, CPU, Meter(CPU), steps=1
        )


def test_what_is_infinite_by_nature_is_no_divergence(images):
    model = network()
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    groups = [Group(list(model.parameters()), 0.05)]
    fit(model, cross_entropy(model), images[0], 1, 64, groups, 0, CPU, Meter(CPU), steps=2)


def test_a_broken_network_has_no_accuracy(images):
    model = network()
    with torch.no_grad():
        model.layer3[0].conv2.weight.fill_(math.nan)
    with pytest.raises(SeamError, match="outputs are not finite .loss nan, .*first in layer layer3.0.conv2"):
        evaluate(model, images[1], 359, CPU)


def test_names_of_layers():
    assert layer_name("0.model.layer1.0.conv1.parametrizations.weight.0") == "layer1.0.conv1"
    assert layer_name("bn1.running_var") == "bn1"
    assert first_infinite_layer(torch.nn.Linear(2, 2), lambda: 1 / 0) == ""


def test_a_finetuning_names_its_learning_rates(images):
    from seam.quant.apply import quantize

    model = quantize(network(), {"layer1.0.conv1": (4, 4)})
    with torch.no_grad():
        model.layer1[0].conv1.parametrizations.weight.original.fill_(math.inf)
    settings = Finetune(epochs=1, kernels="eager", threads=1)
    with pytest.raises(SeamError, match=r"layer1.0.conv1\); lower finetune.lr .* or finetune.step_lr"):
        train_supervised(model, settings, images[0], 0, CPU, Meter(CPU), section="finetune")
