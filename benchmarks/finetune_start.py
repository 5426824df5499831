"""From which level of calibration should QAT start? The default experiment's networks and policies, from each of them.

    snakemake --cores 8                                          # the weights and policies, in results/
    python benchmarks/finetune_start.py --csv benchmarks/finetune_start.csv

One thread. Top-1 % on the experiment's test images, calibrated at the level and after finetuning from there. Each row
is written to the CSV when it is done, and a run goes on with the rows that are missing.
"""

import argparse
from pathlib import Path

from transfer import resumable

from seam.runtime.cores import limit_threads

LEVELS = ("steps", "output", "norm")
SEARCHES = ("uniform", "jacobian-digits")
COLUMNS = ("model", "search", "budget", "level", "seed", "calibrated", "finetuned")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--csv", type=Path, default=Path("finetune_start.csv"))
    options = parser.parse_args()
    limit_threads(1)

    from seam.experiment.params import load_params
    from seam.quant.kernels import use_kernels
    from seam.runtime.meter import Meter
    from seam.runtime.process import set_up
    from seam.stages.target import CALIBRATION_IMAGES, calibrate, quantized
    from seam.training.evaluate import evaluate
    from seam.training.supervised import train

    params = load_params(options.params)
    root, batch = Path(params.results), params.evaluate.batch_size
    done, record = resumable(options.csv, COLUMNS, keys=5)
    cases = [(m, s, b, level, seed) for m in params.grid.models for s in SEARCHES for b in params.grid.budgets
             for seed in params.grid.seeds for level in LEVELS]  # fmt: skip
    for model, search, budget, level, seed in cases:
        if (model, search, budget, level, str(seed)) in done:
            continue
        device, settings = set_up("cpu", 1, seed), params.training("finetune", model)
        use_kernels(settings.kernels)
        policy = root / f"search/{model}/{search}/{budget}/{params.grid.seeds[0]}/policy.json"
        start = quantized(params, model, root / f"models/{model}/fp.safetensors", policy, device)
        calibrate(start, level, CALIBRATION_IMAGES, settings.seed, device)
        test = start.target.images(start.network, "test", params.target.test_images)
        before = evaluate(start.network, test, batch, device)["top1"]
        train(start.network, settings, start.train, seed, device, Meter(device))
        after = evaluate(start.network, test, batch, device)["top1"]
        record(model, search, budget, level, seed, f"{before:.2f}", f"{after:.2f}")


if __name__ == "__main__":
    main()
