"""DVC: `dvc repro` as typed, what reruns after a change in both engines, and switching between them on one tree."""

import copy
import re
import shlex
import shutil

import pytest
import yaml
from conftest import SMOKE
from engines import REPOSITORY, copy_repository, expand, run, snakemake, text

from seam import io
from seam.experiment.graph import nodes
from seam.experiment.params import load_params

ALL = ("seam-subset", "direct", "uniform")
END = {"claims", "report", "log"}


def policies(stages, searches=ALL, model="resnet", budget="w3a3", seed=0) -> set[str]:
    names = {f"{stage} {model} {search} {budget} {seed}" for stage in stages for search in searches}
    return {" ".join(name.split()[:3]) if name.startswith("sample") else name for name in names}


REST = ("search", "finetune", "evaluate")
# A change of params.yaml, as (key, value) pairs -> exactly the jobs that run again (in DVC a few more, see DVC_MORE).
CHANGES = {
    "nothing but the file's layout": ([], set()),
    "seeds": ([("grid.seeds", [0, 1])], policies(REST, seed=1) | END),
    "one search's margin weight": (
        [("searches.direct.margin_weight", 0.5)],
        policies(REST, ["direct"]) | END,
    ),
    "one search's proxy": (
        [("searches.seam-subset.proxy.fraction", 0.5)],
        policies(("sample", *REST), ["seam-subset"]) | END,
    ),
    "a setting of all searches": ([("search.logit_lr", 0.1)], policies(REST) | END),
    "finetune.lr": ([("finetune.lr", 0.01)], policies(("finetune", "evaluate")) | END),
    "evaluate.batch_size": ([("evaluate.batch_size", 100)], policies(["evaluate"]) | END),
    "pretrain.lr": (
        [("pretrain.lr", 0.05)],
        {"pretrain resnet"} | policies(("sample", *REST)) | END,
    ),
    "target.image_size": (
        [("target.image_size", 16)],
        {"fetch", "pretrain resnet"} | policies(("sample", *REST)) | END,
    ),
    "a report option": ([("report.dpi", 72)], {"report", "log"}),
    "a claims option": ([("claims.margin_points", 1.0)], END),
    "MLflow's address": ([("mlflow.uri", "sqlite:///other.db")], {"log"}),
    "a model more": (
        [("models.tiny", {"name": "test_resnet", "kwargs": {}}), ("grid.models", ["resnet", "tiny"])],
        {"pretrain tiny"} | policies(("sample", *REST), model="tiny") | END,
    ),
    "another model's finetuning": (
        [("models.tiny", {"name": "test_resnet"}), ("finetune.models", {"tiny": {"lr": 0.5}})],
        set(),
    ),
    "a search less": ([("grid.searches", ["seam-subset", "direct"])], END),
    "a locked layer": ([("models.resnet.lock", ["layer1.*=8/8"])], policies(REST) | END),
    "a latency table": ([("models.resnet.latency", "params.yaml")], policies(REST) | END),
    "an option of the network": (
        [("models.resnet.small_stem", True)],
        {"pretrain resnet"} | policies(("sample", *REST)) | END,
    ),
}
# It tracks a model's whole block, and a training's with what differs for each model.
DVC_MORE = dict.fromkeys(("a locked layer", "a latency table"), {"pretrain resnet"} | policies(["sample"]))
DVC_MORE["another model's finetuning"] = policies(("finetune", "evaluate")) | END


