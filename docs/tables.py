"""The tables of results.md, calibration.md and the README, from the CSVs in benchmarks/: one row there is one run, with
the machine it ran on.

`python docs/generate.py` puts each between its two comments, <!-- table NAME --> and <!-- end -->, on that page.
"""

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev

from seam.report.text import factor, markdown

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
BUDGETS = ("w6a6", "w5a5", "w4a4")
NETWORKS = {"tf_efficientnet_lite0": "Lite0", "tf_efficientnet_lite1": "Lite1", "tf_efficientnet_lite2": "Lite2"}
NETWORKS |= {"lite0": "Lite0", "mobilenetv2": "MobileNetV2", "resnet18": "ResNet-18", "vit": "ViT-S"}
NETWORKS |= {"mobilenetv3": "MobileNetV3-Small x0.5"}
PROXIES = {"digits": "digits", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "": "–"}
NOT_RUN = "–"
RANKS = ("ranks", "ranks_pretrained")  # CSVs of rank correlations
OWN = ("photographs", "target")  # what they call images of the target itself
PARTS = ("calibrated_top1", "top1")  # what is known of a policy: calibrated only, and after QAT
COSTS = ("search_seconds", "speedup", "speedup_image_macs")
Row = dict[str, str]


def rows(name: str) -> list[Row]:
    path = BENCHMARKS / f"{name}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(head: Sequence[str], lines: Iterable[Sequence[str]], left: int) -> str:
    return "".join(f"{line}\n" for line in markdown(head, lines, left))


def grouped(found: Iterable[Row], *keys: str) -> dict[tuple[str, ...], list[Row]]:
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in found:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def named(search: str) -> str:
    """`method` and what was changed about it."""
    method, _, change = search.partition(" ")
    return f"`{method}` {change}".strip()


def top1_of(row: Row) -> str:
    return f"{float(row['top1']):.1f}"


def by_budget(found: list[Row]) -> list[str]:
    """Top-1 at each budget, its seeds side by side; and the seconds of a search."""
    at = grouped(found, "budget")
    seeds = {b: sorted(at.get((b,), []), key=lambda row: row["seed"]) for b in BUDGETS}
    cells = [", ".join(map(top1_of, seeds[b])) or NOT_RUN for b in BUDGETS]
    seconds = [float(row["search_seconds"]) for row in found if row["search_seconds"]]
    return [*cells, f"{median(seconds):.0f}" if seconds else NOT_RUN]


def transfer() -> str:
    """Methods and proxies at 64 pixels."""
    found = [row for row in rows("transfer") if row["search"] != "full precision"]
    usual = {"jacobian": "128"}
    order = ["uniform", "jacobian_fit", "jacobian", "fit"]  # then as in the CSV
    found.sort(key=lambda row: order.index(row["search"]) if row["search"] in order else len(order))
    kept = [
        row for row in found if row["side"] in ("", "64") and row["images"] == usual.get(row["method"], row["images"])
    ]
    lines = [
        [named(search), PROXIES[proxy], images or NOT_RUN, *by_budget(group)]
        for (search, proxy, images), group in grouped(kept, "search", "proxy", "images").items()
    ]
    return table(("policy", "proxy, 64x64", "images", *BUDGETS, "search s"), lines, 2)


def sizes() -> str:
    """`jacobian` by the resolution of its proxy, and by the number of its images."""
    found = [row for row in rows("transfer") if row["search"] == "jacobian"]
    groups = grouped(found, "proxy", "side", "images")
    order = sorted(groups, key=lambda key: (key[0], int(key[2]) != 128, int(key[1]), int(key[2])))
    lines = [
        [PROXIES[proxy], f"{side}x{side}", images, *by_budget(groups[proxy, side, images])]
        for proxy, side, images in order
        if proxy != "fashion_mnist"
    ]
    return table(("proxy", "size", "images", *BUDGETS, "search s"), lines, 2)


