"""What an experiment will cost: the steps it stands for, and arithmetic on what was probed."""

import json

import pytest
import timm
import yaml
from engines import REPOSITORY

from seam.errors import SeamError
from seam.experiment.graph import nodes
from seam.experiment.params import load_params, parse_params
from seam.stages.plan import Grid, describe, plan
from seam.stages.probes import Line

SMOKE = REPOSITORY / "experiments/smoke.yaml"


def changed(**sections):
    raw = yaml.safe_load(SMOKE.read_text())
    for name, values in sections.items():
        raw[name].update(values)
    return parse_params(raw)


EASY = {"pretrain": (5, 0.1), "finetune": (2, 0.2), "evaluate": (1, 0.01), "evaluate quantized": (2, 0.02)}
EASY |= {"calibrate": (1, 0), "nothing": (0, 0), "search": (3, 1)}


def written(tmp_path, params, **about):
    """A plan for parameters as another machine would have written it, with easy numbers."""
    path = tmp_path / "plan.json"
    terms = {term.key: term for kind in Grid(params).kinds() for term in Grid(params).terms(kind)}
    probes = [{"of": term.of, **Line(*EASY[term.of["what"]])._asdict()} for term in terms.values()]
    content = {"hardware": "fast", "device": "cpu", "cores": 8, "start": 4, "unread": [], "probes": probes, **about}
    path.write_text(json.dumps(content))
    return path


def seconds(content):
    return {(job["stage"], job["search"]): (job["count"], job["seconds"]) for job in content["jobs"]}


def test_the_steps_of_each_job_and_what_they_take(tmp_path):
    params = load_params(SMOKE)
    content = plan(params, written(tmp_path, params))
    assert seconds(content) == {
        ("pretrain", ""): (1, pytest.approx(4 + 5 + 0.1 * 4 * 22 + 1 + 0.01 * 359)),  # 1,438 images in batches of 64
        ("finetune", ""): (3, pytest.approx(4 + 2 + 0.2 * 22)),
        ("evaluate", ""): (3, pytest.approx(4 + 2 + 0.02 * 2 * 359 + 1)),
        ("search", "direct"): (1, 4 + 3 + 22),
        ("search", "seam-subset"): (1, 4 + 3 + 2 * 6),  # 431 images, two epochs
        ("search", "uniform"): (1, 0),  # loads no torch
    }
    total = sum(count * one for count, one in seconds(content).values())
    assert content["core_hours"] == pytest.approx(total / 3600, abs=1e-3)
    assert content["gpu_hours"] == 0 and content["hardware"] == "fast"
    one = next(job for job in content["jobs"] if job["stage"] == "finetune")
    assert one["core_hours"] == pytest.approx(3 * one["seconds"] / 3600, abs=1e-4)
    assert content["speedup"] == {"resnet/seam-subset": round(29 / 19, 1)}
    counts = {}
    for node in nodes(params):
        counts[node.stage] = counts.get(node.stage, 0) + 1
    for stage in ("pretrain", "search", "finetune", "evaluate"):
        assert sum(job["count"] for job in content["jobs"] if job["stage"] == stage) == counts[stage]
    text = "\n".join(describe(content, 2, "direct"))
    assert "search    resnet  seam-subset     1     12" in text and "core-hours; on 2 busy cores" in text


def test_threads_seeds_processes_and_gpus_multiply(tmp_path):
    params = changed(grid={"seeds": [0, 1]}, finetune={"threads": 3, "processes": 2}, search={"steps": 5})
    content = plan(params, written(tmp_path, params, device="cuda", cores=2))
    found = seconds(content)
    assert found["finetune", ""][0] == found["evaluate", ""][0] == 6
    assert found["search", "direct"] == (2, 4 + 3 + 5)
    one_thread = sum(n * s for (stage, _), (n, s) in found.items() if stage != "finetune")
    n, s = found["finetune", ""]
    assert content["core_hours"] == pytest.approx((one_thread + 2 * 2 * n * s) / 3600, abs=1e-3)  # of 2 cores
    on_gpu = sum(n * s for (_, search), (n, s) in found.items() if search != "uniform") + n * s
    assert content["gpu_hours"] == pytest.approx(on_gpu / 3600, abs=1e-3)
    of_finetuning = next(job for job in content["jobs"] if job["stage"] == "finetune")
    assert of_finetuning["gpu_hours"] == pytest.approx(2 * n * s / 3600, abs=1e-4)
    lines = describe(content, None, "direct")
    assert lines[0].split()[-3:] == ["core-hours", "GPU-hours", "GB"]


@pytest.mark.parametrize(("optimizer", "states"), [("sgd", 1), ("adamw", 2)])
def test_gigabytes_are_of_weights_and_of_the_checkpoints_of_one_training(tmp_path, optimizer, states):
    params = changed(finetune={"models": {"resnet": {"optimizer": optimizer}}}, models={"resnet": {"name": "resnet18"}})
    weights = sum(
        v.numel() * v.element_size() for v in timm.create_model("resnet18", num_classes=10).state_dict().values()
    )
    content = plan(params, written(tmp_path, params))
    kept = {job["stage"]: job["gigabytes"] for job in content["jobs"] if job["search"] == ""}
    assert kept["pretrain"] == pytest.approx(weights / 1e9, rel=0.01)  # less where images have one channel
    assert kept["finetune"] == pytest.approx(3 * weights / 1e9, rel=0.01) and kept["evaluate"] == 0
    assert content["gigabytes"] == pytest.approx((1 + 3 + 2 * (1 + states)) * weights / 1e9, rel=0.01)


