"""Stages killed at random moments and run again: nothing is lost, nothing is different, nothing is left over."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml
from engines import REPOSITORY
from forked import start

from seam.experiment.params import Job, load_params
from seam.stages.fetch import fetch
from seam.stages.finetune import finetune
from seam.stages.pretrain import pretrain
from seam.stages.sample import sample
from seam.stages.search import search
from seam.tracking.store import Store

SIGNALS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}
JOB = ("--params", "params.yaml", "--model", "resnet", "--search", "joint", "--budget", "w3a3", "--seed", "0")
STAGES = {
    "pretrain": ("--model", "resnet", "--data", "manifest/manifest.json"),
    "search": (*JOB, "--weights", "pretrain/fp.safetensors", "--proxy", "proxy/proxy.json"),
    "finetune": (*JOB, "--weights", "pretrain/fp.safetensors", "--policy", "search/policy.json"),
}
R = "results/smoke"
PROXIES = f"{R}/proxies/resnet"
RUN = ("--params", "params.yaml", "--model", "resnet", "--search")
W3A3 = ("--budget", "w3a3", "--seed", "0", "--weights", f"{R}/models/resnet/fp.safetensors")
FINETUNED = f"{R}/finetune/resnet/direct/w3a3/0/model.safetensors"
SHORT = {  # stages that keep no checkpoints: name -> (stage, *arguments), with the outputs of the smoke set as inputs
    "fetch": ("fetch", "--params", "params.yaml"),
    "sample": ("sample", *RUN, "jacobian", "--weights", f"{R}/models/resnet/fp.safetensors"),
    "search jacobian": ("search", *RUN, "jacobian", *W3A3, "--proxy", f"{PROXIES}/jacobian/proxy.json"),
    "search sensitivity": (
        "search",
        *RUN,
        "sensitivity",
        *W3A3,
        "--proxy",
        f"{PROXIES}/sensitivity/proxy.json",
    ),
    "search uniform": ("search", *RUN, "uniform", *W3A3, "--proxy", f"{PROXIES}/uniform/proxy.json"),
    "evaluate": (
        *("evaluate", *RUN, "direct", *W3A3, "--policy", f"{R}/search/resnet/direct/w3a3/0/policy.json"),
        *("--finetuned", FINETUNED),
    ),
    "claims": ("claims", "--params", "params.yaml"),
    "report": ("report", "--params", "params.yaml"),
    "log": ("log", "--params", "params.yaml"),
}
FILES = {"claims": "claims.json", "log": "mlflow.json"}  # their output is a file, not a folder
TIMES = {"cost.json", "provenance.json", "policy.json", "history.csv"}  # hold seconds, or digests of files that do


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with each stage's outputs, made in one go."""
    root = tmp_path_factory.mktemp("kills")
    raw = yaml.safe_load((REPOSITORY / "experiments/smoke.yaml").read_text())
    raw["results"] = "results"
    raw["searches"]["direct"] |= {"epochs": 2, "warmup_epochs": 1}
    raw["searches"]["joint"] = raw["searches"].pop("direct")
    raw["grid"]["searches"] = ["seam-subset", "joint", "uniform"]
    raw["claims"]["baseline"] = "joint"
    raw["finetune"]["epochs"] = 3
    (root / "params.yaml").write_text(yaml.safe_dump(raw))
    with contextlib.chdir(root):
        params, job = load_params("params.yaml"), Job("resnet", "joint", "w3a3", 0)
        fetch(params, Path("manifest"))
        pretrain(params, "resnet", Path("manifest/manifest.json"), Path("pretrain"))
        weights = Path("pretrain/fp.safetensors")
        sample(params, "resnet", "joint", weights, Path("proxy"))
        search(params, job, weights, Path("proxy/proxy.json"), Path("search"))
        finetune(params, job, weights, Path("search/policy.json"), Path("finetune"))
    return root


def checkpoints(root):
    """Checkpoint -> when it was written; without the half one that a kill may leave, and the next process deletes."""
    found = {}
    for path in (root / "results/.resume").glob("[!.]*"):
        with contextlib.suppress(FileNotFoundError):  # another one takes its place
            found[path.name] = path.stat().st_mtime_ns
    return found