def spread(values: list[float], digits: int = 2) -> str:
    """Mean and, of several, standard deviation."""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def default() -> str:
    """The default experiment: a search a line; speed-ups are of the same seed, in seconds and in image-MACs."""
    lines = []
    for (model,), group in grouped(rows("default"), "model").items():
        name = f"{NETWORKS.get(model, model)} ({float(group[0]['top1']) - float(group[0]['delta_fp']):.2f})"
        for (search,), seeds in grouped(group, "search").items():
            images, *costs = [NOT_RUN] * 3
            if seeds[0]["speedup"]:
                seconds, *faster = (median(float(row[key]) for row in seeds) for key in COSTS)
                images, costs = f"{int(seeds[0]['proxy_images']):,}", [f"{seconds:.1f}", ", ".join(map(factor, faster))]
            accuracies = [spread([float(row[key]) for row in seeds]) for key in PARTS]
            lines.append([name, f"`{search}`", images, *accuracies, *costs])
            name = ""
    head = ("model (full precision)", "search", "images", "top-1 %, calibrated only", "top-1 %, finetuned", "search s")
    return table((*head, "speed-up: s, image-MACs"), lines, 2)


def scale224() -> str:
    """Searches on all of a target of 50,000 images at 224x224 against those on a proxy; gaps are of the same seed."""
    found = rows("scale224")
    direct = {row["seed"]: row for row in found if row["search"] == "direct"}
    # The least: other work beside a search of 20 minutes can only add to it, and did to one of them.
    whole = min((float(row["search_seconds"]) for row in direct.values()), default=0.0)
    lines = []
    for (search,), group in grouped(found, "search").items():
        cells = [f"`{search}`", str(len(group))]
        for key in PARTS:
            gaps = [float(row[key]) - float(direct[row["seed"]][key]) for row in group if row["seed"] in direct]
            cells.append(spread([float(row[key]) for row in group]))
            cells.append(f"{mean(gaps):+.2f}" if gaps and search != "direct" else NOT_RUN)
        if any(row["images_seen"] not in ("", "0") for row in group):
            seconds = whole if search == "direct" else median(float(row["search_seconds"]) for row in group)
            cells += [f"{seconds:.1f}", f"{whole / seconds:.0f}x" if whole else NOT_RUN]
        else:
            cells += [NOT_RUN, NOT_RUN]
        lines.append(cells)
    head = ("search", "seeds", "calibrated %", "gap", "after QAT %", "gap", "search s", "times as fast")
    return table(head, lines, 1)


def zero_points() -> str:
    """Policies with signed ranges of all inputs below 0, and with zero points."""
    lines = []
    for (model, budget, search), group in grouped(rows("zero_points"), "model", "budget", "search").items():
        at = {row["ranges"]: f"{float(row['top1']):.1f}, {float(row['cross_entropy']):.2f}" for row in group}
        name = f"{NETWORKS[model.rpartition('/')[2]]} {budget}"
        lines.append([name, f"`{search}`", *(at.get(ranges, NOT_RUN) for ranges in ("signed", "zero point"))])
    return table(("network", "policy", "signed", "zero point"), lines, 2)


def pretrained(name: str = "pretrained", of: Sequence[str] = ()) -> str:
    """Calibrated only and after QAT: a network and budget a line, a search (of those in `of`, if any) a column."""
    found = [row for row in rows(name) if not of or row["search"] in of]
    at = grouped(found, "model", "budget", "search")
    searches = of or list(dict.fromkeys(row["search"] for row in found))
    lines = []
    for (model,), group in grouped(found, "model").items():
        whole = float(group[0]["top1"]) - float(group[0]["delta_fp"])
        for budget in (*BUDGETS, "w3a3"):
            cells = [at.get((model, budget, search), []) for search in searches]
            if any(cells):
                both = [
                    " → ".join(spread([float(row[k]) for row in c], 1) for k in PARTS) if c else NOT_RUN for c in cells
                ]
                lines.append([f"{NETWORKS.get(model, model)}, {whole:.1f}", budget, *both])
    return table(("network, full precision %", "budget", *(f"`{search}`" for search in searches)), lines, 2)


def paired(differences: list[float]) -> tuple[float, float, float, float]:
    """(mean, lower and upper end of its 95 % interval, p of no difference) by Student's t over replicates."""
    from scipy.stats import ttest_1samp

    if len(differences) < 2 or stdev(differences) == 0:  # says nothing of the spread
        return mean(differences), float("-inf"), float("inf"), 1.0
    test = ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(0.95)
    return mean(differences), low, high, float(test.pvalue)


