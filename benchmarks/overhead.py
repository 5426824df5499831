"""What a run costs besides training: no-op time of both engines, and the share of a finished run outside the loops.

    snakemake --cores 8 && python benchmarks/overhead.py [--params params.yaml] [--repeats 3]

The run had, from the first job's start to the last one's end, so many core-seconds: seconds x the cores that jobs could
use. In the loops are the training, search and finetuning loops of cost.json, and the evaluation jobs without their
start-up, which is taken to be that of a finetuning job. All else is outside: imports, set-up, kernels, the solver, the
engine, the serial stages at the end, and cores that had nothing to do. The no-op time of DVC is that of `dvc status`,
which looks at every job as `dvc repro` does and changes nothing.
"""

import argparse
import base64
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from seam.cores import available_cores
from seam.graph import nodes
from seam.params import load_params


def module(name: str) -> list[str]:
    return [sys.executable, "-m", name]


def timed(command: list[str], repeats: int) -> float:
    """Median wall seconds of a command."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=False)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def job_times(outputs: Iterable[Path]) -> list[tuple[str, float, float]]:
    """(rule, start, end) of each job, from Snakemake's records: one an output, so several a job."""
    ours = {base64.b64encode(str(output).encode()).decode() for output in outputs}
    folder = Path(".snakemake/metadata")
    jobs: dict[str, list[dict]] = {}
    for path in folder.rglob("*"):
        # A record's name is its output's in base64, cut into folders where it is long.
        name = "".join(part.removeprefix("@") for part in path.relative_to(folder).parts)
        record = json.loads(path.read_text()) if path.is_file() and name in ours else {}
        if record.get("starttime") and record.get("endtime"):
            jobs.setdefault(record["shellcmd"], []).append(record)
    return [
        (records[0]["rule"], min(r["starttime"] for r in records), max(r["endtime"] for r in records))
        for records in jobs.values()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    params = load_params(options.params)
    parts: dict[str, float] = {}
    starts = []
    for node in nodes(params):
        for output in node.outputs:
            if output.name == "cost.json":
                cost = json.loads(output.read_text())["parts"]
                if node.stage == "finetune":
                    starts.append(sum(seconds for part, seconds in cost.items() if part != "train"))
                for name, seconds in cost.items():
                    parts[name] = parts.get(name, 0.0) + seconds
    jobs = job_times(output for node in nodes(params) for output in node.outputs)
    span = max(end for _, _, end in jobs) - min(start for _, start, _ in jobs)
    cores = available_cores()
    rules: dict[str, float] = {}
    for rule, start, end in jobs:
        rules[rule] = rules.get(rule, 0.0) + end - start
    evaluations = [end - start for rule, start, end in jobs if rule == "evaluate"]
    loops = parts.get("train", 0.0) + sum(max(0.0, s - statistics.median(starts)) for s in evaluations)
    total = span * cores
    print(f"run, first job's start to last job's end   {span:8.1f} s x {cores} cores")
    for rule, seconds in sorted(rules.items(), key=lambda item: -item[1]):
        print(f"  {rule + ', all jobs':40} {seconds:8.1f} s")
    for name, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"  {name + ', all jobs with a cost':40} {seconds:8.1f} s")
    print(f"start-up of a job, median                  {statistics.median(starts):8.2f} s")
    print(f"in jobs                                    {100 * sum(rules.values()) / total:8.1f} %")
    print(f"in training, search and evaluation loops   {100 * loops / total:8.1f} %")
    print(f"outside them                               {100 * (1 - loops / total):8.1f} %")
    configfile = [] if options.params == "params.yaml" else ["--configfile", options.params]
    snakemake = [*module("snakemake"), "--cores", "8", *configfile]
    print(f"snakemake with nothing to do               {timed(snakemake, options.repeats):8.2f} s")
    print(f"dvc status                                 {timed([*module('dvc'), 'status'], options.repeats):8.2f} s")
    print(f"seam --help                                {timed([*module('seam'), '--help'], options.repeats):8.2f} s")


if __name__ == "__main__":
    main()
