"""The Snakemake workflow: runs as typed, says what is wrong, loses nothing."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from engines import REPOSITORY, copy_repository, expand, run, snakemake, text

from seam.experiment.graph import nodes
from seam.experiment.params import load_params

SMOKE = ("--configfile", "experiments/smoke.yaml")
NOTHING = "Nothing to be done"


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A copy of the repository without results; dry runs leave it as it is."""
    return copy_repository(tmp_path_factory.mktemp("clean") / "seam")


def test_a_run_shows_progress_and_the_result_of_each_policy(smoke_results):
    params, root = smoke_results
    log = root.with_name("log").read_text()
    assert re.search(r"\d+ of \d+ steps \(100%\) done", log)
    for job in params.jobs():
        assert re.search(rf"^evaluate: {job.name}, top-1 [\d.]+ %", log, re.MULTILINE)


def test_the_second_run_has_nothing_to_do(smoke_results):
    _, root = smoke_results
    assert NOTHING in text(snakemake(root, "--cores", "8", *SMOKE))


def test_the_same_parameters_in_another_file_are_no_reason_to_rerun(smoke_copy):
    _, root = smoke_copy
    shutil.copy2(root / "experiments/smoke.yaml", root / "mine.yaml")
    assert NOTHING in text(snakemake(root, "--cores", "8", "--configfile", "mine.yaml", "--dry-run"))


def test_every_file_of_the_graph_is_made(smoke_results):
    params, root = smoke_results
    for node in nodes(params):
        for path in (*node.outputs, node.provenance):
            assert (root / path).stat().st_size > 0, path
    assert not list((root / params.results / ".resume").glob("*")), "checkpoints of finished jobs"


@pytest.mark.parametrize("name", ["params.yaml", "experiments/cifar.yaml", "experiments/imagenet.yaml"])
def test_parameter_sets_pass_a_dry_run(clean, name):
    params = load_params(clean / name)
    jobs = expand("snakemake", clean, name)
    assert len(jobs) == len(nodes(params))
    assert all(job["run"] for job in jobs.values())
    assert jobs["claims"]["command"][4:6] == ["--params", name]


def test_names_with_spaces_and_shell_characters_run_nothing(tmp_path):
    """A whole run: every job takes the names as they are."""
    root = copy_repository(tmp_path / "seam")
    raw = yaml.safe_load((root / "experiments/smoke.yaml").read_text())
    raw |= {"results": "r $(touch PWN) x", "grid": raw["grid"] | {"searches": ["uniform"]}}
    raw |= {"claims": {}, "searches": {"uniform": raw["searches"]["uniform"]}}
    file = "my $(touch PWN) set.yaml"
    (root / file).write_text(yaml.safe_dump(raw))
    snakemake(root, "--cores", "8", "--configfile", file)
    assert "fresh" in run(root, "seam", "verify", "--params", file).stdout
    assert not list(root.rglob("PWN"))
    assert (root / "r $(touch PWN) x/logs/log.log").is_file()


def test_bad_parameters_give_the_message_before_anything_runs(clean, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text((clean / "experiments/smoke.yaml").read_text().replace("  lr: 0.02", "  lrr: 0.02"))
    done = snakemake(clean, "--cores", "2", "--configfile", str(bad), code=1)
    assert "finetune.lrr: unknown key 'lrr'; did you mean" in text(done)
    assert "Traceback" not in text(done)
    assert not (clean / "results").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--config", "finetune=3"], "--config cannot change parameters"),
        (["--configfile", "params.yaml", "experiments/smoke.yaml"], "one complete parameter file"),
    ],
)
def test_parameters_cannot_be_patched_on_the_command_line(clean, options, words):
    done = snakemake(clean, "--cores", "2", "--dry-run", *options, code=1)
    assert words in text(done)
    assert "Traceback" not in text(done)


def test_a_failing_job_deletes_nothing_of_the_others(smoke_copy):
    """A policy is edited by hand: its finetuning is due, and refuses it."""
    params, root = smoke_copy
    policy = root / params.results / "search/resnet/direct/w3a3/0/policy.json"
    policy.write_text(policy.read_text() + "\n")
    files = (path for path in (root / params.results).rglob("*.*") if path.is_file() and "direct" not in str(path))
    before = {path: path.read_bytes() for path in files}
    done = snakemake(root, "--cores", "8", *SMOKE, code=1)
    assert "policy.json: is not the file that search resnet/direct/w3a3/0 wrote" in text(done)
    assert "Traceback" not in text(done)
    assert len(before) > 20
    assert {path: path.read_bytes() for path in before} == before


def test_report_holds_tables_and_figures_with_captions(smoke_results, tmp_path):
    params, root = smoke_results
    report = tmp_path / "report.html"
    snakemake(root, "--report", str(report), *SMOKE)
    content = report.read_text()
    for name in ("results.csv", "claims.md", "accuracy_bitops", "accuracy_cost", "bits", "search_curves"):
        assert name in content
    for caption in (root / "workflow/report").glob("*.rst"):
        assert caption.read_text()[:20] in content, caption.name


def test_lint_and_format():
    assert "good condition" in text(snakemake(REPOSITORY, "--lint"))
    run(REPOSITORY, "snakefmt", "--check", "workflow")


def test_profiles_speak_of_rules_that_exist(clean):
    stages = {node.stage for node in nodes(load_params(clean / "params.yaml"))}
    given = (clean / "workflow/profiles/slurm/profile.yaml").read_text()
    slurm = yaml.safe_load(given)
    assert (slurm["executor"], slurm["retries"], slurm["latency-wait"]) == ("slurm", 2, 60)
    assert set(slurm["set-resources"]) <= stages
    for stage in ("pretrain", "search", "finetune", "evaluate"):
        assert {"mem_mb", "runtime", "gpu"} <= set(slurm["set-resources"][stage])
    blocks = (slurm["default-resources"], *slurm["set-resources"].values())
    asked = [str(block["mem_mb"]) for block in blocks if "mem_mb" in block]
    assert all(re.fullmatch(r"\d+ \* attempt", memory) for memory in asked), asked  # each try gets more
    own = yaml.safe_load(given.replace("# slurm_", "slurm_"))  # as users are told to
    assert {"slurm_account", "slurm_partition", "mem_mb", "runtime"} == set(own["default-resources"])
    default = yaml.safe_load((clean / "workflow/profiles/default/profile.yaml").read_text())
    assert default["resources"]["gpu"] == 1


def test_rules_name_no_parameter_of_their_own():
    """workflow/ holds no logic: every shell line is one `python -m seam` command, values come from the parameters."""
    for path in Path(REPOSITORY, "workflow/rules").glob("*.smk"):
        content = path.read_text()
        commands = re.findall(r"shell:\s+((?:\"[^\n]*\"\s+)+)", content)
        assert len(commands) == len(re.findall(r"^rule ", content, re.MULTILINE))
        assert all(command.startswith('"python -m seam ') and command.count("python") == 1 for command in commands)
