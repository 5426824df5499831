"""Cores, order and threads: what keeps `--cores 8` fast on a laptop and shows the first comparison early."""

import pytest
import yaml
from engines import REPOSITORY

from seam.errors import SeamError
from seam.experiment import schedule
from seam.experiment.graph import nodes
from seam.experiment.params import load_params, parse_params

DEFAULT = REPOSITORY / "params.yaml"


@pytest.mark.parametrize(
    ("real", "given", "threads", "at_once"),
    [
        (2, 8, 2, 1),
        (2, 8, 1, 2),
        (2, 8, 16, 1),
        (4, 8, 1, 4),
        (4, 8, 2, 2),
        (4, 8, 3, 1),
        (16, 8, 2, 4),
        (2, 2, 1, 2),
        (1, 8, 2, 1),
    ],
)
def test_no_more_threads_run_than_there_are_cores(monkeypatch, real, given, threads, at_once):
    monkeypatch.setattr(schedule, "available_cores", lambda: real)
    raw = yaml.safe_load(DEFAULT.read_text())
    raw["evaluate"]["threads"] = threads
    taken = schedule.slots(parse_params(raw), "evaluate", given)
    assert given // min(taken, given) == at_once
    assert at_once == 1 or at_once * threads <= real


def test_a_job_in_several_processes_takes_the_cores_and_gpus_of_all():
    raw = yaml.safe_load(DEFAULT.read_text())
    raw["device"] = "cuda"
    raw["searches"]["direct"] |= {"threads": 3, "processes": 4}
    raw["finetune"] |= {"threads": 2, "processes": 3}
    params = parse_params(raw)
    assert schedule.slots(params, "search", None, "direct") == 12
    assert schedule.slots(params, "finetune", None) == 6
    found = {stage: schedule.gpus(params, stage, "direct") for stage in (*schedule.STEPS, "report")}
    assert found == {"fetch": 0, "pretrain": 1, "sample": 0, "search": 4, "finetune": 3, "evaluate": 1, "report": 0}
    assert schedule.gpus(params, "search", "uniform") == schedule.gpus(params, "sample", "uniform") == 0
    raw["searches"]["direct"]["proxy"]["sampling"] = "herding"
    assert schedule.gpus(parse_params(raw), "sample", "direct") == 1
    raw["device"] = "cpu"
    assert schedule.gpus(parse_params(raw), "search", "direct") == 0


def test_several_machines_share_the_processes_of_a_job():
    raw = yaml.safe_load(DEFAULT.read_text())
    raw["searches"]["direct"] |= {"threads": 3, "processes": 4, "nodes": 2}
    raw["finetune"] |= {"threads": 2, "processes": 3, "nodes": 3}
    params = parse_params(raw)
    assert schedule.nodes(params, "search", "direct") == 2
    assert schedule.nodes(params, "search", "uniform") == schedule.nodes(params, "evaluate") == 1
    assert schedule.slots(params, "search", None, "direct") == 6  # of each machine
    assert schedule.slots(params, "finetune", None) == 2
    before = [params.slice(stage, model="resnet18", search="direct", budget="w3a3") for stage in ("search", "finetune")]
    raw["searches"]["direct"]["nodes"] = raw["finetune"]["nodes"] = 1
    alone = parse_params(raw)
    assert before == [alone.slice(s, model="resnet18", search="direct", budget="w3a3") for s in ("search", "finetune")]
    raw["finetune"]["nodes"] = 2
    with pytest.raises(SeamError, match=r"finetune: processes must be a multiple of nodes, 2, .*\(found 3"):
        parse_params(raw)


def test_a_cluster_gives_a_job_what_it_asks_for(monkeypatch):
    monkeypatch.setattr(schedule, "available_cores", lambda: 1)
    raw = yaml.safe_load(DEFAULT.read_text())
    raw["evaluate"]["threads"] = raw["search"]["threads"] = 16
    params = parse_params(raw)
    assert schedule.slots(params, "evaluate", None) == 16
    assert schedule.slots(params, "search", None, params.claims.baseline) == 16


@pytest.mark.parametrize(("real", "given"), [(2, 8), (4, 4), (32, 16)])
def test_a_search_that_sees_no_data_takes_one_thread(monkeypatch, real, given):
    monkeypatch.setattr(schedule, "available_cores", lambda: real)
    cifar = load_params(REPOSITORY / "experiments/cifar.yaml")
    of_one_thread = schedule.slots(cifar, "fetch", given)
    assert schedule.slots(cifar, "search", given, "uniform") == of_one_thread == -(-given // min(real, given))
    assert schedule.slots(cifar, "search", given, "direct") == min(given, 4 * of_one_thread)


def test_the_first_comparison_comes_first():
    """Greedy by priority, one job at a time: the first proxy's and the baseline's policies before anything else."""
    raw = yaml.safe_load(DEFAULT.read_text())
    raw["grid"]["searches"].reverse()
    params = parse_params(raw)
    waiting, made, order = list(nodes(params)), set(), []
    waiting = [node for node in waiting if node.stage in schedule.STEPS]
    while waiting:
        ready = [node for node in waiting if made.issuperset(node.inputs)]
        best = max(ready, key=lambda n: schedule.priority(params, n.stage, {k: str(v) for k, v in n.job.items()}))
        waiting.remove(best)
        made.update(best.outputs)
        order.append((best.stage, best.job.get("model"), best.job.get("search")))
    baseline, first = params.claims.baseline, params.claims.proxies[0]
    steps = ("sample", "search", "finetune", "evaluate")
    model = params.grid.models[0]
    expected = [("fetch", None, None), ("pretrain", model, None)]
    expected += [(step, model, search) for search in (first, baseline) for step in steps]
    assert order[: len(expected)] == expected
    last = [model for _, model, _ in order].index(params.grid.models[1])
    assert all(name == model for _, name, _ in order[1:last])
