"""The check of a GPU, on the CPU: what it measures of kernels, and that what is wrong ends it with 1."""

import csv
import subprocess
import sys

import pytest
from engines import REPOSITORY, environment


@pytest.fixture
def check(tmp_path):
    """A function that runs the check of kernels into a table; it exits with `code` and gives what it said and found."""
    table = tmp_path / "gpu_check.csv"

    def run(code):
        command = [sys.executable, "benchmarks/gpu_check.py", "--device", "cpu", "--only", "kernels"]
        environ = environment(REPOSITORY) | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "--csv", str(table)], cwd=REPOSITORY, env=environ, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == code, done.stdout + done.stderr
        with table.open(newline="") as file:
            return done.stderr.splitlines(), list(csv.DictReader(file))

    run.table = table
    return run


def test_kernels_are_right_and_what_is_wrong_in_the_table_is_an_error(check):
    said, rows = check(0)
    assert not said and len(rows) == 8
    assert all(0 < float(row["value"]) < 1e-3 for row in rows)
    rows[3]["value"], rows[6]["value"] = "nan", "0.02"
    with check.table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    said, again = check(1)
    assert again == rows  # what the table has is not done again
    assert said == [
        "gpu_check: kernels: 8x96x56x56, 5 bit-widths: nan of the greatest number, more than 0.001",
        "gpu_check: kernels: 7x5, 1 bit-widths: 0.02 of the greatest number, more than 0.001",
    ]
