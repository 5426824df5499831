"""params.yaml: every bad value is refused with a message that names its key and the way out."""

import copy
import datetime
import os
import subprocess
import sys

import pytest
import yaml
from engines import REPOSITORY

from seam.errors import SeamError
from seam.experiment.params import STAGE_KEYS, Job, load_params, parse_params

NAMES = ("smoke", "cifar", "imagenet", "efficiency", "scale224", "pretrained")
FILES = ["params.yaml", *(f"experiments/{name}.yaml" for name in NAMES)]


RAW = """
name: test
device: cpu
grid: {models: [resnet18, mobilenet], searches: [seam-digits, direct], budgets: [w3a3], seeds: [0]}
target: {dataset: fashion_mnist}
models: {resnet18: {name: resnet18}, mobilenet: {name: mobilenetv2_050}}
pretrain: {epochs: 3, lr: 0.1}
search: {bits: [2, 3, 4], epochs: 3, margin_weight: 1.0}
searches:
  seam-digits: {method: seam, proxy: {dataset: digits, split: all}}
  seam-subset: {method: seam, proxy: {dataset: fashion_mnist, fraction: 0.04}}
  direct: {method: seam, proxy: {dataset: fashion_mnist}, epochs: 1}
  no-margin: {method: seam, proxy: {dataset: digits, split: all}, margin_weight: 0.0}
  uniform: {method: uniform, proxy: none}
budgets: {w3a3: w3a3}
finetune: {epochs: 2, lr: 0.02}
claims: {proxies: [seam-digits], without_margin: {seam-digits: no-margin}}
report: {formats: [png]}
mlflow: {uri: "sqlite:///mlflow.db"}
"""


@pytest.fixture
def raw():
    return yaml.safe_load(RAW)


def changed(raw, key, value):
    raw = copy.deepcopy(raw)
    *parents, last = key.split(".")
    inner = raw
    for part in parents:
        inner = inner[part]
    if value is DELETE:
        del inner[last]
    else:
        inner[last] = value
    return raw


