"""Every result knows what it was made from, and no stale or altered one passes for fresh."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from engines import REPOSITORY, environment

from seam import io
from seam.errors import SeamError
from seam.experiment import provenance
from seam.experiment.graph import nodes
from seam.experiment.params import Job, load_params, parse_params
from seam.experiment.provenance import check_inputs, provenance_path, record, verify, writing

JOB = Job("resnet", "direct", "w3a3", 0)


@pytest.fixture
def raw():
    return yaml.safe_load((REPOSITORY / "experiments/smoke.yaml").read_text())


@pytest.fixture
def chain(raw, tmp_path, monkeypatch):
    """Weights -> policy -> finetuned model, recorded like the stages do, with small text files as content."""
    monkeypatch.chdir(tmp_path)
    params = parse_params(raw)
    weights, policy = Path("models/resnet/fp.safetensors"), Path("search/policy.json")
    tuned = Path("finetune/model.safetensors")
    for path in (weights, policy, tuned):
        io.write_text(path, path.name)
    record(params, "pretrain", {"model": "resnet"}, [], [weights])
    record(params, "search", JOB, [weights], [policy])
    record(params, "finetune", JOB, [weights, policy], [tuned])
    return params, weights, policy, tuned


def test_record_holds_the_slice_and_the_hashes_and_repeats(chain):
    params, weights, policy, _ = chain
    path = policy.with_name("provenance.json")
    content = io.read_json(path)
    assert content["stage"] == "search"
    assert content["job"] == JOB._asdict()
    assert content["params"] == params.slice("search", **JOB._asdict())
    assert content["inputs"] == {str(weights): io.sha256(weights)}
    assert content["outputs"] == {"policy.json": io.sha256(policy)}
    assert set(content) == {"stage", "job", "params", "inputs", "outputs", "git", "software"}
    before = path.read_bytes()
    record(params, "search", JOB, [weights], [policy])
    assert path.read_bytes() == before


def test_claims_have_a_provenance_file_of_their_own(chain):
    params = chain[0]
    out = Path("claims.json")
    io.write_json(out, {})
    assert provenance_path(out) is None
    record(params, "claims", {}, [], [out], out.with_name("claims.provenance.json"))
    assert provenance_path(out) == Path("claims.provenance.json")
    check_inputs(params, [out])


def write_both(params, weights, folder, text):
    with writing(params, "search", JOB, [weights], [folder / "policy.json", folder / "cost.json"]) as new:
        io.write_text(new / "policy.json", text)
        io.write_text(new / "cost.json", text)


def test_outputs_arrive_with_their_provenance(chain):
    params, weights, policy, _ = chain
    folder = Path("other")
    write_both(params, weights, folder, "new")
    assert sorted(path.name for path in folder.iterdir()) == ["cost.json", "policy.json", "provenance.json"]
    there = {path.name: path.read_bytes() for path in folder.iterdir()}
    record(params, "search", JOB, [weights], [folder / "policy.json", folder / "cost.json"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == there
    check_inputs(params, [folder / "policy.json"], JOB)


@pytest.mark.parametrize("before", [False, True])
def test_outputs_that_fail_half_way_leave_what_was_there(chain, before):
    params, weights, _, _ = chain
    folder = Path("other")
    if before:
        write_both(params, weights, folder, "old")
    with (
        pytest.raises(OSError, match="No space left") as caught,
        writing(params, "search", JOB, [weights], [folder / "policy.json", folder / "cost.json"]) as new,
    ):
        io.write_text(new / "policy.json", "new")
        io.write_atomic(new / "cost.json", lambda _: Path("/dev/full").write_text("new"))
    assert caught.value.filename == "other/cost.json"
    names = ["cost.json", "policy.json", "provenance.json"] if before else []
    assert sorted(path.name for path in folder.iterdir()) == names
    if before:
        assert (folder / "policy.json").read_text() == "old"
        check_inputs(params, [folder / "policy.json"], JOB)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("moves", [0, 1, 2, 3])
def test_a_kill_between_two_moves_leaves_nothing_that_passes_for_the_user_s_own(chain, monkeypatch, before, moves):
    params, weights, _, _ = chain
    folder, replace, done = Path("other"), os.replace, []
    if before:
        write_both(params, weights, folder, "old")

    def replace_some(source, target):
        if Path(target).parent == folder:
            if len(done) == moves:
                raise KeyboardInterrupt
            done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_some)
    if moves < 3:
        with pytest.raises(KeyboardInterrupt):
            write_both(params, weights, folder, "new")
    else:
        write_both(params, weights, folder, "new")
    for name in ("policy.json", "cost.json"):
        if (folder / name).exists():
            assert provenance_path(folder / name) is not None
            if 0 < moves < 3 and (folder / name).read_text() == "old":
                with pytest.raises(SeamError, match=f"other/{name}: is not the file that search .* wrote"):
                    check_inputs(params, [folder / name], JOB)


def test_an_output_that_is_a_folder_is_refused_before_anything_is_written(chain):
    params, weights, _, _ = chain
    Path("other/cost.json").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match="other/cost.json"):
        write_both(params, weights, Path("other"), "new")
    assert [path.name for path in Path("other").iterdir()] == ["cost.json"]


def test_what_a_killed_job_left_is_cleared_away(chain):
    """A folder that a running process writes to is locked, unless the file system knows no locks."""
    params, weights, _, _ = chain
    for name, age in (("killed", 0), ("running", 60), ("unknown", 7200)):
        folder = Path(f"other/.writing-{name}")
        io.write_text(folder / "policy.json", "half")
        os.utime(folder, (time.time() - age,) * 2)
    handles = [provenance._hold(Path(f"other/.writing-{name}")) for name in ("running", "unknown")]
    write_both(params, weights, Path("other"), "new")
    assert [path.name for path in Path("other").glob(".writing-*")] == [".writing-running"]
    for handle in handles:
        os.close(handle)


def test_fresh_inputs_and_foreign_files_pass(chain):
    params, weights, policy, tuned = chain
    io.write_text("mine/policy.json", "from elsewhere")
    check_inputs(params, [weights, policy, tuned, "mine/policy.json"], JOB)


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("search.epochs", 1, 5),
        ("searches.direct.proxy.fraction", "not set", 0.5),
        ("budgets.w3a3", "'w3a3'", "w4a4"),
        ("pretrain.lr", 0.1, 0.2),  # of the weights that the policy was made from
        ("target.image_size", None, 16),
    ],
)
def test_other_parameters_are_refused_by_name_with_both_values(chain, raw, key, old, new):
    *parents, last = key.split(".")
    inner = raw
    for part in parents:
        inner = inner[part]
    inner[last] = new
    with pytest.raises(SeamError, match="policy.json") as error:
        check_inputs(parse_params(raw), [chain[2]])
    assert f"{key} was {old}, is {new!r}" in str(error.value)


def test_parameters_that_an_input_does_not_depend_on_are_no_reason(chain, raw):
    raw["finetune"]["lr"] = 0.5
    raw["searches"]["uniform"]["epochs"] = 3
    check_inputs(parse_params(raw), [chain[2]])
    with pytest.raises(SeamError, match=r"finetune\.lr was 0\.02, is 0\.5"):
        check_inputs(parse_params(raw), [chain[3]])


def test_a_model_no_longer_in_the_parameters(chain, raw):
    raw["models"] = {"other": raw["models"]["resnet"]}
    raw["grid"]["models"] = ["other"]
    with pytest.raises(SeamError, match="resnet is no longer in the parameters"):
        check_inputs(parse_params(raw), [chain[1]])


def test_an_altered_input_is_refused(chain):
    params, _, policy, tuned = chain
    policy.write_text("edited")
    with pytest.raises(SeamError, match="policy.json: is not the file that search resnet/direct/w3a3/0 wrote"):
        check_inputs(params, [policy])
    with pytest.raises(SeamError, match="model.safetensors: was made from another version of search/policy.json"):
        check_inputs(params, [tuned])


def test_an_input_of_another_job_is_refused(chain):
    params, _, policy, _ = chain
    with pytest.raises(SeamError, match="made for search 'direct', this job is for search 'uniform'"):
        check_inputs(params, [policy], JOB._replace(search="uniform"))


def test_a_missing_input_is_named(chain):
    with pytest.raises(SeamError, match="nowhere.json: no such file"):
        check_inputs(chain[0], ["nowhere.json"])


@pytest.mark.parametrize("content", ["{", "[]", '{"stage": "search"}'])
def test_a_broken_provenance_file_is_named(chain, content):
    path = chain[2].with_name("provenance.json")
    path.write_text(content)
    with pytest.raises(SeamError, match="search/provenance.json"):
        check_inputs(chain[0], [chain[2]])


@pytest.mark.parametrize("key", ["stage", "self", "x"])
def test_a_provenance_file_of_another_job_shape_is_named(chain, key):
    path = chain[2].with_name("provenance.json")
    content = io.read_json(path)
    for job in ({key: "x"}, {"model": "a.b"}, {"seed": "0"}):
        io.write_json(path, {**content, "job": job})
        with pytest.raises(SeamError, match="search/provenance.json: job"):
            check_inputs(chain[0], [chain[2]])


@pytest.mark.parametrize("name", ["/dev/zero", "/proc/self/mem", ".", "a" * 300, "\0"])
def test_recorded_inputs_that_are_no_files_end_no_check(chain, name):
    params, weights, policy, _ = chain
    path = policy.with_name("provenance.json")
    content = io.read_json(path)
    io.write_json(path, {**content, "inputs": {**content["inputs"], name: "0" * 64}})
    if name == "/proc/self/mem":
        with pytest.raises(SeamError, match="was made from another version of /proc/self/mem"):
            check_inputs(params, [policy])
    else:
        check_inputs(params, [policy])
    assert verify(params)


# `seam verify`, on a real run of the smoke set.


def states(params) -> dict[str, tuple[str, str]]:
    return {row.path: (row.state, row.detail) for row in verify(params)}


def folder(params, stage, search="direct") -> str:
    return f"{params.results}/{stage}/resnet/{search}/w3a3/0"


def seam_verify(root: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "seam", "verify", "--params", "experiments/smoke.yaml"]
    return subprocess.run(command, cwd=root, env=environment(root), capture_output=True, text=True)


def test_a_finished_run_is_fresh(smoke_copy):
    params, root = smoke_copy
    assert {state for state, _ in states(params).values()} == {"fresh"}
    done = seam_verify(root)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == f"{len(nodes(params))} fresh"


def test_verify_lists_what_is_wrong_and_exits_with_1(smoke_copy):
    params, root = smoke_copy
    Path(folder(params, "evaluate"), "metrics.json").unlink()
    done = seam_verify(root)
    assert done.returncode == 1
    line = next(line for line in done.stdout.splitlines() if line.startswith(folder(params, "evaluate")))
    assert line.split()[1:] == ["missing", "metrics.json"]
    claims = next(line for line in done.stdout.splitlines() if "claims.json" in line)
    assert "stale" in claims
    assert "is missing" in claims


def test_verify_sees_changed_parameters_and_all_that_follows(smoke_copy):
    params, root = smoke_copy
    path = root / "experiments/smoke.yaml"
    path.write_text(path.read_text().replace("fraction: 0.3", "fraction: 0.4"))
    found = states(load_params(path))
    proxy = f"{params.results}/proxies/resnet/seam-subset"
    assert found[proxy] == ("stale", "searches.seam-subset.proxy.fraction was 0.3, is 0.4")
    assert found[folder(params, "search", "seam-subset")][0] == "stale"
    assert found[folder(params, "finetune", "seam-subset")][0] == "stale"
    assert found[f"{params.results}/claims.json"][0] == "stale"
    others = [state for name, (state, _) in found.items() if "direct" in name or "uniform" in name]
    assert len(others) == 8
    assert set(others) == {"fresh"}


def test_verify_sees_an_edited_number(smoke_copy):
    params, _ = smoke_copy
    path = Path(folder(params, "evaluate"), "metrics.json")
    metrics = json.loads(path.read_text())
    io.write_json(path, {**metrics, "top1": metrics["top1"] + 0.1})
    found = states(params)
    assert found[folder(params, "evaluate")] == ("tampered", "metrics.json is not what evaluate wrote")
    assert found[f"{params.results}/claims.json"][1] == f"input {path} has changed"


@pytest.mark.parametrize("whole_folder", [False, True])
def test_verify_sees_policies_swapped_between_folders(smoke_copy, whole_folder):
    params, _ = smoke_copy
    one, two = (Path(folder(params, "search", search)) for search in ("direct", "uniform"))
    if not whole_folder:
        one, two = one / "policy.json", two / "policy.json"
    one.rename("aside")
    two.rename(one)
    Path("aside").rename(two)
    found = states(params)
    for search, other in (("direct", "uniform"), ("uniform", "direct")):
        state, detail = found[folder(params, "search", search)]
        assert state == "tampered"
        assert (f"resnet/{other}/w3a3/0" if whole_folder else "policy.json") in detail
        assert found[folder(params, "finetune", search)][0] == "stale"


def test_verify_sees_an_old_checkpoint(smoke_copy):
    """A model finetuned under an earlier policy: with its own provenance, then alone in a newer one's folder."""
    params, _ = smoke_copy
    policy = Path(folder(params, "search"), "policy.json")
    policy.write_text(policy.read_text() + "\n")
    weights = Path(params.results, "models/resnet/fp.safetensors")
    proxy = Path(params.results, "proxies/resnet/direct/proxy.json")
    outputs = [policy, policy.with_name("cost.json"), policy.with_name("history.csv")]
    record(params, "search", JOB, [weights, weights.with_name("layers.json"), proxy], outputs)
    found = states(params)
    assert found[folder(params, "search")][0] == "fresh"
    assert found[folder(params, "finetune")] == ("stale", f"input {policy} has changed")
    old, new = (Path(folder(params, "finetune", search), "model.safetensors") for search in ("direct", "uniform"))
    shutil.copy2(old, new)
    assert states(params)[folder(params, "finetune", "uniform")][0] == "tampered"


def test_a_stage_refuses_a_stale_input(smoke_copy):
    params, root = smoke_copy
    path = root / "experiments/smoke.yaml"
    path.write_text(path.read_text().replace("fraction: 0.3", "fraction: 0.4"))
    weights = f"{params.results}/models/resnet/fp.safetensors"
    policy = f"{folder(params, 'search', 'seam-subset')}/policy.json"
    command = ["finetune", "--params", "experiments/smoke.yaml", "--model", "resnet", "--search", "seam-subset"]
    command += ["--budget", "w3a3", "--seed", "0", "--weights", weights, "--policy", policy, "--out", "new"]
    done = subprocess.run(
        [sys.executable, "-m", "seam", *command], cwd=root, env=environment(root), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "searches.seam-subset.proxy.fraction was 0.3, is 0.4" in done.stderr
    assert not Path("new").exists()
