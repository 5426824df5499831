"""Reading and writing results: every write is atomic, every JSON result says what it was made from."""

import contextlib
import csv
import errno
import functools
import hashlib
import json
import math
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from seam.errors import SeamError, shortened, shown

_DIGITS = 40  # of integers in JSON
_LEVELS = 64  # of JSON


@contextlib.contextmanager
def named(path: str | Path, within: Path | None = None) -> Iterator[None]:
    """Make an OSError of the block name this path, the user's own, rather than a temporary one or none.

    within: a temporary folder that stands for `path`; only errors about what is in it are renamed.
    """
    try:
        yield
    except OSError as error:
        if within is not None:
            found = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else Path()
            if not found.is_relative_to(within):
                raise
            path = Path(path) / found.relative_to(within)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def make_folder(path: Path) -> None:
    """Make a folder and those above it; one that is there is left as it is."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # it, not one above it, is a file
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None


def temporary_prefix(path: Path) -> str:
    """How the names begin of the files that `write_atomic` makes on the way to `path`; a kill leaves one behind."""
    return f".{path.stem}.tmp-"


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)` in the target's folder, then rename: readers see the old file or the new one.

    Raises OSError that names `path`.
    """
    path = Path(path)
    with named(path):
        make_folder(path.parent)
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


def read_text(path: str | Path, missing: str = "no such file") -> str:
    """Read UTF-8 text, whatever the locale; SeamError names a file that cannot be read, or is in another encoding."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise SeamError(f"{path}: {missing}") from None
    except OSError as error:
        raise SeamError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise SeamError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically; the same value gives the same bytes."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON; SeamError names a missing or broken file, and one that holds what we never write.

    That is: NaN and infinity, integers of more than 40 digits, a key twice, more than 64 levels, lone surrogates.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        value = json.loads(
            text, object_pairs_hook=_object, parse_int=_integer, parse_float=_finite, parse_constant=_finite
        )
        _check_depth(value)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except FileNotFoundError:
        raise SeamError(f"{path}: no such file") from None
    except OSError as error:
        raise SeamError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise SeamError(
            f"{path}: not valid JSON ({reason}); if a stage made it, delete it and run the stage again"
        ) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {shown(next(key for key in keys if keys.count(key) > 1))} stands there twice")
    return value


def _integer(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"an integer of {len(text):,} digits")
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{shortened(text)} is no finite number")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_LEVELS):
        level = [
            item
            for held in level
            if isinstance(held, (dict, list))
            for item in (held.values() if isinstance(held, dict) else held)
        ]
        if not level:
            return
    raise ValueError("nested too deeply")


def write_csv(path: str | Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write rows as CSV, atomically. `columns`: the header; None: the keys of the first row."""
    rows = list(rows)
    header = list(columns or (rows[0] if rows else []))

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=header, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_atomic(path, write)


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Read a CSV file's rows as dictionaries of strings; SeamError names a missing file and one that is no CSV."""
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise SeamError(f"{path}: no such file") from None
    except OSError as error:
        raise SeamError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise SeamError(
            f"{path}: not CSV in UTF-8 ({error}); if a stage made it, delete it and run the stage again"
        ) from None


def save_tensors(path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write a state dict as safetensors, atomically. Shared and non-contiguous tensors are copied."""
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomic(path, lambda temporary: write_tensors(temporary, own, dict(metadata or {})))


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: dict[str, str]) -> None:
    """Write contiguous tensors on the CPU as safetensors to `path` itself.

    Not by safetensors' `save_file`: that goes by a temporary file with a name of its own, which a kill would leave.
    """
    from safetensors.torch import save

    path.write_bytes(save(dict(tensors), metadata))


def load_tensors(path: str | Path) -> dict[str, Any]:
    """Read a safetensors file; SeamError names a missing or corrupt one."""
    from safetensors.torch import load_file

    with _readable(path):
        tensors: dict[str, Any] = load_file(str(path))
    return tensors


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
