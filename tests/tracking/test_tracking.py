"""MLflow: the log stage on real SQLite databases, and live logging to a real server."""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from pathlib import Path

import pytest
from engines import REPOSITORY, free_ports
from handmade import SEARCHES, make_params, write_results

from seam.errors import SeamError
from seam.experiment.params import Job, MLflow, Params
from seam.experiment.results import load
from seam.io import read_csv, read_json, write_json
from seam.runtime.meter import Meter
from seam.stages.claims import claims as claims_stage
from seam.stages.log import log as log_stage
from seam.stages.report import report as report_stage
from seam.tracking.live import live
from seam.tracking.records import NO_CURVE, source_tags
from seam.tracking.store import DIGEST, JOB, STATE, WRITING, Record, Store, public
from seam.tracking.ui import PORT, serve
from seam.tracking.view import NAME, address


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def prepare(folder, **grid) -> Params:
    """Results, claims and report under `folder`."""
    params = make_params(folder / "r", **{"searches": ("near", "direct", "uniform"), **grid})
    params = params.model_copy(update={"report": params.report.model_copy(update={"formats": ("png",)})})
    write_results(
        params, lambda job: 90.0 - list(SEARCHES).index(job.search), seconds=lambda job: 10.0 + len(job.search)
    )
    finish(params)
    return params


def finish(params):
    folder = load(params).root
    claims_stage(params, folder / "claims.json")
    report_stage(params, folder / "report")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Results that no test changes, and an empty database, whose tables take seconds to make."""
    folder = tmp_path_factory.mktemp("shared")
    Store(f"sqlite:///{folder}/empty.db", "unused")
    return prepare(folder), folder / "empty.db"


@pytest.fixture
def params(shared, tmp_path):
    """The shared results with a database of the test's own."""
    shutil.copy(shared[1], tmp_path / "mlflow.db")
    return stored(shared[0], f"sqlite:///{tmp_path}/mlflow.db")


def stored(params, uri, experiment=""):
    return params.model_copy(update={"mlflow": MLflow(uri=uri, experiment=experiment)})


def log(params, tmp_path):
    return log_stage(params, tmp_path / "mlflow.json")


def points(store):
    """Everything in the experiment: run -> metric -> logged points."""
    return {
        run.info.run_id: {key: store.history(run.info.run_id, key) for key in run.data.metrics} for run in store.runs()
    }


def test_a_run_holds_a_job(tmp_path):
    params = prepare(tmp_path, models=("a", "b"))
    own = params.finetune.model_copy(update={"models": {"a": {"lr": 0.03}}})
    params = params.model_copy(update={"finetune": own})
    content = log(params, tmp_path)
    assert content == read_json(tmp_path / "mlflow.json")
    store = Store(params.mlflow.uri, "handmade")
    names = {run.info.run_id: run.info.run_name for run in store.runs()}
    assert set(names.values()) == {*(job.name for job in params.jobs()), "handmade-summary"}
    assert {name: names[run_id] for name, run_id in content["runs"].items()} == {n: n for n in content["runs"]}

    run = store.client.get_run(content["runs"]["a-near-w3a3-0"])
    row = read_csv(tmp_path / "r/report/results.csv")[0]
    for key in (
        "top1",
        "bitops_g",
        "size_mb",
        "search_seconds",
        "search_image_macs",
        "speedup",
        "class_margin",
        "calibrated_top1",
    ):
        assert run.data.metrics[key] == pytest.approx(float(row[key]))
    assert run.data.params["method"] == "seam"
    assert run.data.params["search.margin_weight"] == "None"
    assert run.data.params["finetune.lr"] == "0.03"
    assert store.client.get_run(content["runs"]["b-near-w3a3-0"]).data.params["finetune.lr"] == "0.05"
    assert run.info.status == "FINISHED"
    inputs = {entry.tags[0].value: entry.dataset for entry in run.inputs.dataset_inputs}
    assert inputs["target"].name == "fashion_mnist"
    assert inputs["proxy"].name == "digits-1797"
    files = {file.path for file in store.client.list_artifacts(run.info.run_id)}
    assert files == {"policy.json", "metrics.json", "bits.png"}
    local = store.client.download_artifacts(run.info.run_id, "policy.json", str(tmp_path))
    assert read_json(local) == read_json(tmp_path / "r/search/a/near/w3a3/0/policy.json")
    history = read_csv(tmp_path / "r/search/a/near/w3a3/0/history.csv")
    assert store.history(run.info.run_id, "search/loss") == [(int(r["step"]), float(r["loss"])) for r in history]
    assert len(store.history(run.info.run_id, "finetune/top1")) == 5
    assert (run.info.start_time, run.info.end_time) == (1769860800000, 1769860860000)  # as the costs have it
    assert run.data.params["bits.body.0"] == "3/3"
    uniform = store.client.get_run(content["runs"]["a-uniform-w3a3-0"])
    assert [entry.dataset.name for entry in uniform.inputs.dataset_inputs] == ["fashion_mnist"]
    assert "speedup" not in uniform.data.metrics


