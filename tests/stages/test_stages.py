"""The stages called as the command line calls them, on digits; the whole graph is run in tests/workflow."""

import errno
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from digit_images import save_digits
from engines import environment
from forked import seam

from seam import io
from seam.errors import SeamError
from seam.experiment import provenance
from seam.experiment.params import Job, parse_params
from seam.experiment.results import unpack
from seam.stages.evaluate import evaluate
from seam.stages.fetch import fetch
from seam.stages.finetune import finetune
from seam.stages.pretrain import pretrain
from seam.stages.sample import sample
from seam.stages.search import search
from seam.stages.target import Target, calibrate, quantized
from seam.training.optimizers import Group

ROOT = Path(__file__).parents[2]


def smoke(tmp_path, monkeypatch, **changes):
    """The smoke set's parameters with changes {dotted key: value}, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    raw = yaml.safe_load((ROOT / "experiments/smoke.yaml").read_text())
    for key, value in changes.items():
        *path, last = key.split("__")
        block = raw
        for part in path:
            block = block[part]
        block[last] = value
    return parse_params(raw)


def fetched(params):
    fetch(params, Path(params.results) / "data/target")
    return Path(params.results) / "data/target/manifest.json"


def pretrained(params):
    folder = Path(params.results) / "models/resnet"
    pretrain(params, "resnet", fetched(params), folder)
    return folder / "fp.safetensors"


@pytest.fixture
def quick(tmp_path, monkeypatch):
    return smoke(tmp_path, monkeypatch, pretrain__epochs=1, finetune__epochs=1)


def test_unreachable_budget_is_refused_before_pretraining(tmp_path, monkeypatch):
    params = smoke(tmp_path, monkeypatch, budgets={"w3a3": "0.0001 GBitOPs"})
    manifest = fetched(params)
    with pytest.raises(SeamError, match=r"reachable range is [\d.]+ to [\d.]+ GBitOPs"):
        pretrain(params, "resnet", manifest, Path(params.results) / "models/resnet")
    assert not (Path(params.results) / "models").exists()


def test_misspelt_model_is_refused_with_close_names(tmp_path, monkeypatch):
    params = smoke(tmp_path, monkeypatch, models={"resnet": {"name": "test_resnt"}})
    with pytest.raises(SeamError, match="did you mean test_resnet"):
        pretrained(params)


def test_given_weights_are_taken_and_recorded(quick, tmp_path, monkeypatch):
    weights = pretrained(quick)
    own = tmp_path / "own.safetensors"
    weights.rename(own)
    params = smoke(tmp_path, monkeypatch, models={"resnet": {"name": "test_resnet", "weights": str(own)}})
    again = pretrained(params)
    assert again.read_bytes() == own.read_bytes()
    assert str(own) in io.read_json(again.with_name("provenance.json"))["inputs"]
    assert io.read_csv(again.with_name("history.csv")) == []


def test_training_goes_on_from_given_weights(quick, tmp_path, monkeypatch):
    given = pretrained(quick).rename(tmp_path / "own.safetensors")
    block = {"name": "test_resnet", "weights": str(given), "train": True, "preprocessing": "model"}
    changes = {"pretrain__epochs": 1, "pretrain__lr": 1e-4, "models__resnet": block, "results": "again"}
    weights = pretrained(smoke(tmp_path, monkeypatch, **changes))
    before, after = (io.load_tensors(path) for path in (given, weights))
    assert not torch.equal(before["layer1.0.conv1.weight"], after["layer1.0.conv1.weight"])
    assert torch.allclose(before["layer1.0.conv1.weight"], after["layer1.0.conv1.weight"], atol=0.05)
    metrics = io.read_json(weights.with_name("metrics.json"))
    assert metrics["top1"] > 30 and len(io.read_csv(weights.with_name("history.csv"))) > 0


_LOOK = """
from seam.search.uniform import SPEND
from seam.search.uniform import preferences as uniform