@pytest.fixture(scope="module")
def trees(smoke_results, tmp_path_factory):
    """Two finished trees with smoke.yaml as params.yaml: one that Snakemake made, one that DVC adopted from it."""
    made = tmp_path_factory.mktemp("trees") / "made"
    shutil.copytree(smoke_results[1], made)
    shutil.copy2(made / SMOKE, made / "params.yaml")
    adopted = made.with_name("adopted")
    shutil.copytree(made, adopted)
    run(adopted, "seam", "verify")
    run(adopted, "dvc", "commit", "--force")
    return {"snakemake": made, "dvc": adopted}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_reruns_exactly_what_depends_on_it(trees, change):
    edits, expected = CHANGES[change]
    raw = yaml.safe_load((trees["dvc"] / SMOKE).read_text())
    for key, value in edits:
        inner = raw
        *parents, last = key.split(".")
        for part in parents:
            inner = inner[part]
        inner[last] = copy.deepcopy(value)
    for engine, root in trees.items():
        (root / "params.yaml").write_text(yaml.safe_dump(raw))
        load_params(root / "params.yaml")
        jobs = expand(engine, root)
        more = DVC_MORE.get(change, set()) if engine == "dvc" else set()
        assert {name for name, job in jobs.items() if job["run"]} == expected | more, engine


def test_dvc_adopts_what_snakemake_made(trees):
    shutil.copy2(trees["dvc"] / SMOKE, trees["dvc"] / "params.yaml")
    assert "up to date" in run(trees["dvc"], "dvc", "repro").stdout


def test_snakemake_adopts_what_dvc_made(dvc_results, tmp_path):
    """`seam verify && snakemake --cores 1 --touch --forceall`; else Snakemake would not see changed parameters."""
    root = tmp_path / "seam"
    shutil.copytree(dvc_results[1], root)
    run(root, "seam", "verify")
    snakemake(root, "--cores", "1", "--touch", "--forceall")
    assert "Nothing to be done" in text(snakemake(root, "--cores", "2", "--dry-run"))
    run(root, "seam", "verify")
    assert "up to date" in run(root, "dvc", "status").stdout
    raw = yaml.safe_load((root / "params.yaml").read_text())
    raw["finetune"]["lr"] = 0.03
    (root / "params.yaml").write_text(yaml.safe_dump(raw))
    jobs = expand("snakemake", root)
    changed = policies(("finetune", "evaluate"), ["seam-subset", "direct"]) | END
    assert {name for name, job in jobs.items() if job["run"]} == changed


def test_a_job_of_two_processes_runs_as_two(dvc_results, tmp_path):
    root = tmp_path / "seam"
    shutil.copytree(dvc_results[1], root)
    raw = yaml.safe_load((root / "params.yaml").read_text())
    raw["finetune"]["processes"] = 2
    (root / "params.yaml").write_text(yaml.safe_dump(raw))
    # Python runs this at the start of each process.
    note = "import os, pathlib\nif 'RANK' in os.environ: pathlib.Path('rank' + os.environ['RANK']).touch()\n"
    (root / "sitecustomize.py").write_text(note)
    history = root / raw["results"] / "finetune/resnet/direct/w3a3/0/history.csv"
    alone = io.read_csv(history)
    run(root, "dvc", "repro", "--single-item", "finetune@resnet-direct-w3a3-0")
    assert sorted(path.name for path in root.glob("rank*")) == ["rank0", "rank1"]
    shared = io.read_csv(history)
    assert len(shared) == len(alone)
    assert float(shared[0]["loss"]) == pytest.approx(float(alone[0]["loss"]), rel=1e-4)
    assert [row["seconds"] for row in shared] != [row["seconds"] for row in alone]  # it was made anew


def test_repro_leaves_a_readable_tree(dvc_results):
    params, root = dvc_results
    status = run(root, "git", "status", "--short").stdout.splitlines()
    assert sorted(status) == ["?? dvc.lock", "?? results/"]
    assert [str(path.relative_to(root)) for path in root.rglob(".gitignore")] == [".gitignore", ".dvc/.gitignore"]
    added = run(root, "git", "add", "--all", "--dry-run").stdout
    assert ".safetensors" not in added
    assert f"{params.results}/evaluate/resnet/direct/w3a3/0/metrics.json" in added
    assert f"{params.results}/claims.json" in added
    assert "report" not in added