def holm(ps: list[float]) -> list[float]:
    """p-values adjusted for all of a table's tests (Holm 1979)."""
    order, result, least = sorted(range(len(ps)), key=lambda i: ps[i]), [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(ps) - rank) * ps[i]))
        result[i] = least
    return result


def benchmark() -> str:
    """Every search: top-1 of each model, calibrated and after finetuning, and the paired difference to `jacobian`.

    p is Holm's, over the table's tests of methods; uniform and random policies are references, and not tested.
    """
    found = rows("benchmark")
    models, seeds, searches = ([key[0] for key in grouped(found, name)] for name in ("model", "seed", "search"))
    at = {(row["model"], row["search"], row["seed"]): row for row in found}
    if len(at) < len(found):
        raise ValueError("benchmark.csv holds more than one budget; this table has room for one")

    def values(search: str, key: str) -> list[float]:
        """Of each seed, the mean over the models."""
        return [mean(float(at[model, search, seed][key]) for model in models) for seed in seeds]

    tests = {
        (search, key): paired([a - b for a, b in zip(values(search, key), values("jacobian", key), strict=True)])
        for key in PARTS
        for search in searches
        if search != "jacobian"
    }
    tested = [test for test in tests if test[0] not in ("uniform", "random")]
    adjusted = dict(zip(tested, holm([tests[test][3] for test in tested]), strict=True))
    lines = []
    for search in searches:
        cells = [f"`{search}`"]
        for model in models:
            before, after = (mean(float(at[model, search, seed][key]) for seed in seeds) for key in PARTS)
            cells.append(f"{before:.1f}, {after:.1f}")
        for key in PARTS:
            if search == "jacobian":
                cells += [NOT_RUN, NOT_RUN]
                continue
            value, low, high, _ = tests[search, key]
            p = adjusted.get((search, key))
            cells.append(f"{value:+.2f} [{low:+.2f}, {high:+.2f}]")
            cells.append(NOT_RUN if p is None else "<0.01" if p < 0.01 else f"{p:.2f}")
        seconds = mean(float(at[model, search, seed]["search_seconds"]) for model in models for seed in seeds)
        lines.append([*cells, f"{seconds:.1f}"])
    head = ["search", *models, "calibrated: to `jacobian`", "p", "after QAT: to `jacobian`", "p", "search s"]
    return table(head, lines, 1)


def rank_rows(name: str = "ranks", level: str = "steps") -> list[Row]:
    """Rank correlations of the CSV of that name, with policies calibrated at a level."""
    return [row for row in rows(name) if row["level"] == level]


def places_of_ranks(name: str = "ranks") -> list[tuple[str, str]]:
    """(model, budget) of the networks whose policies were ranked."""
    return list(grouped(rank_rows(name), "model", "budget"))


def place_name(model: str, budget: str) -> str:
    alias = model.split("/")[-1]  # of an experiment
    return f"{NETWORKS.get(alias, alias)} {budget}"


def scored(score: str) -> str:
    """A method by its name, and in plain words what is measured on a whole policy."""
    return score if score in ("features moved", "class margin") else named(score)


def ranks(name: str = "ranks") -> str:
    """Rank correlation (Spearman) of a method's scores with calibrated top-1, and the mean over networks."""

    def cell(row: Row) -> str:
        return f"{float(row['spearman']):.2f} [{float(row['low']):.2f}, {float(row['high']):.2f}]"

    places, lines = places_of_ranks(name), []
    for (method, proxy), group in grouped(rank_rows(name), "method", "proxy").items():
        cells = by_place(group, places, cell)
        if NOT_RUN in cells:
            cells += [NOT_RUN, NOT_RUN]
        else:
            whole = mean(float(row["spearman"]) for row in group)
            cells += [f"{whole:.2f}", f"{mean(without_own(row, name) for row in group):.2f}"]
        lines.append([scored(method), PROXIES.get(proxy, proxy), *cells])
    return table(("score", "seen", *(place_name(*place) for place in places), "mean", "own left out"), lines, 2)


