"""Stages killed at random moments and run again: nothing is lost, nothing is different, nothing is left over."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from engines import REPOSITORY, environment

SIGNALS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}
# The command line with a checkpoint at every row, not every minute.
COMMAND = (
    "import sys; from seam.training import loop; loop._CHECKPOINT_SECONDS = 0.0; from seam.cli import main; main()"
)
JOB = ("--model", "resnet", "--search", "{search}", "--budget", "w3a3", "--seed", "0")
STAGES = {
    "pretrain": ("pretrain", "--model", "resnet", "--data", "r/data/target/manifest.json"),
    "seam": ("search", *JOB, "--weights", "fp/fp.safetensors", "--proxy", "r/proxy/seam/proxy.json"),
    "joint": ("search", *JOB, "--weights", "fp/fp.safetensors", "--proxy", "r/proxy/joint/proxy.json"),
    "finetune": ("finetune", *JOB, "--weights", "fp/fp.safetensors", "--policy", "policy/policy.json"),
}
TIMES = {"cost.json", "provenance.json", "policy.json", "history.csv"}  # hold seconds, or digests of files that do


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with parameters, pretrained weights, proxies and a policy, and each stage's outputs in one go."""
    root = tmp_path_factory.mktemp("kills")
    raw = yaml.safe_load((REPOSITORY / "experiments/smoke.yaml").read_text())
    proxy = {"dataset": "digits"}
    raw |= {
        "results": "r",
        "grid": {"models": ["resnet"], "searches": ["seam", "joint"], "budgets": ["w3a3"], "seeds": [0]},
        "searches": {
            "seam": {"method": "seam", "proxy": proxy, "epochs": 3, "options": {"start": "zero"}},
            "joint": {"method": "joint", "proxy": proxy, "epochs": 2, "warmup_epochs": 1},
        },
        "claims": {"baseline": "joint", "proxies": ["seam"], "references": [], "margin_points": 2.0},
    }
    raw["finetune"]["epochs"] = 3
    (root / "params.yaml").write_text(yaml.safe_dump(raw))
    finish(start(root, "fetch", "--out", "r/data/target"))
    finish(start(root, *STAGES["pretrain"], "--out", "fp"))
    for search in ("seam", "joint"):
        options = ("--model", "resnet", "--search", search, "--weights", "fp/fp.safetensors")
        finish(start(root, "sample", *options, "--out", f"r/proxy/{search}"))
        finish(start(root, *command(search), "--out", "policy" if search == "joint" else "whole/seam"))
    finish(start(root, *command("finetune"), "--out", "whole/finetune"))
    (root / "whole/pretrain").symlink_to(root / "fp")
    (root / "whole/joint").symlink_to(root / "policy")
    return root


def command(stage):
    search = stage if stage in ("seam", "joint") else "joint"
    return tuple(argument.format(search=search) for argument in STAGES[stage])


def start(root, *arguments):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = {**environment(REPOSITORY), "OMP_NUM_THREADS": "1"}
    # In a group of its own: a terminal's Ctrl-C would reach all of it.
    return subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], cwd=root, env=env, process_group=0, **options)


def finish(process):
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out + err


def checkpoints(root):
    return [path for path in (root / "r/.resume").glob("*") if not path.name.startswith(".")]


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
        ("seam", (signal.SIGINT,)),
        ("joint", (signal.SIGKILL, signal.SIGTERM)),
        ("finetune", (signal.SIGINT, signal.SIGKILL)),
    ],
)
def test_a_killed_stage_ends_the_same(place, stage, signals):
    draw = random.Random(f"{stage} {time.time()}")
    out = f"killed/{stage}"
    for signum in signals:
        before = stamps(place)
        process = start(place, *command(stage), "--out", out)
        while process.poll() is None and all(before.get(path) == stamp for path, stamp in stamps(place).items()):
            time.sleep(0.005)
        time.sleep(delay := draw.uniform(0, 0.2))
        sent = time.monotonic()
        os.killpg(process.pid, signum) if process.poll() is None else None
        _, err = process.communicate(timeout=60)
        assert process.returncode == SIGNALS[signum], (signum, delay, err)
        if signum != signal.SIGKILL:
            assert time.monotonic() - sent < 10
            (line,) = (line for line in err.splitlines() if line.startswith("seam:"))
            assert "stopped at step" in line and line.endswith("the same command goes on from there")
        assert not (place / out / "provenance.json").exists()
        assert checkpoints(place)
    said = finish(start(place, *command(stage), "--out", out))
    assert "Traceback" not in said
    assert content(place / out) == content(place / "whole" / stage)
    assert not checkpoints(place)
    cost, whole = (json.loads((place / folder / "cost.json").read_text()) for folder in (out, f"whole/{stage}"))
    for key in ("images", "steps", "epochs", "image_macs"):
        assert cost[key] == whole[key], key
    for each in (cost, whole):
        assert sum(each["parts"].values()) == pytest.approx(each["seconds"], abs=0.02)


def stamps(root):
    found = {}
    for path in checkpoints(root):
        try:
            found[path] = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue
    return found
