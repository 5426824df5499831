"""The wheel and the sdist: built, installed into an environment of their own, used outside the repository."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import timm
import torch
import yaml
from engines import REPOSITORY

from seam.io import read_json, save_tensors
from seam.policy.file import read_policy

VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
pytestmark = pytest.mark.skipif(not shutil.which("uv"), reason="no uv here")


def run(*command: str | Path, cwd: Path) -> str:
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=inherited, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run("uv", "build", "--quiet", "--out-dir", folder, cwd=REPOSITORY)
    return folder


@pytest.fixture(scope="module")
def program(built, tmp_path_factory) -> Path:
    """`seam` in a new environment: the wheel is installed there, its dependencies are those of this environment."""
    venv = tmp_path_factory.mktemp("wheel") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=built)
    packages = next((venv / "lib").glob("python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = built.glob("*.whl")
    run("uv", "pip", "install", "--quiet", "--no-deps", "--python", venv / "bin/python", wheel, cwd=built)
    return venv / "bin/seam"


def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    held = {name for name in names if ".dist-info/" not in name}
    tracked = {f"seam/{path.relative_to(REPOSITORY / 'seam')}" for path in (REPOSITORY / "seam").rglob("*.*")}
    assert held == {name for name in tracked if "__pycache__" not in name}
    assert {"seam/policy/policy-1.json", "seam/py.typed"} <= held
    assert f"seam-{VERSION}.dist-info/licenses/LICENSE" in names


def test_the_sdist_holds_what_a_reader_needs(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    needed = {"README.md", "LICENSE", "pyproject.toml", "params.yaml", "dvc.yaml", "workflow/Snakefile", "uv.lock"}
    assert needed | {"docs/tool.md", "tests/test_package.py"} <= names


def test_an_installed_seam_searches_outside_the_repository(program, tmp_path):
    where = run(program.with_name("python"), "-c", "import seam; print(seam.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(program.parents[1])
    assert run(program, "--version", cwd=tmp_path) == f"seam {VERSION}\n"
    assert "search" in run(program, "--help", cwd=tmp_path)
    torch.manual_seed(0)
    save_tensors(tmp_path / "random.safetensors", timm.create_model("test_resnet", num_classes=10).state_dict())
    options = ("--model", "test_resnet", "--weights", "random.safetensors", "--method", "uniform", "-o", "policy.json")
    printed = run(program, "search", *options, cwd=tmp_path)
    assert "test_resnet" in printed and "w4a4" in printed
    assert read_policy(tmp_path / "policy.json")["software"]["seam"] == VERSION  # read by the schema in the wheel, too
    assert "test_resnet" in run(program, "show", "policy.json", cwd=tmp_path)
    assert read_json(tmp_path / "policy.json")["schema"] == "seam-policy/1"


def test_the_version_stands_in_one_place():
    """CITATION.cff and the changelog are for readers; they say the same. The code asks the installed package."""
    assert str(yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["version"]) == VERSION
    assert re.search(rf"^## {re.escape(VERSION)}\b", (REPOSITORY / "CHANGELOG.md").read_text(), re.M)
    sources = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "seam").rglob("*.py"))
    assert VERSION not in sources
