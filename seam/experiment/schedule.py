"""What the Snakefile asks about scheduling: a job's share of the cores, its place in the order, its need of a GPU."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from seam.data.sampling import NEED_FEATURES
from seam.experiment.params import Params
from seam.runtime.cores import available_cores
from seam.search.interface import load_method, needs_network
from seam.settings import SearchSettings, Training

# From the first to the last step of one policy; see `priority`.
STEPS = ("fetch", "pretrain", "sample", "search", "finetune", "evaluate")


def threads(params: Params, stage: str, search: str = "") -> int:
    """Threads of one process of a job; a search that sees no data needs no more than one."""
    if stage in ("sample", "evaluate"):
        return params.evaluate.threads
    return settings.threads if (settings := _settings(params, stage, search)) else 1


def processes(params: Params, stage: str, search: str = "") -> int:
    """Processes that share a job."""
    return settings.processes if (settings := _settings(params, stage, search)) else 1


def nodes(params: Params, stage: str, search: str = "") -> int:
    """Machines that share a job's processes."""
    return settings.nodes if (settings := _settings(params, stage, search)) else 1


def _settings(params: Params, stage: str, search: str) -> Training | SearchSettings | None:
    """Of a job that several processes can share."""
    if stage == "search":
        return None if params.proxy(search) is None else params.settings(search)
    return {"pretrain": params.pretrain, "finetune": params.finetune}.get(stage)


def slots(params: Params, stage: str, given: int | None, search: str = "") -> int:
    """How many of the engine's `given` cores a job takes, on each of its machines.

    With more cores given than there are (`--cores 8` on a laptop), a job takes more slots than it has threads, so that
    never more threads run than there are cores. None: no limit was given (a cluster, where jobs get what they ask for).
    """
    here = processes(params, stage, search) // nodes(params, stage, search)
    count, cores = threads(params, stage, search) * here, available_cores()
    if given is None or given <= cores:
        return count
    return min(given, -(-count * given // cores))


def priority(params: Params, stage: str, job: Mapping[str, str]) -> int:
    """A job's priority, higher is earlier: policy after policy, each through all its steps before the next.

    The first proxy's search and the baseline's come first, so that the first comparison is there early; the rest keep
    the grid's order. A job that several policies need has the place of the first of them.
    """
    grid = params.grid
    searches = list(dict.fromkeys([*params.claims.proxies[:1], params.claims.baseline, *grid.searches]))
    place = 0
    for key, values in (
        ("model", grid.models),
        ("seed", [str(seed) for seed in grid.seeds]),
        ("budget", grid.budgets),
        ("search", searches),
    ):
        place = place * len(values) + (list(values).index(job[key]) if key in job else 0)
    policies = len(grid.models) * len(grid.seeds) * len(grid.budgets) * len(searches)
    return (policies - place) * len(STEPS) + STEPS.index(stage)


def gpus(params: Params, stage: str, search: str = "") -> int:
    """GPUs that a job uses, on all its machines: one a process. (torch would know too, but takes seconds to import.)"""
    present = any(Path("/proc/driver/nvidia/gpus").glob("*"))
    used = params.device.startswith("cuda") or (params.device == "auto" and present)
    return processes(params, stage, search) if used and on_device(params, stage, search) else 0


def on_device(params: Params, stage: str, search: str = "") -> bool:
    """Whether a job computes with the network."""
    if stage == "sample":
        return (proxy := params.proxy(search)) is not None and proxy.sampling in NEED_FEATURES
    if stage == "search":
        return params.proxy(search) is not None or needs_network(load_method(params.method(search)))
    return stage in ("pretrain", "finetune", "evaluate")


def use_this_python() -> None:
    """Let `python` in commands be the interpreter that runs the engine, also when its environment is not activated."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
