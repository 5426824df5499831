"""environment.yml, pyproject.toml and uv.lock describe one set of packages."""

import re
import tomllib

import pytest
import yaml
from engines import REPOSITORY
from packaging.markers import Marker


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def environment():
    return yaml.safe_load((REPOSITORY / "environment.yml").read_text())


@pytest.fixture(scope="module")
def python(environment):
    line = next(line for line in environment["dependencies"] if str(line).startswith("python="))
    return line.removeprefix("python=")


@pytest.fixture(scope="module")
def locked(python):
    """Package -> version in uv.lock, on Linux with the Python of environment.yml."""
    lock = tomllib.loads((REPOSITORY / "uv.lock").read_text())
    here = {"python_full_version": f"{python}.0", "python_version": python, "sys_platform": "linux"}

    def applies(package):
        markers = package.get("resolution-markers")
        return not markers or any(Marker(marker).evaluate(here) for marker in markers)

    return {normal(package["name"]): package["version"] for package in filter(applies, lock["package"])}


def test_conda_users_get_the_locked_versions_of_every_dependency(project, locked, environment):
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    names = {normal(re.match(r"[\w.-]+", requirement).group()) for requirement in wanted}
    pip = environment["dependencies"][-1]["pip"]
    assert pip[-1] == "-e ."
    given = {normal(name): version for name, version in (line.split("==") for line in pip[:-1])}
    assert given == {name: locked[name] for name in names}


def test_the_python_version_is_one_the_project_supports(project, python):
    least = project["project"]["requires-python"].removeprefix(">=")
    assert [int(part) for part in python.split(".")] >= [int(part) for part in least.split(".")]
