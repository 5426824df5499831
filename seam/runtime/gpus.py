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
from seam.runtime.progress import say

_WHOLE, _PART = (
    re.compile(rf"{start}.*\(UUID: ({kind}-[^)\s]+)\)") for start, kind in (("GPU", "GPU"), (r"\s+MIG", "MIG"))
)
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_AGAIN = 1.0  # seconds until a job that waits for a GPU looks again


def visible() -> list[str]:
    """UUIDs of the GPUs that a job may use here, or of the MIG parts of those that have some, in the driver's order.

    Numbers in CUDA_VISIBLE_DEVICES are taken for the driver's, as with CUDA_DEVICE_ORDER=PCI_BUS_ID. SeamError: the
    driver does not answer.
    """
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        listed = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=60).stdout
    except subprocess.TimeoutExpired:
        raise SeamError("nvidia-smi -L has not answered for a minute: the driver of the GPUs hangs") from None
    gpus: list[list[str]] = []  # of each one its UUID, or those of its parts
    for line in listed.splitlines():
        if match := _WHOLE.match(line):
            gpus.append([match[1]])
        elif gpus and (match := _PART.match(line)):
            gpus[-1] = [uuid for uuid in gpus[-1] if uuid.startswith("MIG")] + [match[1]]
    uuids = [uuid for gpu in gpus for uuid in gpu]
    if (given := os.environ.get(_VISIBLE)) is None:
        return uuids
    chosen = []
    for entry in given.split(","):  # up to the first that there is not, as CUDA reads it
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

    Raises SeamError: there are GPUs, but fewer than `count`, or these are MIG parts, of which a process sees one alone.
    """
    uuids = visible()
    if not uuids:
        return []
    if len(uuids) < count:
        raise SeamError(
            f"{count} processes share this job, each on a GPU of its own, but {len(uuids)} can be used here"
        )
    if count > 1 and any(uuid.startswith("MIG") for uuid in uuids):
        raise SeamError(
            f"{count} processes share this job, which MIG parts of GPUs cannot do: give it whole GPUs, or one"
        )
    folder = folder or Path(tempfile.gettempdir()) / f"seam-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    taken = _lock(uuids, count, folder)
    if not taken:
        say(f"wait for {count} of {len(uuids)} GPUs, which other jobs use")
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