DATA = True
QUANTIZERS = False


def preferences(problem):
    problem.report["preprocessing"] = problem.images.preprocessing
    return uniform(problem)
"""


@pytest.mark.parametrize("whose", ["dataset", "model"])
def test_the_target_s_and_the_proxy_s_images_are_prepared_as_the_parameters_say(tmp_path, monkeypatch, whose):
    for name, start in (("own", 0), ("other", 200)):
        for split, first in (("train", start), ("val", start + 60)):
            save_digits(tmp_path / name / split, range(first, first + 60), side=72)  # read file by file
    io.write_text(tmp_path / "given/__init__.py", "")
    io.write_text(tmp_path / "given/look.py", _LOOK)
    monkeypatch.syspath_prepend(tmp_path)
    stated = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    more = {"pretrained_cfg_overlay": {**stated, "crop_pct": 0.5, "interpolation": "bicubic"}}
    model = {"name": "test_resnet", "preprocessing": whose, "kwargs": more}
    look = {"method": "given.look", "proxy": {"dataset": "folder", "path": "other", "count": 20}}
    target = {"dataset": "folder", "path": "own", "image_size": 32}
    changes = {"target": target, "models__resnet": model, "searches__look": look}
    params = smoke(tmp_path, monkeypatch, pretrain__epochs=1, **changes)
    weights = pretrained(params)
    sample(params, "resnet", "look", weights, tmp_path / "proxy")
    search(params, Job("resnet", "look", "w3a3", 0), weights, tmp_path / "proxy/proxy.json", tmp_path / "search")
    here = Target(params, "resnet")
    sets = [(here.images(here.network(), split).preprocessing, here.manifest) for split in ("train", "test")]
    sets.append((io.read_json("search/cost.json")["preprocessing"], io.read_json("proxy/proxy.json")))
    assert sets[0][1]["mean"] != sets[2][1]["mean"]
    for found, manifest in sets:
        wanted = {"resize": [37, 37], "interpolation": "bilinear", "mean": manifest["mean"], "std": manifest["std"]}
        if whose == "model":
            wanted = {"resize": [64, 64], "interpolation": "bicubic", **stated}
        wanted |= {"colour": "RGB", "keep_shape": True, "crop": [32, 32]}
        assert found == wanted


def test_train_without_weights_to_start_from_is_refused(tmp_path, monkeypatch):
    with pytest.raises(SeamError, match="models.resnet: train: true says to go on from given weights"):
        smoke(tmp_path, monkeypatch, models__resnet={"name": "test_resnet", "train": True})


def test_accuracy_is_measured_on_as_many_test_images_as_asked_for(tmp_path, monkeypatch):
    params = smoke(tmp_path, monkeypatch, pretrain__epochs=1, target__test_images=50)
    assert io.read_json(pretrained(params).with_name("metrics.json"))["images"] == 50


@pytest.mark.parametrize("sampling", ["random", "balanced", "herding", "k_center"])
def test_sampling_describes_the_proxy_and_repeats(quick, tmp_path, monkeypatch, sampling):
    weights = pretrained(quick)
    proxy = {"dataset": "digits", "count": 50, "sampling": sampling}
    params = smoke(
        tmp_path,
        monkeypatch,
        pretrain__epochs=1,
        finetune__epochs=1,
        searches__direct={"method": "seam", "proxy": proxy},
    )
    found = []
    for name in ("a", "b"):
        sample(params, "resnet", "direct", weights, tmp_path / name)
        found.append((tmp_path / name / "proxy.json").read_bytes())
    assert found[0] == found[1]
    content = io.read_json(tmp_path / "a/proxy.json")
    assert content["count"] == len(set(content["indices"])) == sum(content["class_counts"]) == 50
    assert content["share_of_target"] == pytest.approx(50 / 1438, abs=1e-6)
    if sampling == "balanced":
        assert set(content["class_counts"]) == {5}


def test_too_many_proxy_images_are_refused(quick, tmp_path, monkeypatch):
    weights = pretrained(quick)
    block = {"method": "seam", "proxy": {"dataset": "digits", "count": 5000}}
    params = smoke(tmp_path, monkeypatch, pretrain__epochs=1, finetune__epochs=1, searches__direct=block)
    with pytest.raises(SeamError, match="asks for 5000 images of digits, which has 1438"):
        sample(params, "resnet", "direct", weights, tmp_path / "proxy")


@pytest.mark.parametrize(("size", "seen"), [(16, 16), (300, 224), (None, 8)])
def test_a_proxy_without_a_size_takes_the_target_s_up_to_224(quick, tmp_path, monkeypatch, size, seen):
    weights = pretrained(quick)
    target = {"dataset": "digits", "image_size": size}
    params = smoke(tmp_path, monkeypatch, pretrain__epochs=1, finetune__epochs=1, target=target)
    monkeypatch.setattr(provenance, "check_inputs", lambda *_: None)  # the weights are of another target
    sample(params, "resnet", "direct", weights, tmp_path / "proxy")
    assert io.read_json(tmp_path / "proxy/proxy.json")["image_size"] == [seen, seen]


def test_search_at_another_resolution_counts_macs_at_the_target_s(tmp_path, monkeypatch):
    """The proxy at 8x8, the target at 16x16: the budget and the policy's MACs are those of 16x16."""
    target, small = {"dataset": "digits", "image_size": 16}, {"searches__seam-subset__proxy__image_size": 8}
    params = smoke(tmp_path, monkeypatch, pretrain__epochs=1, target=target, **small)
    weights = pretrained(params)
    job = Job("resnet", "seam-subset", "w3a3", 0)
    sample(params, "resnet", "seam-subset", weights, tmp_path / "proxy")
    search(params, job, weights, tmp_path / "proxy/proxy.json", tmp_path / "search")
    policy, cost = (io.read_json(tmp_path / "search" / name) for name in ("policy.json", "cost.json"))
    assert policy["proxy"]["image_size"] == [8, 8] and policy["model"]["input_size"] == [1, 16, 16]
    searched = [layer for layer in policy["layers"].values() if not layer["fixed"]]
    assert policy["budget"]["limit"] == pytest.approx(sum(layer["macs"] for layer in searched) * 9 / 1e9, abs=1e-9)
    assert 0.97 <= policy["budget"]["share"] <= 1
    all_macs = sum(layer["macs"] for layer in policy["layers"].values())
    assert cost["macs_per_image"] < all_macs / 2  # what the search itself computed, at 8x8
    trained, looked_at = 2 * (431 // 64) * 64, 128  # by the search, and by the Jacobian that it starts from
    assert cost["images"] == trained + looked_at
    # A step: forward, backward (as two), full precision. The Jacobian: steps, forward, 2 draws, 5 bit-widths twice.
    assert cost["image_macs"] == (trained * 4 + looked_at * (1 + 1 + 2 + 2 * 5)) * cost["macs_per_image"]


def test_evaluation_of_an_eight_bit_policy_is_near_full_precision(quick, tmp_path):
    weights = pretrained(quick)
    job = Job("resnet", "uniform", "w3a3", 0)
    sample(quick, "resnet", "uniform", weights, tmp_path / "proxy")
    search(quick, job, weights, tmp_path / "proxy/proxy.json", tmp_path / "search")
    policy = tmp_path / "search/policy.json"
    (tmp_path / "search/provenance.json").unlink()  # a policy of the user's own
    content = io.read_json(policy)
    for layer in content["layers"].values():
        layer["w"] = layer["a"] = 8
    del content["totals"], content["budget"]  # those of the other bits
    io.write_json(policy, content)
    finetune(quick, job, weights, policy, tmp_path / "finetune")
    evaluate(quick, job, weights, policy, tmp_path / "finetune/model.safetensors", tmp_path / "evaluate")
    metrics = io.read_json(tmp_path / "evaluate/metrics.json")
    assert abs(metrics["calibrated_top1"] - metrics["fp_top1"]) < 1.0
    assert metrics["images"] == 359
    hits = io.read_json(tmp_path / "evaluate/hits.json")
    for key in ("top1", "calibrated_top1"):
        assert 100 * unpack(hits[key], 359).mean() == pytest.approx(metrics[key], abs=1e-4)


def test_a_model_is_trained_with_its_own_settings(tmp_path, monkeypatch):
    """None of another model's, and of the section's only those that it leaves as they are."""
    own = {"lr": 0.007, "optimizer": "adamw", "clip_norm": 1e-9}
    changes = {"models__other": {"name": "test_resnet"}, "pretrain__epochs": 1, "finetune__epochs": 1}
    for stage in ("pretrain", "finetune"):
        changes[f"{stage}__models"] = {"resnet": own, "other": {"lr": 0.5}}
    params, job = smoke(tmp_path, monkeypatch, **changes), Job("resnet", "uniform", "w3a3", 0)
    groups, norms = [], set()
    optimizer, clip = Group.optimizer, torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(Group, "optimizer", lambda group: groups.append((group.kind, group.lr)) or optimizer(group))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, norm: norms.add(norm) or clip(p, norm))
    weights = pretrained(params)
    assert groups == [("adamw", 0.007)] and norms == {1e-9}
    sample(params, "resnet", "uniform", weights, tmp_path / "proxy")
    search(params, job, weights, tmp_path / "proxy/proxy.json", tmp_path / "search")
    groups.clear()
    norms.clear()
    finetune(params, job, weights, tmp_path / "search/policy.json", tmp_path / "finetune")
    assert groups == [("adamw", 0.007), ("adam", 0.01)] and norms == {1e-9}
    recorded = io.read_json(tmp_path / "finetune/provenance.json")["params"]["finetune"]
    assert (recorded["lr"], recorded["optimizer"]) == (0.007, "adamw")


