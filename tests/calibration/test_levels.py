import copy

import pytest
import torch
from architectures import MODELS, SIZE, create
from digit_training import CPU

import seam.tool as tool
from seam.calibration import reconstruct as reconstruction
from seam.calibration.levels import LEVELS, calibrate, full_precision
from seam.calibration.output_error import fit_to_outputs
from seam.data.image_sets import TensorSet
from seam.errors import SeamError
from seam.models.find import find_layers
from seam.quant.apply import calibrate as fit_steps
from seam.quant.apply import input_quantizers, quantize
from seam.quant.kernels import use_kernels
from seam.quant.quantizer import weight_quantizer
from seam.runtime.process import set_up
from seam.settings import Reconstruction
from seam.training.evaluate import evaluate

SHORT = Reconstruction(iterations=10, batch_size=8)


@pytest.fixture(autouse=True)
def one_thread():
    set_up("cpu", 1, 0)
    use_kernels("eager")


def calibrated(digits, budget, level, settings=SHORT, seed=0, resume=None, count=128):
    model = digits.quantized(budget)
    rows = calibrate(model, digits.train.subset(range(count)), level, CPU, settings, seed, resume)
    return model, rows


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_by_default_statistics_are_re_estimated(digits):
    default, norm, steps = (digits.quantized("w3a3") for _ in range(3))
    tool.calibrate(default, digits.train)
    assert equal(default, tool.calibrate(norm, digits.train, level="norm"))
    assert not equal(default, tool.calibrate(steps, digits.train, level="steps"))


def test_the_first_level_is_what_calibration_always_was(digits):
    before, now = (digits.quantized("w3a3") for _ in range(2))
    fit_steps(before, [next(iter(digits.train.batches(256, seed=0)))])
    assert equal(tool.calibrate(now, digits.train, level="steps"), before)


@pytest.mark.parametrize(("budget", "share"), [("w4a4", 0.65), ("w3a3", 0.2)])
def test_each_level_loses_less_than_least_squares_steps(digits, budget, share):
    def lost(level, seed=0):
        """Over full precision."""
        model, _ = calibrated(digits, budget, level, Reconstruction(iterations=60), seed, count=256)
        return evaluate(model, digits.test, 359, CPU)["loss"] - whole

    whole = evaluate(digits.model, digits.test, 359, CPU)["loss"]
    loss = {level: lost(level) for level in LEVELS}
    assert all(value < loss["steps"] for level, value in loss.items() if level != "steps"), loss
    reconstructed = (loss["reconstruct"] + lost("reconstruct", 1) + lost("reconstruct", 2)) / 3
    assert reconstructed < share * loss["steps"], (reconstructed, loss)


def test_the_full_precision_copy_computes_what_the_model_did(digits):
    x = next(iter(digits.test.batches(50)))[0]
    model, _ = calibrated(digits, "w2a2", "steps")
    with torch.no_grad():
        assert torch.equal(full_precision(model)(x), digits.model(x))
        assert not torch.equal(model(x), digits.model(x))


def test_steps_of_least_output_error_are_those_of_a_search_by_hand(digits):
    steps, output = (calibrated(digits, "w3a3", level)[0] for level in ("steps", "output"))
    x = next(iter(digits.train.batches(64)))[0]
    name = "conv1.3"
    first, second = (network.get_submodule(name) for network in (steps, output))
    read = []
    hook = second.register_forward_pre_hook(lambda _, args: read.append(args[0]), prepend=True)
    with torch.no_grad():
        output(x)
        hook.remove()
        plain = first.parametrizations.weight.original
        wanted = torch.nn.functional.conv2d(read[0], plain, None, first.stride, first.padding)
        start, errors = first.input_quantizer.log_step.clone(), []
        for factor in torch.linspace(0.55, 1.45, 13):
            first.input_quantizer.log_step.copy_(start + factor.log())
            found = torch.nn.functional.conv2d(first.input_quantizer(read[0]), plain, None, first.stride, first.padding)
            errors.append((found - wanted).square().sum().item())
        best = torch.linspace(0.55, 1.45, 13)[errors.index(min(errors))]
    torch.testing.assert_close(second.input_quantizer.log_step.detach(), start + best.log())
    assert not torch.equal(weight_quantizer(first).log_step, weight_quantizer(second).log_step)


