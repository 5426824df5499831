"""Policies without a pipeline: a timm model, some images, a limit. What `seam search`, `finetune`, `evaluate` and
`export` call, and the Python API:

    import seam.tool as seam, timm

    model = timm.create_model("resnet18", num_classes=10).eval()            # your weights
    policy = seam.search(model, seam.open_images("path/to/folder", model), "w4a4")
    quantized = seam.quantize(model, policy)                                # a module that trains
    seam.calibrate(quantized, seam.open_images("path/to/folder", model, full_size=True))
    seam.evaluate(quantized, seam.open_images("path/to/folder", model, "test", full_size=True))
"""

import copy
import hashlib
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seam.data.registry import DATASETS
from seam.errors import SeamError
from seam.models import default_input_size, find_layers

METHOD = "jacobian"  # of the methods here the one whose policies lose least (docs/methods.md)
PROXY_SIZE = 64  # pixels: the largest side of the images that a search sees, unless told otherwise
PROXY_IMAGES = 1024  # that a search looks at, class-balanced; more only cost time to decode
CALIBRATION_IMAGES = 256
HELD_OUT_IMAGES = 512  # on which finetuning is measured, before and after

__all__ = [
    "calibrate",
    "evaluate",
    "file_mb",
    "finetune",
    "held_out",
    "input_size",
    "is_finetuned",
    "load_finetuned",
    "open_images",
    "preprocessing",
    "quantize",
    "search",
]


def open_images(
    data: str | Path | None,
    model: nn.Module,
    split: str = "train",
    *,
    full_size: bool = False,
    image_size: int | None = None,
    data_root: str | Path = "data",
) -> Any:
    """Images as `model` wants them, a seam.data.loaders.ImageSet: its channels, mean and standard deviation, and, for
    folders, the centre crop and the interpolation that timm states for it.

    Args:
        data: a folder with train/ and val/ or test/ (test/ if it has both), each with one folder a class; or a folder
            with one folder a class, then all of it whatever the split, as of one with only val/ or test/; or a
            dataset's name; None: scikit-learn's digits, all of them.
        split: "train" or "test".
        full_size: at the model's own input size, else at 64 pixels a side at most, which suffice for a search.
        image_size: of a side in pixels, in place of either.
        data_root: folder where datasets are kept that are given by name.

    Raises SeamError for a folder without classes, an empty class folder, unknown names, and broken files.
    """
    from seam.data.loaders import load, prepare_as_trained

    channels, *full = default_input_size(model)
    size = (
        (image_size, image_size)
        if image_size
        else tuple(full)
        if full_size
        else tuple(min(side, PROXY_SIZE) for side in full)
    )
    if data is None:
        images = load("digits", data_root, "all", None, image_size=size, channels=channels)
    elif Path(data).is_dir():
        images = _folder(Path(data), split, size, channels)
    else:
        if str(data) not in DATASETS or str(data) == "folder":
            known = ", ".join(name for name in DATASETS if name != "folder")
            raise SeamError(f"--data {data}: neither a folder nor a dataset; datasets: {known}")
        images = load(str(data), data_root, split, None, image_size=size, channels=channels)
    images.name = str(data or "digits")
    return prepare_as_trained(images, _stated(model))


def held_out(
    data: str | Path, model: nn.Module, *, count: int = HELD_OUT_IMAGES, data_root: str | Path = "data"
) -> Any | None:
    """At most `count` class-balanced images that `finetune` does not see, as `open_images` gives them at full size.

    None for a folder that does not hold train/ beside val/ or test/: all its images are there to train on.
    """
    from seam.data.sampling import sample_indices

    base = Path(data)
    if base.is_dir() and not ((base / "train").is_dir() and any((base / part).is_dir() for part in ("val", "test"))):
        return None
    images = open_images(data, model, "test", full_size=True, data_root=data_root)
    if len(images) <= count:
        return images
    return images.subset(sample_indices(images.labels.numpy(), count, "balanced", 0))


def file_mb(model: nn.Module, policy: Mapping[str, Any]) -> float:
    """Megabytes (1e6 bytes) that the values in the ONNX file of a policy take; the graph itself comes on top.

    Weights in the narrowest types, with a float32 step a channel; all else of the model in float32.
    """
    from seam.policy import entries, stored_mb

    modules, layers = dict(model.named_modules()), entries(policy)
    values = sum(value.numel() for value in model.state_dict().values() if value.is_floating_point())
    weights = sum(modules[layer.name].weight.numel() for layer in layers)
    steps = sum(len(modules[layer.name].weight) for layer in layers if not layer.full_precision)
    return stored_mb(layers) + 4e-6 * (values - weights + steps)


