"""Shared by all tests: one real run of the smoke set by each engine, made when a test first asks for it."""

import shutil
import signal
from pathlib import Path

import pytest
from engines import copy_repository, run, snakemake, text

from seam.experiment.params import Params, load_params

SMOKE = "experiments/smoke.yaml"

# A shell that starts pytest in the background lets it, and all that it starts, ignore Ctrl-C; some tests send one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smoke_results(tmp_path_factory) -> tuple[Params, Path]:
    """The smoke set run by Snakemake in a copy of the repository: (parameters, root of the copy). Do not change it."""
    root = copy_repository(tmp_path_factory.mktemp("smoke") / "seam")
    done = snakemake(root, "--cores", "8", "--configfile", SMOKE)
    root.with_name("log").write_text(text(done))
    return load_params(root / SMOKE), root


@pytest.fixture(scope="session")
def dvc_results(tmp_path_factory) -> tuple[Params, Path]:
    """The smoke set run by `dvc repro` in a fresh git repository without any remote. Do not change it."""
    root = copy_repository(tmp_path_factory.mktemp("dvc") / "seam")
    shutil.copy2(root / SMOKE, root / "params.yaml")
    run(root, "git", "-c", "user.name=seam", "-c", "user.email=seam@localhost", "commit", "--quiet", "-am", "smoke")
    run(root, "dvc", "repro")
    return load_params(root / SMOKE), root


@pytest.fixture
def smoke_copy(smoke_results, tmp_path, monkeypatch) -> tuple[Params, Path]:
    """A copy of `smoke_results` to change as the test likes; it is the working directory."""
    params, root = smoke_results
    copy = tmp_path / "seam"
    shutil.copytree(root, copy)  # keeps modification times
    monkeypatch.chdir(copy)
    return params, copy
