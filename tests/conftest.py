"""Shared by all tests: one real run of the smoke set by each engine, made when a test first asks for it."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from engines import copy_repository, run, snakemake, text
from filelock import FileLock

from seam.experiment.params import Params, load_params
from seam.runtime.cores import available_cores, quiet_collector

SMOKE = "experiments/smoke.yaml"

# The files that take longest, the longest first: begun last, one of them would run on while the other workers idle.
LONG = (
    "tests/workflow/test_dvc.py",
    "tests/onnx/test_export.py",
    "tests/tracking/test_tracking.py",
    "tests/tool/test_tool.py",
    "tests/search/test_search.py",
    "tests/stages/test_kills.py",
    "tests/test_docs.py",
    "tests/workflow/test_snakemake.py",
    "tests/stages/test_stages.py",
    "tests/data/test_fetch.py",
    "tests/runtime/test_distributed.py",
    "tests/report/test_report.py",
    "tests/runtime/test_imports.py",
    "tests/tracking/test_browser.py",
    "tests/calibration/test_levels.py",
    "tests/search/test_jacobian.py",
    "tests/search/test_seam.py",
)

# A shell that starts pytest in the background lets it, and all that it starts, ignore Ctrl-C; some tests send one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# As many tests as cores and one more run side by side; with more threads each they would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
quiet_collector()


def pytest_xdist_auto_num_workers() -> int:
    """One more than cores: there is always a test that waits, for a server or for a lock on a shared fixture."""
    return available_cores() + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first (`LONG`), the others as pytest collected them."""
    place = {file: number for number, file in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.location[0], len(LONG)))


def made_once(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills, for all of pytest's workers: the first that asks makes it, the others wait."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"{name}-once"
    with FileLock(f"{folder}.lock"):
        if not (folder / "made").exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            make(folder / "seam")
            (folder / "made").touch()
    return folder / "seam"


@pytest.fixture(scope="session")
def smoke_results(tmp_path_factory) -> tuple[Params, Path]:
    """The smoke set run by Snakemake in a copy of the repository: (parameters, root of the copy). Do not change it."""

    def make(root: Path) -> None:
        copy_repository(root)
        done = snakemake(root, "--cores", "8", "--configfile", SMOKE)
        root.with_name("log").write_text(text(done))

    root = made_once(tmp_path_factory, "smoke", make)
    return load_params(root / SMOKE), root


@pytest.fixture(scope="session")
def dvc_results(tmp_path_factory) -> tuple[Params, Path]:
    """Two searches of the smoke set, by `dvc repro` in a fresh git repository without any remote. Do not change it."""

    def make(root: Path) -> None:
        copy_repository(root)
        raw = yaml.safe_load((root / SMOKE).read_text())
        raw["grid"]["searches"] = ["seam-subset", "direct"]
        (root / "params.yaml").write_text(yaml.safe_dump(raw))
        run(root, "git", "-c", "user.name=seam", "-c", "user.email=seam@localhost", "commit", "--quiet", "-am", "smoke")
        run(root, "dvc", "repro")

    root = made_once(tmp_path_factory, "dvc", make)
    return load_params(root / "params.yaml"), root


@pytest.fixture
def smoke_copy(smoke_results, tmp_path, monkeypatch) -> tuple[Params, Path]:
    """A copy of `smoke_results` to change as the test likes; it is the working directory."""
    params, root = smoke_results
    copy = tmp_path / "seam"
    shutil.copytree(root, copy)  # keeps modification times
    monkeypatch.chdir(copy)
    return params, copy