def test_summary_holds_claims_and_figures(params, tmp_path):
    content = log(params, tmp_path)
    store = Store(params.mlflow.uri, "handmade")
    run = store.client.get_run(content["summary"])
    gap = "not_worse/near/direct/a/w3a3"
    assert run.data.tags[f"verdict/{gap}"] == "not decided"
    assert run.data.metrics == {}  # a column for each claim would hide those of the runs
    assert run.data.tags["mlflow.note.content"] in (Path(params.results) / "report/claims.md").read_text()
    files = {file.path for file in store.client.list_artifacts(run.info.run_id)}
    assert {"claims.json", "claims.md", "results.csv", "accuracy_cost.png"} <= files
    local = read_json(store.client.download_artifacts(run.info.run_id, "claims.json", str(tmp_path)))
    assert {claim["id"]: claim for claim in local["claims"]}[gap]["estimate"]["value"] == 1.0


def test_the_experiment_opens_as_a_training_with_the_view(params, tmp_path, capsys):
    content = log(params, tmp_path)
    link = address(f"http://127.0.0.1:{PORT}", content["experiment_id"])
    assert f"`seam ui` serves {link}" in capsys.readouterr().out
    store = Store(params.mlflow.uri, "handmade")
    tags = store.client.get_experiment(store.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    view = json.loads(tags[f"mlflow.sharedViewState.{NAME}"])
    assert f"viewStateShareKey={NAME}&" in link
    state = json.loads(view["state"])
    table = store.client.get_run(content["runs"]["a-near-w3a3-0"]).data
    shown = [re.fullmatch(r"metrics\.`(\w+)`", column).group(1) for column in state["selectedColumns"]]
    axes = [card[axis]["key"] for card in state["compareRunCharts"] for axis in ("xaxis", "yaxis") if axis in card]
    assert {*shown, *axes, *state["compareRunCharts"][-1]["selectedMetrics"]} <= table.metrics.keys()
    assert len(table.metrics.keys() - {key for key in table.metrics if "/" in key}) <= 12
    order = f"{state['orderByKey']} {'ASC' if state['orderByAsc'] else 'DESC'}"
    found = store.client.search_runs([store.experiment_id], state["searchFilter"], order_by=[order])
    assert [run.info.run_name for run in found] == ["a-near-w3a3-0", "a-direct-w3a3-0", "a-uniform-w3a3-0"]
    log(params, tmp_path)
    assert store.client.get_experiment(store.experiment_id).tags == tags
    store.client.set_experiment_tag(store.experiment_id, f"mlflow.sharedViewState.{NAME}", "{}")
    log(params, tmp_path)
    assert store.client.get_experiment(store.experiment_id).tags == tags


def test_a_run_says_which_commit_made_its_policy(tmp_path):
    policy = tmp_path / "policy.json"
    key = "mlflow.source.git.commit"
    assert key not in source_tags(policy)
    for git, commit in (({"commit": "c0ffee", "dirty": False}, "c0ffee"), ({"commit": None}, None), ([], None)):
        write_json(tmp_path / "provenance.json", {"git": git})
        assert source_tags(policy).get(key) == commit


def filters():
    """(filter, number of runs it says to find) of the page about MLflow."""
    page = (REPOSITORY / "docs/tracking.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `` (.+?) `` \|.*\| (\d+) \|$", page, re.MULTILINE)


def test_filters_in_the_docs_find_what_they_say(tmp_path):
    params = prepare(tmp_path, models=("a", "b"), seeds=(0, 1), searches=("near", "direct", "uniform", "random-0"))
    log(params, tmp_path)
    store = Store(params.mlflow.uri, "handmade")
    assert len(filters()) >= 8
    for condition, count in filters():
        found = store.client.search_runs([store.experiment_id], condition)
        assert (condition, len(found)) == (condition, int(count))


def test_ui_without_a_database_or_on_a_taken_port_is_an_error(params, tmp_path):
    with pytest.raises(SeamError, match=r"no\.db: no such database; run `seam log`"):
        serve(stored(params, f"sqlite:///{tmp_path}/no.db"))
    assert not (tmp_path / "no.db").exists()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SeamError, match=f"--port {port}"):
            serve(params, port)