def _folder(base: Path, split: str, size: tuple[int, int], channels: int) -> Any:
    """The images of a folder; without train/ those of test/ or val/; without these all that is there."""
    from seam.data.files import flat_folder, folder_reader
    from seam.data.loaders import FileSet

    parts = [name for name in ("train", "val", "test") if (base / name).is_dir()]
    if not parts:
        return flat_folder(base, size, channels)
    if split == "test" and {"val", "test"} <= {*parts}:
        print(f"{base}: has test/ and val/; taking test/", file=sys.stderr)
    if "train" not in parts:
        if split == "train":
            print(f"{base}: has no train/; taking {parts[-1]}/", file=sys.stderr)
        return flat_folder(base / parts[-1], size, channels)
    reader = folder_reader(DATASETS["folder"], base, base)
    files, moments = reader.files(split), ([0.5] * channels, [0.25] * channels)
    return FileSet(files.paths, torch.from_numpy(files.labels), reader.classes, *moments, size)


def _stated(model: nn.Module) -> Mapping[str, Any]:
    """What timm states about a model's weights."""
    return getattr(model, "pretrained_cfg", None) or {}


def preprocessing(model: nn.Module) -> dict[str, Any]:
    """How `open_images` makes an input of an image file at the model's size (`ImageSet.preprocessing`)."""
    from seam.data.loaders import FileSet, prepare_as_trained

    channels, *size = default_input_size(model)
    blank = FileSet([], torch.empty(0), [], [0.5] * channels, [0.25] * channels, size)
    return prepare_as_trained(blank, _stated(model)).preprocessing


def input_size(model: nn.Module) -> tuple[int, int, int]:
    """(C, H, W) at which a model's MACs are counted and at which it is finetuned, evaluated and exported."""
    return default_input_size(model)


