import subprocess
import sys

import pytest
import torch
from engines import REPOSITORY, environment
from torch import nn

from seam.errors import SeamError
from seam.io import save_tensors
from seam.models.build import build, load_weights, replace_head
from seam.models.features import capture_features, extract_features
from seam.models.find import classifier_layer, find_layers, total_macs
from seam.quant.apply import quantize
from seam.settings import Model


def test_macs_of_resnet18_are_the_published_ones():
    model = build(Model(name="resnet18"), 1000, 3)
    assert total_macs(model, (3, 224, 224)) == pytest.approx(1.814e9, rel=0.001)  # 1.8 GMACs, He et al. 2016


def test_layers_in_order_with_the_ends_fixed():
    layers = find_layers(build(Model(name="resnet18"), 10, 1), (1, 28, 28))
    assert [layers[0].name, layers[-1].name] == ["conv1", "fc"]
    assert [layer.fixed for layer in layers] == [True, *[False] * 19, True]
    conv = next(layer for layer in layers if layer.name == "layer1.0.conv1")
    assert (conv.params, conv.macs) == (64 * 64 * 9, 64 * 64 * 9 * 7 * 7)


def test_macs_of_depthwise_and_linear_by_hand():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.dw = nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.fc = nn.Linear(8, 5)

        def forward(self, x):
            return self.fc(self.dw(self.a(x)).mean((2, 3)))

    macs = {layer.name: layer.macs for layer in find_layers(Net(), (3, 10, 10))}
    assert macs == {"a": 25 * 8 * 27, "dw": 25 * 8 * 9, "fc": 40}


def test_counting_leaves_the_mode_and_the_statistics_alone():
    model = build(Model(name="test_resnet"), 10, 1).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    find_layers(model, (1, 16, 16))
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_training_from_weights_for_other_classes_keeps_all_but_the_classifier(tmp_path):
    given = build(Model(name="test_resnet"), 7, 3)
    save_tensors(tmp_path / "seven.safetensors", given.state_dict())
    path = str(tmp_path / "seven.safetensors")
    with pytest.raises(SeamError, match="weights for 7 classes, the model has 10"):
        build(Model(name="test_resnet", weights=path), 10, 3)
    model = build(Model(name="test_resnet", weights=path, train=True), 10, 3)
    assert model.num_classes == 10 and len(model.fc.weight) == 10
    own = model.state_dict()
    same = {name for name, value in given.state_dict().items() if torch.equal(value, own[name])}
    assert set(own) - same == {"fc.weight", "fc.bias"}


def test_unknown_model_lists_close_names():
    with pytest.raises(SeamError, match="resnet18"):
        build(Model(name="resnet81"), 10, 3)


def test_refused_option_is_named():
    with pytest.raises(SeamError, match="no_such_option"):
        build(Model(name="resnet18", kwargs={"no_such_option": 1}), 10, 3)


def test_an_input_the_model_cannot_take_is_named():
    with pytest.raises(SeamError, match=r"\(3, 8, 8\)"):
        find_layers(build(Model(name="test_resnet"), 10, 1), (3, 8, 8))


def test_weights_round_trip_and_misfits_are_named(tmp_path):
    torch.manual_seed(1)
    source = build(Model(name="test_resnet"), 10, 1)
    save_tensors(tmp_path / "w.safetensors", source.state_dict())
    again = build(Model(name="test_resnet", weights=str(tmp_path / "w.safetensors")), 10, 1)
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), again.state_dict().values(), strict=True)
    )
    with pytest.raises(SeamError, match="weights for 10 classes, the model has 7"):
        load_weights(build(Model(name="test_resnet"), 7, 1), tmp_path / "w.safetensors")
    with pytest.raises(
        SeamError, match=r"conv1\.0\.weight has shape \(\d+, 1, 3, 3\), the model needs \(\d+, 3, 3, 3\)"
    ):
        load_weights(build(Model(name="test_resnet"), 10, 3), tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:200])
    with pytest.raises(SeamError, match=r"w\.safetensors"):
        load_weights(source, tmp_path / "w.safetensors")