def test_ui_of_a_server_prints_its_address(served, tmp_path, capsys):
    content = log(served, tmp_path)
    link = address(served.mlflow.uri, content["experiment_id"])
    assert f"Look at them: {link}\n" in capsys.readouterr().out
    serve(served)
    assert capsys.readouterr().out == f"MLflow: {link}\n"


def test_twice_adds_nothing(params, tmp_path, capsys):
    first = log(params, tmp_path)
    store = Store(params.mlflow.uri, "handmade")
    before = points(store)
    capsys.readouterr()
    assert log(params, tmp_path) == first
    assert points(store) == before
    assert "0 runs written, 4 already there" in capsys.readouterr().out


def test_a_changed_result_replaces_its_run_alone(tmp_path):
    params = prepare(tmp_path)
    first = log(params, tmp_path)
    metrics = tmp_path / "r/evaluate/a/uniform/w3a3/0/metrics.json"
    write_json(metrics, {**read_json(metrics), "top1": 12.5})
    finish(params)
    second = log(params, tmp_path)
    changed = {name for name in first["runs"] if first["runs"][name] != second["runs"][name]}
    assert changed == {"a-uniform-w3a3-0"}
    assert first["summary"] != second["summary"]
    store = Store(params.mlflow.uri, "handmade")
    assert len(store.runs()) == 4
    assert store.client.get_run(second["runs"]["a-uniform-w3a3-0"]).data.metrics["top1"] == 12.5


def test_an_interrupted_run_is_written_anew(params, tmp_path):
    store = Store(params.mlflow.uri, "handmade")
    tags = {JOB: "a-near-w3a3-0", STATE: WRITING}
    partial = store.client.create_run(store.experiment_id, run_name="a-near-w3a3-0", tags=tags).info.run_id
    store.client.log_metric(partial, "search/loss", 123.0, step=0)
    content = log(params, tmp_path)
    assert content["runs"]["a-near-w3a3-0"] != partial
    assert partial not in {run.info.run_id for run in store.runs()}


def test_environment_and_experiment_names_win(params, tmp_path, monkeypatch):
    params = stored(params, params.mlflow.uri, "mine")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new/other.db")
    content = log(params, tmp_path)
    assert content["uri"].endswith("other.db")
    assert len(Store(content["uri"], "mine").runs()) == 4
    assert len(Store(f"sqlite:///{tmp_path}/mlflow.db", "mine").runs()) == 0
    assert (tmp_path / "new/mlruns/mine").is_dir()


def test_deleted_experiment_is_restored(tmp_path):
    place = f"sqlite:///{tmp_path}/x.db"
    store = Store(place, "e")
    run_id, written = store.put(Record("j", "j", {"top1": 1.0}))
    assert written
    store.client.delete_experiment(store.experiment_id)
    assert Store(place, "e").experiment_id == store.experiment_id


@pytest.mark.parametrize("place", ["nosuch://x", "sqlite:////proc/none/x.db", "http://127.0.0.1:1"])
def test_unusable_store_is_an_error_that_names_the_key(params, tmp_path, place):
    with pytest.raises(SeamError, match=r"mlflow.uri"):
        log(stored(params, place), tmp_path)
    assert not (tmp_path / "mlflow.json").exists()


def test_credentials_are_not_written():
    assert public("https://me:secret@host:5000/x") == "https://host:5000/x"
    assert public("postgresql://me:secret@db/mlflow") == "postgresql://db/mlflow"
    assert public("sqlite:///a@b.db") == "sqlite:///a@b.db"


