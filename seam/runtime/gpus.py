"""Distinct GPUs for the jobs of one machine: Snakemake counts GPUs, and gives a job none in particular.

A job locks those that it takes for as long as its process lives, and sees no others. Which GPUs there are the driver
says (`nvidia-smi -L`), by their own names: also in a container or under a cluster's scheduler, which show a job its own
part, under numbers that others have too.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from seam.errors import SeamError
from seam.runtime.progress import phase

_UUID = re.compile(r"\(UUID: ((?:GPU|MIG)-[^)\s]+)\)")
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_AGAIN = 1.0  # seconds until a job that waits for a GPU looks again


def visible() -> list[str]:
    """UUIDs of the GPUs (or of their MIG parts, where it has some) that a job may use, as the driver lists them."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    done = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=60)
    uuids = _UUID.findall(done.stdout)
    parts = [uuid for uuid in uuids if uuid.startswith("MIG")]
    uuids = parts or uuids
    if (given := os.environ.get(_VISIBLE)) is None:
        return uuids
    chosen = []
    for entry in given.split(","):  # as CUDA reads it: to the first that there is not
        entry = entry.strip()
        if entry.isdecimal() and int(entry) < len(uuids):
            chosen.append(uuids[int(entry)])
        elif entry and (matching := [uuid for uuid in uuids if uuid.startswith(entry)]):
            chosen.append(matching[0])
        else:
            break
    return chosen


def take(count: int, folder: Path | None = None) -> list[str]:
    """Take `count` GPUs that no other job of this user's has taken; from then on this process sees those alone.

    Waits while too few are free. Nothing is taken where there is no GPU. Returns their UUIDs.

    Args:
        folder: of the locks; by default one in the machine's temporary folder.

    Raises SeamError: there are GPUs, but fewer than `count`.
    """
    uuids = visible()
    if not uuids:
        return []
    if len(uuids) < count:
        raise SeamError(
            f"{count} processes share this job, each on a GPU of its own, but {len(uuids)} can be used here"
        )
    folder = folder or Path(tempfile.gettempdir()) / f"seam-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    taken = _lock(uuids, count, folder)
    if not taken:
        with phase(f"wait for {count} of {len(uuids)} GPUs that other jobs use"):
            while not (taken := _lock(uuids, count, folder)):
                time.sleep(_AGAIN)
    os.environ[_VISIBLE] = ",".join(taken)
    return taken


def _lock(uuids: Sequence[str], count: int, folder: Path) -> list[str]:
    """Lock the first `count` free ones; none where too few are."""
    import fcntl

    taken: dict[str, int] = {}
    for uuid in uuids:
        file = os.open(folder / uuid.replace("/", "-"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            continue
        taken[uuid] = file
        if len(taken) == count:
            for kept in taken.values():
                os.set_inheritable(kept, True)  # for torchrun, which takes this process's place
            return list(taken)
    for file in taken.values():
        os.close(file)
    return []
