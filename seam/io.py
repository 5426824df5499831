"""Reading and writing results: every write is atomic, every JSON result says what it was made from."""

import contextlib
import csv
import functools
import hashlib
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from seam.errors import SeamError


def temporary_prefix(path: Path) -> str:
    """How the names begin of the files that `write_atomic` makes on the way to `path`; a kill leaves one behind."""
    return f".{path.stem}.tmp-"


def write_atomic(path: str | Path, write: Callable[[Path], None]) -> None:
    """Call `write(temporary path)` in the target's folder, then rename: readers see the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=temporary_prefix(path), suffix=path.suffix)
    os.close(handle)
    try:
        write(Path(temporary))
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 would lock out a shared results folder
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomic(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically; the same value gives the same bytes."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON; SeamError names a missing or broken file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SeamError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SeamError(
            f"{path}: not valid JSON ({error}); if a stage made it, delete it and run the stage again"
        ) from None


def write_csv(path: str | Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write rows as CSV, atomically. `columns`: the header; None: the keys of the first row."""
    rows = list(rows)
    header = list(columns or (rows[0] if rows else []))

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=header, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_atomic(path, write)


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Read a CSV file's rows as dictionaries of strings."""
    try:
        with Path(path).open(newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise SeamError(f"{path}: no such file") from None


def save_tensors(path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write a state dict as safetensors, atomically. Shared and non-contiguous tensors are copied."""
    from safetensors.torch import save_file

    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomic(path, lambda p: save_file(own, str(p), metadata=dict(metadata or {})))


def load_tensors(path: str | Path) -> dict[str, Any]:
    """Read a safetensors file; SeamError names a missing or corrupt one."""
    from safetensors.torch import load_file

    with _readable(path):
        return load_file(str(path))


def tensor_names(path: str | Path) -> list[str]:
    """The names in a safetensors file, without reading the tensors; SeamError names a missing or corrupt one."""
    from safetensors import safe_open

    with _readable(path), safe_open(str(path), "pt") as file:
        return list(file.keys())


@contextlib.contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except FileNotFoundError:
        raise SeamError(f"{path}: no such file") from None
    except SafetensorError as error:
        raise SeamError(
            f"{path}: not a valid safetensors file ({error}); if a stage made it, delete it and run the stage again"
        ) from None


def sha256(path: str | Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def git_state() -> dict[str, Any]:
    """Commit and whether tracked files differ from it; None outside a repository."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno", "--", "seam"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


@functools.cache
def software() -> dict[str, str | None]:
    """Versions of what results depend on."""

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    names = ("seam", "torch", "torchvision", "timm", "numpy", "scipy", "onnx", "onnxruntime")
    return {"python": platform.python_version(), **{name: installed(name) for name in names}}


def provenance(params: Mapping[str, Any], inputs: Iterable[str | Path]) -> dict[str, Any]:
    """What a result was made from: its slice of the parameters and the sha256 of each input file.

    Holds nothing that differs between two runs of the same job on the same machine (no times, no dates).
    """
    return {
        "params": dict(params),
        "inputs": {str(path): sha256(path) for path in inputs},
        "git": git_state(),
        "software": software(),
    }
