"""seam show, diff and convert: what they print, draw and write, and their exit codes."""

import copy
import json
import os
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from engines import REPOSITORY, environment
from PIL import Image
from policies import COST, MINIMAL, PROXY, policy

from seam.io import read_csv, write_json


def seam(*arguments, **variables) -> subprocess.CompletedProcess:
    """Run the command line in a pipe."""
    environ = {**environment(REPOSITORY), "COLUMNS": "40", **variables}
    environ.pop("FORCE_COLOR", None)
    command = [sys.executable, "-m", "seam", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, encoding="utf-8", timeout=120)


@pytest.fixture
def files(tmp_path):
    """Writes policies' contents to files, in order."""

    def write(*contents):
        paths = [tmp_path / f"{name}.json" for name in "abc"[: len(contents)]]
        for path, content in zip(paths, contents, strict=True):
            write_json(path, content)
        return paths

    return write


def rows(text: str) -> dict[str, list[str]]:
    """First word of each line -> the others."""
    return {words[0]: words[1:] for line in text.splitlines() if (words := line.split())}


def test_show_prints_every_layer_and_where_the_policy_comes_from(files):
    done = seam("show", *files(policy(proxy=PROXY, cost=COST, versions=True)))
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    table = rows(done.stdout)
    assert table["stem"] == ["100", "10", "8", "8", "-", "█" * 8, "█" * 8, "fixed"]
    assert table["a"] == ["1k", "20", "2", "3", "60.0", "██", "███"]
    assert table["b"] == ["500", "40", "4", "2", "40.0", "████", "██"]
    assert table["4"] == ["layers", "1.63k", "100"]
    for words in (
        ["toy (mine), 10 classes, input 1x8x8"],
        ["seam, search digits, seed 0"],
        ["digits, 1,797 images of 8x8, sha256 000000000000"],
        ["640 images, 10 steps, 640k images x MACs"],
        ["budget", "w4a4: 1e-05 of 2.4e-05 GBitOPs (41.7%)", "8/8 and counted apart"],
        ["totals", "1e-05 GBitOPs in the budget, 8.32e-06 counted apart; 6.5e-05 MB"],
        ["network", "1.832e-05 GBitOPs, 6.5e-05 MB of weights in all", "6.5e-05 MB in ONNX"],
        ["software", "torch "],
    ):
        assert any(all(word in line for word in words) for line in done.stdout.splitlines()), words


def test_show_in_a_pipe_cuts_no_name(files):
    name = "stages.0.blocks.11.attention.projection." + "x" * 60
    content = {"schema": "seam-policy/1", "layers": {name: {"w": 3, "a": 4}, "b[red]": {"w": 32, "a": 32}}}
    done = seam("show", *files(content))
    assert rows(done.stdout)[name] == ["-", "-", "3", "4", "-", "███", "████"]
    assert rows(done.stdout)["b[red]"][-2:] == ["full", "precision"]
    assert "totals    unknown" in done.stdout


