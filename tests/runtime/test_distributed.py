"""A job in several processes, which torchrun starts, is the job in one."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from engines import REPOSITORY, environment, free_ports, run
from forked import call, seam
from shared_jobs import SEARCHES, STEPS, jobs

from seam.errors import SeamError
from seam.experiment.params import Job, load_params
from seam.runtime.distributed import join, share_out
from seam.stages.fetch import fetch
from seam.stages.pretrain import pretrain
from seam.stages.sample import sample
from seam.stages.search import search

TESTS = REPOSITORY / "tests"
JOB = ("--model", "resnet", "--search", "seam-subset", "--budget", "w3a3", "--seed", "0")


def start(
    count: int, *command: str, cwd: Path = REPOSITORY, meeting: Sequence[str] = ("--standalone",)
) -> subprocess.Popen:
    """A Python program under torchrun, by default on a free port that it chooses."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", *meeting, f"--nproc-per-node={count}"]
    environ = environment(REPOSITORY) | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen([*torchrun, *command], cwd=cwd, env=environ, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(results of one process, those of each of two)"""
    alone, shared = (tmp_path_factory.mktemp(name) for name in ("alone", "shared"))
    script = str(TESTS / "shared_jobs.py")
    process = start(2, script, str(shared))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return call(jobs, str(alone), cwd=alone), [json.loads((shared / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_a_batch_that_cannot_be_shared_is_refused(both):
    named = "search.batch_size: must be a multiple of the 2 processes that share a batch (found 31)"
    assert both[1][0]["odd"] == named
    assert both[1][0]["few"] == "train: 1 images are too few for 2 processes; give each at least one"


@pytest.mark.parametrize("job", ["pretrain", "finetune", *SEARCHES])
def test_two_processes_end_as_one_does(both, job):
    """Ten steps of each kind of search and of QAT with a teacher, twenty of pretraining."""
    one, several = both[0][job], [result[job] for result in both[1]]
    assert several[0] == several[1]
    assert (several[0]["counts"], several[0]["policy"]) == (one["counts"], one["policy"])
    assert several[0]["weights"] == pytest.approx(one["weights"], rel=1e-7)
    assert len(several[0]["history"]) == len(one["history"]) == (20 if job == "pretrain" else STEPS)
    for found, row in zip(several[0]["history"], one["history"], strict=True):
        assert found == pytest.approx(row, rel=1e-5, abs=1e-5)


def test_processes_may_normalise_their_shares_apart(both):
    alone, several = both[0]["apart"], [result["apart"] for result in both[1]]
    assert several[0] == several[1] == pytest.approx(alone, rel=1e-5)
    together = both[0]["pretrain"]["history"][0]["loss"]
    assert abs(alone[0] - together) > 1e-3


@pytest.mark.parametrize(
    ("method", "pieces"), [("jacobian", 3), ("fit", 3), ("hawq", 3), ("sensitivity", 5), ("sqnr", 3)]
)
def test_searches_without_training_share_their_work_and_end_with_the_same_bits(both, method, pieces):
    """Three batches, or five bit-widths, are two shares of unequal length."""
    one, several = both[0][f"seam.search.{method}"], [result[f"seam.search.{method}"] for result in both[1]]
    assert one["done"] == [*range(pieces)]
    assert all(result["done"] for result in several)
    assert sorted(several[0]["done"] + several[1]["done"]) == one["done"]  # each piece is done once
    for result in several:
        assert (result["table"], result["counts"]) == (one["table"], one["counts"])
    assert min(min(row) for layer in one["table"] for row in layer) < 0


def test_one_process_does_all_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    done = share_out([1.0, 2.0, 3.0], lambda x: torch.tensor([x, -x]), torch.zeros(2), "work")
    assert done.tolist() == [6.0, -6.0]


@pytest.fixture
def second(monkeypatch):
    """The second of a machine's two processes, among two GPUs; (function, arguments) of what it asks of torch."""
    asked = []
    for name, value in {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "LOCAL_RANK": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.append(("set_device", device)))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **_: asked.append(("init", backend)))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)  # at the end of this process
    return asked


def test_each_process_takes_its_own_gpu_and_meets_the_others_by_nccl(second):
    own = torch.device("cuda", 1)
    assert join(torch.device("cuda", 0)) == own
    assert second == [("set_device", own), ("init", "nccl")]  # in this order: nccl takes the device that is set


