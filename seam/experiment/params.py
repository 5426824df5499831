"""`params.yaml` as frozen typed objects; unknown keys and bad values are errors that name the key.

Nothing here imports torch: both workflow engines read the parameters each time they plan.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import Field, ValidationError, field_validator

from seam.errors import SeamError, shown, unknown
from seam.io import read_text
from seam.settings import (
    Alias,
    Evaluate,
    FilePath,
    Finetune,
    Integer,
    Model,
    Number,
    Positive,
    Proxy,
    SearchSettings,
    Seed,
    Target,
    Training,
    _Frozen,
    explain,
)

_LEVELS = 50  # of nested blocks
_VALUES = 100_000  # in a file, each as often as an alias (*name) repeats it


class Grid(_Frozen):
    """The cross product of these four lists is the set of policies that are searched, finetuned and evaluated."""

    models: tuple[Alias, ...] = Field(min_length=1)  # of models
    searches: tuple[Alias, ...] = Field(min_length=1)  # of searches
    budgets: tuple[Alias, ...] = Field(min_length=1)  # of budgets
    seeds: tuple[Seed, ...] = Field(min_length=1)  # of a search and its finetuning

    @field_validator("models", "searches", "budgets", "seeds")
    @classmethod
    def _distinct(cls, values: tuple) -> tuple:
        if len(set(values)) != len(values):
            raise ValueError("holds the same entry twice")
        return values


class Claims(_Frozen):
    """Which searches play which part in the claims."""

    baseline: Alias = "direct"  # the direct search: gaps and speed-ups are measured against it
    proxies: tuple[Alias, ...] = ()  # searches on a proxy; the first is the one that the claims in front are about
    without_margin: dict[Alias, Alias] = {}  # search with the margin term -> the same search without it
    references: tuple[Alias, ...] = ()  # policies to beat at the same budget
    margin_points: Positive = 0.5  # non-inferiority margin of top-1, percentage points
    confidence: Annotated[Number, Field(gt=0.5, lt=1)] = 0.95  # of the intervals


class Report(_Frozen):
    """Figures and tables."""

    formats: tuple[Literal["png", "svg"], ...] = ("png", "svg")  # of figures
    dpi: Annotated[Integer, Field(ge=50, le=600)] = 150  # of .png
    title: str = ""  # above the tables


class MLflow(_Frozen):
    """Where runs are logged."""

    uri: str = "sqlite:///mlflow.db"  # MLFLOW_TRACKING_URI in the environment wins
    experiment: str = ""  # empty: the parameter set's name


class _PerModel(_Frozen):
    models: dict[Alias, dict[str, Any]] = {}  # settings that differ for a model


class PretrainSection(Training, _PerModel):
    """`Training`, for each model with settings of its own."""


class FinetuneSection(Finetune, _PerModel):
    """`Finetune`, for each model with settings of its own."""


class Params(_Frozen):
    """All parameters of one experiment."""

    name: Alias  # of the parameter set, and of MLflow's experiment
    results: FilePath = "results"  # folder of all results
    data_root: FilePath = "data"  # folder of datasets
    device: str = "auto"  # auto (a GPU if there is one), or torch's name of a device
    grid: Grid
    target: Target
    models: dict[Alias, Model]
    pretrain: PretrainSection
    search: dict[str, Any] = {}  # defaults for every search; checked as SearchSettings
    searches: dict[Alias, dict[str, Any]]
    budgets: dict[
        Alias, str
    ]  # limit over the searchable layers: w3a3, 1.2 GBitOPs, 0.8 MB, 3.5 bits, 4 ms; several, with commas, are all met
    finetune: FinetuneSection
    evaluate: Evaluate = Evaluate()
    claims: Claims = Claims()
    report: Report = Report()
    mlflow: MLflow = MLflow()

    def settings(self, search: str) -> SearchSettings:
        """The settings of one search: `search` overlaid with the search's own keys."""
        own = {k: v for k, v in self._search(search).items() if k not in ("method", "proxy")}
        return SearchSettings(**{**self.search, **own})

    def training(self, stage: Literal["pretrain", "finetune"], model: str) -> Training | Finetune:
        """The settings of a model's training: the stage's overlaid with the model's own keys."""
        section = getattr(self, stage)
        own = section.models.get(model, {})
        return _TRAININGS[stage](**{**section.model_dump(exclude={"models"}), **own})

    def training_key(self, stage: Literal["pretrain", "finetune"], model: str) -> str:
        """Where a model's settings of a training are to be changed, for messages."""
        return f"{stage}.models.{model}" if model in getattr(self, stage).models else stage

    def method(self, search: str) -> str:
        """The method's name: a file in `seam/search/`, or an importable module with a dot in its name."""
        return self._search(search)["method"]

    def proxy(self, search: str) -> Proxy | None:
        """The proxy of one search; None for methods that see no data."""
        proxy = self._search(search)["proxy"]
        return None if proxy == "none" else Proxy(**proxy)

    def _search(self, search: str) -> dict[str, Any]:
        if search not in self.searches:
            raise unknown("search", search, self.searches, "searches")
        return self.searches[search]

    def model(self, alias: str) -> Model:
        if alias not in self.models:
            raise unknown("model alias", alias, self.models, "models")
        return self.models[alias]

    def budget(self, alias: str) -> str:
        if alias not in self.budgets:
            raise unknown("budget", alias, self.budgets, "budgets")
        return self.budgets[alias]

    def jobs(self) -> Iterator["Job"]:
        """All (model, search, budget, seed) of the grid, in order."""
        g = self.grid
        return (Job(m, s, b, n) for m in g.models for s in g.searches for b in g.budgets for n in g.seeds)

    def dump(self) -> dict[str, Any]:
        """Plain values, defaults included (JSON types only)."""
        return self.model_dump(mode="json")

    def slice(self, stage: str, **job: Any) -> dict[str, Any]:
        """The parameters that a job depends on: dotted key -> value.

        A stage's keys are in `STAGE_KEYS`; a change to any other key must not rerun the job, nor may one of `nodes`:
        the processes are what counts, not the machines that they run on.
        """
        dumped = self.dump()
        result = {}
        for pattern in STAGE_KEYS[stage]:
            value: Any = dumped
            key = pattern.format(**job)
            if key in _TRAININGS:
                value = self.training(key, job["model"]).model_dump(mode="json")
            else:
                for part in key.split("."):
                    value = value[part]
            if isinstance(value, dict):
                value = {k: v for k, v in value.items() if k != "nodes"}
            result[key] = _ordered(value)
        return result


