"""What each result was made from: written by every stage, checked before use, walked by `seam verify`."""

import contextlib
import errno
import fcntl
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from seam import io
from seam.errors import SeamError
from seam.experiment.graph import Node, nodes
from seam.experiment.params import STAGE_KEYS, Job, Params
from seam.runtime.distributed import rank
from seam.settings import Alias, Shape, check_shape

ABANDONED = 3600  # seconds after which an unfinished folder of outputs is a killed job's, where locks cannot tell
FRESH, STALE, MISSING, TAMPERED = "fresh", "stale", "missing", "tampered"


class _Job(Shape):
    model_config = {"extra": "forbid"}

    model: Alias = ""
    search: Alias = ""
    budget: Alias = ""
    seed: int = 0


class _Provenance(Shape):
    """What is read of a provenance file."""

    stage: Literal[tuple(STAGE_KEYS)]
    job: _Job
    params: dict[str, Any]
    inputs: dict[str, str]
    outputs: dict[str, str]


class Row(NamedTuple):
    """One job's state: path, fresh|stale|missing|tampered, and what is wrong."""

    path: str
    state: str
    detail: str


def provenance_path(output: str | Path) -> Path | None:
    """An output's provenance file, `<stem>.provenance.json` or `provenance.json` beside it; None if there is none."""
    output = Path(output)
    for path in (output.with_name(f"{output.stem}.provenance.json"), output.with_name("provenance.json")):
        if path.exists():
            return path
    return None


def record(
    params: Params,
    stage: str,
    job: Job | Mapping[str, Any],
    inputs: Iterable[str | Path],
    outputs: Iterable[str | Path],
    path: str | Path | None = None,
) -> None:
    """Write the provenance of a finished job; call it last, when all its outputs are in place.

    Args:
        job: the values of model, search, budget and seed that the stage has; {} for none.
        outputs: the files that the job wrote, all in one folder.
        path: where to write; by default `provenance.json` beside the outputs.
    """
    job = _job(job)
    outputs = [Path(output) for output in outputs]
    content = {
        "stage": stage,
        "job": job,
        **io.provenance(params.slice(stage, **job), inputs),
        "outputs": {output.name: io.sha256(output) for output in outputs},
    }
    order = ("stage", "job", "params", "inputs", "outputs", "git", "software")
    io.write_json(path or outputs[0].with_name("provenance.json"), {key: content[key] for key in order})