def test_processes_on_the_cpu_meet_by_gloo(second):
    assert join(torch.device("cpu")) == torch.device("cpu")
    assert second == [("init", "gloo")]


def test_more_processes_than_gpus_are_refused(second, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SeamError, match="^2 processes here, each on a GPU of its own, but 1 can be used here"):
        join(torch.device("cuda", 0))
    assert not second


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a trained network, a proxy, and a policy searched in one process."""
    root = tmp_path_factory.mktemp("place")
    raw = yaml.safe_load((REPOSITORY / "experiments/smoke.yaml").read_text())
    raw["results"] = "results"
    raw["searches"]["seam-subset"] |= {"epochs": 4}
    (root / "params.yaml").write_text(yaml.safe_dump(raw))
    raw["searches"]["seam-subset"]["processes"] = 2
    (root / "two.yaml").write_text(yaml.safe_dump(raw))
    with contextlib.chdir(root):
        params, weights = load_params("params.yaml"), Path("pretrain/fp.safetensors")
        fetch(params, Path("manifest"))
        pretrain(params, "resnet", Path("manifest/manifest.json"), weights.parent)
        sample(params, "resnet", "seam-subset", weights, Path("proxy"))
        search(params, Job("resnet", "seam-subset", "w3a3", 0), weights, Path("proxy/proxy.json"), Path("alone"))
    return root


def command(out: str, params: str = "params.yaml") -> list[str]:
    inputs = ("--weights", "pretrain/fp.safetensors", "--proxy", "proxy/proxy.json")
    return ["search", "--params", params, *JOB, *inputs, "--out", out]


def bits(folder: Path) -> list:
    return json.loads((folder / "policy.json").read_text())["layers"]


def test_parameters_say_how_many_and_one_of_them_writes_and_speaks(place):
    done = run(place, sys.executable, "-m", "seam", *command("shared", "two.yaml"))
    assert re.fullmatch("search: resnet-seam-subset-w3a3-0, .*\n", done.stdout)
    assert bits(place / "shared") == bits(place / "alone")
    assert {path.name for path in (place / "shared").iterdir()} == {path.name for path in (place / "alone").iterdir()}
    cost, alone = (json.loads((place / name / "cost.json").read_text()) for name in ("shared", "alone"))
    assert all(cost[key] == alone[key] for key in ("images", "steps", "epochs", "image_macs"))
    assert not list((place / "results").glob(".resume/*"))


def test_several_machines_are_those_of_a_slurm_job(place, monkeypatch):
    raw = yaml.safe_load((place / "two.yaml").read_text())
    raw["searches"]["seam-subset"]["nodes"] = 2
    (place / "wide.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    done = seam(*command("wide", "wide.yaml"), cwd=place)
    assert done.returncode and "nodes: 2 machines are to share this job, but it does not run under Slurm" in done.stderr


def test_options_before_the_command_hold_in_the_processes(place):
    broken = [*command("broken", "two.yaml"), "--proxy", "missing.json"]
    done = subprocess.run([sys.executable, "-m", "seam", "-v", *broken], cwd=place, capture_output=True, text=True)
    assert done.returncode and "seam: error: missing.json" in done.stderr
    assert 'seam/cli.py", line' in done.stderr  # that torchrun's own words have not got


def test_two_machines_are_two_torchruns_that_find_each_other(place):
    """As on two machines, but for their addresses: one agent each, with a process of its own."""
    where = ("--nnodes=2", "--master-addr=127.0.0.1", f"--master-port={free_ports()[0]}")
    line = ("-m", "seam", *command("machines", "two.yaml"))
    agents = [start(1, *line, cwd=place, meeting=(*where, f"--node-rank={number}")) for number in (0, 1)]
    try:
        said = [agent.communicate(timeout=300) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert re.fullmatch("search: resnet-seam-subset-w3a3-0, .*\n", said[0][0])
    assert said[1][0] == ""
    assert bits(place / "machines") == bits(place / "alone")


def test_a_signal_ends_all_at_one_step_and_one_process_goes_on_from_there(place):
    process, resume = start(2, str(TESTS / "shared_stage.py"), *command("again"), cwd=place), place / "results/.resume"
    while process.poll() is None and not list(resume.glob("*.safetensors")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0 and err.count("seam: stopped at step ") == 1, err
    assert not (place / "again").exists()
    done = seam(*command("again"), cwd=place)
    assert done.returncode == 0, done.stderr
    assert bits(place / "again") == bits(place / "alone")