def content(folder: Path) -> dict[str, bytes]:
    """What a stage wrote, without seconds."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in TIMES}
    if (folder / "history.csv").exists():
        rows = (folder / "history.csv").read_text().splitlines()
        assert rows[0].endswith(",seconds")
        found["history.csv"] = "\n".join(row.rpartition(",")[0] for row in rows)
    if (folder / "policy.json").exists():
        policy = json.loads((folder / "policy.json").read_text())
        for key in ("seconds", "parts", "peak_memory_mb", "kernels", "seconds_once"):
            policy["cost"].pop(key, None)
        found["policy.json"] = policy
    return found


@pytest.mark.parametrize(
    ("stage", "signals"),
    [
        ("pretrain", (signal.SIGTERM, signal.SIGKILL)),
        ("search", (signal.SIGINT, signal.SIGTERM)),
        ("finetune", (signal.SIGKILL, signal.SIGINT)),
    ],
)
def test_a_killed_stage_ends_the_same(place, stage, signals):
    out, log = f"killed/{stage}", place / f"{stage}.log"
    for signum in signals:
        before = checkpoints(place)
        log.unlink(missing_ok=True)
        process = start(place, log, stage, *STAGES[stage], "--out", out)
        while process.is_alive() and checkpoints(place) == before:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.05))
        sent = time.monotonic()
        os.kill(process.pid, signum)
        process.join(60)
        said = log.read_text()
        # Between two trainings, as a warm-up and the search, nothing catches SIGTERM, and nothing is said.
        assert process.exitcode in (SIGNALS[signum], -signum), said
        assert time.monotonic() - sent < 10
        stopped = re.fullmatch(r"seam: stopped at step \d+; the same command goes on from there\n", said)
        assert stopped or said == ""
        if signum == signal.SIGTERM:
            assert (process.exitcode == SIGNALS[signum]) is bool(stopped)
        assert not (place / out / "provenance.json").exists() and checkpoints(place)
    log.unlink()
    process = start(place, log, stage, *STAGES[stage], "--out", out)
    process.join(600)
    assert process.exitcode == 0 and re.fullmatch(rf"{stage}: .*\n", log.read_text()), log.read_text()
    assert content(place / out) == content(place / stage)
    assert not list((place / "results/.resume").iterdir())
    cost, whole = (json.loads((place / folder / "cost.json").read_text()) for folder in (out, stage))
    for key in ("images", "steps", "epochs", "image_macs"):
        assert cost[key] == whole[key], key
    assert sum(cost["parts"].values()) == pytest.approx(cost["seconds"], abs=0.02)


@pytest.fixture(scope="module")
def finished(smoke_results, tmp_path_factory):
    """A copy of the finished smoke set with two more searches and their proxies."""
    root = tmp_path_factory.mktemp("finished") / "seam"
    shutil.copytree(smoke_results[1], root)
    raw = yaml.safe_load((root / "experiments/smoke.yaml").read_text())
    for name in ("jacobian", "sensitivity"):
        raw["searches"][name] = {"method": name, "proxy": {"dataset": "digits", "fraction": 0.1}}
    raw["mlflow"]["uri"] = f"sqlite:///{root}/again.db"
    (root / "params.yaml").write_text(yaml.safe_dump(raw))
    with contextlib.chdir(root):
        params, weights = load_params("params.yaml"), Path(f"{R}/models/resnet/fp.safetensors")
        for name in ("jacobian", "sensitivity"):
            sample(params, "resnet", name, weights, Path(f"{PROXIES}/{name}"))
    return root


def run_short(root: Path, name: str, out: Path, signum: int | None = None, after: float = 0.0) -> float:
    """One run of a stage into `out`, killed `after` seconds if `signum` is given; returns the seconds it took."""
    log, started = root / "short.log", time.monotonic()
    log.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    process = start(root, log, *SHORT[name], "--out", str(out / FILES.get(name, "")))
    if signum is not None:
        while process.is_alive() and not log.exists():  # the fork is on its way to the command
            time.sleep(0.005)
        process.join(0.05 + after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signum)
    process.join(300)
    codes = {0} if signum is None else {0, SIGNALS[signum], -signum}
    assert process.exitcode in codes, (name, signum, after, process.exitcode, log.read_text())
    assert "Traceback" not in log.read_text(), (name, signum, after, log.read_text())
    return time.monotonic() - started


def kill(root: Path, name: str, out: Path, seconds: float, times: int = 2) -> None:
    """Runs that are killed at random moments of the `seconds` a stage takes, and one that may end."""
    for signum in random.sample(list(SIGNALS), times):
        run_short(root, name, out, signum, after=random.uniform(0, seconds))
    run_short(root, name, out)


@pytest.mark.parametrize("name", [name for name in SHORT if name != "log"])
def test_a_stage_killed_at_any_moment_ends_the_same(finished, name):
    whole, killed = finished / "whole" / name, finished / "killed" / name
    kill(finished, name, killed, run_short(finished, name, whole))
    assert content(killed) == content(whole)
    assert {path.name for path in killed.iterdir()} == {path.name for path in whole.iterdir()}


def test_a_killed_log_writes_each_run_once(finished):
    seconds = run_short(finished, "log", finished / "whole/log")
    (finished / "again.db").unlink()
    kill(finished, "log", finished / "killed/log", seconds, times=1)
    runs = Store(f"sqlite:///{finished}/again.db", "smoke").runs()
    jobs = [f"resnet-{search}-w3a3-0" for search in ("seam-subset", "direct", "uniform")]
    assert sorted(run.info.run_name for run in runs) == sorted([*jobs, "smoke-summary"])
    assert {run.info.status for run in runs} == {"FINISHED"}
