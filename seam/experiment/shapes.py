"""What the stages' JSON files must hold: all that is read of them without a default."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from seam.settings import Shape

_Count = Annotated[int, Field(ge=0, lt=2**53)]
_Amount = Annotated[float, Field(ge=0, le=1e30)]
_Number = Annotated[float, Field(ge=-1e30, le=1e30)]
_Seconds = Annotated[float, Field(ge=1e-6, le=1e12)]
_Percent = Annotated[float, Field(ge=0, le=100)]
_Side = Annotated[int, Field(ge=1, lt=2**20)]
_Bits = Annotated[int, Field(ge=2, le=32)]


def _whole(value: float) -> float:
    if value % 1:
        raise ValueError("must be a whole number")
    return value


def _a_time(text: str) -> str:
    if not datetime.fromisoformat(text).tzinfo:
        raise ValueError("names no time zone")
    return text


_Time = Annotated[str, AfterValidator(_a_time)]


class Metrics(Shape):
    top1: _Percent
    fp_top1: _Percent
    bitops_g: _Amount
    size_mb: _Amount
    budget_share: _Amount | None
    images: _Count
    calibrated_top1: _Percent
    top5: _Percent | None = None
    class_margin: _Number | None = None
    bitops_g_fixed: _Amount | None = None


class FullPrecision(Shape):
    """metrics.json of pretraining."""

    top1: _Percent
    top5: _Percent
    class_margin: _Number


class Hits(Shape):
    images: Annotated[_Count, Field(ge=1)]
    top1: str
    calibrated_top1: str


class Geometry(Shape):
    """Of `seam.training.geometry.class_geometry`."""

    distances: list[list[_Amount]]
    points: list[Annotated[list[_Number], Field(min_length=3, max_length=3)]]


class ModelClasses(Shape):
    """classes.json of pretraining."""

    names: list[str]
    full_precision: Geometry


class Classes(ModelClasses):
    """classes.json of evaluate."""

    calibrated: Geometry
    finetuned: Geometry


class FinetuneCost(Shape):
    seconds: _Seconds
    started: _Time | None = None
    ended: _Time | None = None


class _EvaluateParts(Shape):
    calibrate: _Seconds


class EvaluateCost(FinetuneCost):
    parts: _EvaluateParts


class SearchCost(Shape):
    seconds: _Seconds
    seconds_once: _Amount
    image_macs: Annotated[_Amount, AfterValidator(_whole)]
    images: _Count | None = None
    peak_memory_mb: _Amount | None = None
    logit_entropy: _Number | None = None
    device: str | None = None
    device_name: str | None = None
    threads: _Count | None = None
    parts: dict[str, _Amount] = {}
    started: _Time | None = None
    ended: _Time | None = None


class Proxy(Shape):
    dataset: str | None
    count: _Count
    image_size: Annotated[list[_Side], Field(min_length=2, max_length=2)] | None = None
    indices: list[_Count] | None = None
    share_of_target: Annotated[float, Field(gt=1e-12, le=1e12)] | None = None

    @model_validator(mode="after")
    def _tells_of_its_images(self) -> "Proxy":
        lacking = [key for key in ("dataset", "image_size", "share_of_target") if getattr(self, key) is None]
        if self.count and lacking:
            raise ValueError(f"holds no {', '.join(lacking)}")
        if self.indices is not None and len(self.indices) != self.count:
            raise ValueError(f"{len(self.indices)} indices for {self.count} images")
        return self


class _Layer(Shape):
    model_config = {"extra": "forbid"}  # they are arguments of `Layer`

    name: str
    macs: _Count
    params: Annotated[_Count, Field(ge=1)]
    fixed: bool
    group: str = ""
    bits: Annotated[list[_Bits], Field(min_length=2, max_length=2)] | None = None
    counted: bool = False
    functional: bool = False


class _Model(Shape):
    name: str
    num_classes: _Count
    in_chans: _Side
    input_size: Annotated[list[_Side], Field(min_length=3, max_length=3)]


class Layers(Shape):
    model: _Model
    layers: list[_Layer]

    @model_validator(mode="after")
    def _distinct(self) -> "Layers":
        if len({layer.name for layer in self.layers}) < len(self.layers):
            raise ValueError("two layers have one name")
        return self


class _Estimate(Shape):
    value: _Number
    interval: Annotated[list[_Number], Field(min_length=2, max_length=2)] | None = None
    n: _Count
    unit: str


class _Measured(Shape):
    share: _Number
    top1_difference: _Number | None
    speedup_seconds: _Number | None
    speedup_image_macs: _Number | None


_Sides = dict[str, _Number]


class _Claim(Shape):
    id: str
    claim: Annotated[str, StringConstraints(min_length=1)]
    model: str
    budget: str | None
    search: str
    against: str | None
    statement: str
    verdict: Literal["holds", "does not hold", "not decided"]
    reason: str
    note: str | None = None
    estimate: _Estimate | None = None
    measured: _Measured | None = None
    images: _Count | None = None
    target_images: _Count | None = None
    bound: _Number | None = None
    parts: dict[str, str] = {}
    methods: list[str] = []
    settings_that_differ: dict[str, Annotated[list[Any], Field(min_length=2, max_length=2)]] = {}
    calibrated_top1: _Sides | None = None
    top1: _Sides | None = None
    budget_share: _Sides | None = None

    @model_validator(mode="after")
    def _tells_of_its_kind(self) -> "_Claim":
        needed = {"paper": ("measured",), "share": ("estimate", "images", "target_images")}
        lacking = [key for key in needed.get(self.claim, ("estimate",)) if getattr(self, key) is None]
        if lacking:
            raise ValueError(f"holds no {', '.join(lacking)}")
        return self


class _Roles(Shape):
    baseline: str
    margin_points: _Number


class _Design(Shape):
    models: Annotated[list[str], Field(min_length=1)]
    budgets: dict[str, str]
    roles: _Roles


class ClaimsFile(Shape):
    design: _Design
    headline: str | None
    missing: list[str]
    verdicts: dict[str, _Count]
    claims: list[_Claim]