DELETE = object()
PROXY = "searches.seam-subset.proxy"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("finetune.epoch", 3, ["finetune.epoch", "did you mean epochs"]),
        ("fintune", {}, ["fintune", "did you mean finetune"]),
        ("search.margin_wieght", 1, ["search.margin_wieght", "margin_weight"]),
        ("searches.direct.epoch", 1, ["searches.direct.epoch", "epochs"]),
        (f"{PROXY}.fractoin", 0.1, [f"{PROXY}.fractoin", "fraction"]),
        ("models.resnet18.weight", "x", ["models.resnet18.weight", "weights"]),
        ("finetune.epochs", 0, ["finetune.epochs", "0"]),
        ("finetune.lr", -0.1, ["finetune.lr", "-0.1"]),
        ("finetune.optimizer", "adam", ["finetune.optimizer", "sgd", "adamw"]),
        ("finetune.models", {"mobilnet": {}}, ["finetune.models", "mobilnet", "did you mean mobilenet"]),
        ("finetune.models", {"mobilenet": {"step_lrr": 1}}, ["finetune.models.mobilenet.step_lrr", "step_lr"]),
        ("finetune.models", {"mobilenet": {"lr": "fast"}}, ["finetune.models.mobilenet.lr", "fast"]),
        ("finetune.models", {"mobilenet": {"models": {}}}, ["finetune.models.mobilenet.models"]),
        ("pretrain.models", {"mobilenet": {"step_lr": 0.1}}, ["pretrain.models.mobilenet.step_lr"]),
        ("pretrain.models", {"mobilenet": {"threads": 1}}, ["pretrain.models.mobilenet.threads", "pretrain.threads"]),
        ("pretrain.models", {"mobilenet": {"kernels": "eager"}}, ["pretrain.models.mobilenet.kernels", "unknown"]),
        (
            "finetune.models",
            {"mobilenet": {"kernels": "eager"}},
            ["finetune.models.mobilenet.kernels", "for all models"],
        ),
        ("search.bits", [2, 3, 9], ["search.bits", "8"]),
        ("search.bits", [3, 2], ["search.bits", "ascending"]),
        ("search.pairs", ["4-8"], ["search.pairs", "weight bits / input bits, such as 4/8", "4-8"]),
        ("search.pairs", ["2/9"], ["search.pairs", "less than or equal to 8"]),
        ("search.pairs", ["4/8"], ["pairs must be of the numbers in bits"]),
        (f"{PROXY}.fraction", 1.5, [f"{PROXY}.fraction", "1.5"]),
        (f"{PROXY}.count", 10, [PROXY, "fraction or count"]),
        (f"{PROXY}.split", "all", [PROXY, "test images"]),
        (f"{PROXY}.dataset", "fashion_mnst", [f"{PROXY}.dataset", "fashion_mnist"]),
        ("target.dataset", "cifar_10", ["target.dataset", "cifar10"]),
        ("searches.direct.method", "seem", ["searches.direct.method", "did you mean seam"]),
        ("searches.direct.proxy", DELETE, ["searches.direct.proxy", "missing", "none"]),
        ("searches.direct.proxy", "digits", ["searches.direct.proxy", "dataset"]),
        ("searches.direct.method", DELETE, ["searches.direct.method", "missing"]),
        ("grid.searches", ["drect"], ["grid.searches", "direct"]),
        ("grid.models", ["resnet81"], ["grid.models", "resnet18"]),
        ("grid.budgets", ["w4a4"], ["grid.budgets", "w3a3"]),
        ("grid.seeds", [0, 0], ["grid.seeds", "twice"]),
        ("grid.seeds", [], ["grid.seeds"]),
        ("grid", DELETE, ["grid", "missing"]),
        ("models", {"a.b": {"name": "resnet18"}}, ["models", "a.b"]),
        ("claims.proxies", ["seam-digit"], ["claims.proxies", "seam-digits"]),
        ("claims.without_margin", {"seam-digits": "nomargin"}, ["claims.without_margin", "no-margin"]),
        ("report.formats", ["pdf"], ["report.formats", "png"]),
        ("results", "", ["results", "empty"]),
        ("results", " ", ["results", "empty"]),
        ("results", "r\0", ["results", "control", r"'r\x00'"]),
        ("results", "r\n", ["results", "control"]),
        ("results", "a{b", ["results", "{", "'a{b'"]),
        ("results", "it's", ["results", "must not hold '"]),
        ("data_root", "", ["data_root", "empty"]),
        ("data_root", "a\x1b[31m", ["data_root", "control"]),
        ("models.resnet18.weights", "a{b}.st", ["models.resnet18.weights", "{"]),
        ("target.path", "", ["target.path", "empty"]),
        ("report.title", "\x1b]0;", ["report.title", "control"]),
        ("report.title", "\ud800", ["report.title", "control"]),
        ("models.resnet18.kwargs", {"a": {"b\x07": 1}}, ["models.resnet18.kwargs.a", "control", r"b\x07"]),
        ("models.resnet18.kwargs", {"a": [0, float("nan")]}, ["models.resnet18.kwargs.a.1", "finite"]),
        ("models.resnet18.kwargs", {"when": datetime.date(2020, 1, 1)}, ["kwargs.when", "quotes"]),
        ("search.options", {1: 2}, ["search.options", "quotes"]),
        (PROXY, {1: 2}, [PROXY, "quotes"]),
        ("searches.direct.method", ["seam"], ["searches.direct.method", "name"]),
        ("finetune.epochs", True, ["finetune.epochs", "number", "True"]),
        ("finetune.lr", True, ["finetune.lr", "number", "True"]),
        ("finetune.lr", float("inf"), ["finetune.lr", "finite"]),
        ("finetune.lr", "inf", ["finetune.lr", "finite"]),
        ("finetune.epochs", 10**400, ["finetune.epochs", "2**63"]),
        ("finetune.batch_size", 2**31, ["finetune.batch_size", "2147483648"]),
        ("search.margin_weight", float("nan"), ["search.margin_weight", "finite"]),
        ("search.bits", [True, 3], ["search.bits.0", "number"]),
        ("searches.direct.lr", float("inf"), ["searches.direct.lr", "finite"]),
        ("grid.seeds", [2**32], ["grid.seeds.0", "4294967296"]),
        ("grid.seeds", [False], ["grid.seeds.0", "number"]),
        ("finetune.seed", 2**32, ["finetune.seed", "4294967296"]),
        (
            "finetune",
            {"epochs": 2, "lr": 0.02, "distillation": 1, "label_smoothing": 0.1},
            ["finetune: label_smoothing", "distillation is 1", "0.1"],
        ),
        (f"{PROXY}.seed", 2**32, [f"{PROXY}.seed", "4294967296"]),
        ("claims.confidence", float("nan"), ["claims.confidence", "finite"]),
    ],
)
def test_bad_values_name_their_key(raw, key, value, words):
    with pytest.raises(SeamError) as error:
        parse_params(changed(raw, key, value), "params.yaml")
    assert str(error.value).startswith("params.yaml")
    assert all(word in str(error.value) for word in words), str(error.value)
    assert str(error.value).replace("\n", "").isprintable() and len(str(error.value)) < 1000


