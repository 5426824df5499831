"""Both engines' fully expanded graphs, as the engines themselves resolve them, in one common form.

`expand("snakemake", root)` asks the engine in a process of its own, since both keep global state.
"""

import contextlib
import itertools
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
NEEDED = ("seam", "workflow", "experiments", "params.yaml", "dvc.yaml", ".dvc", ".dvcignore", ".gitignore")
NEEDED += ("environment.yml", "pyproject.toml")


def copy_repository(destination: Path, git: bool = True) -> Path:
    """A fresh clone without a remote: what both engines need to run, without results, caches and data."""
    ignore = shutil.ignore_patterns("__pycache__", "tmp", "cache", "config.local")
    for name in NEEDED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, destination / name, ignore=ignore)
        else:
            destination.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, destination / name)
    if git:
        run(destination, "git", "init", "--quiet")
        run(destination, "git", "add", "--all")
        identity = ("-c", "user.name=seam", "-c", "user.email=seam@localhost")
        run(destination, "git", *identity, "commit", "--quiet", "--message", "clone")
    return destination


def free_ports(count: int = 1) -> list[int]:
    """Distinct ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as open_ones:
        found = [open_ones.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in found]


def text(done: subprocess.CompletedProcess) -> str:
    """All that a program printed: Snakemake writes to stdout in dry runs, else to stderr."""
    return done.stdout + done.stderr


def environment(root: Path) -> dict[str, str]:
    """The environment of a user at the root of a copy, with the engines' programs on the path."""
    unusual = ("MLFLOW_", "DVC_", "SNAKEMAKE_", "PYTHONDONTWRITEBYTECODE")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(unusual)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{clean.get('PATH', os.defpath)}"
    return {**clean, "PATH": path, "PYTHONPATH": str(root), "COLUMNS": "200"}


def run(root: Path, *command: str, code: int | None = 0) -> subprocess.CompletedProcess:
    """Run a program in `root`; fails with its whole output when it exits with another code than `code`."""
    done = subprocess.run(command, cwd=root, env=environment(root), capture_output=True, text=True, timeout=600)
    assert code is None or done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def snakemake(root: Path, *options: str, code: int | None = 0) -> subprocess.CompletedProcess:
    return run(root, "snakemake", *options, code=code)


def expand(engine: str, root: Path, params: str = "params.yaml") -> dict[str, dict]:
    """All jobs: name -> {"command", "inputs", "outputs", "params", "run": whether the engine would run it now}.

    A command is the list of its words as a shell takes them apart: the engines quote in different ways.
    """
    from forked import call  # which needs `environment`

    return call(_snakemake if engine == "snakemake" else _dvc, params, cwd=root)


def name_of(command: list[str]) -> str:
    """A job's name: its stage and the aliases it is for, e.g. `search resnet direct w3a3 0`."""
    options = ("--model", "--search", "--budget", "--seed")
    return " ".join([command[3], *(value for key, value in itertools.pairwise(command) if key in options)])


def _snakemake(params: str) -> dict[str, dict]:
    from snakemake.api import SnakemakeApi
    from snakemake.settings.enums import Quietness
    from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, ResourceSettings

    settings = ConfigSettings(configfiles=[] if params == "params.yaml" else [Path(params)])
    with SnakemakeApi(OutputSettings(dryrun=True, quiet={Quietness.ALL})) as api:
        workflow = api.workflow(ResourceSettings(cores=8), settings, snakefile=Path("workflow/Snakefile"))
        workflow.dag(DAGSettings()).execute_workflow(executor="dryrun")
        dag = workflow._workflow.dag
        needed = set(dag.needrun_jobs(exclude_finished=False))
        jobs = {}
        for job in dag.jobs:
            if job.rule.name != "all":
                command = shlex.split(job.shellcmd)
                assert command[-4:-1] == ["|", "tee", "--"] and command[-1] in map(str, job.log), command
                command = command[:-4]
                jobs[name_of(command)] = {
                    "command": command,
                    "inputs": sorted(map(str, job.input)),
                    "outputs": sorted(map(str, job.output)),
                    "params": sorted(job.params.settings),
                    "run": job in needed,
                }
    return jobs


def _dvc(_: str) -> dict[str, dict]:
    import networkx
    from dvc.repo import Repo

    with Repo() as repo:
        status = repo.status()
        # A changed stage changes what it makes, so everything after it runs too.
        changed = [stage for stage in repo.index.stages if stage.addressing in status]
        run = set(changed).union(*(networkx.ancestors(repo.index.graph, stage) for stage in changed))
        return {
            name_of(command): {
                "command": command,
                "inputs": sorted(dep.def_path for dep in stage.deps if not getattr(dep, "params", None)),
                "outputs": sorted(out.def_path for out in stage.outs),
                "params": sorted(key for dep in stage.deps for key in getattr(dep, "params", None) or ()),
                "run": stage in run,
            }
            for stage in repo.index.stages
            for command in [shlex.split(stage.cmd)]
        }
