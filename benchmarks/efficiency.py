"""What a search costs and what its policy is worth: from the baseline down to a search without training.

    snakemake --cores 8 --configfile experiments/efficiency.yaml && python benchmarks/efficiency.py [--csv FILE]

Prints, for each model and search of the finished experiment: seconds of the whole search job (process start, loading of
kernels and the solver included; compiling them, once on a machine, is not) and of its loops alone, image-MACs, both
relative to the baseline, and top-1 after equal finetuning and calibrated only: mean and standard deviation over the
seeds, and the difference to the baseline, after finetuning also seed by seed. Then, for each model, the cheapest search
whose policies are on average within 0.3 points of the baseline's after finetuning, and the most that the ratio in
seconds can be with the baseline as configured; and, marked as predicted, the ratio at the paper's shapes from the step
times of benchmarks/search_step.csv: one epoch of 1.28 million images at 224x224 against one of 50,000 at 32x32, through
the same network.
"""

import argparse
import csv
import statistics
from pathlib import Path

from seam.experiment.params import load_params
from seam.experiment.results import JobResult, load

SHAPES = {"target": ("resnet18@224", 1_281_167, 16), "proxy": ("resnet18-stem7@32", 50_000, 32)}
CLOSE = 0.3  # points of top-1
LOOPS = ("train", "sensitivity")  # parts of cost.json that grow with the data


def rows(path: str) -> list[dict]:
    """One row a (model, search)."""
    params = load_params(path)
    found = load(params, ("metrics", "search_cost", "proxy"))
    table = []
    for model in params.grid.models:
        for search in params.grid.searches:
            mine = [r for r in found if r.job.model == model and r.job.search == search]
            base = [r for r in found if r.job.model == model and r.job.search == params.claims.baseline]
            if not all(r.searched for r in mine):
                continue  # it saw no images: it has no cost to compare
            top1 = [r.top1 for r in mine]
            gaps = [a.top1 - b.top1 for a, b in zip(mine, base, strict=True)]
            calibrated = [r.metrics["calibrated_top1"] for r in mine]
            before = [a - b.metrics["calibrated_top1"] for a, b in zip(calibrated, base, strict=True)]
            table.append(
                {
                    "model": model,
                    "search": search,
                    "images": mine[0].proxy["count"],
                    "epochs": mine[0].search_cost["epochs"],
                    "seconds": round(mean(mine, "seconds"), 1),
                    "seconds_once": round(mean(mine, "seconds_once"), 1),
                    "loop_seconds": round(statistics.mean(map(loop_seconds, mine)), 1),
                    "image_gmacs": round(mean(mine, "image_macs") / 1e9, 1),
                    "speedup_seconds": round(mean(base, "seconds") / mean(mine, "seconds"), 1),
                    "speedup_loops": round(
                        statistics.mean(map(loop_seconds, base)) / statistics.mean(map(loop_seconds, mine)), 1
                    ),
                    "speedup_image_macs": round(mean(base, "image_macs") / mean(mine, "image_macs"), 1),
                    "top1": round(statistics.mean(top1), 2),
                    "top1_std": round(statistics.stdev(top1), 2) if len(top1) > 1 else "",
                    "gap": round(statistics.mean(gaps), 2),
                    "calibrated_top1": round(statistics.mean(calibrated), 2),
                    "calibrated_std": round(statistics.stdev(calibrated), 2) if len(calibrated) > 1 else "",
                    "calibrated_gap": round(statistics.mean(before), 2),
                    "gap_by_seed": " ".join(f"{gap:+.2f}" for gap in gaps),
                    "threads": mine[0].search_cost["threads"],
                    "device": mine[0].search_cost["device_name"],
                }
            )
    return table


def mean(results: list[JobResult], key: str) -> float:
    return statistics.mean(r.search_cost[key] for r in results)


def loop_seconds(result: JobResult) -> float:
    return sum(result.search_cost["parts"].get(part, 0.0) for part in LOOPS)


def cheapest(table: list[dict], baseline: str) -> str:
    """The search of the least seconds that loses at most CLOSE points to the baseline, on average over the seeds."""
    close = [row for row in table if row["search"] != baseline and row["gap"] >= -CLOSE]
    model = table[0]["model"]
    if not close:
        return f"{model}: no search is within {CLOSE} points of {baseline}"
    best = min(close, key=lambda row: row["seconds"])
    return (
        f"{model}: the cheapest search within {CLOSE} points of {baseline} is {best['search']}: "
        f"gap {best['gap']:+.2f}, {best['seconds']:.1f} s, {best['speedup_seconds']:.1f}x in seconds, "
        f"{best['speedup_loops']:.1f}x in the loops, {best['speedup_image_macs']:.1f}x in image-MACs"
    )


def ceiling(table: list[dict], baseline: str) -> str:
    """What bounds the ratio in seconds: a job's time outside its loops, which no cheaper search saves."""
    base = next(row["seconds"] for row in table if row["search"] == baseline)
    fixed = min(row["seconds"] - row["loop_seconds"] for row in table)
    return (
        f"{table[0]['model']}: {fixed:.1f} s of a search are start-up, loading and solver; "
        f"with {base:.0f} s for {baseline} no search can be more than {base / fixed:.0f}x as fast"
    )


def predicted(path: Path) -> str:
    """The ratio of (c), or why it is not known."""
    if not path.exists():
        return f"{path}: missing; run benchmarks/search_step.py --csv {path}"
    with path.open() as file:
        steps = {row["case"]: float(row["median_ms"]) for row in csv.DictReader(file) if row["kind"] == "search"}
    lacking = [case for case, _, _ in SHAPES.values() if case not in steps]
    if lacking:
        return f"{path}: no search step of {', '.join(lacking)}; run benchmarks/search_step.py"
    epoch = {name: steps[case] * images / batch / 1000 for name, (case, images, batch) in SHAPES.items()}
    return (
        f"predicted, ResNet-18, an epoch of 1,281,167 images at 224x224: {epoch['target']:.0f} s; "
        f"of 50,000 at 32x32: {epoch['proxy']:.0f} s; ratio {epoch['target'] / epoch['proxy']:.0f}x"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", default="experiments/efficiency.yaml")
    parser.add_argument("--steps", type=Path, default=Path(__file__).with_name("search_step.csv"))
    parser.add_argument("--csv", type=Path, help="also write the table here")
    options = parser.parse_args()
    table = rows(options.params)
    shown = [key for key in table[0] if key not in ("threads", "device", "gap_by_seed", "seconds_once")]
    print(" | ".join(shown))
    for row in table:
        print(" | ".join(str(row[key]) for key in shown))
    baseline = load_params(options.params).claims.baseline
    for model in dict.fromkeys(row["model"] for row in table):
        mine = [row for row in table if row["model"] == model]
        print(cheapest(mine, baseline))
        print(ceiling(mine, baseline))
    print(predicted(options.steps))
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(table[0]))
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()
