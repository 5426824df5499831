"""The layers of a network that can be quantized, in order of execution, and its classifier."""

from collections.abc import Iterable

from torch import Tensor, nn

from seam.errors import SeamError
from seam.models.layers import Layer, settle
from seam.models.shared_inputs import REFUSALS, Readers, run_once, watch, weight_parameter

CHANNELS = (1, 3)  # that images may have: gray, or red, green and blue
_OF_ONES_OWN = "a module of your own (docs/extending.md) needs"


def default_input_size(model: nn.Module) -> tuple[int, int, int]:
    """(C, H, W) that timm states for the model, 3x224x224 where it states none; as a model was made for other channels
    (`in_chans`), or a transformer that takes one size only for another (`img_size`), these."""
    stated = getattr(model, "pretrained_cfg", {})
    channels, *size = stated.get("input_size") or (3, 224, 224)
    first = dict(model.named_modules()).get(stated.get("first_conv"))
    if isinstance(first, nn.Conv2d) and first.in_channels in CHANNELS:
        channels = first.in_channels
    patches = getattr(model, "patch_embed", None)
    if getattr(patches, "strict_img_size", False):
        size = patches.img_size or size
    return channels, *size


def find_layers(model: nn.Module, size: tuple[int, int, int]) -> list[Layer]:
    """Convolutions and linear layers (with their subclasses) in order of execution, for an input of `size` (C, H, W).

    The first one executed and the classifier are fixed at 8/8, the usual convention. A layer whose weight a parent
    applies itself (BEiT's qkv) counts as a layer. `seam.models.shared_inputs` says how layers are grouped.

    Layers that the forward pass never uses are left out. So is what is neither nn.Conv2d nor nn.Linear (recurrent
    cells, 1-D, 3-D and transposed convolutions, nn.MultiheadAttention, bare parameters) or has a weight made of several
    parameters (weight_norm): it stays in full precision.

    Raises SeamError if the model cannot run on this size, or if two of its layers share one weight.
    """
    modules = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    macs: dict[str, int] = {}
    functional: set[str] = set()
    readers = Readers()

    def count(name: str, output: Tensor, by_parent: bool) -> None:
        weight = weight_parameter(modules[name])
        macs[name] = macs.get(name, 0) + output.numel() // weight.shape[0] * weight.numel()
        if by_parent:
            functional.add(name)

    usable = [name for name, m in modules.items() if weight_parameter(m) is not None]
    try:
        with watch(model, usable, readers.read, count):
            run_once(model, size)
    except REFUSALS as error:
        raise SeamError(
            f"the model cannot run on an input of {size} (channels, height, width): {error or type(error).__name__}; "
            f"its default size is {default_input_size(model)}"
        ) from None
    if not macs:
        raise SeamError("the model has no convolution or linear layer")
    owners: dict[int, str] = {}
    for name in macs:
        owner = owners.setdefault(id(weight_parameter(modules[name])), name)
        if owner != name:
            raise SeamError(f"layers {owner} and {name} share one weight; such models are not supported")
    names, groups = list(macs), readers.groups()
    ends = {names[0], *(_classifier_layers(model, names) or names[-1:])}
    return settle(
        Layer(n, macs[n], weight_parameter(modules[n]).numel(), n in ends, groups[n], functional=n in functional)
        for n in names
    )


def _classifiers(model: nn.Module) -> list[nn.Module]:
    """What timm calls the model's classifier: one module, or several (a head for distillation beside the first)."""
    found = model.get_classifier() if hasattr(model, "get_classifier") else None
    found = found if isinstance(found, list | tuple | nn.ModuleList) else [found]
    return [module for module in found if isinstance(module, nn.Module)]


def _classifier_layers(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Of the layers `names`, in order of execution, the last one inside each of the model's classifiers."""
    modules = dict(model.named_modules())
    ends = []
    for module in _classifiers(model):
        inside = {id(m) for m in module.modules()}
        ends += [name for name in names if id(modules[name]) in inside][-1:]
    return ends


def classifier_layer(model: nn.Module) -> nn.Module:
    """The layer that makes class scores from pre-logits: the last convolution or linear layer of timm's classifier.

    Raises SeamError if the model has none (built for 0 classes), or does not say which it is.
    """
    if not hasattr(model, "get_classifier"):
        raise SeamError(f"{type(model).__name__}: {_OF_ONES_OWN} get_classifier(), which returns its last layer")
    for classifier in _classifiers(model):
        layers = [m for m in classifier.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        if layers:
            return layers[-1]
    raise SeamError("the model has no classifier: build it for at least one class")


def class_count(model: nn.Module) -> int:
    """The number of classes, as timm's models say it. Raises SeamError for a module that does not."""
    if not isinstance(count := getattr(model, "num_classes", None), int):
        raise SeamError(f"{type(model).__name__}: {_OF_ONES_OWN} num_classes, the number of its classes")
    return count


def total_macs(model: nn.Module, size: tuple[int, int, int]) -> int:
    """Multiply-accumulates of one forward pass on one image of `size` (C, H, W), all weighted layers."""
    return sum(layer.macs for layer in find_layers(model, size))