def without_own(row: Row, name: str) -> float:
    """A row's rank correlation without the policies that were drawn around the method itself."""
    from scipy.stats import spearmanr

    policies = drawn(row["model"], row["budget"], name, row["level"])
    kept = [i for i, policy in enumerate(policies) if not policy["kind"].startswith(f"{row['method']} with noise")]
    scores = [float(score) for score in row["scores"].split()]
    return float(spearmanr([scores[i] for i in kept], [float(policies[i]["top1"]) for i in kept])[0])


def choices(name: str = "ranks") -> str:
    """Calibrated top-1 of the policy that a method chooses, and the percentage of drawn ones below it."""

    def cell(row: Row) -> str:
        return f"{float(row['chosen_top1']):.1f} ({float(row['percentile']):.0f})"

    places, lines = places_of_ranks(name), []
    for (method, proxy), group in grouped(rank_rows(name), "method", "proxy").items():
        chosen = [row for row in group if row["chosen_top1"]]
        if chosen:
            lines.append([named(method), PROXIES.get(proxy, proxy), *by_place(chosen, places, cell)])
    best = [f"{max(float(policy['top1']) for policy in drawn(*place, name)):.1f}" for place in places]
    head = ("chosen by", "seen", *(place_name(*place) for place in places))
    return table(head, [*lines, ["best of those drawn", "", *best]], 2)


def ranks_of_all(level: str = "steps", seen: Sequence[str] = ()) -> str:
    """Rank correlation (Spearman) from foreign proxies' images, the mean of those of a network; best method first.

    seen: the foreign proxies that count, if not all.
    """
    found = [{**row, "name": name} for name in RANKS for row in rank_rows(name, level)]
    found = [row for row in found if not seen or row["proxy"] in (*seen, *OWN)]
    places = list(grouped(found, "name", "model", "budget"))
    lines = {}
    for (method,), group in grouped(found, "method").items():
        foreign = grouped((row for row in group if row["proxy"] not in OWN), "name", "model", "budget")
        if not foreign:
            continue
        of_place = {place: mean(float(row["spearman"]) for row in few) for place, few in foreign.items()}
        less_own = [mean(without_own(row, place[0]) for row in few) for place, few in foreign.items()]
        target = {
            (row["name"], row["model"], row["budget"]): float(row["spearman"]) for row in group if row["proxy"] in OWN
        }
        below = [float(row["percentile"]) for few in foreign.values() for row in few if row["percentile"]]
        means = [
            f"{mean(values):.2f}" if len(values) == len(places) else NOT_RUN
            for values in (of_place.values(), less_own, target.values())
        ]
        cells = [f"{of_place[place]:.2f}" if place in of_place else NOT_RUN for place in places]
        line = [scored(method), *cells, *means, f"{mean(below):.0f}" if below else NOT_RUN]
        lines[len(of_place) == len(places), mean(of_place.values()), method] = line
    head = [place_name(*place) for _, *place in places]
    means = ["mean", "own left out", "mean, the target's images", "below its choice %"]
    return table(("score", *head, *means), [lines[key] for key in sorted(lines, reverse=True)], 1)


def by_place(group: list[Row], places: list[tuple[str, str]], cell: Callable[[Row], str]) -> list[str]:
    at = {(row["model"], row["budget"]): row for row in group}
    return [cell(at[place]) if place in at else NOT_RUN for place in places]


def drawn(model: str, budget: str, name: str = "ranks", level: str = "steps") -> list[Row]:
    """The policies that were drawn, in the order of the scores."""
    found = [row for row in rank_rows(f"{name}_policies", level) if row["kind"] != "chosen"]
    return [row for row in found if (row["model"], row["budget"]) == (model, budget)]


def terms() -> str:
    """What terms between tensors and other linearisations make of `jacobian`: ranks, and what they choose."""

    def cell(row: Row) -> str:
        ranks = f"{float(row['spearman']):.2f} ({float(row['spearman_better_half']):.2f})"
        return f"{ranks}, {float(row['chosen_top1']):.1f}"

    found = rows("jacobian_terms")
    places = list(grouped(found, "model", "budget"))
    lines = [[variant, *by_place(group, places, cell)] for (variant,), group in grouped(found, "variant").items()]
    return table(("`jacobian`", *(place_name(*place) for place in places)), lines, 1)


