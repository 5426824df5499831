"""The rows of results.csv of an experiment that has not run to its end: those policies that are evaluated already.

python benchmarks/rows.py experiments/scale224.yaml --csv benchmarks/scale224.csv
"""

import argparse
from pathlib import Path

from seam.experiment import results
from seam.experiment.params import load_params
from seam.io import write_csv
from seam.report.tables import rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("params", type=Path)
    parser.add_argument("--csv", type=Path, required=True)
    options = parser.parse_args()
    params = load_params(options.params)
    done = results.load(params, partial=True)
    found = rows(done, params.claims.baseline)
    machines = {result.search_cost["device_name"] for result in done}
    write_csv(options.csv, [{**row, "machine": ", ".join(sorted(machines))} for row in found], [*found[0], "machine"])
    print(f"{len(found)} of {len([*params.jobs()])} policies")


if __name__ == "__main__":
    main()
