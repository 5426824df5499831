"""Typed settings of each part of the work, frozen: unknown keys and bad values are errors that name the key.

`seam.experiment.params` puts them together to `params.yaml`; the tool's API makes them from its arguments.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from seam.errors import SeamError, shortened, shown, unknown

_MOST = 3  # problems in one message


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):  # to Python true is 1
        raise ValueError("must be a number")
    return value


def _pair(value: Any) -> Any:
    if isinstance(value, str):
        w, slash, a = value.partition("/")
        if not (slash and w.strip().isdecimal() and a.strip().isdecimal()):
            raise ValueError("must be weight bits / input bits, such as 4/8")
        return int(w), int(a)
    return value


def _no_control(path: str) -> str:
    if not path.strip():
        raise ValueError("must not be empty")
    if any(ord(character) < 32 or 127 <= ord(character) < 160 for character in path):
        raise ValueError("must not hold control characters")
    return path


def _shared_evenly(settings: Any) -> Any:
    if settings.processes % settings.nodes:
        raise ValueError(
            f"processes must be a multiple of nodes, {settings.nodes}, such as the number of GPUs on all of them "
            f"(found {settings.processes})"
        )
    return settings


Integer = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool)]
Alias = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
FilePath = Annotated[str, AfterValidator(_no_control)]  # of a file or folder: relative, absolute, with ..
Bits = Annotated[Integer, Field(ge=2, le=8)]
Pair = Annotated[tuple[Bits, Bits], BeforeValidator(_pair)]  # weight and input bits, in YAML as 4/8
Fraction = Annotated[Number, Field(gt=0, le=1)]
Share = Annotated[Number, Field(ge=0, le=1)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Count = Annotated[Integer, Field(ge=1, lt=2**31)]
Level = Literal["steps", "output", "norm", "reconstruct"]  # of calibration
Seed = Annotated[Integer, Field(ge=0, lt=2**32)]  # what numpy takes


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Target(_Frozen):
    """The dataset that the deployed model is trained on."""

    dataset: str  # a dataset's name (docs/data.md), or folder
    path: FilePath | None = None  # for dataset: folder
    image_size: Count | None = None  # None: the dataset's own size
    test_images: Count | None = None  # measure on a fixed class-balanced part of the test images; None: on all


class Model(_Frozen):
    """A timm model and where its full-precision weights come from."""

    name: str  # timm's
    kwargs: dict[str, Any] = {}  # more for timm.create_model
    weights: FilePath | None = None  # a file of weights (.safetensors or a checkpoint) instead of pretraining
    pretrained: bool = False  # timm's own weights instead of pretraining
    train: bool = False  # pretrain from those weights, with a new classifier where theirs has other classes
    preprocessing: Literal["dataset", "model"] = "dataset"  # whose mean, deviation, crop and interpolation images get
    small_stem: bool = False  # a ResNet's stem for images of about 32x32
    lock: tuple[str, ...] = ()  # bits of layers by pattern, 'layer1.*=8/8'
    exclude: tuple[str, ...] = ()  # layers that stay in full precision, by pattern
    latency: FilePath | None = None  # CSV (layer,w,a,ms), for budgets in ms

    @model_validator(mode="after")
    def _trains_from_something(self) -> "Model":
        if self.train and not (self.weights or self.pretrained):
            raise ValueError("train: true says to go on from given weights: give weights or pretrained: true")
        return self

    @property
    def from_scratch(self) -> bool:
        """Whether the pretrain stage starts from random weights."""
        return not (self.weights or self.pretrained)


class Proxy(_Frozen):
    """The data a search sees: a dataset, a sampled part of it, at its own or another resolution."""

    dataset: str  # a dataset's name
    path: FilePath | None = None  # for dataset: folder
    split: Literal["train", "all"] = "train"  # all: test images as well, of another dataset than the target
    fraction: Fraction | None = None  # of the images; neither it nor count: all of them
    count: Count | None = None  # images
    sampling: Literal["random", "balanced", "herding", "k_center"] = (
        "balanced"  # how a part is chosen; the last two by features
    )
    image_size: Count | None = None  # None: the target's, at most 224
    seed: Seed = 0  # of the choice

    @model_validator(mode="after")
    def _one_size(self) -> "Proxy":
        if self.fraction is not None and self.count is not None:
            raise ValueError("give fraction or count, not both")
        return self


class Training(_Frozen):
    """One supervised training run (pretrain or finetune): learning rates rise over 5 % of it, then fall by a cosine.

    Transformers want AdamW, with learning rates far below SGD's: 1e-5 to 1e-4.
    """

    epochs: Count  # passes over the images
    batch_size: Count = 128  # images a step
    optimizer: Literal["sgd", "adamw"] = "sgd"  # of the network's weights
    lr: Positive = 0.05  # greatest learning rate
    weight_decay: NonNegative = 5e-4  # of weights; biases and normalisation are spared
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9  # of SGD, Nesterov's
    clip_norm: Positive | None = None  # greatest norm of the weights' gradient
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0  # of cross-entropy
    augment: bool = True  # crops, and mirrored images where these show the same class
    images: Count | None = None  # a fixed class-balanced subset of the target's training images; None: all
    seed: Seed = 0  # of weights and of the order of images
    threads: Count = 2  # of a process of a job
    processes: Count = 1  # of a job, which share each batch; on GPUs each has one of its own
    sync_batch_norm: bool = True  # in several processes BatchNorm sees the whole batch, not a process's share alone
    nodes: Count = 1  # machines of a Slurm job, which share its processes evenly

    _even = model_validator(mode="after")(_shared_evenly)


class Finetune(Training):
    """Quantization-aware training: `Training` plus the learning rate of the quantizers' log steps (Adam).

    By default BatchNorm's statistics stay as calibration leaves them, since in a short training they drift to the
    images and to the noise faster than the weights follow; at its end they are re-estimated, if that lowers the loss.
    """

    calibration: Literal["steps", "output", "norm"] = "norm"  # level that it starts from
    step_lr: Positive = 1e-2  # learning rate of the quantizers' log steps (Adam)
    batch_norm: Literal["re-estimated", "frozen", "updated"] = (
        "re-estimated"  # its statistics: set anew at the end if that lowers the loss, kept, or updated at each step
    )
    distillation: Share = 0.0  # of the loss: how far the full-precision network's predictions are; the rest: labels
    clip_norm: Positive | None = 1.0  # of the weights' gradient: few-bit depthwise networks diverge without
    kernels: Literal["auto", "compiled", "eager"] = "auto"  # of the quantizers

    @model_validator(mode="after")
    def _labels_are_read(self) -> "Finetune":
        if self.distillation == 1 and self.label_smoothing:
            raise ValueError(
                f"label_smoothing must be 0 where distillation is 1: no label is read (found {self.label_smoothing:g})"
            )
        return self


class SearchSettings(_Frozen):
    """Settings that the methods share. `options` is free for a method's own settings."""

    bits: tuple[Bits, ...] = (2, 3, 4, 5, 6)  # candidate bit-widths of weights and inputs, ascending
    pairs: tuple[Pair, ...] = ()  # of weight and input bits that a layer may have, [4/8, 8/8]; empty: any two
    epochs: Count = 3  # passes over the proxy, of methods that train
    steps: Count | None = None  # stop after so many, whatever the epochs
    warmup_epochs: Annotated[Integer, Field(ge=0, lt=2**31)] = (
        0  # joint, gmpq: in full precision, before the search, for new classes
    )
    batch_size: Count = 64  # images a step
    lr: Positive = 0.03  # joint, gmpq, limpq: network weights, SGD
    weight_decay: NonNegative = 0.0  # joint, gmpq, limpq: of the network's weights
    logit_lr: Positive | None = None  # bit-width logits, Adam; None: the method's own, as for the next two
    step_lr: Positive = 1e-3  # log quantizer steps, Adam
    margin_weight: NonNegative | None = None  # of the large-margin term, lambda_m
    budget_weight: NonNegative | None = None  # of the budget term, lambda_b
    temperature: Annotated[Number, Field(gt=0, le=1)] = 0.2  # of the softmax at the end; 1 at the start
    spend: Share = 0.97  # least share of the budget that a policy uses
    calibration_images: Count = 512  # that steps are set from, and that sensitivity looks at
    augment: bool = False  # as in training
    threads: Count = 2  # of a process of a job
    processes: Count = 1  # of a job, which share its images; on GPUs each has one of its own
    sync_batch_norm: bool = True  # as in training
    nodes: Count = 1  # machines of a Slurm job, which share its processes evenly
    kernels: Literal["auto", "compiled", "eager"] = "auto"  # of quantizers and mixtures
    options: dict[str, Any] = {}  # a method's own settings (its file says which)

    def filled(self, **own: Any) -> "SearchSettings":
        """These settings with a method's own values where they give none."""
        return self.model_copy(update={key: value for key, value in own.items() if getattr(self, key) is None})

    _even = model_validator(mode="after")(_shared_evenly)

    @model_validator(mode="after")
    def _of_bits(self) -> "SearchSettings":
        if self.pairs and {*self.bits} != {b for pair in self.pairs for b in pair}:
            raise ValueError(f"pairs must be of the numbers in bits, {list(self.bits)}, and use each of them")
        return self

    @field_validator("bits")
    @classmethod
    def _ascending(cls, bits: tuple[int, ...]) -> tuple[int, ...]:
        if list(bits) != sorted(set(bits)):
            raise ValueError("must be ascending and distinct, e.g. [2, 3, 4, 5, 6]")
        return bits