def test_show_where_the_terminal_has_no_blocks(files):
    done = seam("show", *files(MINIMAL), PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert "####" in done.stdout and done.stdout.isascii()


def test_show_notes_totals_that_the_layers_do_not_give(files):
    content = policy()
    content["layers"]["a"]["w"] = 4
    done = seam("show", *files(content))
    assert "1.6e-05 GBitOPs in the budget" in done.stdout
    assert "totals: bitops_g is 1e-05, but the layers give 1.6e-05; the file was changed by hand" in done.stdout


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_figure_is_the_same_each_time(files, tmp_path, suffix):
    (path,) = files(policy())
    figures = [tmp_path / f"{i}.{suffix}" for i in range(2)]
    for figure in figures:
        done = seam("show", path, "--figure", figure)
        assert done.returncode == 0, done.stderr
    assert figures[0].read_bytes() == figures[1].read_bytes()
    if suffix == "png":
        with Image.open(figures[0]) as image:
            assert image.width > 500 and len(image.getcolors(1 << 20)) > 10
    else:
        assert ElementTree.parse(figures[0]).getroot().tag.endswith("svg")


def test_a_policy_of_bits_alone_can_be_drawn(files, tmp_path):
    content = copy.deepcopy(MINIMAL)
    content["layers"]["b"] = {"w": 32, "a": 32}
    assert seam("show", *files(content), "--figure", tmp_path / "x.png").returncode == 0
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_diff_of_equal_bits_is_0_whoever_found_them(files):
    other = policy(cost=COST)
    other.update(seed=7, method="uniform")
    done = seam("diff", *files(policy(), other))
    assert done.returncode == 0, done.stdout
    assert "0 of 4 layers differ" in done.stdout
    assert rows(done.stdout)["seed"] == ["0", "7"] and rows(done.stdout)["method"] == ["seam", "uniform"]


def test_diff_prints_layers_and_totals_and_returns_1(files):
    done = seam("diff", *files(policy(), policy(((3, 3), (4, 2)))))
    assert done.returncode == 1 and done.stderr == ""
    table = rows(done.stdout)
    assert table["a"] == ["2", "->", "3"] and "b" not in table and "stem" not in table
    assert "1 of 4 layers differ" in done.stdout
    assert table["GBitOPs"][-2:] == ["8.32e-06", "8.32e-06"]  # counted apart: the later of two such lines
    assert any(line.split()[-2:] == ["1e-05", "1.3e-05"] for line in done.stdout.splitlines())


def test_diff_names_models_that_differ(files):
    one, other = policy(), policy()
    other["model"] |= {"name": "tot", "input_size": [1, 16, 16], "alias": "yours"}
    other["layers"]["new"] = other["layers"].pop("b")
    other["layers"]["a"]["macs"] = 4000
    done = seam("diff", *files(one, other))
    assert done.returncode == 1
    assert "the models differ: name: toy | tot; input_size: 1x8x8 | 1x16x16" in done.stdout
    assert "alias" not in done.stdout
    assert rows(done.stdout)["b"] == ["only", "in", "the", "first"]
    assert rows(done.stdout)["new"] == ["only", "in", "the", "second"]
    assert rows(done.stdout)["a"] == ["MACs", "1000", "->", "4000"]


def test_diff_counts_models_alone(files):
    other = policy()
    other["model"]["name"] = "tot"
    assert seam("diff", *files(policy(), other)).returncode == 1


@pytest.mark.parametrize("command", ["show", "diff"])
def test_nothing_in_a_file_reaches_the_terminal_as_a_command(files, command):
    evil = "\x1b]0;gone\x07\x9b2J\u202e"
    content = policy() | {"comment": evil, "method": evil, "search": evil}
    content["model"]["name"] = content["budget"]["spec"] = content["budget"]["convention"] = evil
    content["layers"][evil] = content["layers"].pop("a")
    done = seam(command, *files(content, policy())[: 1 if command == "show" else 2])
    assert done.returncode == (0 if command == "show" else 1), done.stderr
    assert not {*evil} - {*"]0;gone2J"} & {*done.stdout} and r"\x1b]0;gone\x07\x9b2J\u202e" in done.stdout
    done = seam("show", *files(content | {evil: 1}))
    assert done.returncode == 2 and "\x1b" not in done.stderr and r"\x1b]0;gone" in done.stderr


def test_convert_writes_each_format(files, tmp_path):
    (path,) = files(policy())
    assert seam("convert", path, "--to", "csv", "-o", tmp_path / "p.csv").returncode == 0
    assert len(read_csv(tmp_path / "p.csv")) == 4
    assert seam("convert", path, "--to", "torchao", "--out", tmp_path / "t.json").returncode == 0
    assert json.loads((tmp_path / "t.json").read_text())["_type"] == "FqnToConfig"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["show", "no.json"], "no.json: no such file"),
        (["show", "pyproject.toml"], "pyproject.toml: not valid JSON"),
        (["show", "POLICY", "--figure", "x.pdf"], "x.pdf: a figure's name must end in .png or .svg"),
        (["diff", "POLICY", "no.json"], "no.json: no such file"),
        (["convert", "POLICY", "--to", "onnx", "-o", "x"], "--to: unknown format 'onnx'; known: csv, torchao"),
    ],
)
def test_errors_are_one_message_and_code_2(files, arguments, named):
    (path,) = files(policy())
    done = seam(*[path if word == "POLICY" else word for word in arguments])
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("seam: error: ") and named in done.stderr and "Traceback" not in done.stderr
    assert not os.path.exists(REPOSITORY / "x")
