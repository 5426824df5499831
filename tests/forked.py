"""Commands in processes of their own that have torch loaded from the start: as `python -m seam`, seconds sooner.

Each is a fork of a process that has imported everything and computed nothing; one for each of pytest's workers. That
commands start from nothing is seen where the start is what is tested (test_cli.py), and in both engines' runs.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from engines import REPOSITORY, environment

_CONTEXT = multiprocessing.get_context("forkserver")
_IMPORTED = ["torch", "timm", "torchvision.transforms.v2", "seam.cli", "seam.tool", "seam.stages.target"]


def seam(*arguments: object, cwd: Path | str = ".", seconds: float = 300) -> subprocess.CompletedProcess:
    """Run `seam ARGUMENTS` in the folder `cwd`; fails where it takes more than `seconds`."""
    words = [*map(str, arguments)]
    with tempfile.TemporaryDirectory() as place:
        out, err = (Path(place, name) for name in ("out", "err"))
        process = _start(words, cwd, out, err, environment(REPOSITORY))
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            raise AssertionError(f"seam {words}: more than {seconds} s")
        return subprocess.CompletedProcess(words, process.exitcode, out.read_text(), err.read_text())


def start(root: Path, log: Path, *arguments: str) -> multiprocessing.Process:
    """`seam ARGUMENTS` in `root` with a checkpoint at every row, not every minute; stdout and stderr go to `log`."""
    return _start([*arguments], root, log, log, os.environ, checkpoint_seconds=0.0)


def _start(words: list[str], cwd: Path | str, out: Path, err: Path, environ: Mapping[str, str], **options: float):
    _CONTEXT.set_forkserver_preload(_IMPORTED)
    process = _CONTEXT.Process(target=_run, args=(words, os.path.abspath(cwd), out, err, dict(environ)), kwargs=options)
    process.start()
    return process


def _run(
    words: list[str], cwd: str, out: Path, err: Path, environ: dict[str, str], checkpoint_seconds: float | None = None
) -> None:
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    if checkpoint_seconds is not None:
        from seam.training import loop

        loop._CHECKPOINT_SECONDS = checkpoint_seconds
    sys.argv = ["seam", *words]
    from seam.cli import main

    main()