def chosen(name: str, columns: dict[str, str], cell: Callable[[Row], str]) -> str:
    """What searches choose: a network and budget a line; columns: a column's head -> its search, seeds side by side."""
    lines = []
    for place, group in grouped(rows(name), "model", "budget").items():
        at = grouped(({**row, "search": row["search"].removesuffix("-digits")} for row in group), "search")
        cells = [", ".join(map(cell, at.get((search,), []))) or NOT_RUN for search in columns.values()]
        lines.append([place_name(*place), *cells])
    return table(("network", *columns), lines, 1)


def norm_level() -> str:
    """Top-1 % with BatchNorm's statistics re-estimated, by method."""
    methods = {"jacobian": "jacobian-steps", "jacobian norm": "jacobian", "jacobian_fit": "jacobian-fit-steps"}
    methods["uniform"] = "uniform"  # the others as the tables of ranks have them
    return chosen("norm_level", {named(method): search for method, search in methods.items()}, top1_of)


def norm_images() -> str:
    """Top-1 % (and cross-entropy) there of what `jacobian` chooses, by how many images it sees."""
    columns = {"128 images": "jacobian", "64": "jacobian-64", "64, four draws": "jacobian-64x4"}
    return chosen("norm_images", columns, lambda row: f"{top1_of(row)} ({float(row['cross_entropy']):.2f})")


def finetune_start() -> str:
    """Calibrated -> finetuned with labels from each level: a network, budget and policy a line."""
    wanted = ("0.005", "0.0", "frozen")
    found = rows("finetune_start_pretrained")
    found = [row for row in found if (row["lr"], row["distillation"], row["batch_norm"]) == wanted]
    levels = [level for (level,) in grouped(found, "level")]
    lines = []
    for (model, budget, search), group in grouped(found, "model", "budget", "search").items():
        at = {row["level"]: row for row in group}
        cells = [
            f"{float(at[n]['calibrated']):.1f} → {float(at[n]['finetuned']):.1f}" if n in at else NOT_RUN
            for n in levels
        ]
        lines.append([place_name(model, budget), named(search), *cells])
    return table(("network", "policy", *(f"from `{level}`" for level in levels)), lines, 2)


def finetune_recipe() -> str:
    """The default's policies finetuned from level norm: statistics, a loss and a rate a line, a network and budget a
    column; the first line is before finetuning."""
    found = rows("finetune_start_pretrained")
    found = [row for row in found if (row["search"], row["level"]) == ("jacobian-digits", "norm")]
    places = list(grouped(found, "model", "budget"))
    lines = [["calibrated", "", "", *by_place(found, places, lambda row: f"{float(row['calibrated']):.1f}")]]
    for (statistics, share, lr), group in sorted(grouped(found, "batch_norm", "distillation", "lr").items()):
        cells = by_place(group, places, lambda row: f"{float(row['finetuned']):.1f}")
        lines.append([statistics, f"{float(share):g}", lr, *cells])
    return table(("statistics", "distillation", "lr", *(place_name(*place) for place in places)), lines, 1)


TABLES: dict[str, Callable[[], str]] = {
    "transfer": transfer,
    "sizes": sizes,
    "scale224": scale224,
    "pretrained": pretrained,
    "pretrained_steps": partial(pretrained, "pretrained_steps"),
    "default": default,
    "zero_points": zero_points,
    "testbed": partial(pretrained, of=("jacobian-digits", "seam-digits", "uniform", "random")),
    "benchmark": benchmark,
    "ranks_of_all": ranks_of_all,
    "ranks_of_all_norm": partial(ranks_of_all, "norm", ("digits",)),
    "ranks": ranks,
    "choices": choices,
    "ranks_pretrained": partial(ranks, "ranks_pretrained"),
    "terms": terms,
    "norm_level": norm_level,
    "norm_images": norm_images,
    "finetune_start": finetune_start,
    "finetune_recipe": finetune_recipe,
    "choices_pretrained": partial(choices, "ranks_pretrained"),
}


def fill(text: str) -> str:
    """A page with its tables made anew."""

    def made(found: re.Match) -> str:
        return f"<!-- table {found[1]} -->\n\n{TABLES[found[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->.*?<!-- end -->", made, text, flags=re.DOTALL)
