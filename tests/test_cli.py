"""The command line: messages, exit codes, and how fast it starts."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from engines import REPOSITORY, environment
from policies import policy

from seam.experiment.params import load_params
from seam.io import write_json
from seam.runtime.cores import available_cores

STAGES = ("fetch", "pretrain", "sample", "search", "finetune", "evaluate", "claims", "report", "log")
SMOKE = "experiments/smoke.yaml"


def seam(*arguments: str, cwd=REPOSITORY) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "seam", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment(REPOSITORY), capture_output=True, text=True, timeout=120)


def job(model="resnet", search="direct", budget="w3a3", seed="0") -> list[str]:
    return ["--model", model, "--search", search, "--budget", budget, "--seed", seed]


def test_help_lists_every_stage():
    done = seam("--help")
    assert done.returncode == 0
    assert all(stage in done.stdout for stage in (*STAGES, "verify"))


def test_help_groups_the_commands_for_a_model_apart_from_the_stages():
    panels, name = {}, ""
    for line in seam("--help").stdout.splitlines():
        if line.startswith("╭─"):
            name = line.strip("╭─╮ ")
        elif line.startswith("│ ") and line[2] != " ":
            panels.setdefault(name, []).append(line.split()[1])
    model, policy, stages = (panels[key] for key in panels if key != "Options")
    assert model == ["layers", "search", "calibrate", "finetune", "evaluate", "export"]
    assert policy == ["show", "diff", "convert"]
    assert stages == ["plan", "fetch", "pretrain", "sample", "claims", "report", "log", "ui", "verify"]


@pytest.mark.parametrize("command", ["search", "calibrate", "finetune", "evaluate", "export"])
def test_help_of_the_tool_says_the_threads_and_whether_data_is_needed(command):
    text = " ".join(seam(command, "--help").stdout.replace("│", " ").split())
    cores = available_cores()
    threads = text[text.index("--threads ") :]
    assert f"[default: {f'({max(1, cores - 1)})' if command == 'search' else cores}]" in threads
    assert ("all but one" if command == "search" else "by default all.") in threads
    data = text[text.index("--data ") :].split(" --")[0]
    assert ("[required]" in data) == (command in ("calibrate", "finetune", "evaluate"))
    assert ("by default scikit-learn's digits" in data) == (command in ("search", "export"))


@pytest.mark.parametrize(
    "module",
    [
        "seam.cli",
        "seam.experiment.params",
        "seam.experiment.graph",
        "seam.experiment.provenance",
        "seam.experiment.schedule",
    ],
)
def test_what_the_engines_import_is_light(module):
    heavy = {"torch", "timm", "sklearn", "mlflow", "matplotlib", "scipy", "pandas"}
    code = f"import sys, {module}; print(' '.join({heavy!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_explains_its_options(stage):
    done = seam(stage, "--help")
    assert done.returncode == 0
    assert "--params" in done.stdout and "--out" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["fetch", "--params", "nowhere.yaml", "--out", "x"], ["nowhere.yaml", "--params"]),
        (["pretrain", "--params", SMOKE, "--model", "resnt", "--data", "d", "--out", "x"], ["resnt", "resnet"]),
        (
            ["search", "--params", SMOKE, *job(search="drect"), "--weights", "w", "--proxy", "p", "--out", "x"],
            ["drect", "direct"],
        ),
        (
            ["finetune", "--params", SMOKE, *job(budget="w3a4"), "--weights", "w", "--policy", "p", "--out", "x"],
            ["w3a4", "w3a3"],
        ),
        (
            ["finetune", "--params", SMOKE, *job(), "--weights", "no/w.safetensors", "--policy", "p", "--out", "x"],
            ["no/w.safetensors", "no such file"],
        ),
        (["verify", "--params", "pyproject.toml"], ["pyproject.toml"]),
    ],
)
def test_bad_input_gives_one_message_on_stderr_and_code_2(arguments, named):
    done = seam(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("seam: error: ")
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in named)
    assert not (REPOSITORY / "x").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--budget", "w4"], "budget 'w4': write w3a3"),
        (["--budget", "w4a4", "--budget", "0 MB"], "budget '0 MB': must be more than 0"),
        (["--budgets", "w4a4,fast"], "budget 'fast': write w3a3"),
        (["--budget", "4 ms"], "budget '4 ms': needs a latency table"),
    ],
)
def test_a_budget_that_cannot_be_read_is_refused_before_torch_is_loaded(options, named):
    code = (
        "import sys; from seam.cli import main; sys.argv[0] = 'seam'\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'timm', 'scipy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, "search", "--model", "resnet18", "--weights", "none", "--out", "x", *options]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(REPOSITORY), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "[]\n")
    assert named in done.stderr


@pytest.fixture
def policy_file(tmp_path):
    write_json(tmp_path / "policy.json", policy())
    return tmp_path / "policy.json"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("command", ["show", "help", "verify"])
def test_standard_output_that_takes_no_more_is_named(policy_file, command):
    arguments = {"show": ["show", policy_file], "help": ["--help"], "verify": ["verify", "--params", SMOKE]}[command]
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "seam", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment(REPOSITORY), stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (2, "seam: error: standard output: No space left on device\n")


def test_a_reader_that_closes_the_pipe_ends_it_quietly(policy_file):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "seam", "show", str(policy_file)]
    with os.fdopen(write, "w") as pipe:
        done = subprocess.run(command, env=environment(REPOSITORY), stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("command", ["export", "calibrate"])
def test_timm_s_weights_are_refused_for_a_policy_of_other_classes(command, tmp_path):
    """Their classifier would be a random one, which no later check could tell."""
    write_json(tmp_path / "policy.json", policy() | {"model": {"name": "resnet18", "num_classes": 20, "in_chans": 3}})
    done = seam(command, "--policy", tmp_path / "policy.json", "--data", "digits", "-o", tmp_path / "out.safetensors")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "policy.json: is for 20 classes, timm's weights of resnet18 have 1000; give --weights" in done.stderr


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("folder", "Is a directory"),
        ("policy.json/below", "Not a directory"),
        ("policy.json/far/below", "Not a directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_an_output_that_cannot_be_written_is_named_in_one_line(policy_file, out, reason):
    (policy_file.parent / "folder").mkdir()
    where = policy_file.parent / out
    done = seam("convert", policy_file, "--to", "csv", "--out", where)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"seam: error: {where}: {reason}\n"
    assert sorted(os.listdir(policy_file.parent)) == ["folder", "policy.json"]


def test_a_file_over_the_limit_of_the_system_is_named_and_keeps_the_old_one(policy_file):
    """As a full disk or a quota: the error comes from the write itself, which knows no name."""
    out = policy_file.with_name("out.json")
    out.write_text("old")
    done = subprocess.run(
        [sys.executable, "-m", "seam", "convert", str(policy_file), "--to", "torchao", "--out", str(out)],
        env={**environment(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50)),
    )
    assert (done.returncode, done.stderr) == (2, f"seam: error: {out}: File too large\n")
    assert out.read_text() == "old" and sorted(os.listdir(out.parent)) == ["out.json", "policy.json"]


def test_a_folder_in_place_of_an_input_is_named(policy_file):
    done = seam("show", policy_file.parent)
    assert (done.returncode, done.stderr) == (2, f"seam: error: {policy_file.parent}: Is a directory\n")


@pytest.mark.parametrize(
    "encoding",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}],
)
def test_an_ascii_terminal_shows_what_it_can(tmp_path, encoding):
    content = policy()
    content["model"]["alias"] = content["search"] = "größer–"
    write_json(tmp_path / "policy.json", content)
    command = [sys.executable, "-m", "seam", "show", str(tmp_path / "policy.json")]
    environ = {**environment(REPOSITORY), **encoding}
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and "gr\\xf6\\xdfer\\u2013" in done.stdout


def test_missing_option_is_named():
    done = seam("fetch", "--params", SMOKE)
    assert done.returncode == 2
    assert "--out" in done.stderr


def test_a_stage_limits_threads_before_heavy_imports():
    """numpy and torch read these variables when they are imported."""
    code = (
        "import os, sys; from pathlib import Path; from seam import cli;"
        "cli._load(Path('experiments/smoke.yaml'), 'finetune', 'resnet', 'direct', 'w3a3');"
        "print(os.environ['OMP_NUM_THREADS'], os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    )
    environ = {**environment(REPOSITORY), "OMP_NUM_THREADS": "64"}
    environ.pop("GOMP_SPINCOUNT", None)
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environ, capture_output=True, text=True)
    threads = load_params(REPOSITORY / SMOKE).finetune.threads
    assert done.stdout.split() == [str(threads), "20000", "False"], done.stderr


@pytest.mark.parametrize("option", ["-q", "--quiet"])
def test_quiet_says_nothing_but_errors(option, tmp_path):
    done = seam(option, "layers", "--model", "test_resnet", "--classes", "10")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = seam(option, "claims", "--params", str(tmp_path / "none.yaml"), "--out", "x.json")
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.startswith("seam: error:") and len(done.stderr.splitlines()) == 1


def test_verbose_says_where_an_error_came_from(tmp_path):
    done = seam("-v", "claims", "--params", str(tmp_path / "none.yaml"), "--out", "x.json")
    assert done.returncode == 2
    assert "Traceback" in done.stderr and done.stderr.splitlines()[-1].startswith("seam: error:")


def test_ctrl_c_in_a_callback_of_the_collector_is_neither_dropped_nor_a_traceback():
    code = """
import signal, sys, time, weakref
from seam import cli

class Thing: ...

@cli.app.command()
def wait():
    thing = Thing()
    watched = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing
    time.sleep(60)

sys.argv = ["seam", "wait"]
cli.main()
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(REPOSITORY), capture_output=True, text=True, timeout=50)
    assert done.returncode == 130 and "Traceback" not in done.stderr, done.stderr
