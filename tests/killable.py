"""Commands in processes of their own that have torch loaded from the start, for tests that start and kill many."""

import multiprocessing
import os
import sys
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")


def start(root: Path, log: Path, *arguments: str) -> multiprocessing.Process:
    """`seam ARGUMENTS` in `root` with a checkpoint at every row, not every minute; stdout and stderr go to `log`.

    Each is a fork of a process that has imported everything and computed nothing.
    """
    _CONTEXT.set_forkserver_preload(["torch", "timm", "seam.cli", "seam.training.supervised", "seam.stages.target"])
    process = _CONTEXT.Process(target=_run, args=(str(root), str(log), arguments))
    process.start()
    return process


def _run(root: str, log: str, arguments: tuple[str, ...]) -> None:
    from seam.cli import main
    from seam.training import loop

    os.chdir(root)
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    loop._CHECKPOINT_SECONDS = 0.0
    sys.argv = ["seam", *arguments]
    main()