@pytest.mark.parametrize("level", ["steps", "output", "norm"])
def test_finetuning_begins_with_its_level_of_calibration(quick, tmp_path, monkeypatch, level):
    weights, job, cpu = pretrained(quick), Job("resnet", "uniform", "w3a3", 0), torch.device("cpu")
    still = {
        "finetune__lr": 1e-9,
        "finetune__step_lr": 1e-9,
        "finetune__epochs": 1,
        "pretrain__epochs": 1,
        "finetune__batch_norm": "frozen",
    }
    params = smoke(tmp_path, monkeypatch, finetune__calibration=level, **still)
    sample(params, "resnet", "uniform", weights, tmp_path / "proxy")
    search(params, job, weights, tmp_path / "proxy/proxy.json", tmp_path / "search")
    finetune(params, job, weights, tmp_path / "search/policy.json", tmp_path / "finetune")
    tuned = io.load_tensors(tmp_path / "finetune/model.safetensors")

    def distance(start):
        """Between the finetuned network and one that was only calibrated."""
        model = quantized(params, "resnet", weights, tmp_path / "search/policy.json", cpu)
        calibrate(model, start, 512, params.finetune.seed, cpu)
        return max((tuned[k].float() - v.float()).abs().max().item() for k, v in model.network.state_dict().items())

    assert distance(level) < 1e-4
    assert all(distance(other) > 1e-2 for other in ("steps", "output", "norm") if other != level)


