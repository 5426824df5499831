"""What a run costs besides training: no-op time of both engines, and where the core-seconds of a finished run went.

    snakemake --cores 8 && python benchmarks/overhead.py [--params params.yaml] [--repeats 3]

The run had, from the first job's start to the last one's end, so many core-seconds: seconds x the cores that jobs could
use. The parts below them add up to that. In the loops are training, search, finetuning, sensitivity passes and
evaluation, by the parts of cost.json; an evaluation job has none and is taken to start up like a finetuning job. The
no-op time of DVC is that of `dvc status`, which looks at every job as `dvc repro` does and changes nothing.
"""

import argparse
import base64
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from seam.experiment.graph import Node, nodes
from seam.experiment.params import load_params
from seam.runtime.cores import available_cores

LOOPS = ("train", "sensitivity", "evaluate")
COMPILING = "compiling kernels, once on a machine"


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


def job_times(jobs: list[Node]) -> list[tuple[Node, float, float]]:
    """(job, start, end) of each job that has run, from Snakemake's records: one an output, so several a job."""
    folder = Path(".snakemake/metadata")
    records: dict[str, dict] = {}
    for path in filter(Path.is_file, folder.rglob("*")):
        # A record's name is its output's in base64, cut into folders where it is long.
        name = "".join(part.removeprefix("@") for part in path.relative_to(folder).parts)
        records[base64.b64decode(name).decode()] = json.loads(path.read_text())
    times = []
    for job in jobs:
        found = [records[str(output)] for output in job.outputs if str(output) in records]
        found = [record for record in found if record.get("starttime") and record.get("endtime")]
        if found:
            times.append((job, min(r["starttime"] for r in found), max(r["endtime"] for r in found)))
    return times


def spent(times: list[tuple[Node, float, float]]) -> Counter:
    """Seconds of all jobs by what they went to; those outside the loops start with a space."""
    costs = {}
    for job, *_ in times:
        if (job.place / "cost.json") in job.outputs:
            cost = json.loads((job.place / "cost.json").read_text())
            costs[job.place] = {**cost["parts"], COMPILING: cost["seconds_once"]}
    tuned = [costs[job.place] for job, *_ in times if job.stage == "finetune"]
    startup = statistics.median(sum(s for part, s in cost.items() if part not in (*LOOPS, COMPILING)) for cost in tuned)
    result: Counter = Counter()
    for job, start, end in times:
        if job.stage == "evaluate":
            start_up = min(startup, end - start)
            parts = {" start and set-up of evaluation": start_up, "evaluate": end - start - start_up}
        elif job.place in costs:
            parts = {part if part in LOOPS else f" {part}": s for part, s in costs[job.place].items()}
            parts[" shell, records, end of a process"] = end - start - sum(parts.values())
        else:
            parts = {f" {job.stage}": end - start}
        result.update(parts)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    times = job_times(nodes(load_params(options.params)))
    span = max(end for *_, end in times) - min(start for _, start, _ in times)
    cores = available_cores()
    total = span * cores
    parts = spent(times)
    parts[" cores without a job"] = total - sum(parts.values())

    print(f"run, first job's start to last job's end   {span:8.1f} s x {cores} cores = {total:.0f} core-seconds")
    rules = Counter(job.stage for job, *_ in times)
    for stage, count in rules.items():
        seconds = sum(end - start for job, start, end in times if job.stage == stage)
        print(f"  {f'{stage}, {count} jobs':40} {seconds:8.1f} s")
    for inside in (True, False):
        listed = {part: seconds for part, seconds in parts.items() if (part in LOOPS) == inside}
        print(f"{'in the loops' if inside else 'outside them':42} {100 * sum(listed.values()) / total:8.1f} %")
        for part, seconds in sorted(listed.items(), key=lambda item: -item[1]):
            print(f"  {part.strip():40} {seconds:8.1f} s {100 * seconds / total:8.1f} %")
    configfile = [] if options.params == "params.yaml" else ["--configfile", options.params]
    snakemake = [*module("snakemake"), "--cores", "8", *configfile]
    print(f"snakemake with nothing to do               {timed(snakemake, options.repeats):8.2f} s")
    print(f"dvc status                                 {timed([*module('dvc'), 'status'], options.repeats):8.2f} s")
    print(f"seam --help                                {timed([*module('seam'), '--help'], options.repeats):8.2f} s")


if __name__ == "__main__":
    main()
