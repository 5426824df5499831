"""The command line: one command a stage. It parses, checks and calls; everything that computes is imported inside."""

import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from seam import cli_tool

app = typer.Typer(
    name="seam",
    help="Mixed-precision quantization policies searched on a small proxy dataset (SEAM).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_MODEL = "Your model, your images: to a policy and an ONNX file"
_POLICY = "Policy files"
_PIPELINE = "Stages of the pipeline (search, finetune, evaluate too: --params)"

# `search`, `finetune` and `evaluate` are both stages of the pipeline (with --params) and tools (without).
stages = typer.Typer(name="seam", add_completion=False, pretty_exceptions_enable=False)
tools = (cli_tool.layers, cli_tool.search, cli_tool.calibrate, cli_tool.finetune, cli_tool.evaluate, cli_tool.export)

ParamsFile = Annotated[Path, typer.Option("--params", help="Parameter file.", show_default=True)]
Out = Annotated[Path, typer.Option(help="Folder to write to.")]
OutFile = Annotated[Path, typer.Option(help="File to write.")]
Model = Annotated[str, typer.Option(help="Model alias, from models in the parameters.")]
Search = Annotated[str, typer.Option(help="Search alias, from searches in the parameters.")]
Budget = Annotated[str, typer.Option(help="Budget alias, from budgets in the parameters.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of this run.")]
Weights = Annotated[Path, typer.Option(help="Full-precision weights (fp.safetensors).")]
Policy = Annotated[Path, typer.Option(help="Policy of the search (policy.json).")]
Default = Path("params.yaml")


def _print_version(wanted: bool) -> None:
    if wanted:
        from seam import __version__

        typer.echo(f"seam {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="With an error, say where it came from.")] = False,
) -> None:
    """Options before the command; `main` reads the last two, for stages as well."""


def _load(path: Path, stage: str, model: str = "", search: str = "", budget: str = ""):
    """Read the parameters, check the aliases, and keep this process to the stage's threads, or start several."""
    from seam.experiment import schedule
    from seam.experiment.params import load_params
    from seam.runtime.cores import limit_threads
    from seam.runtime.distributed import start_processes
    from seam.runtime.gpus import take as take_gpus

    params = load_params(path)
    if model:
        params.model(model)
    if budget:
        params.budget(budget)
    if search:
        params.method(search)
    limit_threads(schedule.threads(params, stage, search))
    count, nodes = schedule.processes(params, stage, search), schedule.nodes(params, stage, search)
    if "WORLD_SIZE" not in os.environ:  # else what started these processes has seen to it
        if nodes == 1 and params.device in ("auto", "cuda") and (gpus := schedule.gpus(params, stage, search)):
            take_gpus(gpus)  # on several machines Slurm gives each its own
        start_processes(count, nodes, schedule.slots(params, stage, None, search), _given)
    return params


def _job(model: str, search: str, budget: str, seed: int):
    from seam.experiment.params import Job

    return Job(model, search, budget, seed)


for command in tools:
    app.command(rich_help_panel=_MODEL)(command)


@app.command(rich_help_panel=_POLICY)
def show(
    policy: Annotated[Path, typer.Argument(help="Policy file (policy.json).")],
    figure: Annotated[Path | None, typer.Option(help="Also draw the bit chart: a .png or .svg file.")] = None,
) -> None:
    """Print a policy: its layers' bits and costs, its budget, and where it comes from."""
    from seam.policy import show
    from seam.policy.file import read_policy

    content = read_policy(policy)
    if figure is not None:
        from seam.report.policy_chart import draw_policy

        draw_policy(content, figure)
    show.show(content, show.terminal())


@app.command(rich_help_panel=_POLICY)
def diff(
    first: Annotated[Path, typer.Argument(help="Policy file.")],
    second: Annotated[Path, typer.Argument(help="Policy file to compare it with.")],
) -> None:
    """Compare two policies layer by layer; exit code 0 if their bits are equal, 1 if not, 2 on errors."""
    from seam.policy import show
    from seam.policy.file import read_policy

    policies = [read_policy(path) for path in (first, second)]
    if not show.diff(policies, [str(first), str(second)], show.terminal()):
        raise typer.Exit(1)


@app.command(rich_help_panel=_POLICY)
def convert(
    policy: Annotated[Path, typer.Argument(help="Policy file (policy.json).")],
    to: Annotated[str, typer.Option(help="Format: csv or torchao.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")],
) -> None:
    """Write a policy for other tools: as CSV, or as torchao's FqnToConfig (JSON)."""
    from seam.policy.convert import convert as write
    from seam.policy.file import read_policy

    write(read_policy(policy), to, out)


@app.command(rich_help_panel=_PIPELINE)
def plan(
    params: ParamsFile = Default,
    out: Annotated[Path | None, typer.Option(help="Also write it as JSON.")] = None,
    hardware: Annotated[
        str | None,
        typer.Option(
            help="Name of measured hardware (benchmarks/hardware/NAME/), or a plan that was written on the hardware in "
            "question; by default this machine is probed."
        ),
    ] = None,
    cores: Annotated[int | None, typer.Option(min=1, help="Cores that are to work on it.")] = None,
) -> None:
    """Predict what an experiment takes, from a few real steps of each kind of job: seconds, GPU-hours, disk."""
    loaded = _load(params, "plan")
    from seam.io import write_json
    from seam.stages.plan import describe
    from seam.stages.plan import plan as predict

    content = predict(loaded, hardware)
    if out is not None:
        write_json(out, content)
    typer.echo("\n".join(describe(content, cores, loaded.claims.baseline)))


@app.command(rich_help_panel=_PIPELINE)
def fetch(out: Out, params: ParamsFile = Default) -> None:
    """Get the target dataset and write its manifest."""
    loaded = _load(params, "fetch")
    from seam.stages.fetch import fetch as run

    run(loaded, out)


@app.command(rich_help_panel=_PIPELINE)
def pretrain(
    model: Model,
    data: Annotated[Path, typer.Option(help="Manifest of the target (manifest.json).")],
    out: Out,
    params: ParamsFile = Default,
) -> None:
    """Train the full-precision model on the target, or take its given weights."""
    loaded = _load(params, "pretrain", model)
    from seam.stages.pretrain import pretrain as run

    run(loaded, model, data, out)


@app.command(rich_help_panel=_PIPELINE)
def sample(model: Model, search: Search, weights: Weights, out: Out, params: ParamsFile = Default) -> None:
    """Choose the images that a search sees: its proxy."""
    loaded = _load(params, "sample", model, search)
    from seam.stages.sample import sample as run

    run(loaded, model, search, weights, out)


@stages.command()
def search(
    model: Model,
    search: Search,
    budget: Budget,
    seed: Seed,
    weights: Weights,
    proxy: Annotated[Path, typer.Option(help="Proxy to search on (proxy.json).")],
    out: Out,
    params: ParamsFile = Default,
) -> None:
    """Search a policy within the budget."""
    loaded = _load(params, "search", model, search, budget)
    from seam.stages.search import search as run

    run(loaded, _job(model, search, budget, seed), weights, proxy, out)


@stages.command()
def finetune(
    model: Model,
    search: Search,
    budget: Budget,
    seed: Seed,
    weights: Weights,
    policy: Policy,
    out: Out,
    params: ParamsFile = Default,
) -> None:
    """Finetune the quantized model under a policy (quantization-aware training)."""
    loaded = _load(params, "finetune", model, search, budget)
    from seam.stages.finetune import finetune as run

    run(loaded, _job(model, search, budget, seed), weights, policy, out)


@stages.command()
def evaluate(
    model: Model,
    search: Search,
    budget: Budget,
    seed: Seed,
    weights: Weights,
    policy: Policy,
    finetuned: Annotated[Path, typer.Option(help="Weights after finetuning (model.safetensors).")],
    out: Out,
    params: ParamsFile = Default,
) -> None:
    """Measure the policy on the target's test images, before and after finetuning."""
    loaded = _load(params, "evaluate", model, search, budget)
    from seam.stages.evaluate import evaluate as run

    run(loaded, _job(model, search, budget, seed), weights, policy, finetuned, out)


@app.command(rich_help_panel=_PIPELINE)
def claims(out: OutFile, params: ParamsFile = Default) -> None:
    """Judge the claims by what was run: accuracy gaps, proxy share, speed-up."""
    loaded = _load(params, "claims")
    from seam.stages.claims import claims as run

    run(loaded, out)


@app.command(rich_help_panel=_PIPELINE)
def report(out: Out, params: ParamsFile = Default) -> None:
    """Write tables and figures."""
    loaded = _load(params, "report")
    from seam.stages.report import report as run

    run(loaded, out)


@app.command(rich_help_panel=_PIPELINE)
def log(out: OutFile, params: ParamsFile = Default) -> None:
    """Log all runs to MLflow; running it twice adds nothing."""
    loaded = _load(params, "log")
    from seam.stages.log import log as run

    run(loaded, out, params)


@app.command(rich_help_panel=_PIPELINE)
def ui(
    params: ParamsFile = Default,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port; by default 5000, or a free one.", show_default=False)
    ] = None,
) -> None:
    """Open the logged runs in MLflow's pages, on this machine alone, until Ctrl-C."""
    loaded = _load(params, "ui")
    from seam.tracking.ui import serve

    serve(loaded, port)


