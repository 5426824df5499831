"""The meter: each second once, whatever happened to the processes that spent it."""

import json
import subprocess
import sys

import pytest
import torch
from engines import REPOSITORY

from seam.runtime import meter as module
from seam.runtime.meter import Meter

CPU = torch.device("cpu")


class Clock:
    """A `time` that goes on only when told to: the machine's load is in no figure."""

    now = 1000.0

    def perf_counter(self):
        return self.now

    time = perf_counter

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def time(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_seconds_count_from_the_start_of_the_process(time):
    meter = Meter(None)
    assert meter.seconds() > 1 and meter.started == time.now - meter.seconds()  # importing torch alone took more


def test_parts_sum_to_the_seconds_also_within_each_other(time):
    meter = Meter(CPU)
    start = meter.seconds()
    with meter.part("outer"):
        with meter.part("inner"):
            time.sleep(0.2)
        time.sleep(0.1)
        with meter.part("kernels"):
            time.sleep(0.15)
            meter.seconds_once = 0.1
        with meter.aside():
            time.sleep(30)
    time.sleep(0.1)
    cost = meter.cost()
    parts = {"start": start + 0.1, "outer": 0.1, "inner": 0.2, "kernels": 0.05}
    assert cost["parts"] == pytest.approx(parts, abs=0.001) and list(cost["parts"])[0] == "start"
    assert cost["seconds"] == pytest.approx(sum(parts.values()), abs=0.001)


def test_a_resumed_job_counts_each_second_once(time):
    first = Meter(CPU)
    start = first.seconds()
    with first.part("setup"):
        time.sleep(0.2)
    with first.part("train"):
        time.sleep(0.3)
        first.look(64, forwards=3)
        first.steps, first.epochs, first.seconds_once = 1, 1, 0.05
        state = json.loads(json.dumps(first.state()))  # its checkpoint
    kept = state["seconds"]
    time.sleep(0.3)  # lost with the process, and done again
    second = Meter(CPU)
    with second.part("setup"):
        time.sleep(0.5)  # again what the first one has done
    assert second.images == 0
    second.seconds_once = 0.01
    with second.part("train"):
        second.go_on_from(state)
        assert second.seconds() == pytest.approx(kept)
        time.sleep(0.2)
    cost = second.cost()
    assert (cost["images"], cost["steps"], cost["epochs"], second.forwards) == (64, 1, 1, 192)
    assert cost["parts"] == pytest.approx({"start": start, "setup": 0.2, "train": 0.25 + 0.2}, abs=0.001)
    assert cost["seconds"] == pytest.approx(sum(cost["parts"].values()), abs=0.002)
    assert cost["seconds_once"] == pytest.approx(0.06)
    assert cost["started"] == first.cost()["started"] < cost["ended"]  # both in UTC


def test_a_resume_of_a_resume_does_not_count_the_first_twice(time):
    meter = Meter(CPU)
    state = meter.state()
    start = state["seconds"]
    for _ in range(3):
        meter = Meter(CPU)
        meter.go_on_from(state)
        time.sleep(0.1)
        meter.go_on_from(meter.state())  # a search that goes on after a warm-up that goes on
        state = meter.state()
    assert state["seconds"] == pytest.approx(start + 0.3)


def test_peak_memory_is_the_most_that_was_held():
    """In a process of its own: this one may have held more, and takes what it freed again."""
    code = """
import numpy, torch
from seam.runtime.meter import Meter
meter = Meter(torch.device("cpu"))
found = [meter.peak_memory_mb()]
held = numpy.ones(int(400e6), numpy.uint8)
found.append(meter.peak_memory_mb())
del held
print(*found, meter.peak_memory_mb(), meter.cost()["peak_memory_mb"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    before, during, after, said = map(float, done.stdout.split())
    assert before + 300 < during < before + 500
    assert after == pytest.approx(during, abs=5) and said == pytest.approx(during, abs=5)  # counted in strides


def test_on_a_gpu_memory_and_name_are_the_gpu_s_and_a_part_ends_when_its_work_has(time, monkeypatch):
    """A stand-in for the driver, which tells of the GPU it is asked about."""
    gpu = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: {gpu: 3.2e9}[device])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: {gpu: "NVIDIA H200"}[device])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: time.sleep({gpu: 0.2}[device]))
    meter = Meter(gpu)
    with meter.part("train"):
        time.sleep(0.1)  # the calls return; the GPU goes on
    cost = meter.cost()
    assert (cost["device"], cost["device_name"], cost["peak_memory_mb"]) == ("cuda:1", "NVIDIA H200", 3200.0)
    assert cost["parts"]["train"] == pytest.approx(0.3, abs=0.001)
