import copy
import itertools
import json
import random
from collections import Counter
from functools import cache

import numpy as np
import onnx
import pytest
import timm
import torch
import torch.nn.functional as F
from engines import REPOSITORY
from onnx import TensorProto, numpy_helper
from onnxruntime import InferenceSession
from real_weights import efficientnet_lite0
from sklearn.datasets import load_digits, load_sample_images
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from seam.errors import SeamError
from seam.io import read_json, sha256, write_json
from seam.models.find import find_layers
from seam.onnx.export import check_parity, export, export_verified, parity
from seam.quant.apply import calibrate, input_quantizers, quantize
from seam.quant.quantizer import Quantizer, weight_quantizer

CPU = torch.device("cpu")
MODELS = {  # name: options
    "lcnet_035": {},  # hard-swish, squeeze and excitation
    "test_efficientnet": {"act_layer": nn.ReLU6},
    "test_nfnet": {},
    "test_convnext": {},
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 2},
    # A parent applies the weights of qkv itself.
    "beit_base_patch16_224": {"img_size": 32, "depth": 1, "embed_dim": 48, "num_heads": 3},
    # Has layers that read a table, not the image.
    "swinv2_tiny_window8_256": {
        "img_size": 32,
        "window_size": 4,
        "depths": (2, 1),
        "embed_dim": 24,
        "num_heads": (2, 4),
    },
}


def digits(size, first=0, last=1797, channels=1):
    data = load_digits()
    images = torch.tensor(data.images[first:last], dtype=torch.float32)[:, None] / 16 - 0.5
    images = F.interpolate(images, size=(size, size), mode="bilinear").repeat(1, channels, 1, 1)
    return images, torch.tensor(data.target[first:last])


def as_trained(model):
    """Random biases and BatchNorm statistics, in place: fresh ones are 0 and 1, which hides what happens to them."""
    for name, values in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith(("bias", "running_mean")):
            nn.init.normal_(values, std=0.1)
        elif name.endswith("running_var"):
            nn.init.uniform_(values, 0.5, 1.5)
    return model


