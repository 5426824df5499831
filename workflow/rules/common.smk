# The parameters in force, and what every rule needs from them.

from pathlib import Path

from snakemake.exceptions import WorkflowError

from seam.experiment import schedule
from seam.errors import SeamError
from seam.experiment.graph import nodes, report_files
from seam.experiment.params import load_params


def parameter_file():
    """The file behind --configfile, else params.yaml."""
    given = workflow.config_settings
    if given.config:
        raise WorkflowError(
            "--config cannot change parameters, since each result says what it was made from: "
            "edit params.yaml, or copy it and give the copy with --configfile"
        )
    if len(given.configfiles) > 1:
        raise WorkflowError(
            "--configfile takes one complete parameter file, not several to merge"
        )
    path = Path(given.configfiles[0] if given.configfiles else "params.yaml")
    return str(
        path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    )


FILE = parameter_file()
try:
    PARAMS = load_params(FILE)
except SeamError as error:
    raise WorkflowError(str(error)) from None
ROOT = PARAMS.results
CORES = workflow.resource_settings.cores  # None on a cluster

schedule.use_this_python()


wildcard_constraints:
    model=r"[A-Za-z0-9_-]+",
    search=r"[A-Za-z0-9_-]+",
    budget=r"[A-Za-z0-9_-]+",
    seed=r"\d+",


def parameters(wildcards, output):
    """The parameter file's name. As it takes `output`, Snakemake does not rerun for a new name, only for new values."""
    return FILE


def settings(stage):
    """The slice of the parameters that a job of `stage` depends on: a change of any other key reruns nothing."""
    return lambda wildcards: PARAMS.slice(stage, **dict(wildcards.items()))


def first(stage):
    return lambda wildcards: schedule.priority(PARAMS, stage, dict(wildcards.items()))


def slots(stage):
    return lambda wildcards: schedule.slots(
        PARAMS, stage, CORES, wildcards.get("search", "")
    )


def gpus(stage):
    return lambda wildcards: schedule.gpus(PARAMS, stage, wildcards.get("search", ""))


def machines(stage, value=None):
    """Machines of a job that has more than one, or `value` for it; else nothing: Slurm's executor goes by what is set.

    Such a job starts its processes on its machines itself, which to the executor is MPI.
    """

    def several(wildcards):
        count = schedule.nodes(PARAMS, stage, wildcards.get("search", ""))
        return None if count == 1 else count if value is None else value

    return several


def every_input(stage):
    """Inputs of a job that reads the whole grid."""
    return [
        str(path)
        for node in nodes(PARAMS)
        if node.stage == stage
        for path in node.inputs
    ]
