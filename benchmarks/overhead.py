"""What a run costs besides training: no-op time of both engines, and the share of a finished run outside the loops.

    snakemake --cores 8 && python benchmarks/overhead.py [--params params.yaml] [--repeats 3]

The share is 1 - (seconds inside training, search and finetuning loops) / (seconds from the run's start to end), from
cost.json and Snakemake's own records; meaningful where jobs ran one after the other, as on two cores. The no-op time of
DVC is that of `dvc status`, which looks at every job as `dvc repro` does and changes nothing.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from seam.graph import nodes
from seam.params import load_params


def timed(command: list[str], repeats: int) -> float:
    """Median wall seconds of a command."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=False)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def records(folder: Path) -> list[dict]:
    """Snakemake's record of each output: start and end time."""
    return [json.loads(path.read_text()) for path in folder.rglob("*") if path.is_file()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    params = load_params(options.params)
    parts: dict[str, float] = {}
    for node in nodes(params):
        for output in node.outputs:
            if output.name == "cost.json":
                for name, seconds in json.loads(output.read_text())["parts"].items():
                    parts[name] = parts.get(name, 0.0) + seconds
    times = [r for r in records(Path(".snakemake/metadata")) if r.get("starttime") and r.get("endtime")]
    span = max(r["endtime"] for r in times) - min(r["starttime"] for r in times) if times else float("nan")
    print(f"run, first job's start to last job's end   {span:8.1f} s")
    for name, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"  {name + ', all jobs with a cost':40} {seconds:8.1f} s")
    print(f"outside the training and search loops      {100 * (1 - parts.get('train', 0.0) / span):8.1f} %")
    configfile = [] if options.params == "params.yaml" else ["--configfile", options.params]
    snakemake = [sys.executable, "-m", "snakemake", "--cores", "8", *configfile]
    print(f"snakemake with nothing to do               {timed(snakemake, options.repeats):8.2f} s")
    print(f"dvc status                                 {timed(['dvc', 'status'], options.repeats):8.2f} s")
    print(f"seam --help                                {timed(['seam', '--help'], options.repeats):8.2f} s")


if __name__ == "__main__":
    main()
