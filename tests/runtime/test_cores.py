"""The cores that a process can really have, and the garbage collector out of the way."""

import os
import subprocess
import sys

import pytest
from engines import REPOSITORY

from seam.runtime import cores


def test_available_cores_respect_affinity():
    one = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{one}}});"
        "from seam.runtime.cores import available_cores, limit_threads; print(available_cores(), limit_threads(8))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]


@pytest.mark.parametrize(("text", "expected"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8)])
def test_available_cores_respect_a_container_quota(monkeypatch, tmp_path, text, expected):
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(cores, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert cores.available_cores() == expected


def test_the_collector_rests_while_libraries_are_imported_and_leaves_torch_alone():
    code = (
        "import atexit, gc, sys; atexit.register(lambda: print(gc.get_threshold()[0], gc.get_freeze_count() > 9999));"
        "from seam.runtime.imports import import_torch; import_torch();"
        "from seam.cli import main; sys.argv = ['seam', '--help']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "100000 True"
