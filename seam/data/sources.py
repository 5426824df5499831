"""Where datasets are got from. Each source puts complete, verified data in place or raises SeamError."""

import contextlib
import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from seam.data.datasets import DatasetInfo
from seam.data.readers import content, find_idx
from seam.errors import SeamError
from seam.io import write_atomic
from seam.runtime.imports import import_torch

CONNECT_SECONDS = 5.0  # a server that has not answered by then counts as out of reach
STALL_SECONDS = 30.0  # a download that brings nothing for so long is given up


def say(message: str) -> None:
    """Tell the user what goes on."""
    print(f"seam: {message}", file=sys.stderr, flush=True)


def from_torchvision(info: DatasetInfo, base: Path) -> str:
    """Download with torchvision's class, or unpack archives that lie in `base`, as torchvision would.

    Works in a folder aside and moves what is complete: a killed download leaves nothing that counts as present. The
    caller holds the dataset's lock.
    """
    archives = [e for e in base.iterdir() if e.is_file() and (".tar" in e.name or e.suffix == ".tgz")]
    if info.url and not archives:
        _check_reachable(info.url)
    import_torch()  # seconds: not before it is known to be of use
    import torchvision.datasets

    cls = getattr(torchvision.datasets, info.torchvision)
    staging = base / ".download"
    shutil.rmtree(staging, ignore_errors=True)  # of a killed fetch; we hold the lock
    staging.mkdir()
    try:
        for archive in archives:
            (staging / archive.name).symlink_to(archive.resolve())
        with _patient_sockets(), _quiet_unless_terminal():
            if info.torchvision == "ImageNet":  # never downloads: it unpacks the archives, a split at a time
                cls(staging, split="train"), cls(staging, split="val")
            else:
                cls(staging, download=True)
        if info.files:
            _take(info, staging / info.torchvision / "raw", base)
        else:
            for entry in sorted(staging.iterdir()):
                if entry.is_dir():
                    _move(entry, base / entry.name)
    except (OSError, RuntimeError, ValueError, EOFError, tarfile.TarError, HTTPException) as error:
        raise SeamError(" ".join(str(error).split()) or type(error).__name__) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return f"torchvision.datasets.{info.torchvision}"


def _move(entry: Path, target: Path) -> None:
    """Rename a folder into place; one that is there already (damaged, or we would not be here) is kept aside."""
    if target.exists():
        aside = next(p for i in range(10**6) if not (p := target.with_name(f"{target.name}.damaged{i or ''}")).exists())
        target.rename(aside)
        say(f"{target} was damaged: kept as {aside.name}")
    entry.rename(target)


def _check_reachable(url: str) -> None:
    """SeamError within seconds if no connection can be made: a black-holed network would hang for minutes."""
    if urllib.request.getproxies():
        return  # the proxy connects, not we
    parts = urlsplit(url)
    outcome: list[str | None] = []

    def connect() -> None:
        try:
            address = (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
            socket.create_connection(address, timeout=CONNECT_SECONDS).close()
            outcome.append(None)
        except OSError as error:
            outcome.append(error.strerror or str(error))

    # In a thread: a name look-up has no timeout of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    reason = outcome[0] if outcome else f"no answer in {CONNECT_SECONDS:g} s"
    if reason:
        raise SeamError(f"{parts.hostname} cannot be reached ({reason}); no network?")


@contextlib.contextmanager
def _patient_sockets() -> Iterator[None]:
    """A timeout on the sockets that torchvision opens; it sets none, and would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _quiet_unless_terminal() -> Iterator[None]:
    """No progress bars in log files."""
    if sys.stderr.isatty():
        yield
    else:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield


def from_debian(info: DatasetInfo, base: Path, system: Path = Path("/")) -> str:
    """Take the files of an MNIST-like dataset from its Debian package: installed, or downloaded without root.

    The download has package lists of its own, in a temporary folder, and unpacks nothing outside it.
    system: where the file system of an installed package begins.
    """
    package, folder = info.debian
    installed = system / folder
    if installed.is_dir():
        _take(info, installed, base)
        return f"Debian package {package}, installed"
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise SeamError(f"no {tool} on this machine, and no {installed}")
    with tempfile.TemporaryDirectory(prefix="seam-apt-") as temporary:
        work = Path(temporary)
        options = ["-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::http::Timeout=10", "-o", "Acquire::Retries=1"]
        for key, name in (("Dir::State::Lists", "lists"), ("Dir::Cache", "cache")):
            (work / name / "partial").mkdir(parents=True)
            options += ["-o", f"{key}={work / name}"]
        (work / "cache/archives/partial").mkdir(parents=True)
        # A third party's list that fails must not matter: only the download's outcome counts.
        update = _run(["apt-get", *options, "update"], work)
        download = _run(["apt-get", *options, "download", package], work)
        packages = list(work.glob(f"{package}_*.deb"))
        if download.returncode or not packages:
            lines = [line for line in (update.stderr + download.stderr).splitlines() if line[:2] in ("E:", "W:")]
            raise SeamError(f"apt-get download: {'; '.join(lines[-3:]) or f'exit code {download.returncode}'}")
        unpack = _run(["dpkg-deb", "-x", str(packages[0]), str(work / "unpacked")], work)
        if unpack.returncode:
            raise SeamError(f"dpkg-deb -x: {unpack.stderr.strip()}")
        _take(info, work / "unpacked" / folder, base)
    return f"Debian package {package}"


def _take(info: DatasetInfo, folder: Path, base: Path) -> None:
    """Copy the dataset's files, verified, each atomically."""
    for name, digest in info.files.items():
        source = find_idx(name, [folder])
        if source is None:
            raise SeamError(f"{folder}: no {name}.gz")
        content(source, digest)
        write_atomic(base / source.name, lambda to, source=source: shutil.copyfile(source, to))


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    try:
        environment = {**os.environ, "LC_ALL": "C", "TMPDIR": str(folder)}
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        raise SeamError(f"{command[0]} {command[-1]}: no end after 300 s") from None