@contextlib.contextmanager
def writing(
    params: Params,
    stage: str,
    job: Job | Mapping[str, Any],
    inputs: Iterable[str | Path],
    outputs: Iterable[str | Path],
    path: str | Path | None = None,
) -> Iterator[Path]:
    """Gives a folder to write a job's outputs to, and moves all of them into place with their provenance at the end.

    What fails on the way (a full disk) leaves what was there before, or nothing. Since the provenance is moved first, a
    job killed between two moves leaves no output that could pass for the user's own. Arguments as of `record`.
    Of the processes of a job the first one writes; what others do in the block is thrown away.
    """
    if rank():
        with tempfile.TemporaryDirectory() as aside:
            yield Path(aside)
        return
    outputs = [Path(output) for output in outputs]
    target = Path(path) if path else outputs[0].with_name("provenance.json")
    for place in (target, *outputs):
        if place.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(place))
    with io.named(target.parent):
        io.make_folder(target.parent)
        for old in target.parent.glob(".writing-*"):
            with contextlib.suppress(OSError):
                if not _held(old) or time.time() - old.stat().st_mtime > ABANDONED:
                    shutil.rmtree(old, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=target.parent))
        handle = _hold(folder)
    try:
        with io.named(target.parent, within=folder):
            yield folder
            written = [folder / output.name for output in outputs]
            record(params, stage, job, inputs, written, folder / target.name)
        for source, place in zip([folder / target.name, *written], [target, *outputs], strict=True):
            with io.named(place):
                os.replace(source, place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _hold(folder: Path) -> int:
    """Lock a folder of this process's, as far as its file system can, until the returned handle is closed."""
    handle = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return handle


def _held(folder: Path) -> bool:
    """Whether a running process locks a folder; True as well where the file system cannot tell."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(handle)


def check_inputs(params: Params, inputs: Iterable[str | Path], job: Job | Mapping[str, Any] | None = None) -> None:
    """Refuse inputs that do not match the parameters in force, or that are not what their stage wrote.

    An input without a provenance file beside it (the user's own weights or policy) is accepted as it is. The inputs
    of an input are checked in the same way, as far as they are still there.

    Args:
        job: the job that reads the inputs; an input made for another model, search, budget or seed is refused.

    Raises:
        SeamError: names the file, the parameter or input that differs, and both values.
    """
    job = _job(job or {})
    passed: set[Path] = set()
    for path in map(Path, inputs):
        if not path.exists():
            raise SeamError(f"{path}: no such file; run the stage that makes it first (or the whole pipeline)")
        source = provenance_path(path)
        if source is None:
            continue
        recorded = _read(source)
        for key, value in recorded["job"].items():
            if key in job and job[key] != value:
                raise SeamError(f"{path}: was made for {key} {value!r}, this job is for {key} {job[key]!r}")
        if (problem := _problem(params, path, recorded, passed)) is not None:
            raise SeamError(f"{problem}; run {_command(recorded)} again (both engines do so by themselves)")


def verify(params: Params) -> list[Row]:
    """The state of every job that the parameters stand for, in the order of the graph.

    A job is *missing* when an output or its provenance is not there; *tampered* when an output is not what the stage
    wrote, or lies in another job's place; *stale* when a parameter or an input differs from what it was made with, or
    an input is itself not fresh; else *fresh*.
    """
    states: dict[Path, str] = {}
    rows = []
    for node in nodes(params):
        state, detail = _state(params, node, states)
        for output in node.outputs:
            states[output] = state
        rows.append(Row(str(node.place), state, detail))
    return rows


def _state(params: Params, node: Node, states: Mapping[Path, str]) -> tuple[str, str]:
    gone = [path.name for path in (*node.outputs, node.provenance) if not path.exists()]
    if gone:
        return MISSING, ", ".join(gone)
    try:
        recorded = _read(node.provenance)
    except SeamError as error:
        return TAMPERED, str(error)
    if recorded["stage"] != node.stage or recorded["job"] != node.job:
        return TAMPERED, f"made as {_describe(recorded['stage'], recorded['job'])}"
    for output in node.outputs:
        if recorded["outputs"].get(output.name) != io.sha256(output):
            return TAMPERED, f"{output.name} is not what {node.stage} wrote"
    if difference := _difference(params, recorded):
        return STALE, difference
    for path in node.inputs:
        if str(path) not in recorded["inputs"]:
            return STALE, f"{path} was not among its inputs"
    for name, digest in recorded["inputs"].items():
        path = Path(name)
        if not os.path.isfile(path):
            return STALE, f"input {name} is missing"
        if _readable_sha256(path) != digest:
            return STALE, f"input {name} has changed"
        if states.get(path, FRESH) != FRESH:
            return STALE, f"input {name} is {states[path]}"
    return FRESH, ""


def _problem(params: Params, path: Path, recorded: dict, passed: set[Path]) -> str | None:
    """What is wrong with an input, or with what it was made from; None when nothing is.

    passed: files whose own inputs were looked at already, so that a shared ancestor is walked once; grows.
    """
    if recorded["outputs"].get(path.name) != _sha256(path):
        return f"{path}: is not the file that {_describe(recorded['stage'], recorded['job'])} wrote"
    if difference := _difference(params, recorded):
        return f"{path}: was made with other parameters: {difference}"
    for name, digest in recorded["inputs"].items():
        source = Path(name)
        if not os.path.isfile(source):  # gone; or a name that can be none, a device that would never end
            continue
        if _sha256(source) != digest:
            return f"{path}: was made from another version of {name}"
        if source in passed:
            continue
        passed.add(source)
        beside = provenance_path(source)
        if beside and (problem := _problem(params, source, _read(beside), passed)):
            return f"{path}: was made from {problem}"
    return None


def _difference(params: Params, recorded: Mapping[str, Any]) -> str:
    """The first parameter whose recorded value is not the one in force, with both values; '' when there is none."""
    try:
        now = _leaves(params.slice(recorded["stage"], **recorded["job"]))
    except KeyError as error:
        return f"{error.args[0]} is no longer in the parameters"
    then = _leaves(recorded["params"])
    for key in sorted({*then, *now}):
        if then.get(key, _ABSENT) != now.get(key, _ABSENT):
            return f"{key} was {_show(then, key)}, is {_show(now, key)}"
    return ""


_ABSENT = object()


def _show(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "not set"


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or (prefix and not value):
        return {prefix: value}
    result: dict[str, Any] = {}
    for key, inner in value.items():
        result |= _leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    return result


def _read(path: Path) -> dict[str, Any]:
    return check_shape(io.read_json(path), _Provenance, path, "delete its folder and run the stage again")


def _job(job: Job | Mapping[str, Any]) -> dict[str, Any]:
    return job._asdict() if isinstance(job, Job) else dict(job)


def _describe(stage: str, job: Mapping[str, Any]) -> str:
    return " ".join([stage, "/".join(map(str, job.values()))]).strip()


def _command(recorded: Mapping[str, Any]) -> str:
    options = "".join(f" --{key} {value}" for key, value in recorded["job"].items())
    return f"`python -m seam {recorded['stage']}{options} ...`"


def _sha256(path: Path) -> str:
    status = path.stat()
    return _digest(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, mtime: int, size: int) -> str:
    return _readable_sha256(path)


def _readable_sha256(path: Path) -> str:
    """The digest of a file that a provenance file names; "", no file's, where it cannot be read."""
    try:
        return io.sha256(path)
    except OSError:
        return ""
