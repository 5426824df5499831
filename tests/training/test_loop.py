from functools import partial

import pytest
import torch
from digit_training import CPU, network, trained

from seam.data.loaders import load
from seam.errors import SeamError
from seam.models.build import build
from seam.models.find import find_layers
from seam.policy.budget import parse_budget
from seam.quant.apply import calibrate, quantize
from seam.runtime.meter import Meter
from seam.search import joint
from seam.search.problem import prepare
from seam.settings import Finetune, Model, SearchSettings, Training
from seam.training import loop
from seam.training.evaluate import evaluate
from seam.training.loop import fit
from seam.training.optimizers import Group
from seam.training.supervised import cross_entropy, training_groups
from seam.training.supervised import train as train_supervised


def test_it_learns_digits(images):
    train, test = images
    model = network()
    before = evaluate(model, test, 359, CPU)
    history = trained(model, train, epochs=3)
    after = evaluate(model, test, 359, CPU)
    assert before["top1"] < 30 and after["top1"] > 85
    assert after["loss"] < before["loss"] and after["class_margin"] > before["class_margin"]
    assert after["top5"] >= after["top1"]
    assert history[-1]["step"] == 3 * (len(train) // 64) and history[-1]["epoch"] == 3
    assert history[0]["lr"] < 0.05 and history[-1]["lr"] < 0.001


def test_the_same_seed_gives_the_same_weights(images):
    states = []
    for seed in (0, 0, 1):
        model = network()
        trained(model, images[0], epochs=1, seed=seed)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not all(torch.equal(states[0][k], states[2][k]) for k in states[0])


def test_a_killed_run_resumes_and_ends_the_same(images, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0.0)
    whole = network()
    expected = trained(whole, images[0])

    class Killed(Exception):
        pass

    def kill(step, **metrics):
        if step >= 30:  # within the second epoch
            raise Killed

    resume = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Killed):
        trained(network(), images[0], resume=resume, live=kill)
    assert resume.exists()
    steps = []
    model, meter = network(seed=5), Meter(CPU)
    found = trained(model, images[0], resume=resume, live=lambda step, **m: steps.append(step), meter=meter)
    assert 20 < steps[0] <= 30  # went on, did not start again
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), model.state_dict().values(), strict=True))
    drop = ("seconds",)
    assert [{k: v for k, v in r.items() if k not in drop} for r in found] == [
        {k: v for k, v in r.items() if k not in drop} for r in expected
    ]
    assert meter.images == 2 * (len(images[0]) // 64) * 64 and set(meter.parts) == {"start", "train"}


@pytest.mark.parametrize("kept", ["re-estimated", "frozen", "updated"])
def test_finetuning_keeps_updates_or_re_estimates_the_statistics_of_batch_norm(images, kept):
    model, frozen = (quantize(network(), {"layer1.0.conv1": (4, 4)}) for _ in range(2))
    before, meter = {name: value.clone() for name, value in model.state_dict().items()}, Meter(CPU)
    settings = Finetune(epochs=1, kernels="eager", batch_norm=kept, threads=1)
    few = images[0].subset(range(256))
    train_supervised(model, settings, few, 0, CPU, meter)
    after = model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert any("running_mean" in name for name in changed) == (kept != "frozen")
    assert any("bn1.weight" in name for name in changed)
    assert not any(module.training for module in model.modules())
    looks = 2 if kept == "re-estimated" else 1
    assert (meter.images, meter.forwards) == (looks * 256, looks * 256 * 3)
    if kept == "re-estimated":  # only then, when it was trained with those that it had
        train_supervised(frozen, settings.model_copy(update={"batch_norm": "frozen"}), few, 0, CPU, Meter(CPU))
        for name, value in frozen.named_parameters():
            assert torch.equal(value, after[name]), name


@pytest.mark.parametrize("steps", [1, 25, 30, 1000])
def test_no_more_steps_than_asked_for(images, steps):
    model, meter = network(), Meter(CPU)
    groups = training_groups(model, Training(epochs=2, lr=0.05))
    loss = cross_entropy(model)
    history = fit(model, loss, images[0], 2, 64, groups, 0, CPU, meter, steps=steps)
    taken = min(steps, 2 * 22)
    assert history[-1]["step"] == meter.steps == taken and meter.images == 64 * taken
    assert meter.epochs == (2 if taken > 22 else 1) and history[-1]["lr"] < 0.051


def test_finetuning_recovers_a_quantized_model(images):
    train, test = images
    model = network()
    trained(model, train, epochs=3)
    bits = {n: (3, 3) for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d) and n.startswith("layer")}
    quantize(model, bits)
    calibrate(model, [next(iter(train.batches(512)))])
    before = evaluate(model, test, 359, CPU)["top1"]
    settings = Finetune(epochs=2, lr=0.02, step_lr=0.003)
    groups = training_groups(model, settings)
    assert len(groups) == 2 and len(groups[1].params) == 2 * len(bits)
    fit(model, cross_entropy(model), train, 2, 64, groups, 0, CPU, Meter(CPU))
    assert evaluate(model, test, 359, CPU)["top1"] > before


