"""Calls in processes of their own that have the libraries loaded from the start: as new ones, seconds sooner.

Each is a fork of a process that has imported everything and computed nothing; one for each of pytest's workers. That
commands start from nothing is seen where the start is what is tested (test_cli.py), and in both engines' runs.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engines import REPOSITORY, environment

from seam.cli import main
from seam.training import loop

_CONTEXT = multiprocessing.get_context("forkserver")
_IMPORTED = ["torch", "timm", "torchvision.transforms.v2", "seam.cli", "seam.tool", "seam.stages.target"]
_IMPORTED += ["snakemake.api", "dvc.repo"]


def seam(*arguments: object, cwd: Path | str = ".", seconds: float = 300) -> subprocess.CompletedProcess:
    """Run `seam ARGUMENTS` in the folder `cwd`; fails where it takes more than `seconds`."""
    words = [*map(str, arguments)]
    with tempfile.TemporaryDirectory() as place:
        out, err = (Path(place, name) for name in ("out", "err"))
        process = _start(_command, (words,), cwd, out, err, environment(REPOSITORY))
        _finish(process, seconds, words)
        return subprocess.CompletedProcess(words, process.exitcode, out.read_text(), err.read_text())


def start(root: Path, log: Path, *arguments: str) -> multiprocessing.Process:
    """`seam ARGUMENTS` in `root` with a checkpoint at every row, not every minute; stdout and stderr go to `log`."""
    return _start(_command, (arguments, 0.0), root, log, log, os.environ)


def call(function: Callable[..., Any], *arguments: Any, cwd: Path) -> Any:
    """What `function(*arguments)` returns in the folder `cwd`, as JSON gives it back."""
    with tempfile.TemporaryDirectory() as place:
        out, result = Path(place, "out"), Path(place, "result")
        process = _start(_result, (function, arguments, result), cwd, out, out, environment(cwd))
        _finish(process, 300, function)
        assert process.exitcode == 0, out.read_text()
        return json.loads(result.read_text())


def _start(target: Callable, arguments: tuple, cwd: Path | str, out: Path, err: Path, environ: Mapping[str, str]):
    _CONTEXT.set_forkserver_preload(_IMPORTED)
    process = _CONTEXT.Process(target=_run, args=(target, arguments, os.path.abspath(cwd), out, err, dict(environ)))
    process.start()
    return process


def _finish(process: multiprocessing.Process, seconds: float, what: object) -> None:
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"{what}: more than {seconds} s")


def _run(target: Callable, arguments: tuple, cwd: str, out: Path, err: Path, environ: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    target(*arguments)


def _command(words: list[str], checkpoint_seconds: float | None = None) -> None:
    if checkpoint_seconds is not None:
        loop._CHECKPOINT_SECONDS = checkpoint_seconds
    sys.argv = ["seam", *words]
    main()


def _result(function: Callable[..., Any], arguments: tuple, path: Path) -> None:
    path.write_text(json.dumps(function(*arguments)))
