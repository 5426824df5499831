"""What the Snakefile asks about scheduling: a job's share of the cores, its place in the order, its need of a GPU."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from seam.experiment.params import Params
from seam.runtime.cores import available_cores

# From the first to the last step of one policy; see `priority`.
STEPS = ("fetch", "pretrain", "sample", "search", "finetune", "evaluate")


def slots(threads: int, given: int | None) -> int:
    """How many of the engine's `given` cores a job of `threads` threads takes.

    With more cores given than there are (`--cores 8` on a laptop), a job takes more slots than it has threads, so that
    never more threads run than there are cores. None: no limit was given (a cluster, where jobs get what they ask for).
    """
    cores = available_cores()
    if given is None or given <= cores:
        return threads
    return min(given, -(-threads * given // cores))


def search_slots(params: Params, search: str, given: int | None) -> int:
    """`slots` of a search: one that sees no data needs no more than one thread."""
    settings = params.settings(search)
    return slots(1 if params.proxy(search) is None else settings.threads * settings.processes, given)


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


def gpus(params: Params) -> int:
    """1 when a job would use a GPU of this machine, else 0. (torch would know too, but takes seconds to import.)"""
    present = any(Path("/proc/driver/nvidia/gpus").glob("*"))
    return int(params.device.startswith("cuda") or (params.device == "auto" and present))


def use_this_python() -> None:
    """Let `python` in commands be the interpreter that runs the engine, also when its environment is not activated."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