def test_what_images_never_reach_is_left_out_and_comes_back(images, tmp_path, monkeypatch):
    """ResNet-18 on 8x8: 86 % of its weights. A finetuning that is killed resumes among the rest."""
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0.0)
    train = load("digits", tmp_path, "train", indices=list(range(192)))
    settings = Finetune(epochs=2, batch_size=64, lr=0.01)

    def quantized():
        torch.manual_seed(0)
        model = build(Model(name="resnet18"), 10, 1)
        layers = find_layers(model, (1, 8, 8))
        quantize(model, {layer.name: (4, 4) for layer in layers}, layers, (1, 8, 8))
        calibrate(model, train.batches(64, device=CPU))
        return model

    def kill(step, **metrics):
        if step == 4:
            raise KeyboardInterrupt

    whole, resumed, checkpoint = quantized(), quantized(), tmp_path / "finetune.safetensors"
    start = {key: value.clone() for key, value in whole.state_dict().items()}
    meter = Meter(CPU)
    train_supervised(whole, settings, train, 0, CPU, meter)
    assert meter.macs_per_image < 0.6 * sum(layer.macs for layer in find_layers(whole, (1, 8, 8)))
    with pytest.raises(KeyboardInterrupt):
        train_supervised(resumed, settings, train, 0, CPU, Meter(CPU), resume=checkpoint, live=kill)
    assert checkpoint.stat().st_size < 0.2 * 8 * sum(p.numel() for p in whole.parameters())  # weights and momenta
    larger = load("digits", tmp_path, "train", image_size=32, indices=list(range(192)))
    with pytest.raises(SeamError, match="finetune.safetensors: the checkpoint does not fit the model and the size"):
        train_supervised(quantized(), settings, larger, 0, CPU, Meter(CPU), resume=checkpoint)
    resumed = quantized()
    train_supervised(resumed, settings, train, 0, CPU, Meter(CPU), resume=checkpoint)
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key
    deep = "layer4.1.conv2.parametrizations.weight.original"
    changed = (whole.state_dict()[deep] != start[deep]).any(0).any(0)
    assert changed.nonzero().tolist() == [[1, 1]]  # on one pixel the middle tap alone


def test_schedule():
    group = Group([], 1.0)
    assert group.scale(0) == 0 and group.scale(0.05) == pytest.approx(1) and group.scale(1) == pytest.approx(0)
    assert Group([], 1.0, schedule="constant").scale(0.7) == 1