class Small(nn.Module):
    """Convolutions, one depthwise, BatchNorm and a linear layer; signed and unsigned inputs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.branch = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 10)
        as_trained(self)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = self.depthwise(x) + self.branch(x)
        return self.head(x.mean((2, 3)))


def run(path, x):
    return InferenceSession(path).run(["logits"], {"images": x.numpy()})[0]


def quantized(model, bits, images, layers=()):
    """`model` with `bits` (weight, activation) everywhere, or as the function gives them by layer."""
    names = [layer.name for layer in layers] or [n for n, m in model.named_modules() if hasattr(m, "weight")]
    names = [name for name in names if isinstance(model.get_submodule(name), nn.Conv2d | nn.Linear)]
    quantize(model, {name: bits(name) if callable(bits) else bits for name in names}, layers)
    calibrate(model, [(images, None)])
    return model.eval()


@cache
def trained(name):
    """A small network that knows digits, at 4/4 bits, and 600 digits it has not seen."""
    torch.manual_seed(0)
    size, epochs, options = {
        "test_resnet": (16, 4, {}),
        "test_vit": (32, 8, {"img_size": 32, "patch_size": 8, "depth": 2}),
    }[name]
    model = timm.create_model(name, num_classes=10, in_chans=1, **options)
    x, y = digits(size, last=1197)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    quantized(model, lambda n: (8, 8) if n in ("conv1.0", "patch_embed.proj", "fc", "head") else (4, 4), x[:128])
    test = digits(size, first=1197)
    with torch.no_grad():
        accuracy = (model(test[0]).argmax(1) == test[1]).float().mean().item()
    assert accuracy > 0.5  # else agreement would say little
    return model, (1, size, size), test


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    model, size, test = trained("test_resnet")
    path = tmp_path_factory.mktemp("resnet") / "model.onnx"
    export(model, size, path)
    return model, path, test


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_trained_network_computes_the_same_in_onnxruntime(name, tmp_path):
    model, size, test = trained(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export(model, size, tmp_path / "model.onnx")
    report = parity(model, tmp_path / "model.onnx", [(test[0][:250], None), (test[0][250:], None)], CPU)
    check_parity(report)
    write_json(tmp_path / "parity.json", report)
    assert report["images"] == 600
    assert report["argmax_equal"] >= 0.995
    assert report["verdict"] == "equal"
    assert report["quantized_values"] > 1e6
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(type(q).__name__ == "Quantizer" for q in input_quantizers(model).values())


@pytest.mark.parametrize("name", MODELS)
def test_networks_of_all_bit_widths(name, tmp_path):
    torch.manual_seed(0)
    model = as_trained(timm.create_model(name, num_classes=10, **MODELS[name])).eval()
    layers = find_layers(model, (3, 32, 32))
    draw, activations = random.Random(0), {}
    widths = {
        layer.name: (draw.randint(2, 8), activations.setdefault(layer.group or layer.name, draw.randint(2, 8)))
        for layer in layers
    }
    x, y = digits(32, last=40, channels=3)
    quantized(model, widths.get, x[:32], layers=layers)
    summary = export(model, (3, 32, 32), tmp_path / "model.onnx")
    assert summary["opset"] == 25
    report = parity(model, tmp_path / "model.onnx", [(x, y)], CPU)
    check_parity(report)
    packed, floats = size_mb(model, widths)
    assert packed <= summary["file_mb"] <= packed + floats + 0.0005 * len(list(model.modules()))


def size_mb(model, widths):
    """MB of the weights in the types for their bits, and of all else, as 32-bit floats."""
    sizes = {name: p.numel() for name, p in [*model.named_parameters(), *model.named_buffers()]}
    packed = 0
    for name, (w, _) in widths.items():
        count = sizes.pop(f"{name}.parametrizations.weight.original")
        packed += count * (2 if w == 2 else 4 if w <= 4 else 8) / 8
    return packed / 1e6, 4 * sum(sizes.values()) / 1e6


class Chains(nn.Module):
    """A small network for each pair of bits, side by side."""

    def __init__(self, make):
        super().__init__()
        self.bits = list(itertools.product((2, 3, 8), repeat=2))  # stored as INT2, INT4, INT8
        self.chains = nn.ModuleList(make() for _ in self.bits)

    def forward(self, x):
        return sum(chain(x) for chain in self.chains)


def conv(channels, bias=True):
    return nn.Conv2d(channels, 16, 3, padding=1, bias=bias)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def ending():
    return Mean(), nn.Linear(16, 10)


CHAINS = {
    "conv relu conv relu linear": lambda: nn.Sequential(conv(1), nn.ReLU(), conv(16), nn.ReLU(), *ending()),
    "conv conv": lambda: nn.Sequential(conv(1), conv(16), *ending()),
    "without bias": lambda: nn.Sequential(conv(1, False), nn.ReLU(), conv(16, False), conv(16, False), *ending()),
    "conv relu6 conv": lambda: nn.Sequential(conv(1), nn.ReLU6(), conv(16), nn.ReLU6(), *ending()),
    "linear relu linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_biases_of_layers_behind_one_another_stay_as_they_are(name, tmp_path):
    """onnxruntime rounds a bias that Conv or Gemm holds where [Relu, Relu6 and] QuantizeLinear follow.

    Without a bias it takes integer kernels, of which there are none for 2-bit weights.
    """
    torch.manual_seed(0)
    x, _ = digits(8, last=64)
    model = Chains(CHAINS[name])
    quantized(model, lambda layer: model.bits[int(layer.split(".")[1])], x)
    summary = export(model, (1, 8, 8), tmp_path / "model.onnx")
    report = parity(model, tmp_path / "model.onnx", [(x, None)], CPU)
    assert (report["mismatches"], report["verdict"]) == (0, "equal")
    assert summary["initializers"]["INT2"] > 0
    if "relu6" not in name:  # Clip has no kernel for narrow integers
        assert any(kind.endswith("INT2") for kind in summary["activations"])


@pytest.fixture(scope="module")
def photographs():
    """Crops of the two photographs that scikit-learn has, whole to small: [24, 3, 224, 224], normalised."""
    crops = []
    for image in load_sample_images().images:
        whole = torch.tensor(image, dtype=torch.float32).permute(2, 0, 1)[None] / 255
        for side, step in ((427, 53), (256, 128)):
            for top in range(0, 427 - side + 1, step):
                for left in range(0, 640 - side + 1, step):
                    crop = whole[:, :, top : top + side, left : left + side]
                    crops.append(F.interpolate(crop, (224, 224), mode="bilinear", antialias=True))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return (torch.cat(crops) - mean) / std


def test_a_network_with_its_imagenet_weights(photographs, tmp_path):
    model, photographs = efficientnet_lite0(), photographs[::4]
    layers = find_layers(model, (3, 224, 224))
    with torch.no_grad():
        known = model(photographs).argmax(1)
    draw = random.Random(0)
    widths = {layer.name: (8, 8) if layer.fixed else (draw.randint(6, 8), draw.randint(6, 8)) for layer in layers}
    quantized(model, widths.get, photographs, layers)
    export(model, (3, 224, 224), tmp_path / "model.onnx")
    report = parity(model, tmp_path / "model.onnx", [(photographs, known)], CPU)
    check_parity(report)
    assert report["images"] == len(photographs) and report["mismatches"] == 0
    assert report["top1_onnxruntime"] > 50  # of the classes that it names in full precision


TYPES = {2: "INT2", 3: "INT4", 4: "INT4", 5: "INT8", 6: "INT8", 7: "INT8", 8: "INT8"}


@pytest.mark.parametrize("bits", TYPES)
def test_each_bit_width_has_its_types(bits, tmp_path):
    torch.manual_seed(0)
    x, _ = digits(8, last=96)
    model = quantized(Small(), (bits, bits), x)
    summary = export(model, (1, 8, 8), tmp_path / "model.onnx")
    check_parity(parity(model, tmp_path / "model.onnx", [(x, None)], CPU))
    assert summary["opset"] == (25 if bits == 2 else 21)
    file = onnx.load(tmp_path / "model.onnx")
    stored = {tensor.name: tensor for tensor in file.graph.initializer}
    assert TensorProto.DataType.Name(stored["stem.weight_integers"].data_type) == TYPES[bits]
    assert len(stored["stem.weight_integers"].raw_data) == 16 * 9 * int(TYPES[bits][-1]) // 8
    assert len(stored["stem.weight_step"].float_data or numpy_helper.to_array(stored["stem.weight_step"])) == 16
    native = bits in (2, 4, 8)
    ranges = {name: tuple(q.bounds[:, 0].int().tolist()) for name, q in input_quantizers(model).items()}
    half = 2 ** (bits - 1)
    symmetric, unsigned, head = (-half, half - 1), (0, 2 * half - 1), ranges["head"]
    assert (ranges["stem"], ranges["depthwise"], ranges["branch"]) == (symmetric, unsigned, unsigned)
    assert head[1] - head[0] == 2 * half - 1 and (head == symmetric) == (bits < 4) and head[0] < 0 < head[1]
    # A zero point takes a type without integers below 0; where a Clip sets the range, none is needed.
    kinds = Counter(
        f"{'' if low == -half or not native and low < 0 else 'U'}INT{bits if native else 8}"
        for low, _ in (symmetric, unsigned, head)  # depthwise and branch read one tensor
    )
    assert summary["activations"] == kinds
    points = [numpy_helper.to_array(stored[n.input[2]]) for n in file.graph.node if n.op_type == "QuantizeLinear"]
    assert sorted(int(point) for point in points) == [0, 0, -head[0] if native and bits > 2 else 0]
    clips = [node for node in file.graph.node if node.op_type == "Clip"]
    assert len(clips) == (0 if native else 3)
    ends = [tuple(int(numpy_helper.to_array(stored[name])) for name in clip.input[1:]) for clip in clips]
    assert native or sorted(ends) == sorted((symmetric, unsigned, head))


def test_integers_times_steps_are_the_weights_of_pytorch(resnet):
    model, path, _ = resnet
    stored = {t.name: numpy_helper.to_array(t).astype(np.float32) for t in onnx.load(path).graph.initializer}
    checked = 0
    for name, layer in model.named_modules():
        if weight_quantizer(layer) is not None and f"{name}.weight_integers" in stored:
            steps = stored[f"{name}.weight_step"].reshape(-1, *[1] * (layer.weight.dim() - 1))
            np.testing.assert_array_equal(
                stored[f"{name}.weight_integers"] * steps, layer.weight.detach().numpy(), strict=True
            )
            checked += 1
    assert checked >= 14


def test_the_file_keeps_what_its_user_should_know(tmp_path):
    x, _ = digits(8, last=32)
    about = {"classes": ["Küche", "b"], "preprocessing": {"mean": [0.5], "crop": None}}
    export(quantized(Small(), (8, 8), x), (1, 8, 8), tmp_path / "model.onnx", metadata=about)
    found = {prop.key: json.loads(prop.value) for prop in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert found == about


class Blocks(nn.Module):
    """Attention within blocks of an image, with five dimensions, in timm's two ways of computing it."""

    def __init__(self):
        super().__init__()
        self.fused_attn = True
        self.stem, self.qkv, self.proj = nn.Conv2d(1, 8, 2, 2), nn.Linear(8, 24), nn.Linear(8, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.stem(x).unflatten(2, (2, 2)).unflatten(4, (2, 2))  # [N, C, 2, 2, 2, 2]
        x = x.permute(0, 2, 4, 3, 5, 1).flatten(1, 2).flatten(2, 3)  # [N, blocks, pixels, C]
        q, k, v = self.qkv(x).unflatten(3, (3, 2, 4)).permute(3, 0, 4, 1, 2, 5)
        if self.fused_attn:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v
        return self.head(self.proj(x.permute(0, 2, 3, 1, 4).flatten(3)).mean((1, 2)))


def test_fused_attention_that_torch_does_not_export_is_written_as_products(tmp_path):
    torch.manual_seed(0)
    x, _ = digits(8, last=64)
    model = quantized(Blocks(), (4, 4), x)
    export(model, (1, 8, 8), tmp_path / "model.onnx")
    check_parity(parity(model, tmp_path / "model.onnx", [(x, None)], CPU))
    assert model.fused_attn  # the model itself computes as before


def test_two_bit_weights_without_two_bit_types(tmp_path):
    torch.manual_seed(0)
    x, _ = digits(8, last=32)
    model = quantized(Small(), (2, 2), x)
    summary = export(model, (1, 8, 8), tmp_path / "model.onnx", opset=21)
    assert summary["activations"] == {"INT8": 2, "UINT8": 1}
    assert "INT2" not in summary["initializers"] and summary["initializers"]["INT4"] == 4
    check_parity(parity(model, tmp_path / "model.onnx", [(x, None)], CPU))


def test_a_group_quantizes_its_tensor_once(tmp_path):
    torch.manual_seed(0)
    x, _ = digits(8, last=32)
    model = Small()
    quantized(model, (4, 4), x, layers=find_layers(model, (1, 8, 8)))
    assert model.depthwise.input_quantizer is model.branch.input_quantizer

    def tensors_quantized():
        summary = export(model, (1, 8, 8), tmp_path / "model.onnx")
        check_parity(parity(model, tmp_path / "model.onnx", [(x, None)], CPU))
        return sum(summary["activations"].values())

    assert tensors_quantized() == 3
    # One tensor, each reader with a step of its own.
    model.branch.input_quantizer = copy.deepcopy(model.depthwise.input_quantizer)
    model.branch.input_quantizer.log_step.data += 0.1
    assert tensors_quantized() == 4
    # One quantizer for two tensors.
    model.head.input_quantizer = model.stem.input_quantizer
    assert tensors_quantized() == 4


def test_parity_quantizes_a_weight_once_and_the_tensor_of_a_group_once_a_run(tmp_path, monkeypatch):
    torch.manual_seed(0)
    x, _ = digits(8, last=40)  # three runs of at most 16
    model = quantized(Small(), (4, 4), x, layers=find_layers(Small(), (1, 8, 8)))
    export(model, (1, 8, 8), tmp_path / "model.onnx")
    calls, forward = Counter(), Quantizer.forward

    def count(quantizer, values):
        calls["input" if quantizer.channels is None else "weight"] += 1
        return forward(quantizer, values)

    monkeypatch.setattr(Quantizer, "forward", count)
    report = parity(model, tmp_path / "model.onnx", [(x, None)], CPU)
    check_parity(report)
    assert calls["weight"] == 4
    assert calls["input"] in (9, 12, 15, 18)  # three inputs of four layers a run, and of each run again that has ties
    # Each layer's values count, shared or not.
    assert report["quantized_values"] == 40 * (64 + 2 * 16 * 64 + 16)


def test_one_image_or_many(resnet):
    model, path, (x, _) = resnet
    report = parity(model, path, [(x[:1], None), (x[1:8], None)], CPU)
    assert report["images"] == 8
    check_parity(report)


def test_the_same_model_gives_the_same_file(resnet, tmp_path):
    model, path, _ = resnet
    export(model, (1, 16, 16), tmp_path / "again.onnx")
    assert path.read_bytes() == (tmp_path / "again.onnx").read_bytes()
    assert str(REPOSITORY).encode() not in path.read_bytes()


def change(file, name, by):
    """Put `by(values)` in the place of an initializer's values."""
    tensor = next(tensor for tensor in file.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(by(values.astype(np.float32))).astype(values.dtype), name))