def test_the_level_of_calibration_concerns_the_policy_before_finetuning(quick, tmp_path, monkeypatch):
    weights = pretrained(quick)
    job = Job("resnet", "uniform", "w3a3", 0)
    sample(quick, "resnet", "uniform", weights, tmp_path / "proxy")
    search(quick, job, weights, tmp_path / "proxy/proxy.json", tmp_path / "search")
    finetune(quick, job, weights, tmp_path / "search/policy.json", tmp_path / "finetune")
    found = {}
    changes = {"pretrain__epochs": 1, "finetune__epochs": 1, "evaluate__calibration_images": 256}
    for level in ("steps", "output", "reconstruct"):
        changes |= {"evaluate__calibration": level, "evaluate__reconstruct": {"iterations": 20}}
        params, out = smoke(tmp_path, monkeypatch, **changes), tmp_path / level
        tuned = tmp_path / "finetune/model.safetensors"
        evaluate(params, job, weights, tmp_path / "search/policy.json", tuned, out)
        cost = io.read_json(out / "cost.json")
        assert cost["parts"]["evaluate"] > 0 and sum(cost["parts"].values()) == pytest.approx(cost["seconds"], abs=0.01)
        found[level] = {**io.read_json(out / "metrics.json"), "calibrate": cost["parts"]["calibrate"]}
    steps, output, reconstruct = found.values()
    assert steps["calibrated_top1"] + 3 < output["calibrated_top1"] < reconstruct["calibrated_top1"] + 3
    assert steps["top1"] == output["top1"] == reconstruct["top1"]  # finetuned weights are taken as they are
    assert output["calibrate"] < reconstruct["calibrate"]
    assert not list((Path(params.results) / ".resume").glob("evaluate*"))