def test_the_number_of_classes_is_that_of_the_weights(tmp_path):
    save_tensors(tmp_path / "w.safetensors", build(Model(name="test_vit"), 7, 3).state_dict())
    model = build(Model(name="test_vit", weights=str(tmp_path / "w.safetensors")), None, 3)
    assert model.num_classes == 7 and classifier_layer(model).out_features == 7


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"epoch": 3, "state_dict": s}, lambda s: {"model": s}])
def test_weights_come_from_a_checkpoint_too(tmp_path, wrap):
    source = build(Model(name="test_resnet"), 7, 1)
    state = {f"module.{name}": value for name, value in source.state_dict().items()}  # as DDP saves it
    torch.save(wrap(state), tmp_path / "w.pth")
    again = build(Model(name="test_resnet", weights=str(tmp_path / "w.pth")), None, 1)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in source.state_dict().items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nn.Linear(2, 2), "without running code in it .*save the weights alone"),  # a module is pickled code
        ({"net": {"fc.weight": torch.ones(1)}, "lr": 0.1}, "no state dict.*its keys are net, lr"),
        (None, "no such file"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, content, message):
    if content is not None:
        torch.save(content, tmp_path / "w.pth")
    with pytest.raises(SeamError, match=rf"w\.pth: .*{message}"):
        build(Model(name="test_resnet", weights=str(tmp_path / "w.pth")), 7, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: weight.to_sparse(), "cannot be copied into the model: .*fc.weight"),
        (lambda weight: weight.to("meta"), "cannot be copied into the model: .*fc.weight"),
        (lambda weight: weight.to(torch.complex64), "fc.weight holds complex64, not floating-point numbers"),
        (lambda weight: weight.int(), "fc.weight holds int32"),
        (lambda weight: weight * float("nan"), "weights hold NaN or infinity: fc.weight"),
    ],
)
def test_weights_that_are_no_numbers_are_named(tmp_path, change, message):
    state = build(Model(name="test_resnet"), 7, 1).state_dict()
    torch.save({**state, "fc.weight": change(state["fc.weight"])}, tmp_path / "w.pth")
    with pytest.raises(SeamError, match=rf"w\.pth: .*{message}"):
        build(Model(name="test_resnet", weights=str(tmp_path / "w.pth")), 7, 1)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_weights_are_a_file(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(SeamError, match=f"{name}: not a file"):
        build(Model(name="test_resnet", weights=str(tmp_path / name)), 7, 1)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"act_layer": "foo"}, "refuses to build test_resnet with .*foo"),
        ({"layers": [1]}, "refuses to build .*division by zero"),
        ({"block": "x"}, "refuses to build .*expansion"),
        ({"pretrained_cfg": 5}, "refuses to build .*architecture"),
        ({"norm_layer": {"a": 1}}, "refuses to build .*: [A-Z]"),
        ({"num_classes": 5}, "refuses to build .*multiple values"),
        ({"x" * 10_000: 1}, "refuses to build"),
        ({"features_only": True}, "kwargs.features_only cannot be used: a classifier"),
        ({"checkpoint_path": "w.pth"}, "kwargs.checkpoint_path cannot be used: give the file as weights"),
    ],
)
def test_options_that_timm_cannot_use_are_named(kwargs, message):
    with pytest.raises(SeamError, match=message) as error:
        build(Model(name="test_resnet", kwargs=kwargs), 7, 1)
    assert len(str(error.value)) < 600


def test_quantized_weights_are_no_full_precision_ones(tmp_path):
    model = build(Model(name="test_resnet"), 10, 1)
    save_tensors(tmp_path / "w.safetensors", quantize(model, {"conv1.0": (8, 8)}).state_dict())
    with pytest.raises(SeamError, match="weights of a quantized model"):
        build(Model(name="test_resnet", weights=str(tmp_path / "w.safetensors")), 10, 1)


def test_features_are_the_classifier_s_input():
    model = build(Model(name="test_resnet"), 10, 1)
    x, y = torch.randn(4, 1, 16, 16), torch.arange(4)
    with capture_features(model) as features, torch.no_grad():
        logits = model(x)
        torch.testing.assert_close(model.get_classifier()(features[-1]), logits)
    found, labels = extract_features(model, [(x, y), (x, y)])
    assert found.shape == (8, model.num_features) and labels.tolist() == [0, 1, 2, 3] * 2


def test_new_head():
    model = build(Model(name="test_resnet"), 10, 1)
    replace_head(model, 3)
    assert model(torch.randn(2, 1, 16, 16)).shape == (2, 3)


def test_small_stem_keeps_the_resolution():
    size = (3, 32, 32)
    small, usual = (
        find_layers(build(Model(name="resnet18", small_stem=small), 10, 3), size) for small in (True, False)
    )
    assert small[0].macs == 32 * 32 * 64 * 27
    assert sum(layer.macs for layer in small) == pytest.approx(0.556e9, rel=0.01)  # ResNet-18 for CIFAR
    assert sum(layer.macs for layer in usual) < 0.1 * sum(layer.macs for layer in small)
    with pytest.raises(SeamError, match="small_stem is for ResNets"):
        build(Model(name="mobilenetv2_050", small_stem=True), 10, 3)


_OF_TIMM = """
import sys
from pathlib import Path
import torch
from seam.errors import SeamError
from seam.io import load_tensors, save_tensors
from seam.models.build import build
from seam.settings import Model

spec = Model(name="test_resnet", pretrained=True)
try:
    build(spec, None, 3)
    sys.exit("built without its weights")
except SeamError as error:
    print(error)
given = build(Model(name="test_resnet"), None, 3).state_dict()
kept = Path(sys.argv[1], "models--timm--test_resnet.r160_in1k")
(kept / "snapshots/0").mkdir(parents=True)
(kept / "refs").mkdir()
(kept / "refs/main").write_text("0")
save_tensors(kept / "snapshots/0/model.safetensors", given)
found = build(spec, None, 3).state_dict()
assert found.keys() == given.keys() and all(torch.equal(found[name], given[name]) for name in given)
few = build(spec, 10, 1).state_dict()
differ = {name for name in given if not torch.equal(few[name], given[name])}
assert differ == {"conv1.0.weight", "fc.weight", "fc.bias"}, differ
assert torch.allclose(few["conv1.0.weight"], given["conv1.0.weight"].sum(1, keepdim=True))  # of gray images
"""


def test_weights_of_timm_come_from_its_cache_without_a_network(tmp_path):
    """The cache is laid out as huggingface_hub fills it; it reads its variables once, so in a process of its own."""
    environ = environment(REPOSITORY) | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _OF_TIMM, str(tmp_path)], env=environ, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("models: the pretrained weights of test_resnet cannot be downloaded (")
    assert done.stdout.endswith("give a local file with weights\n")
