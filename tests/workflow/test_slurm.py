"""The Slurm profile on a real Slurm of two nodes, both this machine.

Opt in with SEAM_SLURM=1: it starts daemons, and links in /etc/slurm.
"""

import json
import os
import re
import shutil
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from engines import copy_repository, environment, free_ports, run, text

SCRIPT = Path(__file__).with_name("local_slurm.sh")
# Without accounting only squeue knows of a job, and this file system needs no waiting.
OPTIONS = ("--workflow-profile", "workflow/profiles/slurm", "--slurm-status-command", "squeue", "--latency-wait", "5")
OPTIONS += ("--slurm-init-seconds-before-status-checks", "3")

pytest.importorskip("snakemake_executor_plugin_slurm", reason="no executor here (uv sync --frozen --extra slurm)")
pytestmark = [
    pytest.mark.skipif(os.environ.get("SEAM_SLURM") != "1", reason="opt in with SEAM_SLURM=1 (as root)"),
    pytest.mark.skipif(not shutil.which("slurmctld"), reason="no Slurm here (apt-get install slurm-wlm munge)"),
]


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    ports = map(str, free_ports(3))
    subprocess.run([SCRIPT, "start", folder, *ports], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    yield folder
    subprocess.run([SCRIPT, "stop", folder], check=True)


def policies(root):
    found = {}
    for path in sorted((root / "results/smoke/search").rglob("policy.json")):
        found[path.parent.name, path.parent.parent.parent.name] = {**json.loads(path.read_text()), "cost": None}
    return found


def test_a_cluster_gives_the_policies_of_one_machine(smoke_results, tmp_path):
    root = copy_repository(tmp_path / "seam")
    run(root, "snakemake", *OPTIONS, "--configfile", "experiments/smoke.yaml")
    assert len(policies(root)) == 3
    assert policies(root) == policies(smoke_results[1])


def test_a_job_that_slurm_ended_is_retried_and_goes_on(tmp_path):
    root = copy_repository(tmp_path / "seam")
    raw = yaml.safe_load((root / "experiments/smoke.yaml").read_text())
    raw["grid"]["searches"] = ["direct", "uniform"]
    raw["searches"]["direct"]["epochs"] = 100
    raw["claims"] = {"baseline": "direct", "proxies": []}
    (root / "long.yaml").write_text(yaml.safe_dump(raw))
    policy = "results/smoke/search/resnet/direct/w3a3/0/policy.json"
    command = ("snakemake", policy, *OPTIONS, "--configfile", "long.yaml")
    process = subprocess.Popen(
        command, cwd=root, env=environment(root), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        job = running(process, "search")
        memory = [asked_for(job)]
        time.sleep(20)  # it trains by then, also on a busy machine
        ended = datetime.now(UTC)
        subprocess.run(["scancel", job], check=True)
        while not (kept := list((root / "results/smoke/.resume").glob("[!.]*.safetensors"))):
            assert process.poll() is None
            time.sleep(0.1)
        step = stopped_at(kept[0])
        assert step > 0
        again = running(process, "search")
        assert again != job
        memory.append(asked_for(again))
        said, _ = process.communicate(timeout=500)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert "Trying to restart job" in said
    assert memory == [64_000, 128_000]
    cost = json.loads((root / policy).with_name("cost.json").read_text())
    assert datetime.fromisoformat(cost["started"]) < ended  # it counts from the first process's start
    assert (root / policy).exists() and not list((root / "results/smoke/.resume").iterdir())
    alone = copy_repository(tmp_path / "alone")
    shutil.copy(root / "long.yaml", alone)
    assert text(run(alone, "snakemake", policy, "--cores", "8", "--configfile", "long.yaml"))
    assert policies(root) == policies(alone)


def test_a_search_on_two_machines_gives_the_policy_of_one_process(cluster, smoke_results, tmp_path):
    root = copy_repository(tmp_path / "seam")
    raw = yaml.safe_load((root / "experiments/smoke.yaml").read_text())
    raw["searches"]["seam-subset"] |= {"processes": 2, "nodes": 2}
    (root / "wide.yaml").write_text(yaml.safe_dump(raw))
    policy = "results/smoke/search/resnet/seam-subset/w3a3/0/policy.json"
    proxy = "results/smoke/proxies/resnet/seam-subset/proxy.json"
    run(root, "snakemake", proxy, *OPTIONS, "--configfile", "wide.yaml")
    before = [steps(cluster, node) for node in ("seam1", "seam2")]
    profile = root / "workflow/profiles/slurm/profile.yaml"
    raw = yaml.safe_load(profile.read_text())
    raw["set-resources"]["search"]["gpu"] = 2  # as many as processes, which Slurm deals out to the nodes
    profile.write_text(yaml.safe_dump(raw))
    run(root, "snakemake", policy, *OPTIONS, "--configfile", "wide.yaml")
    layers = [json.loads((place / policy).read_text())["layers"] for place in (root, smoke_results[1])]
    assert layers[0] == layers[1]
    assert [steps(cluster, node) for node in ("seam1", "seam2")] == [count + 1 for count in before]


def steps(folder: Path, node: str) -> int:
    """How many steps of jobs, beside batch scripts, a node has been given."""
    return (folder / f"slurmd-{node}.log").read_text().count("launch task")


def running(process, rule) -> str:
    """The number of the job of a rule that Slurm runs, once there is one."""
    while process.poll() is None:
        shown = subprocess.run(["squeue", "--noheader", "--format", "%i %T %k"], capture_output=True, text=True).stdout
        for line in shown.splitlines():
            number, state, comment = line.split(maxsplit=2)
            if state == "RUNNING" and f"rule_{rule}" in comment:
                return number
        time.sleep(0.2)
    raise AssertionError(process.communicate()[0])


def asked_for(job: str) -> float:
    """MB of memory that a job asks a node for."""
    shown = subprocess.run(["scontrol", "show", "job", job], check=True, capture_output=True, text=True).stdout
    amount, unit = re.search(r"MinMemoryNode=([\d.]+)([MG])", shown).groups()
    return float(amount) * (1024 if unit == "G" else 1)


def stopped_at(checkpoint: Path) -> int:
    from safetensors import safe_open

    with safe_open(str(checkpoint), "pt") as file:
        return json.loads(file.metadata()["state"])["step"]
