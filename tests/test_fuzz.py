"""A few mutated files of each kind: the long run is `python benchmarks/fuzz.py` (docs/reliability.md)."""

import subprocess
import sys

from engines import REPOSITORY, environment


def fuzz(*options: str) -> list[str]:
    """In a process of its own: its limits on memory, and its watch on what is opened and started, stay there."""
    command = [sys.executable, "benchmarks/fuzz.py", *options]
    environ = environment(REPOSITORY)
    done = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_mutated_files_are_read_or_refused():
    assert len(fuzz("--count", "250", "--seed", "7")) == 11


def test_files_of_the_corpus_are_taken_or_refused_as_they_always_were():
    assert fuzz("--corpus", "tests/corpus")[-1] == "67 files, 0 not as named"
