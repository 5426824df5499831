"""environment.yml, pyproject.toml and uv.lock describe one set of packages."""

import re
import tomllib

import pytest
import yaml
from engines import REPOSITORY


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def locked():
    lock = tomllib.loads((REPOSITORY / "uv.lock").read_text())
    return {normal(package["name"]): package["version"] for package in lock["package"]}


@pytest.fixture(scope="module")
def environment():
    return yaml.safe_load((REPOSITORY / "environment.yml").read_text())


def test_conda_users_get_the_locked_versions_of_every_dependency(project, locked, environment):
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    names = {normal(re.match(r"[\w.-]+", requirement).group()) for requirement in wanted}
    pip = environment["dependencies"][-1]["pip"]
    assert pip[-1] == "-e ."
    given = {normal(name): version for name, version in (line.split("==") for line in pip[:-1])}
    assert given == {name: locked[name] for name in names}


def test_the_python_version_is_one_the_project_supports(project, environment):
    given = next(line for line in environment["dependencies"] if str(line).startswith("python="))
    least = project["project"]["requires-python"].removeprefix(">=")
    assert [int(part) for part in given.removeprefix("python=").split(".")] >= [int(part) for part in least.split(".")]
