"""How near do the levels of calibration come to finetuning in the default experiment? Each level's policies through the
pipeline itself: their accuracy calibrated only, beside that after finetuning.

    python benchmarks/calibration_levels.py RESULTS --csv benchmarks/calibration_levels.csv

RESULTS: a folder for the pipeline's results; the four runs share all stages but `evaluate`. A level whose rows are in
the CSV is not run again.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import yaml
from transfer import resumable

from seam.calibration.levels import LEVELS
from seam.experiment.params import load_params
from seam.io import read_json, write_text
from seam.runtime.cores import available_cores

REPOSITORY = Path(__file__).resolve().parents[1]
COLUMNS = ("model", "search", "budget", "level", "full_precision", "calibrated", "finetuned", "seconds", "machine")
BUDGETS = ("w3a3", "w4a4")
SEARCHES = ("jacobian-digits", "uniform")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--csv", type=Path, default=Path("calibration_levels.csv"))
    options = parser.parse_args()
    done, record = resumable(options.csv, COLUMNS, keys=4)
    raw = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    raw |= {"results": str(options.results), "data_root": str(options.results / "data")}
    raw["grid"] |= {"searches": [*SEARCHES], "budgets": [*BUDGETS], "seeds": [0]}
    raw["searches"]["jacobian-digits"]["options"] = {"calibration": "steps"}  # one policy for all levels
    raw["budgets"] = dict(zip(BUDGETS, BUDGETS, strict=True))
    raw["claims"] = {"baseline": SEARCHES[1]}
    file = options.results.resolve().with_suffix(".yaml")
    for level in LEVELS:
        write_text(file, yaml.safe_dump(raw | {"evaluate": {**raw["evaluate"], "calibration": level}}))
        params = load_params(file)
        folders = {job: Path(params.results, "evaluate", job.folder) for job in params.jobs()}
        if {(job.model, job.search, job.budget, level) for job in folders} <= done:
            continue
        snakemake = [sys.executable, "-m", "snakemake", "--cores", str(available_cores()), "--configfile", str(file)]
        files = [str(folder / "metrics.json") for folder in folders.values()]
        subprocess.run([*snakemake, "--", *files], cwd=REPOSITORY, check=True)
        for job, folder in folders.items():
            metrics, cost = read_json(folder / "metrics.json"), read_json(folder / "cost.json")
            accuracies = (f"{metrics[key]:.2f}" for key in ("fp_top1", "calibrated_top1", "top1"))
            seconds, machine = f"{cost['parts']['calibrate']:.1f}", f"{cost['device_name']}, {cost['threads']} thread"
            record(job.model, job.search, job.budget, level, *accuracies, seconds, machine)


if __name__ == "__main__":
    main()
