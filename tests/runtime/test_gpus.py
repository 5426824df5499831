"""Distinct GPUs for the jobs of one machine. The driver is a script that says what the real one says."""

import os
import subprocess
import sys

import pytest

from seam.errors import SeamError
from seam.runtime import gpus

TWO = """\
GPU 0: NVIDIA H200 (UUID: GPU-0a1b2c3d-1111-2222-3333-444455556666)
GPU 1: NVIDIA H200 (UUID: GPU-9f8e7d6c-1111-2222-3333-444455556666)
"""
PARTS = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-0a1b2c3d-1111-2222-3333-444455556666)
  MIG 3g.20gb     Device  0: (UUID: MIG-11111111-aaaa-5b5b-8c8c-000000000000)
  MIG 3g.20gb     Device  1: (UUID: MIG-22222222-aaaa-5b5b-8c8c-000000000000)
"""
FIRST, SECOND = (line.split("UUID: ")[1].rstrip(")") for line in TWO.splitlines())


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A function that lets `nvidia-smi -L` print a text."""

    def say(text):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\n[ \"$1\" = -L ] || exit 9\ncat <<'E'\n{text}E\n")
        (folder / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return say


@pytest.fixture
def job(tmp_path):
    """A function that starts a process which takes GPUs, prints what it then sees, and runs until it is killed."""
    processes = []
    code = """
import os, sys
from pathlib import Path
from seam.runtime.gpus import take
from seam.runtime.progress import announce
announce()
take(int(sys.argv[1]), Path(sys.argv[2]))
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
os.execvp("sleep", ["sleep", "100"])  # as torchrun takes the place of a job in several processes
"""

    def start(count):
        command = [sys.executable, "-c", code, str(count), str(tmp_path / "locks")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, [FIRST, SECOND]),
        ("1", [SECOND]),
        ("1,0", [SECOND, FIRST]),
        (f"{SECOND[:10]}, 0", [SECOND, FIRST]),
        ("0,7,1", [FIRST]),
        ("-1", []),
        ("", []),
    ],
)
def test_those_that_the_environment_shows(driver, monkeypatch, given, expected):
    driver(TWO)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert gpus.visible() == expected


def test_parts_of_a_gpu_count_in_its_place(driver):
    driver(PARTS)
    assert [uuid[:12] for uuid in gpus.visible()] == ["MIG-11111111", "MIG-22222222"]


def test_without_a_driver_nothing_is_taken(driver, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.take(1, tmp_path / "locks") == []
    assert "CUDA_VISIBLE_DEVICES" not in os.environ and not (tmp_path / "locks").exists()


def test_jobs_get_distinct_ones_and_wait_while_there_is_none(driver, job):
    driver(TWO)
    one, other = job(1), job(1)
    seen = {process.stdout.readline().strip() for process in (one, other)}
    assert seen == {FIRST, SECOND}
    third = job(1)
    assert "wait for 1 of 2 GPUs" in third.stderr.readline()
    other.kill()
    other.wait()
    assert third.stdout.readline().strip() in seen


def test_a_job_that_needs_all_holds_none_while_it_waits(driver, job):
    driver(TWO)
    one = job(1)
    one.stdout.readline()
    both = job(2)
    assert "wait for 2 of 2 GPUs" in both.stderr.readline()
    assert job(1).stdout.readline().strip() == SECOND
    one.kill()


def test_more_than_there_are_is_an_error(driver, tmp_path):
    driver(TWO)
    with pytest.raises(SeamError, match="3 processes .* but 2 can be used here"):
        gpus.take(3, tmp_path / "locks")