def moments_behind_norms(model, x):
    """[C] mean and variance of what each BatchNorm hands on."""
    found, norms = [], [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    hooks = [
        m.register_forward_hook(lambda _, args, y: found.append((y.mean((0, 2, 3)), y.var((0, 2, 3))))) for m in norms
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def test_norm_gives_each_channel_the_mean_and_variance_of_full_precision(digits):
    images = digits.train.subset(range(64))
    x = next(iter(images.batches(64)))[0]
    wanted = moments_behind_norms(digits.model, x)
    output, norm = digits.quantized("w2a2"), digits.quantized("w2a2")
    for model, level in ((output, "output"), (norm, "norm")):
        calibrate(model, images, level, CPU)
    for found, expected in zip(moments_behind_norms(norm, x), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    far = zip(moments_behind_norms(output, x), wanted, strict=True)
    assert any((found[0] - expected[0]).abs().max() > 0.1 for found, expected in far)


def test_an_error_that_norm_takes_away_does_not_count_in_the_choice_of_steps():
    """A depthwise layer whose error at two bits is mostly a shift: its steps are those of the least variance."""
    x = torch.rand(16, 1, 6, 6, generator=torch.Generator().manual_seed(0)) + 3
    conv = torch.nn.Conv2d(1, 1, 3, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.linspace(-0.3, 1, 9).view(1, 1, 3, 3))
    errors = {}
    for means_return in ((), ("0",)):
        net = torch.nn.Sequential(copy.deepcopy(conv), torch.nn.BatchNorm2d(1))
        quantize(net, {"0": (2, 8)}, [layer for layer in find_layers(net, (1, 6, 6)) if layer.name == "0"])
        fit_steps(net, [(x, None)])
        fit_to_outputs(net, x, means_return)
        with torch.no_grad():
            errors[means_return] = net[0](x) - torch.nn.functional.conv2d(x, conv.weight)
    assert errors["0",].var() < errors[()].var()
    assert errors[()].square().mean() < errors["0",].square().mean()


def test_norm_of_one_image_takes_no_error_for_none():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8), torch.nn.BatchNorm1d(8))
    quantize(net, {"1": (4, 4)}, [layer for layer in find_layers(net, (3, 2, 2)) if layer.name == "1"])
    x = torch.randn(1, 3, 2, 2)
    fit_steps(net, [(x, None)])
    alike = copy.deepcopy(net)
    fit_to_outputs(net, x, ("1",))
    fit_to_outputs(alike, x)
    assert equal(net, alike)


def test_reconstruction_lowers_the_error_of_each_block_and_leaves_what_is_not_its_own(digits):
    plain, _ = calibrated(digits, "w3a3", "output")
    model, rows = calibrated(digits, "w3a3", "reconstruct", Reconstruction(iterations=60))
    assert [row["unit"] for row in rows] == ["conv1.3", "conv1.6", "layer1.0", "layer2.0", "layer3.0", "layer4.0"]
    assert sum(row["error"] for row in rows) < 0.8 * sum(row["error_before"] for row in rows)
    assert not model.training and all(p.requires_grad for p in model.parameters())
    modules = dict(plain.named_modules())
    for name, buffer in plain.named_buffers():
        if "running" in name:
            assert torch.equal(buffer, model.get_buffer(name))
    ends = {name for name, q in input_quantizers(plain).items() if q.bits == 8}
    for name, module in model.named_modules():
        if name in ends:
            assert torch.equal(module.weight, modules[name].weight)
        elif name in input_quantizers(model):
            step = weight_quantizer(module).log_step.detach().exp().view(-1, 1, 1, 1)
            stored = module.parametrizations.weight.original / step
            torch.testing.assert_close(stored, stored.round(), atol=1e-4, rtol=0)  # its rounding is baked in
            assert not torch.equal(module.weight, modules[name].weight)


def test_the_same_seed_gives_the_same_network(digits):
    first, second, other = (calibrated(digits, "w3a3", "reconstruct", seed=seed)[0] for seed in (1, 1, 2))
    assert equal(first, second) and not equal(first, other)


def test_a_killed_reconstruction_goes_on_after_its_last_block_and_ends_the_same(digits, tmp_path, monkeypatch):
    whole, rows = calibrated(digits, "w3a3", "reconstruct")
    learn, taught = reconstruction._learn, []

    def killed(unit, *args):
        taught.append(unit.name)
        if len(taught) == 4:
            raise KeyboardInterrupt
        return learn(unit, *args)

    resume = tmp_path / "resume.safetensors"
    monkeypatch.setattr(reconstruction, "_learn", killed)
    with pytest.raises(KeyboardInterrupt):
        calibrated(digits, "w3a3", "reconstruct", resume=resume)
    assert resume.exists()
    again, found = calibrated(digits, "w3a3", "reconstruct", resume=resume)
    assert taught == ["conv1.3", "conv1.6", "layer1.0", "layer2.0", "layer2.0", "layer3.0", "layer4.0"]
    assert equal(again, whole) and found == rows


@pytest.mark.parametrize("name", MODELS)
def test_all_levels_take_all_architectures(name):
    model = create(name)
    x = torch.randint(0, 256, (8, *SIZE[1:], 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = TensorSet(x, torch.zeros(8, dtype=torch.int64), ["all"], [0.5] * 3, [0.25] * 3)
    layers = find_layers(model, SIZE)
    bits = {layer.name: (8, 8) if layer.fixed else (3, 3) for layer in layers}
    for level in ("norm", "reconstruct"):
        network = quantize(copy.deepcopy(model), bits, layers)
        rows = calibrate(network, images, level, CPU, Reconstruction(iterations=2))
        assert all(value.isfinite().all() for value in network.state_dict().values() if value.is_floating_point())
        with torch.no_grad():
            assert network(next(iter(images.batches(8)))[0]).isfinite().all()
    assert sum(row["layers"] for row in rows) >= len([layer for layer in layers if not layer.fixed])


def test_an_unknown_level_and_wrong_settings_are_named(digits):
    with pytest.raises(SeamError, match="unknown level 'reconstuct'; did you mean reconstruct?"):
        tool.calibrate(digits.quantized("w3a3"), digits.train, level="reconstuct")
    with pytest.raises(SeamError, match="iterations: .*greater than or equal to 1"):
        tool.calibrate(digits.quantized("w3a3"), digits.train, level="reconstruct", settings={"iterations": 0})


def test_a_diverging_reconstruction_is_refused_by_the_block(digits):
    with pytest.raises(SeamError, match="reconstruct: the output of conv1.3 is not finite; lower lr or step_lr"):
        calibrated(digits, "w3a3", "reconstruct", Reconstruction(iterations=5, step_lr=1e30))
