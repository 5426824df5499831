"""The meter: each second once, whatever happened to the processes that spent it."""

import json
import time

import pytest
import torch

from seam.runtime.meter import Meter

CPU = torch.device("cpu")


def work(meter, part, seconds):
    with meter.part(part):
        time.sleep(seconds)


def test_parts_sum_to_the_seconds_also_within_each_other():
    meter = Meter(CPU)
    with meter.part("outer"):
        work(meter, "inner", 0.2)
        time.sleep(0.1)
        with meter.part("kernels"):
            time.sleep(0.1)
            meter.seconds_once = 0.1
    time.sleep(0.1)
    cost = meter.cost()
    assert sum(cost["parts"].values()) == pytest.approx(cost["seconds"], abs=0.005)
    assert cost["parts"]["inner"] >= 0.2 and 0.1 <= cost["parts"]["outer"] < 0.2 + 0.1
    assert cost["parts"]["kernels"] < 0.1 and list(cost["parts"])[0] == "start"


def test_a_resumed_job_counts_each_second_once():
    first = Meter(CPU)
    work(first, "setup", 0.2)
    with first.part("train"):
        time.sleep(0.3)
        first.look(64, forwards=3)
        first.steps, first.epochs, first.seconds_once = 1, 1, 0.05
        state = json.loads(json.dumps(first.state()))  # its checkpoint
    kept = state["seconds"]
    time.sleep(0.3)  # lost with the process, and done again
    second = Meter(CPU)
    work(second, "setup", 0.5)  # again what the first one has done
    assert second.images == 0
    second.seconds_once = 0.01
    with second.part("train"):
        second.go_on_from(state)
        assert second.seconds() == pytest.approx(kept, abs=0.1)
        time.sleep(0.2)
    cost = second.cost()
    assert (cost["images"], cost["steps"], cost["epochs"], second.forwards) == (64, 1, 1, 192)
    assert kept + 0.2 - 1e-3 <= cost["seconds"] < kept + 0.4
    assert cost["parts"]["setup"] == pytest.approx(state["parts"]["setup"], abs=0.001)
    assert cost["parts"]["train"] == pytest.approx(state["parts"]["train"] + 0.2, abs=0.15)
    assert sum(cost["parts"].values()) == pytest.approx(cost["seconds"], abs=0.005)
    assert cost["seconds_once"] == pytest.approx(0.06)
    assert cost["started"] == first.cost()["started"] < cost["ended"]  # both in UTC


def test_a_resume_of_a_resume_does_not_count_the_first_twice():
    meter = Meter(CPU)
    state = meter.state()
    start = state["seconds"]
    for _ in range(3):
        meter = Meter(CPU)
        meter.go_on_from(state)
        time.sleep(0.1)
        meter.go_on_from(meter.state())  # a search that goes on after a warm-up that goes on
        state = meter.state()
    assert state["seconds"] == pytest.approx(start + 0.3, abs=0.1)
