"""What an experiment will cost: the steps it stands for, and arithmetic on what was probed."""

import json

import pytest
import yaml
from engines import REPOSITORY

from seam.errors import SeamError
from seam.experiment import results
from seam.experiment.graph import nodes
from seam.experiment.params import load_params, parse_params
from seam.stages import plan as planning
from seam.stages.plan import Line, describe, plan

SMOKE = REPOSITORY / "experiments/smoke.yaml"


def changed(**sections):
    raw = yaml.safe_load(SMOKE.read_text())
    for name, values in sections.items():
        raw[name].update(values)
    return parse_params(raw)


@pytest.fixture
def measured(tmp_path):
    """A plan as another machine would have written it, with easy numbers."""
    path = tmp_path / "plan.json"
    lines = {"pretrain/resnet": (5, 0.1), "finetune/resnet": (2, 0.2), "evaluate/resnet": (1, 0.01)}
    lines |= {"search/resnet/direct": (3, 1), "search/resnet/seam-subset": (3, 0.5), "search/resnet/uniform": (0.5, 0)}
    probes = {key: Line(*line)._asdict() for key, line in lines.items()}
    path.write_text(json.dumps({"hardware": "fast", "start": 4, "probes": probes}))
    return path


def seconds(content):
    return {(job["stage"], job["search"]): (job["count"], job["seconds"]) for job in content["jobs"]}


def test_the_steps_of_each_job_and_what_they_take(measured):
    content = plan(load_params(SMOKE), measured)
    assert seconds(content) == {
        ("pretrain", ""): (1, 4 + 5 + 0.1 * 4 * 22),  # 1,438 images in batches of 64
        ("finetune", ""): (3, pytest.approx(4 + 2 + 0.2 * 22)),
        ("evaluate", ""): (3, pytest.approx(4 + 1 + 0.01 * 2 * 359)),
        ("search", "direct"): (1, 4 + 3 + 22),
        ("search", "seam-subset"): (1, 4 + 3 + 0.5 * 2 * 6),  # 431 images, two epochs
        ("search", "uniform"): (1, 0.5),  # loads no torch
    }
    total = sum(count * one for count, one in seconds(content).values())
    assert content["hours"] == pytest.approx(total / 3600, abs=1e-3)
    assert content["gpu_hours"] == 0 and content["hardware"] == "fast"
    assert content["speedup"] == {"resnet/seam-subset": round(29 / 13, 1)}
    counts = {}
    for node in nodes(load_params(SMOKE)):
        counts[node.stage] = counts.get(node.stage, 0) + 1
    for stage in ("pretrain", "search", "finetune", "evaluate"):
        assert sum(job["count"] for job in content["jobs"] if job["stage"] == stage) == counts[stage]


def test_threads_seeds_processes_and_gpus_multiply(measured):
    params = changed(
        grid={"seeds": [0, 1]}, finetune={"threads": 3, "processes": 2, "batch_size": 64}, search={"steps": 5}
    )
    content = plan(params.model_copy(update={"device": "cuda"}), measured)
    found = seconds(content)
    assert found["finetune", ""][0] == found["evaluate", ""][0] == 6
    assert found["search", "direct"] == (2, 4 + 3 + 5)
    one_thread = sum(n * s for (stage, _), (n, s) in found.items() if stage != "finetune")
    n, s = found["finetune", ""]
    assert content["hours"] == pytest.approx((one_thread + 6 * n * s) / 3600, abs=1e-3)
    on_gpu = sum(n * s for (_, search), (n, s) in found.items() if search != "uniform") + n * s
    assert content["gpu_hours"] == pytest.approx(on_gpu / 3600, abs=1e-3)


def test_known_datasets_need_not_be_there(tmp_path, measured):
    raw = yaml.safe_load(SMOKE.read_text())
    raw["data_root"] = str(tmp_path / "nowhere")
    raw["target"] = {"dataset": "cifar10"}
    raw["searches"]["seam-subset"]["proxy"] = {"dataset": "flowers102", "count": 128}
    raw["searches"]["direct"]["proxy"] = {"dataset": "cifar10"}
    jobs = {(job["stage"], job["search"]): job["steps"] for job in plan(parse_params(raw), measured)["jobs"]}
    assert jobs["search", "seam-subset"] == 2 * 2 and jobs["search", "direct"] == 50_000 // 64
    assert jobs["evaluate", ""] == 2 * 10_000


def test_the_probes_are_of_the_jobs_that_run(smoke_results, monkeypatch):
    """Every kind of job is probed with its own code; what the probes foresee is of the order of what the jobs took."""
    monkeypatch.chdir(smoke_results[1])
    monkeypatch.setattr(planning, "MANY", 8)
    params, _ = smoke_results
    content = plan(params)
    found = {(job["stage"], job["search"]): job for job in content["jobs"]}
    assert content["start"] > 0.3
    assert set(content["probes"]) == {"/".join(filter(None, (s, "resnet", n))) for s, n in found}
    for result in results.load(params):
        costs = {("search", result.job.search): result.search_cost, ("finetune", ""): result.finetune_cost}
        for key, cost in costs.items():
            assert found[key]["seconds"] == pytest.approx(cost["seconds"], rel=5, abs=5)
            if cost["steps"]:
                assert cost["steps"] == found[key]["steps"]
    text = "\n".join(describe(content, 2))
    assert "search    resnet  seam-subset" in text and "core-hours; with 2 busy cores" in text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{}", "holds no hardware, start, probes; write it with seam plan --out"),
        ('{"hardware": "a", "start": 1, "probes": {"x": {"fixed": -1, "step": 0}}}', "probes.x.fixed"),
        ("[]", "plan.json"),
    ],
)
def test_what_is_no_plan_is_named(tmp_path, content, says):
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(SeamError, match=says):
        plan(load_params(SMOKE), path)
