"""What do other tools keep of the same network, from the same images, at the same budget? Beside
benchmarks/calibration.py: EfficientNet-Lite0 with its ImageNet weights, judged on the same photographs.

    uv venv peers
    VIRTUAL_ENV=peers uv pip install model-compression-toolkit==2.6.1 torch torchvision timm pyyaml typer
    PYTHONPATH=. peers/bin/python benchmarks/peers.py lite0.safetensors PHOTOS --csv benchmarks/peers.csv

The tool is no dependency of seam's, and its own requirements do not fit seam's: it gets an environment of its own.
Sony's Model Compression Toolkit (MCT): post-training quantization, "gptq" with its gradient-based one over `--epochs`
passes of the images; bits mixed by its own search under a limit of BitOPs, that of seam's policies in all (first and
last layer at 8 bits included), or one bit-width for all layers. Weights a channel, symmetric; inputs with any step
(MCT's default is steps of powers of two, for its own chips); sums and pooled features stay at 8 bits. It traces
networks by torch.fx, which timm's TensorFlow-like padding does not survive: such convolutions become a padding of
fixed size and a convolution.

Each row is written to the CSV when it is done, and a run goes on with the rows that are missing.
"""

import argparse
import importlib.metadata
import itertools
import time
from pathlib import Path

from calibration import JUDGED
from transfer import photographs, resumable

from seam.runtime.cores import available_cores, limit_threads

# policy, budget, bits to choose from (of weights and of inputs), gradient-based
CASES = [
    ("uniform", "w8a8", (8,), False),
    ("uniform", "w6a6", (6,), False),
    ("uniform", "w4a4", (4,), False),
    ("uniform", "w4a4", (4,), True),
    ("mixed", "w6a6", (4, 6, 8), False),
    ("mixed", "w4a4", (2, 4, 8), False),
    ("mixed", "w4a4", (2, 4, 8), True),
]
COLUMNS = ("tool", "policy", "budget", "bits", "method", "count", "top1", "seconds", "machine")
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--csv", type=Path, default=Path("peers.csv"))
    parser.add_argument("--count", type=int, default=256, help="images of a calibration")
    parser.add_argument("--epochs", type=int, default=10, help="of the gradient-based one")
    parser.add_argument("--only", default="", help="rows that hold all of these words, with a comma between")
    parser.add_argument("--threads", type=int, default=available_cores())
    options = parser.parse_args()
    limit_threads(options.threads)

    import model_compression_toolkit as mct
    import torch

    from seam.data.image_sets import in_memory
    from seam.models.build import build
    from seam.models.find import find_layers
    from seam.runtime.meter import processor_name
    from seam.settings import Model

    torch.set_num_threads(options.threads)
    model = build(Model(name="tf_efficientnet_lite0", weights=str(options.weights)), None, 3)
    layers = find_layers(model, (3, 224, 224))
    photos = photographs(options.photos, model)
    shown = in_memory(photos.subset(range(options.count)))
    judged = in_memory(photos.subset(range(len(photos) - JUDGED, len(photos))))
    machine = f"{processor_name()}, {options.threads} threads"
    tool = f"MCT {importlib.metadata.version('model-compression-toolkit')}"
    done, record = resumable(options.csv, COLUMNS, keys=6)

    def images():
        for x, _ in shown.batches(BATCH, device=torch.device("cpu")):
            yield [x]

    def top1(network) -> float:
        right = 0
        with torch.no_grad():
            for x, y in judged.batches(BATCH, device=torch.device("cpu")):
                right += int((network(x).argmax(1) == y).sum())
        return 100 * right / len(judged)

    if (tool, "full precision", *[""] * 4) not in done:
        record(tool, "full precision", *[""] * 4, f"{top1(traceable(model)):.2f}", "", machine)
    for policy, budget, bits, gradient in CASES:
        method = f"gptq, {options.epochs} epochs" if gradient else "ptq"
        row = (tool, policy, budget, " ".join(map(str, bits)), method, str(options.count))
        if row in done or not all(word in row for word in options.only.split(",") if word):
            continue
        start = time.perf_counter()
        limit = None
        if policy == "mixed":
            width = int(budget[1])
            bitops = sum(layer.macs * (64 if layer.fixed else width * width) for layer in layers)
            limit = mct.core.ResourceUtilization(bops=bitops)
        given = {"target_resource_utilization": limit, "target_platform_capabilities": capabilities(bits)}
        given["core_config"] = mct.core.CoreConfig(
            mixed_precision_config=mct.core.MixedPrecisionQuantizationConfig(num_of_images=32)
        )
        network = traceable(model)
        if gradient:
            config = mct.gptq.get_pytorch_gptq_config(n_epochs=options.epochs)
            network, _ = mct.gptq.pytorch_gradient_post_training_quantization(
                network, images, gptq_config=config, **given
            )
        else:
            network, _ = mct.ptq.pytorch_post_training_quantization(network, images, **given)
        seconds = time.perf_counter() - start
        record(*row, f"{top1(network.eval()):.2f}", f"{seconds:.0f}", machine)


def capabilities(bits: tuple[int, ...]):
    """MCT's description of a target that computes with each pair of these bits; all else is kept at 8."""
    from mct_quantizers import QuantizationMethod
    from model_compression_toolkit.target_platform_capabilities.constants import KERNEL_ATTR, WEIGHTS_N_BITS
    from model_compression_toolkit.target_platform_capabilities.tpc_models.imx500_tpc.v1_0 import tpc

    base, _, default = tpc.get_op_quantization_configs()
    base, default = (
        one.clone_and_edit(activation_quantization_method=QuantizationMethod.UNIFORM) for one in (base, default)
    )
    pairs = [
        base.clone_and_edit(
            attr_to_edit={KERNEL_ATTR: {WEIGHTS_N_BITS: w}},
            activation_n_bits=a,
            supported_input_activation_n_bits=tuple(range(2, 9)),
        )
        for w, a in itertools.product(sorted(bits, reverse=True), repeat=2)
    ]
    widest = default.clone_and_edit(supported_input_activation_n_bits=tuple(range(2, 9)))
    return tpc.generate_tpc(
        default_config=widest, base_config=pairs[0], mixed_precision_cfg_list=pairs, name="each pair of bits"
    )


def traceable(model):
    """A copy whose convolutions with TensorFlow's padding, which depends on the image, have one for 224 x 224."""
    import copy

    import torch
    from timm.layers import Conv2dSame
    from timm.layers.padding import get_same_padding
    from torch import nn

    model, sides = copy.deepcopy(model).eval(), {}
    same = {name: module for name, module in model.named_modules() if isinstance(module, Conv2dSame)}
    hooks = [
        module.register_forward_pre_hook(lambda _, x, name=name: sides.setdefault(name, x[0].shape[-2:]) and None)
        for name, module in same.items()
    ]
    with torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    for hook in hooks:
        hook.remove()
    for name, old in same.items():
        rows, columns = (
            get_same_padding(side, kernel, stride, dilation)
            for side, kernel, stride, dilation in zip(
                sides[name], old.kernel_size, old.stride, old.dilation, strict=True
            )
        )
        new = nn.Conv2d(
            *(old.in_channels, old.out_channels, old.kernel_size, old.stride),
            dilation=old.dilation, groups=old.groups, bias=old.bias is not None,
        )  # fmt: skip
        new.load_state_dict(old.state_dict())
        padding = nn.ZeroPad2d((columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, nn.Sequential(padding, new))
    return model.eval()


if __name__ == "__main__":
    main()
