"""Distinct GPUs for the jobs of one machine. The driver is a script that says what the real one says."""

import os
import subprocess
import sys

import pytest
import yaml
from engines import REPOSITORY

from seam.errors import SeamError
from seam.experiment.params import load_params
from seam.runtime import gpus
from seam.stages.fetch import fetch

TWO = """\
GPU 0: NVIDIA H200 (UUID: GPU-0a1b2c3d-1111-2222-3333-444455556666)
GPU 1: NVIDIA H200 (UUID: GPU-9f8e7d6c-1111-2222-3333-444455556666)
"""
PARTS = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-0a1b2c3d-1111-2222-3333-444455556666)
  MIG 3g.20gb     Device  0: (UUID: MIG-11111111-aaaa-5b5b-8c8c-000000000000)
  MIG 3g.20gb     Device  1: (UUID: MIG-22222222-aaaa-5b5b-8c8c-000000000000)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-9f8e7d6c-1111-2222-3333-444455556666)
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
take(int(sys.argv[1]), Path(sys.argv[2]))
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
os.execvp("sleep", ["sleep", "100"])  # as torchrun takes the place of a job in several processes
"""

    def start(count, folder=tmp_path / "locks"):
        command = [sys.executable, "-c", code, str(count), str(folder)]
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
    assert [uuid[:12] for uuid in gpus.visible()] == ["MIG-11111111", "MIG-22222222", "GPU-9f8e7d6c"]


def test_parts_cannot_share_a_job(driver, tmp_path):
    driver(PARTS)
    with pytest.raises(SeamError, match="2 processes share this job, which MIG parts of GPUs cannot do"):
        gpus.take(2, tmp_path / "locks")


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


def test_a_stage_takes_one_before_it_begins(driver, job, tmp_path, monkeypatch):
    """What the command line asks for: here the second of two jobs, which waits, and then finds that torch has none."""
    driver(TWO.splitlines(keepends=True)[0])
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    raw = yaml.safe_load((REPOSITORY / "experiments/smoke.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**raw, "device": "cuda"}))
    fetch(load_params(REPOSITORY / "experiments/smoke.yaml"), tmp_path / "data")
    first = job(1, tmp_path / f"seam-gpus-{os.getuid()}")
    assert first.stdout.readline().strip() == FIRST
    command = [sys.executable, "-m", "seam", "pretrain", "--params", "params.yaml", "--model", "resnet"]
    command += ["--data", "data/manifest.json", "--out", "out"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as stage:
        assert stage.stderr.readline() == "wait for 1 of 1 GPUs, which other jobs use\n"
        first.kill()
        assert "device: 'cuda' cannot be used here" in stage.stderr.read()
    assert stage.returncode == 2


def test_more_than_there_are_is_an_error(driver, tmp_path):
    driver(TWO)
    with pytest.raises(SeamError, match="3 processes .* but 2 can be used here"):
        gpus.take(3, tmp_path / "locks")
