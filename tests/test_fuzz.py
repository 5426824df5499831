"""A few mutated files of each kind: the long run is `python benchmarks/fuzz.py` (docs/reliability.md)."""

import subprocess
import sys

from engines import REPOSITORY, environment


def test_mutated_files_are_read_or_refused():
    """In a process of its own: its limits on memory, and its watch on what is opened and started, stay there."""
    command = [sys.executable, "benchmarks/fuzz.py", "--count", "450", "--seed", "7"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment(REPOSITORY), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 11
