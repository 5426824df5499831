"""From which level of calibration should QAT start, and how go on? An experiment's networks and policies, from each.

    snakemake --cores 8                                          # the weights and policies, in results/
    python benchmarks/finetune_start.py --distillation 0 --batch-norm frozen --csv finetune_start.csv
    snakemake --cores 2 --configfile experiments/pretrained.yaml --until search
    python benchmarks/finetune_start.py --params experiments/pretrained.yaml --held-out 1000 --budgets w3a3,w4a4 \\
        --searches uniform,jacobian-digits,jacobian-steps-digits --distillation 0 --batch-norm frozen \\
        --csv benchmarks/finetune_start_pretrained.csv
    python benchmarks/finetune_start.py --params experiments/pretrained.yaml --held-out 1000 --budgets w3a3,w4a4 \\
        --searches jacobian-digits --levels norm --lr 0.001,0.002,0.005 --distillation 0.9,1 --batch-norm frozen \\
        --csv benchmarks/finetune_start_pretrained.csv

One thread. Top-1 % on the experiment's test images, or on --held-out training images that neither pretraining nor
finetuning saw; calibrated at the level, and after finetuning from there. Each row is written to the CSV when it is
done, and a run goes on with the rows that are missing.
"""

import argparse
from itertools import product
from pathlib import Path

from transfer import resumable

from seam.data.sampling import sample_indices
from seam.runtime.cores import limit_threads

RECIPE = ("lr", "distillation", "batch_norm")
COLUMNS = ("model", "search", "budget", "level", "seed", *RECIPE, "calibrated", "finetuned")


def judge_on(params, model: str, start, held_out: int | None):
    """The test images, or so many training images that no training has seen, the same number of each class."""
    if held_out is None:
        return start.target.images(start.network, "test", params.target.test_images)
    every = start.target.images(start.network, "train")
    labels = every.labels.numpy()
    seen: set[int] = set()
    for stage in ("pretrain", "finetune"):
        settings = params.training(stage, model)
        seen.update(sample_indices(labels, settings.images or len(labels), "balanced", settings.seed))
    others = sorted(set(range(len(labels))) - seen)
    if len(others) < held_out:
        raise SystemExit(f"--held-out: training leaves {len(others)} images, fewer than {held_out}")
    return every.subset(others).balanced(held_out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--csv", type=Path, default=Path("finetune_start.csv"))
    parser.add_argument("--held-out", type=int, metavar="COUNT")
    parser.add_argument("--models", help="by default all of the experiment, as budgets and seeds")
    parser.add_argument("--searches", default="uniform,jacobian-digits")
    parser.add_argument("--budgets")
    parser.add_argument("--seeds")
    parser.add_argument("--levels", default="steps,output,norm")
    parser.add_argument("--lr", help="of the weights; by default the experiment's, as the next two")
    parser.add_argument("--distillation")
    parser.add_argument("--batch-norm")
    options = parser.parse_args()
    limit_threads(1)

    from seam.experiment.params import load_params
    from seam.quant.kernels import use_kernels
    from seam.runtime.meter import Meter
    from seam.runtime.process import set_up
    from seam.settings import Finetune, checked
    from seam.stages.target import CALIBRATION_IMAGES, calibrate, quantized
    from seam.training.evaluate import evaluate
    from seam.training.supervised import train

    params = load_params(options.params)
    root, batch = Path(params.results), params.evaluate.batch_size
    done, record = resumable(options.csv, COLUMNS, keys=8)
    grid = params.grid
    axes = [(grid.models, options.models), ([], options.searches), (grid.budgets, options.budgets)]
    axes += [(grid.seeds, options.seeds), ([], options.levels), ([""], options.lr), ([""], options.distillation)]
    axes += [([""], options.batch_norm)]
    for model, search, budget, seed, level, *recipe in product(
        *(given.split(",") if given else all_ for all_, given in axes)
    ):
        own = {key: value for key, value in zip(RECIPE, recipe, strict=True) if value}
        own |= {key: float(value) for key, value in own.items() if key != "batch_norm"}
        settings = checked(Finetune, {**params.training("finetune", model).model_dump(), **own})
        about = (model, search, budget, level, str(seed), *(f"{getattr(settings, key)}" for key in RECIPE))
        if about in done:
            continue
        device = set_up("cpu", 1, int(seed))
        use_kernels(settings.kernels)
        policy = root / f"search/{model}/{search}/{budget}/{params.grid.seeds[0]}/policy.json"
        weights = root / f"models/{model}/fp.safetensors"
        start = quantized(params, model, weights, policy, device)
        teacher = start.target.network(weights) if settings.distillation else None
        calibrate(start, level, CALIBRATION_IMAGES, settings.seed, device)
        judged = judge_on(params, model, start, options.held_out)
        before = evaluate(start.network, judged, batch, device)["top1"]
        train(start.network, settings, start.train, int(seed), device, Meter(device), teacher)
        after = evaluate(start.network, judged, batch, device)["top1"]
        record(*about, f"{before:.2f}", f"{after:.2f}")


if __name__ == "__main__":
    main()
