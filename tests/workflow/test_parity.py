"""One graph, spelled three times: Snakemake's jobs, DVC's stages and `seam.experiment.graph` agree in every detail."""

import shutil

import pytest
import yaml
from engines import copy_repository, expand, name_of

from seam.experiment.graph import nodes
from seam.experiment.params import STAGE_KEYS, load_params

SETS = ["params.yaml", "experiments/smoke.yaml"]
# DVC cannot expand a dependency over the grid, nor an output over report.formats: it names the folders that hold them.
WHOLE_GRID = ("claims", "report", "log")
HOSTILE = 'r $(touch PWN) x; "y" & `touch PWN` #1%20* $HOME \\ é'
# Nor does it take a key that params.yaml leaves out: it names the model's whole block.


@pytest.fixture(scope="module", params=SETS)
def graphs(request, tmp_path_factory):
    """(Snakemake's jobs, DVC's jobs, parameters), all from params.yaml."""
    root = copy_repository(tmp_path_factory.mktemp("parity") / "seam")
    if request.param != "params.yaml":
        shutil.copy2(root / request.param, root / "params.yaml")
    return expand("snakemake", root), expand("dvc", root), load_params(root / "params.yaml")


def fold(files: list[str], folders: list[str], separator: str = "/") -> list[str]:
    """Replace files by the folder that holds them; every folder must hold one."""
    return sorted({next((f for f in folders if path == f or path.startswith(f + separator)), path) for path in files})


def test_the_same_jobs(graphs):
    snakemake, dvc, params = graphs
    assert set(snakemake) == set(dvc)
    assert len(snakemake) == len(nodes(params))


@pytest.mark.parametrize("part", ["command", "inputs", "outputs", "params"])
def test_the_same_parts(graphs, part):
    snakemake, dvc, _ = graphs
    for name, job in snakemake.items():
        found = job[part]
        if part in ("inputs", "outputs") and name in WHOLE_GRID:
            found = fold(found, dvc[name][part])
        elif part == "params":
            found = fold(found, [key for key in dvc[name][part] if key.startswith("models.")], ".")
        assert found == dvc[name][part], f"{name}: {part}"


def test_both_are_the_graph_that_verify_walks(graphs):
    snakemake, _, params = graphs
    for node in nodes(params):
        name = " ".join([node.stage, *map(str, node.job.values())])
        job = snakemake[name]
        assert job["inputs"] == sorted(map(str, node.inputs)), name
        assert job["outputs"] == sorted(map(str, (*node.outputs, node.provenance))), name
        assert job["params"] == sorted(key.format(**node.job) for key in STAGE_KEYS[node.stage]), name
        assert name_of(job["command"]) == name


def test_paths_are_one_word_each_whatever_they_hold(tmp_path):
    """Spaces and what a shell would run or expand: both engines pass the name on as it is."""
    root = copy_repository(tmp_path / "seam")
    raw = yaml.safe_load((root / "experiments/smoke.yaml").read_text())
    results, file = HOSTILE, "my $(touch PWN).yaml"
    for name in ("params.yaml", file):
        (root / name).write_text(yaml.safe_dump(raw | {"results": results}))
    dvc, named = expand("dvc", root), expand("snakemake", root, file)
    for name, job in named.items():
        assert job["command"][4:6] == ["--params", file]
        job["command"][5] = "params.yaml"
        assert job["command"] == dvc[name]["command"]
        assert job["outputs"][0].startswith(f"{results}/")
    assert not list(root.rglob("PWN"))


def test_files_of_the_user_s_own_are_inputs(tmp_path):
    root = copy_repository(tmp_path / "seam")
    path = root / "params.yaml"
    path.write_text(path.read_text().replace("{name: resnet18}", "{name: resnet18, weights: my/w.st, latency: ms.csv}"))
    (root / "my").mkdir()
    for name in ("my/w.st", "ms.csv"):
        (root / name).touch()
    snakemake = expand("snakemake", root)
    for node in nodes(load_params(path)):
        name = " ".join([node.stage, *map(str, node.job.values())])
        assert snakemake[name]["inputs"] == sorted(map(str, node.inputs)), name
    assert "my/w.st" in snakemake["pretrain resnet18"]["inputs"]
    assert "ms.csv" in snakemake["search resnet18 uniform w3a3 0"]["inputs"]
    assert "ms.csv" not in snakemake["search mobilenetv3 uniform w3a3 0"]["inputs"]


def test_another_parameter_file_changes_only_its_name(tmp_path):
    root = copy_repository(tmp_path / "seam")
    given = expand("snakemake", root, "experiments/smoke.yaml")
    shutil.copy2(root / "experiments/smoke.yaml", root / "params.yaml")
    default = expand("snakemake", root)
    for job in given.values():
        job["command"] = ["params.yaml" if word == "experiments/smoke.yaml" else word for word in job["command"]]
    assert given == default


def test_both_engines_give_the_same_results(smoke_results, dvc_results):
    """Every policy byte for byte, every metric exactly; only what is measured in seconds may differ."""
    _, first = smoke_results
    params, second = dvc_results
    compared = 0
    for node in nodes(params):
        for path in node.outputs:
            if (
                path.name in ("policy.json", "metrics.json", "hits.json", "proxy.json", "manifest.json", "layers.json")
                or path.suffix == ".safetensors"
            ):
                assert (first / path).read_bytes() == (second / path).read_bytes(), path
                compared += 1
    # target; weights, layers, metrics; proxy, policy, finetuned weights, metrics, hits
    assert compared == 1 + 3 + 2 * 5