def test_a_measurement_serves_others_of_the_same_work_and_no_other(tmp_path):
    params = changed(grid={"seeds": [0]})
    path = written(tmp_path, params)
    raw = yaml.safe_load(SMOKE.read_text())
    raw["models"]["other"] = raw["models"].pop("resnet")
    raw["grid"] |= {"models": ["other"], "seeds": [3, 4, 5]}
    raw["pretrain"]["epochs"] = 40
    assert (
        seconds(plan(parse_params(raw), path))["pretrain", ""][1]
        > 9 * seconds(plan(params, path))["pretrain", ""][1] / 3
    )
    raw["finetune"]["batch_size"] = 32
    with pytest.raises(
        SeamError, match='plan.json: holds no measurement of .*"batch_size": 32.* write one for it with'
    ):
        plan(parse_params(raw), path)


def test_the_optimizer_is_part_of_the_work(tmp_path):
    params = changed(grid={"seeds": [0]})
    with pytest.raises(SeamError, match='holds no measurement of .*"optimizer": "adamw"'):
        plan(changed(finetune={"optimizer": "adamw"}), written(tmp_path, params))


def test_imagenet_is_planned_without_its_images(tmp_path):
    params = load_params(REPOSITORY / "experiments/imagenet.yaml")
    content = plan(params, written(tmp_path, params, device="cuda"))
    steps = {(job["stage"], job["model"], job["search"]): job["steps"] for job in content["jobs"]}
    assert steps["finetune", "resnet50", ""] == 90 * (1_281_167 // 256)
    assert steps["search", "resnet50", "direct"] == 1_281_167 // 64
    assert steps["search", "deit_small", "seam-4"] == 10 * (51_247 // 64)  # 4 %
    assert steps["pretrain", "resnet18", ""] == 0  # timm's weights
    counts = {job["stage"]: job["count"] for job in content["jobs"] if job["model"] == "mobilenetv2"}
    assert counts == {"pretrain": 1, "search": 2 * 3, "finetune": 9 * 2 * 3, "evaluate": 9 * 2 * 3}
    assert content["speedup"]["resnet50/jacobian-cifar"] == round((4 + 3 + 20_018) / (4 + 3 + 10 * 2), 1)
    assert content["gpu_hours"] > 0


def test_known_datasets_need_not_be_there(tmp_path):
    raw = yaml.safe_load(SMOKE.read_text())
    raw["data_root"] = str(tmp_path / "nowhere")
    raw["target"] = {"dataset": "cifar10"}
    raw["searches"]["seam-subset"]["proxy"] = {"dataset": "flowers102", "count": 128}
    raw["searches"]["direct"]["proxy"] = {"dataset": "cifar10"}
    params = parse_params(raw)
    content = plan(params, written(tmp_path, params))
    jobs = {(job["stage"], job["search"]): job["steps"] for job in content["jobs"]}
    assert jobs["search", "seam-subset"] == 2 * 2 and jobs["search", "direct"] == 50_000 // 64


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{}", "holds no hardware, device, cores, .*; write it with seam plan --out"),
        ("[]", "plan.json"),
    ],
)
def test_what_is_no_plan_is_named(tmp_path, content, says):
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(SeamError, match=says):
        plan(load_params(SMOKE), path)


def test_measured_hardware_has_a_name_and_as_many_plans_as_were_written_there(tmp_path, monkeypatch):
    params = load_params(SMOKE)
    whole = json.loads(written(tmp_path, params).read_text())
    wanted = plan(params, tmp_path / "plan.json")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "benchmarks/hardware/fast"
    folder.mkdir(parents=True)
    for name, probes, start in (("one", whole["probes"][::2], 3), ("two", whole["probes"][1::2], 5)):
        (folder / f"{name}.json").write_text(json.dumps({**whole, "probes": probes, "start": start}))
    assert plan(params, "fast") == plan(params, folder) == wanted
    slower = [{**probe, "fixed": 3 * probe["fixed"]} for probe in whole["probes"]]
    (folder / "three.json").write_text(json.dumps({**whole, "probes": slower, "unread": ["imagenet"]}))
    both = plan(params, "fast")
    assert seconds(both)["search", "direct"] == (1, 4 + (3 + 9) / 2 + 22)  # the median of what was measured twice
    assert both["unread"] == []  # it is no dataset of these parameters
    (folder / "three.json").unlink()
    with pytest.raises(SeamError, match=r"slow: no plan, .* measured in benchmarks/hardware/ \(fast\); write one with"):
        plan(params, "slow")
    (folder / "two.json").write_text(json.dumps({**whole, "cores": 64}))
    with pytest.raises(SeamError, match="two.json: cores is 64, but 8 in one.json"):
        plan(params, "fast")
    (folder / "two.json").unlink()
    with pytest.raises(SeamError, match="fast: holds no measurement of"):
        plan(params, "fast")


def test_measured_hardware_in_the_repository_serves_the_experiments_that_its_plans_are_of(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    files = sorted((REPOSITORY / "benchmarks/hardware").glob("*/*.json"))
    assert {file.stem for file in files} >= {"default", "scale224"}
    for file in files:
        params = REPOSITORY / ("params.yaml" if file.stem == "default" else f"experiments/{file.stem}.yaml")
        assert plan(load_params(params), file.parent.name)["core_hours"] > 0