def one_channel(values):
    values = values.copy()
    values[3] *= 1.1
    return values


def one_filter(values):
    """The least change of a 4-bit weight, at the middle of one filter's kernels."""
    values = values.copy()
    values[3, :, 1, 1] += np.where(values[3, :, 1, 1] < 7, 1, -1)
    return values


BREAKS = {
    "layer1.0.conv2.input_step": lambda values: values * 1.05,
    "layer3.0.conv1.weight_step": one_channel,
    "layer2.0.conv2.weight_integers": one_filter,
    "layer4.0.bn1.running_mean": one_channel,
    "fc.bias": lambda values: values + 0.02,
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_file_fails(resnet, tmp_path, name):
    model, path, (x, _) = resnet
    file = onnx.load(path)
    change(file, name, BREAKS[name])
    onnx.save(file, tmp_path / "broken.onnx")
    report = parity(model, tmp_path / "broken.onnx", [(x[:64], None)], CPU)
    assert report["verdict"] != "equal"
    with pytest.raises(SeamError, match="does not compute what the model computes"):
        check_parity(report)


def test_a_clip_left_out_fails(tmp_path):
    torch.manual_seed(0)
    x, _ = digits(8, last=32)
    model = quantized(Small(), (6, 3), x)
    export(model, (1, 8, 8), tmp_path / "model.onnx")
    file = onnx.load(tmp_path / "model.onnx")
    change(file, "uint8_7", lambda values: values + 1)
    onnx.save(file, tmp_path / "model.onnx")
    with pytest.raises(SeamError, match="inputs of layers differ|logits differ"):
        check_parity(parity(model, tmp_path / "model.onnx", [(x, None)], CPU))


def test_classes_may_differ_by_chance_and_not_beyond_it(resnet):
    model, path, (x, y) = resnet
    report = parity(model, path, [(x[:300], y[:300]), (x[300:], y[300:])], CPU)
    check_parity(report)
    with torch.no_grad():
        found = model(x).argmax(1)
    assert report["top1_pytorch"] == pytest.approx(100 * (found == y).float().mean().item())
    theirs = torch.from_numpy(run(path, x)).argmax(1)
    assert report["top1_onnxruntime"] == pytest.approx(100 * (theirs == y).float().mean().item())
    assert report["only_pytorch_right"] == ((found == y) & (theirs != y)).sum()
    assert "top1_pytorch" not in parity(model, path, [(x[:32], None)], CPU)

    def check(**counts):
        check_parity(report | counts)

    # Two-sided probabilities of 10:0, 11:0 and 20:40 are 0.002, 0.00098 and 0.013.
    check(argmax_equal=0.9, only_kept_equal=60, only_fused_equal=61)
    check(only_pytorch_right=10, only_onnxruntime_right=0)
    check(only_pytorch_right=40, only_onnxruntime_right=20)
    check(only_kept_equal=0, only_fused_equal=30)  # fused it is nearer to PyTorch
    with pytest.raises(SeamError, match="top-1 is .* in onnxruntime and .* in PyTorch, which is not by chance"):
        check(only_pytorch_right=11, only_onnxruntime_right=0)
    with pytest.raises(SeamError, match="equal classes, .* where onnxruntime may not fuse"):
        check(only_kept_equal=11, only_fused_equal=0)


def test_a_tie_that_tips_a_class_does_not_refuse_the_file(tmp_path):
    model = quantized(Small(), (8, 4), digits(8, last=32)[0])
    x = tied_images(model)
    export(model, (1, 8, 8), tmp_path / "model.onnx")
    with torch.no_grad():
        logits = model(x)[0]
        apart = logits - torch.from_numpy(run(tmp_path / "model.onnx", x))[0]
        # The two classes that ties move most against each other become the best, and PyTorch's by half of that.
        first, second = apart.argmax(), apart.argmin()
        model.head.bias[first] += logits.max() + 1 - logits[first]
        model.head.bias[second] += logits.max() + 1 - logits[second] - (apart[first] - apart[second]) / 2
    export(model, (1, 8, 8), tmp_path / "model.onnx")
    report = parity(model, tmp_path / "model.onnx", [(x, None)], CPU)
    assert report["argmax_equal"] == 0 and report["mismatches"] == 0
    assert report["verdict"] == "equal"


def test_ties_are_told_from_faults(tmp_path):
    """A value on a rounding boundary that only the division of QuantizeLinear moves is a tie, not a mismatch."""
    model = quantized(Small(), (8, 4), digits(8, last=32)[0])
    x = tied_images(model)
    export(model, (1, 8, 8), tmp_path / "model.onnx")
    report = parity(model, tmp_path / "model.onnx", [(x, None)], CPU)
    assert report["mismatches"] == 0
    assert report["ties"] >= 4 * 64 and report["images_with_ties"] == 4
    assert report["largest_logit_difference"] > report["tolerance"] > report["largest_logit_difference_non_tie"]


def tied_images(model):
    """Four images that PyTorch rounds one way and QuantizeLinear the other."""
    step = model.stem.input_quantizer.log_step.exp()
    # Images of boundaries, a last digit up or down: PyTorch multiplies by 1 / step, ONNX divides by step.
    middles = (torch.arange(-6, 6) + 0.5) * step.detach()
    middles = torch.cat([middles, torch.nextafter(middles, middles + 1), torch.nextafter(middles, middles - 1)])
    apart = torch.round(middles * (1 / step)) != torch.round(middles / step)
    assert apart.any()
    return middles[apart][0].detach().expand(4, 1, 8, 8)


def test_only_a_verified_file_has_its_name(tmp_path, monkeypatch):
    torch.manual_seed(0)
    x, y = digits(8, last=32)
    model = quantized(Small(), (4, 4), x)
    path, report = tmp_path / "model.onnx", tmp_path / "model.parity.json"
    arguments = model, (1, 8, 8), path, [(x, y)]
    found = export_verified(*arguments, metadata={"model": "small"})
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "model.parity.json"}
    assert found == read_json(report)
    assert (found["file"], found["sha256"], found["verdict"]) == ("model.onnx", sha256(path), "equal")
    assert found["metadata"] == {"model": "small"} and found["opset"] == 21

    # Exported anew, from a model that computes something else than its file: the earlier file must not stay.
    def spoilt(model, *rest):
        summary = export(model, *rest)
        model.head.bias.data += 0.02
        return summary

    monkeypatch.setattr("seam.onnx.export.export", spoilt)
    with pytest.raises(SeamError, match=r"logits differ .*; the file is kept as .*model\.unverified\.onnx"):
        export_verified(copy.deepcopy(model), *arguments[1:])
    assert {file.name for file in tmp_path.iterdir()} == {"model.unverified.onnx", "model.parity.json"}
    assert read_json(report)["file"] == "model.unverified.onnx" and "differ" in read_json(report)["verdict"]
    # The next one that is equal leaves nothing of it.
    monkeypatch.undo()
    export_verified(*arguments)
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "model.parity.json"}


def test_what_cannot_be_exported_or_compared_is_named(resnet, tmp_path):
    model, path, (x, _) = resnet
    with pytest.raises(SeamError, match="no quantizers; apply a policy"):
        export(Small(), (1, 8, 8), tmp_path / "model.onnx")
    with pytest.raises(SeamError, match="opset 20 is not supported; known: 21 to 25"):
        export(model, (1, 16, 16), tmp_path / "model.onnx", opset=20)
    with pytest.raises(SeamError, match=r"torch cannot export this network: .*channels"):
        export(model, (3, 16, 16), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    with pytest.raises(SeamError, match="no such file"):
        parity(model, tmp_path / "none.onnx", [(x, None)], CPU)
    (tmp_path / "torn.onnx").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(SeamError, match="onnxruntime cannot load it"):
        parity(model, tmp_path / "torn.onnx", [(x, None)], CPU)
    with pytest.raises(SeamError, match="no images"):
        parity(model, path, [], CPU)
    other = copy.deepcopy(quantized(Small(), (4, 4), digits(8, last=32)[0]))
    with pytest.raises(SeamError, match="no export of this model: it has no stem.input_quantized"):
        parity(other, path, [(x[:4], None)], CPU)