def _ordered(value: Any) -> Any:
    """The same value with mappings sorted by key, so that only a value can differ between two slices, not a layout."""
    if isinstance(value, dict):
        return {key: _ordered(value[key]) for key in sorted(value)}
    return [_ordered(item) for item in value] if isinstance(value, list) else value


_TRAININGS = {"pretrain": Training, "finetune": Finetune}  # a stage, and a section of the parameters
_OF_JOBS = ("threads", "processes", "nodes", "kernels")  # `schedule` and `seam plan` ask for them by stage alone


class Job(NamedTuple):
    model: str
    search: str
    budget: str
    seed: int

    @property
    def folder(self) -> str:
        return f"{self.model}/{self.search}/{self.budget}/{self.seed}"

    @property
    def name(self) -> str:
        return "-".join(map(str, self))


# What a network is made from. Which of its layers may be searched, and what they cost, concerns the search alone.
_NETWORK = tuple(
    f"models.{{model}}.{key}"
    for key in ("kwargs", "name", "preprocessing", "pretrained", "small_stem", "train", "weights")
)

# What each stage depends on. dvc.yaml lists the same keys (a test compares the two), but each model as a whole, since
# DVC refuses a key that params.yaml leaves out, and `pretrain` and `finetune` with what differs for other models.
STAGE_KEYS: dict[str, tuple[str, ...]] = {
    "fetch": ("target",),
    "pretrain": ("device", *_NETWORK, "pretrain", "target"),
    "sample": ("device", *_NETWORK, "searches.{search}.proxy", "target"),
    "search": ("budgets.{budget}", "device", "models.{model}", "search", "searches.{search}", "target"),
    "finetune": ("device", "finetune", *_NETWORK, "target"),
    "evaluate": ("device", "evaluate", *_NETWORK, "target"),
    "claims": ("claims", "grid"),
    "report": ("grid", "report"),
    "log": ("grid", "mlflow", "name"),
}


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key that stands twice in a block, and says where a value cannot be read."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {shown(key.value)} stands there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as error:  # what a date, a number or a tag that is none gives, of many types
            problem = f"cannot read {shown(node.value)} ({error or type(error).__name__})"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