def search(
    model: nn.Module,
    images: Any = None,
    budget: str | Sequence[str] = (),
    *,
    budgets: Sequence[str] = (),
    method: str = METHOD,
    lock: Sequence[str] = (),
    exclude: Sequence[str] = (),
    latency: str | Path | None = None,
    steps: int = 64,
    seed: int = 0,
    name: str = "",
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> dict[str, Any] | list[dict[str, Any]]:
    """Search a policy; the model is left as it was.

    Args:
        images: the proxy; by default scikit-learn's digits. A folder with as many classes as the model is taken to
            have the model's own; with others, and for a dataset by name, `joint` trains a new classifier first.
        budget: one limit or several to be met at once (`seam.cost.parse_budgets`); the first is the one spent. By
            default w4a4.
        budgets: a curve: one search at the budget in the middle, then an assignment for each; returns a list. Limits
            in `budget` are met by each as well.
        lock, exclude: as in `seam.locks.apply_locks`.
        latency: CSV (layer,w,a,ms), for budgets in ms.
        steps: of a search that trains, on batches of 32.
        name: the model's, for the policy file.
        settings: others of seam.params.SearchSettings.

    Where a budget limits nothing all layers get the widest bits, without a search.

    Returns: the content of policy.json (docs/policy.md), a list of it for `budgets`.
    Raises SeamError: a budget that no policy meets (with the reachable range), a pattern that matches no layer.
    """
    from seam.cost import parse_budgets, read_latency, searchable
    from seam.locks import apply_locks
    from seam.models import replace_head
    from seam.params import SearchSettings
    from seam.policy import make_policy
    from seam.quant.kernels import use_kernels
    from seam.runtime import Meter, phase, set_up
    from seam.search import load_method, needs_classifier, needs_kernels, solve
    from seam.search.problem import Problem
    from seam.taps import cut_taps

    found = load_method(method)
    target = input_size(model)
    layers = apply_locks(find_layers(model, target), lock, exclude)
    batch = 32
    most = PROXY_IMAGES
    if hasattr(found, "IMAGES"):
        most = (settings or {}).get("options", {}).get("images", found.IMAGES)
    with phase("read images"):
        images = _in_memory(images if images is not None else open_images(None, model), most)
    epochs = math.ceil(steps / max(len(images) // batch, 1))
    own = model.num_classes == len(images.classes) and images.name not in DATASETS
    given = {
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch,
        "threads": torch.get_num_threads(),
        **(settings or {}),
    }
    chosen = _checked(SearchSettings, given)
    if not own and "warmup_epochs" not in (settings or {}):
        chosen = chosen.model_copy(update={"warmup_epochs": math.ceil(epochs / 2)})
    table = read_latency(latency, layers) if latency else None
    limits = [budget] if isinstance(budget, str) else list(budget)
    specs = [[spec, *limits] for spec in budgets] or [limits or ["w4a4"]]
    wanted = [parse_budgets(spec, layers, chosen.bits, table) for spec in specs]
    widest = [(chosen.bits[-1], chosen.bits[-1])] * len(searchable(layers))
    free = [all(one.cost(widest) <= one.limit * (1 + 1e-9) for one in limits) for limits in wanted]
    for limits in (limits for limits, limitless in zip(wanted, free, strict=True) if limitless):
        more = " (more can be allowed: bits, --bits)" if chosen.bits[-1] < 8 else ""
        specs = ", ".join(one.spec for one in limits)
        print(f"budget {specs}: limits nothing; all layers get {chosen.bits[-1]} bits{more}", file=sys.stderr)
    limiting = next((limits for limits, limitless in zip(wanted, free, strict=True) if not limitless), [])
    if limiting and not any(one.limits_inputs() for one in limiting):
        specs, more = ", ".join(one.spec for one in limiting), "a second budget such as w4a4 would limit them"
        print(f"budget {specs}: does not limit inputs; all get {chosen.bits[-1]} bits ({more})", file=sys.stderr)
    place = set_up(device, chosen.threads, seed)
    meter = Meter(place)
    seen = _sha256(images)
    network, images = _at_size(model, images)
    if needs_classifier(found) and not own:
        replace_head(network, len(images.classes))
    shown = (target[0], *images.image_size)
    cut_taps(network, shown)
    network = network.to(place, memory_format=torch.channels_last)
    meter.macs_per_image = sum(layer.macs for layer in find_layers(network, shown))
    if not all(free) and needs_kernels(found):
        with phase("prepare kernels"):
            meter.kernels, meter.seconds_once = use_kernels(chosen.kernels, (1, len(chosen.bits)), place)
    middle = sorted(wanted, key=lambda limits: limits[0].limit)[len(wanted) // 2]
    problem = Problem(network, layers, images, middle, chosen, seed, place, meter)
    preferences = None if all(free) else found.preferences(problem)
    about = {
        "alias": name or type(model).__name__,
        "name": name or type(model).__name__,
        "num_classes": model.num_classes,
        "in_chans": target[0],
        "input_size": list(target),
    }
    proxy = {
        "dataset": images.name,
        "count": len(images) if meter.images else 0,
        "image_size": [*images.image_size],
        "sha256": seen,
    }
    policies = []
    for limits, limitless in zip(wanted, free, strict=True):
        with phase(f"assign bits within {', '.join(one.spec for one in limits)}"):
            assigned = widest if limitless else solve(found, problem, preferences, limits)
        policies.append(
            make_policy(
                layers,
                assigned,
                limits[0],
                about,
                more_budgets=limits[1:],
                proxy=proxy,
                cost=meter.cost(),
                versions=True,
                method="uniform" if limitless else method,
                search="uniform" if limitless else method,
                seed=seed,
            )
        )
    return policies if budgets else policies[0]


def quantize(model: nn.Module, policy: Mapping[str, Any] | str | Path) -> nn.Module:
    """A copy of the model, fake-quantized under a policy (a file, or its content); it trains like any module.

    Its weights are quantized at once; give it images with `calibrate` before use. SeamError: the policy does not fit.
    """
    from seam.policy import check_policy, fit_policy, policy_layers, read_policy
    from seam.quant.apply import quantize as apply

    where = policy if isinstance(policy, str | Path) else "policy"
    content = read_policy(policy) if isinstance(policy, str | Path) else check_policy(policy, where)
    size = input_size(model)
    layers = find_layers(model, size)
    bits = fit_policy(content, layers, where)
    return apply(copy.deepcopy(model), bits, policy_layers(content, layers), size)


def is_finetuned(weights: str | Path) -> bool:
    """Whether a file holds weights of `finetune`, not full-precision ones; only names are read."""
    from seam.io import tensor_names

    return Path(weights).suffix == ".safetensors" and any("input_quantizer" in name for name in tensor_names(weights))


def load_finetuned(model: nn.Module, weights: str | Path) -> nn.Module:
    """Load weights of `finetune` into a quantized model; returns it.

    SeamError: they are another model's, or were tuned under other bits (their shapes do not tell).
    """
    from seam.io import load_tensors
    from seam.quant.modules import Quantizer

    state = load_tensors(weights)
    for name, module in model.named_modules():
        bounds = state.get(f"{name}.bounds") if isinstance(module, Quantizer) else None
        if bounds is not None and (found := round(math.log2(float(bounds[1, 0] - bounds[0, 0]) + 1))) != module.bits:
            raise SeamError(f"{weights}: tuned under another policy: {name} has {found} bits, not {module.bits}")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise SeamError(f"{weights}: not the weights of this model under this policy: {error}") from None
    return model.eval()


def calibrate(model: nn.Module, images: Any, count: int = CALIBRATION_IMAGES, device: str = "auto") -> nn.Module:
    """Set the input quantizers of a quantized model from its first `count` shuffled images; returns the model."""
    from seam.quant.apply import calibrate as apply
    from seam.runtime import phase, set_up

    place = set_up(device, torch.get_num_threads(), 0)
    model.to(place)
    with phase(f"calibrate on {min(count, len(images))} images"):
        apply(model, [next(iter(images.batches(min(count, len(images)), seed=0, device=place)))])
    return model


def finetune(
    model: nn.Module,
    images: Any,
    *,
    epochs: int = 1,
    batch_size: int = 64,
    lr: float = 0.005,
    step_lr: float = 1e-3,
    batch_norm: str = "frozen",
    augment: bool = True,
    seed: int = 0,
    resume: str | Path | None = None,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Quantization-aware training of a quantized model, in place; returns the rows of its history.

    The images' classes must be the model's (SeamError otherwise). `resume`: checkpoint of an interrupted run.
    """
    from seam import training
    from seam.params import Finetune
    from seam.quant.kernels import use_kernels
    from seam.runtime import Meter, set_up

    _check_classes(model, images)
    given = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "step_lr": step_lr, "augment": augment}
    settings = _checked(Finetune, {**given, "batch_norm": batch_norm})
    place = set_up(device, torch.get_num_threads(), seed)
    meter = Meter(place)
    use_kernels(settings.kernels, device=place)
    model.to(place, memory_format=torch.channels_last)
    checkpoint = Path(resume) if resume else None
    return training.train(model, settings, images, seed, place, meter, resume=checkpoint, label="finetune")


def evaluate(model: nn.Module, images: Any, batch_size: int = 64, device: str = "auto") -> dict[str, float]:
    """Top-1, top-5 (percent), loss and class margin. The images' classes must be the model's (SeamError otherwise)."""
    from seam.evaluate import evaluate as measure
    from seam.quant.kernels import use_kernels
    from seam.runtime import set_up

    _check_classes(model, images)
    place = set_up(device, torch.get_num_threads(), 0)
    use_kernels(device=place)
    return measure(model.to(place, memory_format=torch.channels_last), images, batch_size, place)


def _checked(kind: type, values: Mapping[str, Any]) -> Any:
    """`kind(**values)` of seam.params; SeamError names the values that are wrong."""
    from pydantic import ValidationError

    from seam.params import explain

    try:
        return kind(**values)
    except ValidationError as error:
        raise SeamError(explain(error, kind, "settings")) from None


def _check_classes(model: nn.Module, images: Any) -> None:
    if len(images.classes) != model.num_classes:
        raise SeamError(
            f"the images have {len(images.classes)} classes, the model {model.num_classes}: give its own classes, "
            "one folder each, in the model's order by name"
        )


def _in_memory(images: Any, most: int) -> Any:
    """At most so many class-balanced images, decoded once: a search goes over them again and again."""
    from seam.data.sampling import sample_indices

    name = getattr(images, "name", "images")
    if len(images) > most:
        images = images.subset(sample_indices(images.labels.numpy(), most, "balanced", 0))
    mean, std = torch.tensor(images.mean) * 255, torch.tensor(images.std) * 255
    parts = [(x.permute(0, 2, 3, 1) * std + mean).round().clamp(0, 255).to(torch.uint8) for x, _ in images.batches(64)]
    return _held(torch.cat(parts), images, name)


def _sha256(images: Any) -> str:
    """Of the pixels and labels of a set in memory: what a search saw, wherever it lay."""
    digest = hashlib.sha256(images.pixels.numpy().tobytes())
    digest.update(images.labels.numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _held(pixels: torch.Tensor, like: Any, name: str) -> Any:
    """A set in memory with the labels and moments of `like`."""
    from seam.data.sets import TensorSet

    images = TensorSet(pixels, like.labels, like.classes, like.mean, like.std, like.flip)
    images.name = name
    return images


def _at_size(model: nn.Module, images: Any) -> tuple[nn.Module, Any]:
    """A copy of the model that takes the images' size (timm's transformers are built for one); else larger images."""
    from seam.data.sets import resize_pixels

    network, full = copy.deepcopy(model), input_size(model)
    try:
        if hasattr(network, "set_input_size"):
            network.set_input_size(img_size=images.image_size)
        find_layers(network, (full[0], *images.image_size))
        return network, images
    except (SeamError, AssertionError, ValueError, TypeError, RuntimeError):
        return copy.deepcopy(model), _held(resize_pixels(images.pixels, full[1:]), images, images.name)
