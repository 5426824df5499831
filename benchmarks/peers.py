"""What do other tools keep of the same network, from the same images, at the same budget? Beside
benchmarks/calibration.py: EfficientNet-Lite0 with its ImageNet weights, judged on the same photographs.

    uv venv peers
    VIRTUAL_ENV=peers uv pip install model-compression-toolkit==2.6.1 torch torchvision timm pyyaml typer filelock
    PYTHONPATH=. peers/bin/python benchmarks/peers.py mct lite0.safetensors PHOTOS --csv benchmarks/peers.csv
    uv venv aimet
    VIRTUAL_ENV=aimet uv pip install aimet-torch==2.42.0 timm pyyaml typer filelock
    PYTHONPATH=. aimet/bin/python benchmarks/peers.py aimet lite0.safetensors PHOTOS --csv benchmarks/peers.csv

The tools are no dependencies of seam's, and their own requirements do not fit seam's: each gets its own environment.
Both trace networks by torch.fx, which timm's TensorFlow-like padding does not survive: such convolutions become a
padding of fixed size and a convolution.

- Sony's Model Compression Toolkit (MCT): post-training quantization, "gptq" with its gradient-based one over `--epochs`
  passes of the images, all layers weighted alike (its default weighs them by Hessians, which take hours on two cores);
  bits mixed by its own search under a limit of BitOPs, that of seam's policies in all (first and last layer at 8 bits
  included), or one bit-width for all layers. Weights a channel, symmetric; inputs with any step (MCT's default is steps
  of powers of two, for its own chips); sums and pooled features stay at 8 bits.
- Qualcomm's AIMET: QuantSim with BatchNorm folded and ranges by its "enhanced" scheme, alone, or with steps of weights
  by sequential MSE. (Its default are least and greatest values.) Weights a channel, symmetric. As in seam's policies
  the first and last layer stay at 8 bits and what no layer reads is not quantized: AIMET would also quantize a
  depthwise convolution before its activation and both sides of an addition. Not run: its automatic mixed precision,
  which takes a loss of accuracy that is allowed, not a budget, and judges by labels; its AdaRound, of which 1,000 of
  the 15,000 iterations take 80 s a layer on one core, and there are 50.

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

# of each tool: policy, budget, bits to choose from (of weights and of inputs), method
CASES = {
    "mct": [
        ("uniform", "w8a8", (8,), "ptq"),
        ("uniform", "w6a6", (6,), "ptq"),
        ("uniform", "w4a4", (4,), "ptq"),
        ("uniform", "w4a4", (4,), "gptq"),
        ("mixed", "w6a6", (4, 6, 8), "ptq"),
        ("mixed", "w4a4", (2, 4, 8), "ptq"),
        ("mixed", "w4a4", (2, 4, 8), "gptq"),
    ],
    "aimet": [
        ("uniform", budget, (int(budget[1]),), method)
        for method in ("ptq", "sequential mse")
        for budget in ("w4a4", "w6a6", "w8a8")
    ],
}
DISTRIBUTIONS = {"mct": ("MCT", "model-compression-toolkit"), "aimet": ("AIMET", "aimet-torch")}
COLUMNS = ("tool", "policy", "budget", "bits", "method", "count", "top1", "seconds", "machine")
BATCH = 32
SCHEME = "tf_enhanced"  # of AIMET's ranges: least squared error, not (its default) least and greatest value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool", choices=sorted(CASES))
    parser.add_argument("weights", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--csv", type=Path, default=Path("peers.csv"))
    parser.add_argument("--count", type=int, default=256, help="images of a calibration")
    parser.add_argument("--epochs", type=int, default=10, help="of MCT's gradient-based quantization")
    parser.add_argument("--only", default="", help="rows that hold all of these words, with a comma between")
    parser.add_argument("--threads", type=int, default=available_cores())
    options = parser.parse_args()
    limit_threads(options.threads)

    import torch

    from seam.data.image_sets import in_memory
    from seam.models.build import build
    from seam.runtime.meter import processor_name
    from seam.settings import Model

    torch.set_num_threads(options.threads)
    model = build(Model(name="tf_efficientnet_lite0", weights=str(options.weights)), None, 3)
    photos = photographs(options.photos, model)
    shown = in_memory(photos.subset(range(options.count)))
    judged = in_memory(photos.subset(range(len(photos) - JUDGED, len(photos))))
    machine = f"{processor_name()}, {options.threads} threads"
    name, distribution = DISTRIBUTIONS[options.tool]
    tool = f"{name} {importlib.metadata.version(distribution)}"
    done, record = resumable(options.csv, COLUMNS, keys=6)

    batches = [x for x, _ in shown.batches(BATCH, device=torch.device("cpu"))]
    quantize = {"mct": with_mct, "aimet": with_aimet}[options.tool]

    def top1(network) -> float:
        right = 0
        with torch.no_grad():
            for x, y in judged.batches(BATCH, device=torch.device("cpu")):
                right += int((network(x).argmax(1) == y).sum())
        return 100 * right / len(judged)

    if (tool, "full precision", *[""] * 4) not in done:
        record(tool, "full precision", *[""] * 4, f"{top1(traceable(model)):.2f}", "", machine)
    for policy, budget, bits, method in CASES[options.tool]:
        label = f"gptq, {options.epochs} epochs" if method == "gptq" else method
        row = (tool, policy, budget, " ".join(map(str, bits)), label, str(options.count))
        if row in done or not all(word in row for word in options.only.split(",") if word):
            continue
        start = time.perf_counter()
        network = quantize(model, batches, policy, budget, bits, method, options)
        seconds = time.perf_counter() - start
        record(*row, f"{top1(network.eval()):.2f}", f"{seconds:.0f}", machine)


def with_mct(model, batches, policy: str, budget: str, bits: tuple[int, ...], method: str, options):
    import model_compression_toolkit as mct

    from seam.models.find import find_layers

    limit = None
    if policy == "mixed":
        width = int(budget[1])
        layers = find_layers(model, (3, 224, 224))
        bitops = sum(layer.macs * (64 if layer.fixed else width * width) for layer in layers)
        limit = mct.core.ResourceUtilization(bops=bitops)
    given = {"target_resource_utilization": limit, "target_platform_capabilities": capabilities(bits)}
    given["core_config"] = mct.core.CoreConfig(
        mixed_precision_config=mct.core.MixedPrecisionQuantizationConfig(num_of_images=32)
    )

    def images():
        return ([x] for x in batches)

    if method == "gptq":
        alike = {"use_hessian_based_weights": False, "use_hessian_sample_attention": False}
        config = mct.gptq.get_pytorch_gptq_config(n_epochs=options.epochs, **alike)
        found = mct.gptq.pytorch_gradient_post_training_quantization(
            traceable(model), images, gptq_config=config, **given
        )
    else:
        found = mct.ptq.pytorch_post_training_quantization(traceable(model), images, **given)
    return found[0]


def with_aimet(model, batches, policy: str, budget: str, bits: tuple[int, ...], method: str, options):
    import torch
    from aimet_torch.batch_norm_fold import fold_all_batch_norms
    from aimet_torch.model_preparer import prepare_model
    from aimet_torch.quantsim import QuantizationSimModel
    from aimet_torch.seq_mse import apply_seq_mse

    (width,), image = bits, torch.zeros(1, 3, 224, 224)
    network = prepare_model(plain_normalisation(traceable(model)))
    fold_all_batch_norms(network, tuple(image.shape), dummy_input=image)
    network.eval().requires_grad_(False)

    def read(sim) -> None:
        """Calibration sees all images."""
        with torch.no_grad():
            for x in batches:
                sim(x)

    sim = QuantizationSimModel(network, image, SCHEME, default_output_bw=width, default_param_bw=width)
    as_policy(sim.model)
    if method == "sequential mse":
        apply_seq_mse(sim, batches)
    sim.compute_encodings(read)
    return sim.model


def as_policy(network) -> None:
    """The first and last layer of an AIMET network at 8 bits, and nothing quantized that no layer reads."""
    import torch
    from aimet_torch.nn import BaseQuantizationMixin

    nodes = {node.target: node for node in network.graph.nodes if node.op == "call_module"}
    modules = dict(network.named_modules())
    layers = {name for name in nodes if isinstance(modules[name], torch.nn.Conv2d | torch.nn.Linear)}
    passing = (torch.nn.Identity, torch.nn.ZeroPad2d, torch.nn.Dropout, torch.nn.Flatten)

    def read_by_layer(node) -> bool:
        return any(
            user.target in layers or (isinstance(modules.get(user.target), passing) and read_by_layer(user))
            for user in node.users
        )

    for name, node in nodes.items():
        module = modules[name]
        if isinstance(module, BaseQuantizationMixin) and not read_by_layer(node):
            module.output_quantizers = torch.nn.ModuleList([None] * len(module.output_quantizers))
    for name in ("conv_stem.1", "classifier"):
        modules[name].param_quantizers["weight"].bitwidth = 8
    modules["conv_stem.0"].input_quantizers[0].bitwidth = 8
    modules["global_pool.pool"].output_quantizers[0].bitwidth = 8


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


def plain_normalisation(model):
    """timm's normalisations with activation as two modules each, in place: AIMET folds torch's own alone."""
    from timm.layers import BatchNormAct2d
    from torch import nn

    for name, old in list(model.named_modules()):
        if isinstance(old, BatchNormAct2d):
            new = nn.BatchNorm2d(old.num_features, eps=old.eps)
            new.load_state_dict(old.state_dict())
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, nn.Sequential(new, old.act))
    return model.eval()


if __name__ == "__main__":
    main()