def test_locks_concern_the_search_and_what_follows_it(quick, tmp_path, monkeypatch):
    """Weights pretrained without the lock are taken; finetuning and evaluation know it from the policy."""
    weights = pretrained(quick)
    locked = {"name": "test_resnet", "lock": ["layer2.*=8/8"], "exclude": ["layer3.0.conv1"]}
    params = smoke(tmp_path, monkeypatch, pretrain__epochs=1, finetune__epochs=1, models={"resnet": locked})
    job = Job("resnet", "uniform", "w3a3", 0)
    sample(params, "resnet", "uniform", weights, tmp_path / "proxy")
    search(params, job, weights, tmp_path / "proxy/proxy.json", tmp_path / "search")
    policy = io.read_json(tmp_path / "search/policy.json")
    own = {name: layer for name, layer in policy["layers"].items() if name.startswith("layer2.")}
    assert own
    assert all(layer["locked"] and (layer["w"], layer["a"]) == (8, 8) for layer in own.values())
    assert policy["layers"]["layer3.0.conv1"]["w"] == 32
    with pytest.raises(SeamError, match=r"models.resnet.exclude\S* was \['layer3.0.conv1'\], is \[\]"):
        finetune(quick, job, weights, tmp_path / "search/policy.json", tmp_path / "finetune")
    finetune(params, job, weights, tmp_path / "search/policy.json", tmp_path / "finetune")
    files = (weights, tmp_path / "search/policy.json", tmp_path / "finetune/model.safetensors")
    evaluate(params, job, *files, tmp_path / "evaluate")
    metrics = io.read_json(tmp_path / "evaluate/metrics.json")
    assert metrics["bitops_g"] == policy["totals"]["bitops_g"]


def test_a_changed_latency_table_is_refused(quick, tmp_path, monkeypatch):
    weights = pretrained(quick)
    layers = io.read_json(weights.with_name("layers.json"))["layers"]
    bits = [(w, a) for w in range(2, 9) for a in range(2, 9)]
    rows = [{"layer": layer["name"], "w": w, "a": a, "ms": w} for layer in layers for w, a in bits]
    io.write_csv("ms.csv", rows)
    model = {"name": "test_resnet", "latency": "ms.csv"}
    params = smoke(tmp_path, monkeypatch, pretrain__epochs=1, models={"resnet": model}, budgets={"w3a3": "60 ms"})
    job = Job("resnet", "uniform", "w3a3", 0)
    sample(params, "resnet", "uniform", weights, tmp_path / "proxy")
    search(params, job, weights, tmp_path / "proxy/proxy.json", tmp_path / "search")
    assert "ms.csv" in io.read_json(tmp_path / "search/provenance.json")["inputs"]
    Path("ms.csv").write_text(Path("ms.csv").read_text() + "\n")
    with pytest.raises(SeamError, match="policy.json: was made from another version of ms.csv"):
        finetune(params, job, weights, tmp_path / "search/policy.json", tmp_path / "finetune")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, and a function that leaves so many KB of it free. Skipped where none can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("no mount here")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")

    def leave(kilobytes):
        filler = place / "filler"
        filler.unlink(missing_ok=True)
        free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
        filler.write_bytes(b"\0" * (free - kilobytes * 1024))

    yield place, leave
    subprocess.run(["umount", str(place)], check=True)


