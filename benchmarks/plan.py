"""How right is `seam plan`? Each kind of job: the seconds it foresaw, and those that the jobs took.

    seam plan --out plan.json                                    # on the machine of the run, before it
    snakemake --cores 8
    python benchmarks/plan.py plan.json --csv benchmarks/plan.csv

Seconds from the start of a job's process, without compiling kernels, as in cost.json; the mean over the jobs of a kind.
Rows "speedup": how many times as fast as the baseline a search is; of those taken by the median of its seeds and the
least of the baseline's.
"""

import argparse
import csv
import statistics
from pathlib import Path

from seam.experiment.params import load_params
from seam.io import read_json

FOLDERS = {"pretrain": "models/{model}", "search": "search/{model}/{search}/*/*"}
COLUMNS = ("stage", "model", "search", "jobs", "foreseen", "taken", "ratio", "hardware")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--csv", type=Path, default=Path("plan.csv"))
    options = parser.parse_args()
    params, plan = load_params(options.params), read_json(options.plan)
    root, rows, totals, of_search = Path(params.results), [], [0.0, 0.0], {}
    for job in plan["jobs"]:
        pattern = FOLDERS.get(job["stage"], f"{job['stage']}/{{model}}/*/*/*").format(**job)
        taken = [read_json(path)["seconds"] for path in sorted(root.glob(f"{pattern}/cost.json"))]
        mean = statistics.mean(taken)
        if job["stage"] == "search":
            of_search[job["model"], job["search"]] = taken
        row = (job["stage"], job["model"], job["search"], len(taken), job["seconds"], round(mean, 2))
        rows.append((*row, round(job["seconds"] / mean, 2), plan["hardware"]))
        totals = [totals[0] + len(taken) * job["seconds"], totals[1] + sum(taken)]
    rows.append(("all", "", "", "", *(round(t, 1) for t in totals), round(totals[0] / totals[1], 2), plan["hardware"]))
    for name, foreseen in plan["speedup"].items():
        model, search = name.split("/")
        times = round(min(of_search[model, params.claims.baseline]) / statistics.median(of_search[model, search]), 1)
        rows.append(("speedup", model, search, "", foreseen, times, round(foreseen / times, 2), plan["hardware"]))
    for row in (COLUMNS, *rows):
        print("{:10}{:14}{:18}{:>5}{:>10}{:>10}{:>7}".format(*map(str, row[:7])))
    with options.csv.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