@app.command(rich_help_panel=_PIPELINE)
def verify(params: ParamsFile = Default) -> None:
    """List every result as fresh, stale, missing or tampered; exit code 1 if any is not fresh."""
    loaded = _load(params, "verify")
    from seam.experiment.provenance import FRESH
    from seam.experiment.provenance import verify as walk

    rows = walk(loaded)
    width = max(len(row.path) for row in rows)
    for row in rows:
        typer.echo(f"{row.path:<{width}}  {row.state:<8}  {row.detail}".rstrip())
    counts = {state: sum(row.state == state for row in rows) for state in dict.fromkeys(row.state for row in rows)}
    typer.echo(", ".join(f"{count} {state}" for state, count in counts.items()))
    if set(counts) != {FRESH}:
        raise typer.Exit(1)


def main() -> None:
    """Run the command line. A SeamError or an OSError becomes one message on stderr and exit code 2; a reader that
    closes the pipe (`| head`) ends it quietly."""
    from seam.errors import SeamError
    from seam.runtime.cores import quiet_collector
    from seam.runtime.memory import exhausted
    from seam.training.stop import exit_within

    _given[:] = sys.argv[1:]
    quiet_collector()
    exit_within(8.0)
    sys.unraisablehook = _interrupt_again
    for _ in range(2):
        if sys.argv[1:2] and (option := _OPTIONS.get(sys.argv[1])):
            option()
            del sys.argv[1]
    names = {command.callback.__name__ for command in stages.registered_commands}
    staged = sys.argv[1:2] and sys.argv[1] in names and any(a.split("=")[0] == "--params" for a in sys.argv[2:])
    with contextlib.suppress(AttributeError):  # None where it is closed
        sys.stdout.reconfigure(errors="backslashreplace")  # as on stderr: an ASCII terminal shows what it can
    try:
        try:
            (stages if staged else app)()
        except SystemExit:
            if sys.stdout:
                sys.stdout.flush()  # here rather than when the interpreter ends, which reports errors in its own way
            raise
    except SeamError as error:
        _fail(str(error))
    except BrokenPipeError:
        _discard_output()
        sys.exit(1)
    except OSError as error:
        _fail(f"{_where(error)}: {error.strerror or error}")
    except (RuntimeError, MemoryError) as error:
        if not (what := exhausted(error)):
            raise
        _fail(f"{what}; smaller batches or images need less")