def test_repro_again_has_nothing_to_do(dvc_results):
    _, root = dvc_results
    assert "up to date" in run(root, "dvc", "repro").stdout


def test_metrics_are_one_row_a_policy(dvc_results):
    params, root = dvc_results
    lines = run(root, "dvc", "metrics", "show", "--md").stdout.splitlines()
    header = [cell.strip() for cell in lines[0].split("|")]
    assert {"top1", "bitops_g", "size_mb", "class_margin"} <= set(header)
    for job in params.jobs():
        assert sum(f"{params.results}/evaluate/{job.folder}/metrics.json" in line for line in lines) == 1


def test_plots_are_drawn(dvc_results):
    _, root = dvc_results
    run(root, "dvc", "plots", "show", "--out", "plots")
    page = (root / "plots/index.html").read_text()
    shutil.rmtree(root / "plots")
    assert "search loss" in page.lower()
    assert "accuracy_cost.png" in page or "accuracy_cost_png" in page


def test_an_experiment_and_what_it_changed_can_be_read(dvc_results, tmp_path):
    params, made = dvc_results
    root = tmp_path / "seam"
    shutil.copytree(made, root)
    for key, value in (("user.name", "seam"), ("user.email", "seam@localhost")):
        run(root, "git", "config", key, value)
    run(root, "git", "add", "--all")
    run(root, "git", "commit", "--quiet", "--message", "results")
    done = run(root, "dvc", "exp", "run", "-S", "report.dpi=72", "--name", "sharper")
    assert re.findall(r"Running stage '(\w+)'", done.stdout) == ["report", "log"]
    assert f"{len(nodes(params))} fresh" in run(root, "seam", "verify").stdout
    path = root / f"{params.results}/evaluate/resnet/direct/w3a3/0/metrics.json"
    path.write_text(re.sub(r'"top1": [\d.]+', '"top1": 12.5', path.read_text(), count=1))
    rows = {}
    for command in ("params diff", "metrics diff"):
        lines = run(root, "dvc", *command.split(), "--md").stdout.splitlines()
        rows[command] = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:] if line]
    assert rows["params diff"] == [["params.yaml", "report.dpi", "60", "72"]]
    ((file, metric, _, now, _),) = rows["metrics diff"]
    assert (file, metric, now) == (str(path.relative_to(root)), "top1", "12.5")
    page = (REPOSITORY / "docs/engines.md").read_text()
    options = shlex.split(re.search(r"^ +(dvc exp show .+)$", page, re.MULTILINE)[1])
    table = run(root, *options, "--md").stdout
    assert all(
        word in table.splitlines()[0] for word in ("Experiment", "report.dpi", "direct/w3a3/0/metrics.json:top1")
    )
    assert "sharper" in table
    assert "class_margin" not in table


def test_the_stages_of_one_policy_fit_on_a_screen(dvc_results):
    _, root = dvc_results
    lines = run(root, "dvc", "dag", "evaluate@resnet-direct-w3a3-0").stdout.splitlines()
    stages = re.findall(r"\| ([\w@-]+) \|", "\n".join(lines))
    assert [stage.split("@")[0] for stage in stages] == [
        "fetch",
        "pretrain",
        "sample",
        "search",
        "finetune",
        "evaluate",
    ]
    assert max(map(len, lines)) < 200 and len(lines) < 50


def test_default_set_resolves_on_a_fresh_clone(tmp_path):
    root = copy_repository(tmp_path / "seam")
    assert "evaluate@" in run(root, "dvc", "stage", "list", "--name-only").stdout
    jobs = expand("dvc", root)
    assert all(job["run"] for job in jobs.values())


def test_without_git(tmp_path):
    """From a tarball: DVC wants to be told once that there is no git."""
    root = copy_repository(tmp_path / "seam", git=False)
    run(root, "dvc", "config", "--local", "core.no_scm", "true")
    assert "fetch" in run(root, "dvc", "repro", "--dry", "fetch").stdout