def fresh_python(script: str) -> str:
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "CI", "GITHUB", "MLFLOW_", "DO_NOT_TRACK"))
    }
    return subprocess.run([sys.executable, "-c", script], env=clean, capture_output=True, text=True, check=True).stdout


def test_no_telemetry(tmp_path):
    script = f"""
from seam.tracking.store import Store
Store("sqlite:///{tmp_path}/x.db", "e")
from mlflow.telemetry import get_telemetry_client
print(get_telemetry_client())"""
    assert fresh_python(script).strip() == "None"


def test_live_without_a_server_does_nothing_and_loads_nothing(tmp_path):
    params = make_params(tmp_path / "r")
    script = f"""
import json, sys
from seam.experiment.params import Job, parse_params
from seam.runtime.meter import Meter
from seam.tracking.live import live
params = parse_params(json.loads({params.model_dump_json()!r}))
with live(params, Job("a", "near", "w3a3", 0), "search", Meter(None)) as logger:
    logger.log(0, loss=1.0)
print("mlflow" in sys.modules)"""
    assert fresh_python(script).strip() == "False"
    assert not (tmp_path / "mlflow.db").exists()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """URI of a server of our own: its database holds an experiment that nobody else can have made."""
    folder = tmp_path_factory.mktemp("server")
    mark = f"ours-{secrets.token_hex(8)}"
    database = f"sqlite:///{folder}/server.db"
    Store(database, mark)
    (port,) = free_ports()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1", "--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True)
    uri = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert process.poll() is None, (folder / "log").read_text()
            try:
                with urllib.request.urlopen(f"{uri}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.5)
        from mlflow import MlflowClient

        assert MlflowClient(uri).get_experiment_by_name(mark) is not None, "another server answers on this port"
        yield uri
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def replay(params, job, stage, rows, first=0):
    with live(params, job, stage, Meter(None)) as logger:
        for row in rows:
            if int(row["step"]) >= first:
                values = {k: float(v) for k, v in row.items() if k not in NO_CURVE}
                logger.log(int(row["step"]), **values)


@pytest.fixture
def served(shared, server, monkeypatch):
    """The shared results with the server as store, and an experiment of the test's own."""
    monkeypatch.setattr("seam.tracking.live.PATIENCE", 60)  # on a busy machine a server may need more than a job waits
    return stored(shared[0], server, secrets.token_hex(4))


def test_live_run_is_completed_by_the_log_stage(tmp_path, served):
    params, results = served, Path(served.results)
    job = Job("a", "near", "w3a3", 0)
    search = read_csv(results / "search/a/near/w3a3/0/history.csv")
    finetune = read_csv(results / "finetune/a/near/w3a3/0/history.csv")

    class Killed(Exception):
        pass

    with pytest.raises(Killed), live(params, job, "search", Meter(None)) as logger:
        for row in search[:4]:
            logger.log(int(row["step"]), loss=float(row["loss"]), budget=float(row["budget"]))
        raise Killed
    store = Store(params.mlflow.uri, params.mlflow.experiment)
    (run,) = store.runs(job.name)
    assert run.info.status == "FAILED"
    assert len(store.history(run.info.run_id, "search/loss")) == 4
    replay(params, job, "search", search, first=2)  # resumes from a checkpoint before the kill
    replay(params, job, "finetune", finetune[:3])
    (found,) = store.runs(job.name)
    assert found.info.run_id == run.info.run_id
    assert found.info.status == "FINISHED"
    assert store.history(found.info.run_id, "search/loss") == [(int(r["step"]), float(r["loss"])) for r in search]

    content = log(params, tmp_path)
    assert content["runs"][job.name] == found.info.run_id
    for stage, rows in (("search", search), ("finetune", finetune)):
        logged = store.history(found.info.run_id, f"{stage}/loss")
        assert sorted(logged) == [(int(r["step"]), float(r["loss"])) for r in rows]
    done = store.client.get_run(found.info.run_id)
    assert done.data.metrics["top1"] == 90.0
    assert DIGEST in done.data.tags
    assert done.info.end_time == 1769860860000
    assert {f.path for f in store.client.list_artifacts(found.info.run_id)} == {
        "policy.json",
        "metrics.json",
        "bits.png",
    }
    before = points(store)
    assert log(params, tmp_path) == content
    assert points(store) == before


def test_live_run_of_older_results_is_replaced(tmp_path, served):
    params = served
    job = Job("a", "near", "w3a3", 0)
    with live(params, job, "search", Meter(None)) as logger:
        logger.log(0, loss=77.0)
    store = Store(params.mlflow.uri, params.mlflow.experiment)
    (old,) = store.runs(job.name)
    content = log(params, tmp_path)
    assert content["runs"][job.name] != old.info.run_id
    assert old.info.run_id not in {run.info.run_id for run in store.runs()}
    assert store.history(content["runs"][job.name], "search/loss")[0] == (0, 2.0)


def test_a_stage_that_starts_again_starts_a_new_live_run(served):
    params = served
    job = Job("a", "near", "w3a3", 0)
    for loss in (3.0, 2.0):
        with live(params, job, "search", Meter(None)) as logger:
            logger.log(0, loss=loss)
            logger.log(1, loss=loss / 2)
    store = Store(params.mlflow.uri, params.mlflow.experiment)
    (run,) = store.runs(job.name)
    assert store.history(run.info.run_id, "search/loss") == [(0, 2.0), (1, 1.0)]


def test_a_dead_server_does_not_stop_the_training(tmp_path):
    params = stored(make_params(tmp_path / "r"), "http://127.0.0.1:1")
    steps = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with live(params, Job("a", "near", "w3a3", 0), "search", Meter(None)) as logger:
            for step in range(5):
                logger.log(step, loss=1.0)
                steps += 1
    assert steps == 5
    assert sum("live logging to MLflow stopped" in str(w.message) for w in caught) == 1


@pytest.fixture
def silent_server():
    """URI of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_server_that_never_answers_holds_up_a_job_for_five_seconds_at_most(tmp_path, silent_server):
    """And its seconds are not the job's own."""
    params = stored(make_params(tmp_path / "r"), silent_server)
    script = f"""
import json, time, warnings
from seam.experiment.params import Job, parse_params
from seam.runtime.meter import Meter
from seam.tracking.live import live
params, meter = parse_params(json.loads({params.model_dump_json()!r})), Meter(None)
own = meter.seconds()
with live(params, Job("a", "near", "w3a3", 0), "search", meter) as logger:
    start = time.monotonic()
    for step in range(1000):
        logger.log(step, loss=1.0)
    training = time.monotonic() - start
print(training, time.monotonic() - start, meter.seconds() - own, meter.seconds_aside)
"""
    start = time.monotonic()
    training, whole, seconds, aside = map(float, fresh_python(script).split())
    assert training < 1 and seconds < 1.5
    assert 4 < whole < 7 and aside > 4
    assert time.monotonic() - start < 40  # the exit does not wait for the server: left alone, it takes a minute


def test_time_that_a_server_has_kept_silent_before_the_end_is_not_waited_again(tmp_path, silent_server):
    params = stored(make_params(tmp_path / "r"), silent_server)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with live(params, Job("a", "near", "w3a3", 0), "search", Meter(None)) as logger:
            logger.log(0, loss=1.0)
            time.sleep(5.5)
            start = time.monotonic()
    assert time.monotonic() - start < 2
    assert [str(w.message) for w in caught] == [
        "live logging to MLflow stopped (no answer); the log stage adds the rest"
    ]


def test_log_of_the_real_run(smoke_results):
    params, root = smoke_results
    content = read_json(root / params.results / "mlflow.json")
    assert set(content["runs"]) == {job.name for job in params.jobs()}
    store = Store(f"sqlite:///{root}/mlflow.db", content["experiment"])
    for job in params.jobs():
        run = store.client.get_run(content["runs"][job.name])
        metrics = read_json(root / params.results / "evaluate" / job.folder / "metrics.json")
        assert run.data.metrics["top1"] == pytest.approx(metrics["top1"], rel=1e-5)
        assert run.info.run_name == job.name
        assert run.data.tags["mlflow.source.git.commit"]
        cost = read_json(root / params.results / "search" / job.folder / "cost.json")
        assert run.info.end_time - run.info.start_time >= 1000 * cost["seconds"] - 1