def everything(folder):
    """What is in a folder, hidden files too; nothing where there is none."""
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def test_a_full_disk_leaves_all_outputs_of_a_stage_or_none(quick, tmp_path, small_disk):
    disk, leave = small_disk
    weights = pretrained(quick)
    job = Job("resnet", "uniform", "w3a3", 0)
    sample(quick, "resnet", "uniform", weights, tmp_path / "proxy")
    stages = {
        "fetch": (lambda out: fetch(quick, out), 2),
        "sample": (lambda out: sample(quick, "resnet", "uniform", weights, out), 2),
        "search": (lambda out: search(quick, job, weights, tmp_path / "proxy/proxy.json", out), 4),
    }
    for name, (run, count) in stages.items():
        failures = 0
        for kilobytes in range(0, 400, 4):  # a page more each time
            leave(kilobytes)
            try:
                run(disk / name)
            except OSError as error:
                failures += 1
                assert error.errno == errno.ENOSPC and Path(error.filename).parent == disk / name
                assert everything(disk / name) == []
            else:
                break
        assert failures > 1 and len(everything(disk / name)) == count, name
        provenance.check_inputs(quick, [path for path in (disk / name).iterdir() if "provenance" not in path.name])


def test_a_full_or_read_only_disk_is_one_message(quick, tmp_path, small_disk):
    disk, leave = small_disk
    weights = pretrained(quick)
    job = Job("resnet", "uniform", "w3a3", 0)
    sample(quick, "resnet", "uniform", weights, tmp_path / "proxy")
    search(quick, job, weights, tmp_path / "proxy/proxy.json", tmp_path / "search")
    finetune(quick, job, weights, tmp_path / "search/policy.json", tmp_path / "finetune")
    io.write_text("quick.yaml", yaml.safe_dump(quick.dump()))
    model = ("--model", "resnet")
    jobs = (*model, "--search", "uniform", "--budget", "w3a3", "--seed", "0", "--weights", str(weights))
    policy = ("--policy", "search/policy.json")
    stages = {
        "fetch": (),
        "pretrain": (*model, "--data", f"{quick.results}/data/target/manifest.json"),
        "sample": (*model, "--search", "uniform", "--weights", str(weights)),
        "search": (*jobs, "--proxy", "proxy/proxy.json"),
        "finetune": (*jobs, *policy),
        "evaluate": (*jobs, *policy, "--finetuned", "finetune/model.safetensors"),
    }
    leave(4)
    for reason in ("No space left on device", "Read-only file system"):
        for name, options in stages.items():
            if reason.startswith("Read") and name not in ("fetch", "search"):
                continue  # the same way as these two
            done = seam(name, "--params", "quick.yaml", *options, "--out", disk / name)
            assert done.returncode == 2, done.stderr
            last = done.stderr.splitlines()[-1]
            assert last.startswith(f"seam: error: {disk / name}") and last.endswith(f": {reason}"), done.stderr
            assert "Traceback" not in done.stderr and everything(disk / name) == []
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