def test_weight_decay_spares_biases_and_norms():
    groups = [Group(list(network().parameters()), 0.1, kind, 0.01) for kind in ("sgd", "adamw")]
    for group in (entry for given in groups for entry in given.optimizer().param_groups):
        assert all((p.dim() > 1) == (group["weight_decay"] > 0) for p in group["params"])


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_optimizers_take_torchs_steps_in_any_memory_format(kind):
    generator = torch.Generator().manual_seed(0)

    def draw(shape):
        x = torch.randn(shape, generator=generator)
        return x.to(memory_format=torch.channels_last) if len(shape) == 4 else x

    shapes = [(8, 4, 3, 3), (8, 4, 1, 1), (8, 1, 3, 3), (5, 8), (5,)]
    start, gradients = [draw(s) for s in shapes], [[draw(s) for s in shapes] for _ in range(3)]
    start[3] = start[3].t().contiguous().t()
    torchs = {"sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True), "adamw": torch.optim.AdamW}[kind]
    found = []
    for make in (
        lambda params: Group(params, 0.1, kind, weight_decay=0.01).optimizer(),
        lambda params: torchs(
            [{"params": params[:4], "weight_decay": 0.01}, {"params": params[4:], "weight_decay": 0.0}], lr=0.1
        ),
    ):
        params = [torch.nn.Parameter(x.clone()) for x in start]
        optimizer = make(params)
        for i, given in enumerate(gradients):
            for p, g in zip(params, given, strict=True):
                p.grad = g.contiguous() if i == 1 else g.clone()  # not always in the format of the weight
            optimizer.step()
            optimizer.zero_grad()
            assert all(p.grad is None for p in params)
        found.append(params)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_long_gradients_are_clipped(images):
    moved = []
    for clip_norm in (None, 1e-3):
        model = network()
        before = model.fc.weight.detach().clone()
        groups = [Group(list(model.parameters()), 0.05, momentum=0.0)]
        few = images[0].subset(range(256))
        loss = cross_entropy(model)
        fit(model, loss, few, 1, 64, groups, 0, CPU, Meter(CPU), clip_norm=clip_norm)
        moved.append((model.fc.weight - before).norm().item())
    assert moved[0] > 1e-2
    assert 0 < moved[1] <= 4 * 0.05 * 1e-3  # steps x learning rate x norm


def joint_search(images):
    """The history of a short joint search, and what it has trained."""
    model, settings = network(), SearchSettings(epochs=1, steps=8, calibration_images=128, kernels="eager")
    layers = find_layers(model, images.shape)
    budgets = [parse_budget("w3a3", layers, settings.bits)]
    # As the stage does it: taps that images never reach are cut. Torch's bfloat16 leaves their gradients unwritten.
    problem = prepare(joint, model, images, layers, budgets, settings, 0, CPU, Meter(CPU))
    joint.preferences(problem)
    return problem.history, problem.model


def qat(images):
    model = network()
    layers = find_layers(model, images.shape)
    quantize(model, {layer.name: (4, 4) for layer in layers}, layers, images.shape)
    calibrate(model, images.batches(128, device=CPU))
    settings = Finetune(epochs=1, lr=0.01, kernels="eager")
    return train_supervised(model, settings, images, 0, CPU, Meter(CPU), steps=8), model


@pytest.mark.parametrize("training", [joint_search, qat])
def test_in_bfloat16_losses_are_near_those_in_32_bits_and_parameters_keep_their_32(images, monkeypatch, training):
    """What a GPU does, on the CPU."""
    assert loop._in_bfloat16(torch.device("cuda", 1)) and not loop._in_bfloat16(CPU)
    computed, forward = set(), torch.nn.Conv2d._conv_forward

    def noting(*args):
        y = forward(*args)
        computed.add(y.dtype)
        return y

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", noting)
    full, _ = training(images[0])
    assert computed == {torch.float32}
    monkeypatch.setattr(loop, "_in_bfloat16", lambda device: True)
    half, model = training(images[0])
    assert torch.bfloat16 in computed
    assert len(half) == len(full) == 8
    for row, wanted in zip(half, full, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=0.1)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