@pytest.mark.parametrize("place", ["/scratch/my runs", "../runs", "r $(touch x) y"])
def test_results_may_go_anywhere(raw, place):
    params = parse_params(raw | {"results": place, "data_root": place})
    assert params.results == params.data_root == place


def test_every_bad_key_is_listed(raw):
    raw["finetune"]["epoch"] = 1
    raw["pretrain"]["lr"] = 0
    with pytest.raises(SeamError, match=r"(?s)(pretrain\.lr.*finetune\.epoch|finetune\.epoch.*pretrain\.lr)"):
        parse_params(raw)


@pytest.mark.parametrize(
    ("text", "words"), [("a: [", "not valid YAML"), ("- 1", "mapping"), ("", "mapping"), (None, "no such")]
)
def test_unreadable_files_are_named(tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SeamError, match=f"mine.yaml.*{words}"):
        load_params(path)


DEEP = "a: " + "{a: " * 3000 + "1" + "}" * 3000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (RAW.encode("utf-16"), "not UTF-8"),
        (RAW.encode("utf-16-le"), "not valid YAML.*#x0000"),
        ("report: {title: \u00e9}".encode("latin-1"), "not UTF-8 text .* at byte 16"),
        (DEEP, "not valid YAML: nested too deeply"),
        ("a: " + "{a: " * 60 + "1" + "}" * 60, "nested too deeply"),
        ("a: 1\nb: 2020-02-31", "line 2: cannot read '2020-02-31' .*day"),
        ("a: !!timestamp x", "line 1: cannot read 'x'"),
        ("a: !!bool x", "line 1: cannot read 'x'"),
        ("a: " + "9" * 5000, "line 1: cannot read '9999"),
        ("results: a\nname: x\nresults: b", "line 3: the key 'results' stands there twice"),
        ("a: {b: 1, b: 2}", "line 1: the key 'b' stands there twice"),
        ("a: &a [*a]", "a.0: holds itself"),
        (
            "a0: &a0 [1]\n" + "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)),
            "holds more than 100,000 values",
        ),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML: line 1: could not determine a constructor"),
    ],
)
def test_files_of_any_content_are_refused_in_one_line(tmp_path, content, words):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SeamError, match=f"mine.yaml: .*{words}") as error:
        load_params(path)
    assert str(error.value).isprintable() and len(str(error.value)) < 500


def test_a_folder_is_no_parameter_file(tmp_path):
    with pytest.raises(SeamError, match="Is a directory"):
        load_params(tmp_path)


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_files_are_utf_8_whatever_the_locale(tmp_path, start):
    path = tmp_path / "mine.yaml"
    path.write_text(start + RAW.replace("{formats: [png]}", "{formats: [png], title: Größe}"), encoding="utf-8")
    code = f"from seam.experiment.params import load_params; print(ascii(load_params({str(path)!r}).report.title))"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=REPOSITORY)
    assert done.stdout.strip() == ascii("Größe")


