"""Stages killed at random moments and run again: nothing is lost, nothing is different, nothing is left over."""

import contextlib
import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import yaml
from engines import REPOSITORY
from killable import start

from seam.experiment.params import Job, load_params
from seam.stages.fetch import fetch
from seam.stages.finetune import finetune
from seam.stages.pretrain import pretrain
from seam.stages.sample import sample
from seam.stages.search import search

SIGNALS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}
JOB = ("--params", "params.yaml", "--model", "resnet", "--search", "joint", "--budget", "w3a3", "--seed", "0")
STAGES = {
    "pretrain": ("--model", "resnet", "--data", "manifest/manifest.json"),
    "search": (*JOB, "--weights", "pretrain/fp.safetensors", "--proxy", "proxy/proxy.json"),
    "finetune": (*JOB, "--weights", "pretrain/fp.safetensors", "--policy", "search/policy.json"),
}
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
    """Checkpoint -> when it was written."""
    found = {}
    for path in (root / "results/.resume").glob("*"):
        with contextlib.suppress(FileNotFoundError):  # another one takes its place
            found[path.name] = path.stat().st_mtime_ns
    return found


def content(folder: Path) -> dict[str, bytes]:
    """What a stage wrote, without seconds."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in TIMES}
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
        process = start(place, log, stage, *STAGES[stage], "--out", out)
        while process.is_alive() and checkpoints(place) == before:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.2))
        sent = time.monotonic()
        os.kill(process.pid, signum)
        process.join(60)
        said = log.read_text()
        assert process.exitcode == SIGNALS[signum], said
        if signum != signal.SIGKILL:
            assert time.monotonic() - sent < 10
            assert re.fullmatch(r"seam: stopped at step \d+; the same command goes on from there\n", said)
        assert not (place / out / "provenance.json").exists() and checkpoints(place)
    process = start(place, log, stage, *STAGES[stage], "--out", out)
    process.join(600)
    assert process.exitcode == 0 and re.fullmatch(rf"{stage}: .*\n", log.read_text()), log.read_text()
    assert content(place / out) == content(place / stage)
    assert not list((place / "results/.resume").iterdir())
    cost, whole = (json.loads((place / folder / "cost.json").read_text()) for folder in (out, stage))
    for key in ("images", "steps", "epochs", "image_macs"):
        assert cost[key] == whole[key], key
    assert sum(cost["parts"].values()) == pytest.approx(cost["seconds"], abs=0.02)