def _reason(error: yaml.YAMLError) -> str:
    """What is wrong and where, in one line."""
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}: {error.problem}" if mark else " ".join(str(error).split())


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check a parameter file.

    Raises SeamError naming the file and each bad key, with the closest valid name for a misspelt one.
    """
    path = Path(path)
    text = read_text(path, "no such parameter file; run from the repository root or give --params")
    try:
        raw = yaml.load(text, _Loader)
    except RecursionError:
        raise SeamError(f"{path}: not valid YAML: nested too deeply") from None
    except yaml.YAMLError as error:
        raise SeamError(f"{path}: not valid YAML: {_reason(error)}") from None
    if not isinstance(raw, dict):
        raise SeamError(f"{path}: must be a mapping of parameters, found {type(raw).__name__}")
    return parse_params(raw, str(path))


def parse_params(raw: dict[str, Any], where: str = "params") -> Params:
    """Check a mapping as `load_params` does; `where` names its source in messages."""
    _check_values(raw, where, "", {})
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        raise SeamError(explain(error, Params, where)) from None
    _check_paths(params, where)
    _check_searches(params, where)
    _check_trainings(params, where)
    _check_references(params, where)
    return params


def _check_values(value: Any, where: str, key: str, sizes: dict[int, int], level: int = 0) -> int:
    """Refuse what JSON cannot hold (provenance is JSON) and what is too much; returns how many values there are."""
    place = f"{where}: {key}" if key else where
    if isinstance(value, dict | list | tuple):
        if id(value) in sizes:  # by an alias
            if not sizes[id(value)]:
                raise SeamError(f"{place}: holds itself, by an alias")
            return sizes[id(value)]
        if level == _LEVELS:
            raise SeamError(f"{place}: nested too deeply")
        sizes[id(value)] = 0
        size = 1
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(value, dict):
                if not isinstance(name, str):
                    raise SeamError(f"{place}: keys must be text, found {shown(name)}; write it in quotes")
                _check_text(name, place)
            size += _check_values(item, where, f"{key}.{name}" if key else str(name), sizes, level + 1)
            if size > _VALUES:
                raise SeamError(f"{place}: holds more than {_VALUES:,} values")
        sizes[id(value)] = size
        return size
    if isinstance(value, str):
        _check_text(value, place)
    elif isinstance(value, float) and not math.isfinite(value):
        raise SeamError(f"{place}: must be a finite number (found {value})")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise SeamError(f"{place}: must be less than 2**63")
    elif not isinstance(value, str | int | float | None):
        raise SeamError(f"{place}: must be text, a number, true or false, found {shown(value)}; write text in quotes")
    return 1


def _check_text(text: str, place: str) -> None:
    if any(0xD800 <= ord(c) < 0xE000 or ord(c) < 32 and c not in "\n\t" or 127 <= ord(c) < 160 for c in text):
        raise SeamError(f"{place}: must not hold control characters (found {shown(text)})")


def _check_paths(params: Params, where: str) -> None:
    """Refuse what the engines cannot pass on: braces are placeholders to both; in dvc.yaml ' stands around paths."""
    paths = {"results": params.results}
    for alias, model in params.models.items():
        paths |= {f"models.{alias}.weights": model.weights or "", f"models.{alias}.latency": model.latency or ""}
    for key, path in paths.items():
        for character in "{}'" if key == "results" else "{}":
            if character in path:
                raise SeamError(f"{where}: {key}: must not hold {character} (found {shown(path)})")


def _check_searches(params: Params, where: str) -> None:
    try:
        SearchSettings(**params.search)
    except ValidationError as error:
        raise SeamError(explain(error, SearchSettings, where, "search")) from None
    for name, block in params.searches.items():
        key = f"searches.{name}"
        for needed in ("method", "proxy"):
            if needed not in block:
                hint = (
                    " (a block with a dataset, or 'none' for a method that sees no data)" if needed == "proxy" else ""
                )
                raise SeamError(f"{where}: {key}.{needed} is missing{hint}")
        if not isinstance(block["method"], str):
            raise SeamError(f"{where}: {key}.method: must be a method's name (found {shown(block['method'])})")
        try:
            params.settings(name)
        except ValidationError as error:
            raise SeamError(explain(error, SearchSettings, where, key)) from None
        if block["proxy"] != "none" and not isinstance(block["proxy"], dict):
            raise SeamError(f"{where}: {key}.proxy must be a block with a dataset, or 'none'")
        try:
            proxy = params.proxy(name)
        except ValidationError as error:
            raise SeamError(explain(error, Proxy, where, f"{key}.proxy")) from None
        if proxy and proxy.split == "all" and proxy.dataset == params.target.dataset:
            raise SeamError(f"{where}: {key}.proxy.split: 'all' would show the target's test images to the search")


def _check_trainings(params: Params, where: str) -> None:
    for stage, kind in _TRAININGS.items():
        for alias, own in getattr(params, stage).models.items():
            key = f"{stage}.models.{alias}"
            if alias not in params.models:
                raise unknown("model alias", alias, params.models, f"{where}: {stage}.models")
            for name in _OF_JOBS:
                if name in own and name in kind.model_fields:
                    raise SeamError(f"{where}: {key}.{name}: is the same for all models; give it as {stage}.{name}")
            try:
                params.training(stage, alias)
            except ValidationError as error:
                raise SeamError(explain(error, kind, where, key)) from None


def _check_references(params: Params, where: str) -> None:
    from seam.data.datasets import DATASETS
    from seam.search.interface import METHODS

    for key, names, known in (
        ("grid.models", params.grid.models, params.models),
        ("grid.searches", params.grid.searches, params.searches),
        ("grid.budgets", params.grid.budgets, params.budgets),
        ("claims.proxies", params.claims.proxies, params.searches),
        ("claims.references", params.claims.references, params.searches),
        ("claims.without_margin", [n for pair in params.claims.without_margin.items() for n in pair], params.searches),
    ):
        for name in names:
            if name not in known:
                raise unknown("name", name, known, f"{where}: {key}")
    for key, name in [("target.dataset", params.target.dataset)] + [
        (f"searches.{s}.proxy.dataset", p.dataset) for s in params.searches if (p := params.proxy(s))
    ]:
        if name not in DATASETS:
            raise unknown("dataset", name, DATASETS, f"{where}: {key}")
    for name in params.searches:
        method = params.method(name)
        if method not in METHODS and "." not in method:
            raise unknown("method", method, METHODS, f"{where}: searches.{name}.method")