def _interrupt_again(dropped: "sys.UnraisableHookArgs") -> None:
    """Ctrl-C that falls into a callback of the garbage collector, where Python prints and drops it, comes again."""
    if dropped.exc_type is KeyboardInterrupt:
        again = threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(dropped)


def _silence() -> None:
    """Keep what a command would say to itself."""
    from seam.runtime.progress import be_quiet

    be_quiet()
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the end)


def _explain() -> None:
    _shown["traceback"] = True


_given: list[str] = []  # the arguments as they were given, with the options before the command
_shown = {"traceback": False}  # whether an error says where it came from
_OPTIONS = {"-q": _silence, "--quiet": _silence, "-v": _explain, "--verbose": _explain}


def _fail(message: str) -> NoReturn:
    if _shown["traceback"]:
        traceback.print_exc()
    print(f"seam: error: {message}", file=sys.stderr)
    sys.exit(2)


def _where(error: OSError) -> str:
    """What an error of the system is about: its file; or standard output, since files that are written have names."""
    if error.filename is not None:
        return os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename)
    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO, errno.EBADF):
        _discard_output()
        return "standard output"
    return type(error).__name__


def _discard_output() -> None:
    """Send what standard output still holds to nowhere: the interpreter would try to write it again at the exit."""
    if sys.stdout:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