def test_blocks_may_be_shared_by_aliases(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(RAW.replace("{epochs: 3, lr: 0.1}", "&t {epochs: 3, lr: 0.1}") + "evaluate: &e {batch_size: 5}\n")
    path.write_text(path.read_text().replace("{epochs: 2, lr: 0.02}", "{<<: *t, lr: 0.02}"))
    finetune = load_params(path).finetune
    assert (finetune.epochs, finetune.lr) == (3, 0.02)


@pytest.mark.parametrize("file", FILES)
def test_files_in_the_repository_are_complete(file):
    """DVC refuses a parameter that a stage lists and the file does not hold; defaults do not help it."""
    params, raw = load_params(REPOSITORY / file), yaml.safe_load((REPOSITORY / file).read_text())
    for job in params.jobs():
        for patterns in STAGE_KEYS.values():
            for pattern in patterns:
                value = raw
                parts = pattern.format(**job._asdict()).split(".")
                for part in parts[:2] if parts[0] == "models" else parts:  # dvc.yaml lists a model as a whole
                    assert part in value, f"{file}: {pattern}"
                    value = value[part]


def test_experiments_do_not_overwrite_each_other():
    results = [load_params(REPOSITORY / file).results for file in FILES]
    assert len(set(results)) == len(results)
    names = [load_params(REPOSITORY / file).name for file in FILES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["benchmark", "efficiency", "scale224"])
def test_experiments_with_older_figures_keep_their_levels_of_calibration(name):
    params = load_params(REPOSITORY / f"experiments/{name}.yaml")
    assert (params.evaluate.calibration, params.finetune.calibration) == ("steps", "output")
    assert params.finetune.batch_norm in ("frozen", "updated")
    for search in params.grid.searches:
        if params.method(search) in ("jacobian", "jacobian_fit", "seam"):
            assert params.settings(search).options.get("calibration") == "steps", search


def test_the_default_experiment_keeps_what_the_readme_s_figures_were_made_with():
    params = load_params(REPOSITORY / "params.yaml")
    assert (params.evaluate.calibration, params.finetune.calibration) == ("norm", "norm")
    assert (params.finetune.batch_norm, params.finetune.distillation) == ("re-estimated", 1.0)


def test_jobs_are_the_cross_product_in_order(raw):
    raw["grid"] = {"models": ["mobilenet"], "searches": ["direct", "uniform"], "budgets": ["w3a3"], "seeds": [1, 0]}
    jobs = list(parse_params(raw).jobs())
    assert jobs == [Job("mobilenet", s, "w3a3", n) for s in ("direct", "uniform") for n in (1, 0)]


def test_a_search_overrides_the_shared_settings(raw):
    params = parse_params(raw)
    assert params.settings("seam-digits").epochs == raw["search"]["epochs"]
    assert params.settings("direct").epochs == raw["searches"]["direct"]["epochs"] != raw["search"]["epochs"]
    assert params.settings("no-margin").margin_weight == 0.0
    assert params.proxy("uniform") is None
    assert params.proxy("seam-subset").fraction == 0.04


def test_a_model_overrides_the_settings_of_a_training(raw):
    raw["finetune"]["models"] = {"mobilenet": {"optimizer": "adamw", "lr": 0.001, "clip_norm": None}}
    params = parse_params(raw)
    own, shared = params.training("finetune", "mobilenet"), params.training("finetune", "resnet18")
    assert (own.optimizer, own.lr, own.clip_norm, own.epochs) == ("adamw", 0.001, None, 2)
    assert (shared.optimizer, shared.lr, shared.clip_norm, shared.epochs) == ("sgd", 0.02, 1.0, 2)
    assert params.training("pretrain", "mobilenet") == params.training("pretrain", "resnet18")
    assert params.training_key("finetune", "mobilenet") == "finetune.models.mobilenet"
    assert params.training_key("finetune", "resnet18") == "finetune"


def test_a_slice_holds_what_its_stage_depends_on(raw):
    before = parse_params(raw)
    job = {"model": "resnet18", "search": "direct", "budget": "w3a3", "seed": 0}
    for key, value, stages in (
        ("finetune.lr", 0.5, {"finetune"}),
        ("finetune.models", {"resnet18": {"lr": 0.5}}, {"finetune"}),
        ("finetune.models", {"resnet18": {"lr": 0.02}}, set()),
        ("finetune.models", {"mobilenet": {"lr": 0.5}}, set()),
        ("pretrain.models", {"resnet18": {"lr": 0.5}}, {"pretrain"}),
        ("searches.direct.margin_weight", 0.5, {"search"}),
        ("searches.uniform.epochs", 9, set()),
        ("searches.direct.proxy.fraction", 0.5, {"sample", "search"}),
        ("models.mobilenet.name", "resnet34", set()),
        ("models.resnet18.name", "resnet34", {"pretrain", "sample", "search", "finetune", "evaluate"}),
        ("models.resnet18.lock", ["conv1=8/8"], {"search"}),
        ("models.resnet18.exclude", ["conv1"], {"search"}),
        ("models.resnet18.latency", "ms.csv", {"search"}),
        ("report.title", "x", {"report"}),
        ("mlflow.experiment", "x", {"log"}),
        ("grid.seeds", [0, 1], {"claims", "report", "log"}),
        ("name", "x", {"log"}),
    ):
        after = parse_params(changed(raw, key, value))
        differing = {stage for stage in STAGE_KEYS if before.slice(stage, **job) != after.slice(stage, **job)}
        assert differing == stages, key


def test_a_slice_does_not_show_the_order_of_keys(raw):
    reordered = yaml.safe_load(yaml.safe_dump(raw, sort_keys=True))
    job = {"model": "resnet18", "search": "seam-subset", "budget": "w3a3", "seed": 0}
    for stage in STAGE_KEYS:
        assert repr(parse_params(raw).slice(stage, **job)) == repr(parse_params(reordered).slice(stage, **job)), stage


def test_params_cannot_be_changed(raw):
    params = parse_params(raw)
    with pytest.raises(ValueError, match="frozen"):
        params.finetune.lr = 1.0