class Reconstruction(_Frozen):
    """Block reconstruction of a quantized network without labels (`seam.calibration.reconstruct`), by Adam."""

    iterations: Count = 200  # a block
    batch_size: Count = 32  # at most; fewer images where a block's tensors are large
    lr: Positive = 0.05  # of the logits of the weights' rounding
    step_lr: NonNegative = 5e-3  # of the log steps of inputs; 0: they stay
    affine_lr: NonNegative = 3e-3  # of biases and normalisation; 0: they stay
    drop: Share = 0.5  # of the elements of activations that a step leaves in full precision
    warm_up: Share = 0.2  # of the iterations, before the first roundings are decided
    decided: Fraction = 0.9  # of the iterations, after which all are; steps and biases are learned to the end


class Evaluate(_Frozen):
    """Measuring on the target's test images."""

    batch_size: Count = 500  # images a step
    threads: Count = 2  # of a job, and of one that samples a proxy
    calibration: Level = "norm"  # level, of a policy before finetuning
    calibration_images: Count = 512  # of finetuning, that levels above `steps` see
    reconstruct: Reconstruction = Reconstruction()  # settings of that level


def checked(kind: type[BaseModel], values: Mapping[str, Any]) -> Any:
    """`kind(**values)`; SeamError names the values that are wrong."""
    try:
        return kind(**values)
    except ValidationError as error:
        raise SeamError(explain(error, kind, "settings")) from None