def test_a_silent_tracking_server_costs_a_search_nothing(tmp_path, monkeypatch):
    """Left alone, MLflow asks it three times for 20 s each."""
    params = smoke(tmp_path, monkeypatch, pretrain__epochs=1)
    weights = pretrained(params)
    sample(params, "resnet", "seam-subset", weights, tmp_path / "proxy")
    io.write_text("silent.yaml", yaml.safe_dump(params.dump()))
    job = ("--search", "seam-subset", "--budget", "w3a3", "--seed", "0", "--proxy", "proxy/proxy.json")
    command = [sys.executable, "-m", "seam", "search", "--params", "silent.yaml", "--model", "resnet"]
    command += ["--weights", str(weights), *job]

    def run(name, **more):
        start = time.monotonic()
        environ = {**environment(ROOT), **more}
        done = subprocess.run([*command, "--out", name], env=environ, capture_output=True, text=True)
        wall = time.monotonic() - start
        assert done.returncode == 0, done.stderr
        return wall, io.read_json(f"{name}/cost.json")["seconds"], done.stderr

    with socket.create_server(("127.0.0.1", 0), backlog=50) as listening:
        server = f"http://127.0.0.1:{listening.getsockname()[1]}"
        for _ in range(3):  # other work may hold up one run; a server that is waited for holds up all
            wall, cost, _ = run("without")
            silent_wall, silent_cost, said = run("silent", MLFLOW_TRACKING_URI=server)
            assert "live logging to MLflow stopped (no answer)" in said
            if silent_wall < wall + 20 and silent_cost < cost + 10:
                break
    assert silent_wall < wall + 20  # importing MLflow, and at most five seconds of waiting
    assert silent_cost < cost + 10
    policies = [io.read_json(f"{name}/policy.json")["layers"] for name in ("without", "silent")]
    assert policies[0] == policies[1]


def test_what_needs_no_network_loads_no_torch(quick, tmp_path, monkeypatch):
    weights = pretrained(quick)
    io.write_text("quick.yaml", yaml.safe_dump(quick.dump()))

    def run(stage, *options):
        code = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules))"
        code += "; from seam.cli import main; main()"
        common = ("--params", "quick.yaml", "--model", "resnet", "--weights", str(weights))
        command = [sys.executable, "-c", code, stage, *common, *options]
        done = subprocess.run(command, env=environment(ROOT), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[-1] == "False", stage

    run("sample", "--search", "seam-subset", "--out", "subset")
    run("sample", "--search", "uniform", "--out", "none")
    job = ("--search", "uniform", "--budget", "w3a3", "--seed", "0")
    run("search", *job, "--proxy", "none/proxy.json", "--out", "without")

    io.write_text("package/__init__.py", "")
    io.write_text("package/again.py", "from seam.search.uniform import SPEND, preferences")
    monkeypatch.syspath_prepend(tmp_path)
    again = {"method": "package.again", "proxy": "none"}  # does not say that it needs no network
    params = smoke(tmp_path, monkeypatch, pretrain__epochs=1, searches__again=again)
    sample(params, "resnet", "again", weights, tmp_path / "again")
    search(params, Job("resnet", "again", "w3a3", 0), weights, tmp_path / "again/proxy.json", tmp_path / "with")
    without, given = (io.read_json(tmp_path / folder / "policy.json") for folder in ("without", "with"))
    assert without == {**given, "method": "uniform", "search": "uniform"}


def test_a_method_that_looks_at_images_needs_a_proxy(quick, tmp_path, monkeypatch):
    weights = pretrained(quick)
    blind = {"method": "jacobian", "proxy": "none"}
    params = smoke(tmp_path, monkeypatch, pretrain__epochs=1, searches__blind=blind)
    sample(params, "resnet", "blind", weights, tmp_path / "blind")
    with pytest.raises(SeamError, match="the method looks at images: give a block with a dataset"):
        search(params, Job("resnet", "blind", "w3a3", 0), weights, tmp_path / "blind/proxy.json", tmp_path / "search")
