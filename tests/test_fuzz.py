"""A few mutated files of each kind: the long run is `python benchmarks/fuzz.py` (docs/reliability.md)."""

import subprocess
import sys

from engines import REPOSITORY, environment


def test_mutated_files_are_read_or_refused_and_those_of_the_corpus_as_they_always_were():
    """In a process of its own: its limits on memory, and its watch on what is opened and started, stay there."""
    command = [sys.executable, "benchmarks/fuzz.py", "--corpus", "tests/corpus", "--count", "250", "--seed", "7"]
    environ = environment(REPOSITORY)
    done = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *table = done.stdout.splitlines()
    assert first == "67 files, 0 not as named" and len(table) == 11