class Shape(BaseModel):
    """What a JSON file must hold at least, in JSON's own types; other keys may be there."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


def check_shape(content: Any, shape: type[Shape], path: object, way_out: str) -> Any:
    """The content of a JSON file, as it is; SeamError names the file, the keys that do not fit, and the way out."""
    try:
        shape.model_validate(content)
    except ValidationError as error:
        items = [
            (shortened(".".join(map(str, item["loc"]))), item)
            for item in error.errors(include_url=False, include_context=False)
        ]
        missing = [key for key, item in items if item["type"] == "missing"]
        problems = [f"holds no {', '.join(missing[:_MOST])}"] if missing else []
        problems += [
            f"{key}{': ' if key else ''}{item['msg'].removeprefix('Value error, ')} (found {shown(item['input'])})"
            for key, item in items
            if item["type"] != "missing"
        ]
        more = ", and more" if max(len(problems), len(missing)) > _MOST else ""
        raise SeamError(f"{path}: {'; '.join(problems[:_MOST])}{more}; {way_out}") from None
    return content


def explain(error: ValidationError, root: type[BaseModel], where: str, prefix: str = "") -> str:
    """A line for each wrong key of a `root`: its name, what is wrong, and what was found in `where`."""
    lines = []
    for item in error.errors():
        key = ".".join(filter(None, [prefix, *map(str, item["loc"])]))
        if item["type"] == "extra_forbidden":
            known = _fields_at(root, item["loc"][:-1])
            lines.append(str(unknown("key", str(item["loc"][-1]), known, f"{where}: {key}")))
        elif item["type"] == "missing":
            lines.append(f"{where}: {key} is missing")
        else:
            lines.append(f"{where}: {key}: {item['msg'].removeprefix('Value error, ')} (found {shown(item['input'])})")
    return "\n".join(lines)


def _fields_at(root: type[BaseModel], loc: tuple) -> list[str]:
    model: Any = root
    for part in loc:
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        if field is None:
            # A dict of models (models.<alias>): the alias itself is no field.
            continue
        model = field.annotation
        for inner in getattr(model, "__args__", ()):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                model = inner
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
