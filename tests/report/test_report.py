"""The report: tables with the right numbers, and figures that are complete, deterministic and readable."""

import csv
import itertools
import math
import struct
import subprocess
import sys

import matplotlib.pyplot
import pytest
from handmade import IMAGES, MACS, SEARCHES, make_params, write_results

from seam.errors import SeamError
from seam.experiment.graph import FIGURES, report_files
from seam.experiment.results import curves, load
from seam.io import read_csv, read_json
from seam.report import figures, tables
from seam.report.style import RC, styles
from seam.stages.claims import claims as claims_stage
from seam.stages.report import report as report_stage


def top1(job):
    return 90.0 - list(SEARCHES).index(job.search) - 0.1 * job.seed


def make(tmp_path, **grid):
    params = make_params(tmp_path / "r", **grid)
    write_results(params, top1, seconds=lambda job: {"near": 2.0, "direct": 50.0, "plain": 2.5}.get(job.search, 0.01))
    return params


def run(params):
    folder = load(params).root
    claims_stage(params, folder / "claims.json")
    report_stage(params, folder / "report")
    return folder / "report"


def test_table_has_a_row_a_job_with_its_numbers(tmp_path):
    params = make(tmp_path, models=("a", "b"), seeds=(0, 1))
    rows = read_csv(run(params) / "results.csv")
    assert [(r["model"], r["search"], r["budget"], int(r["seed"])) for r in rows] == [
        tuple(job) for job in params.jobs()
    ]
    near = next(r for r in rows if r["search"] == "near" and r["seed"] == "1")
    assert float(near["delta_fp"]) == pytest.approx(89.9 - 92.0)
    assert float(near["calibrated_top1"]) == pytest.approx(69.9)
    assert float(near["speedup"]) == pytest.approx(25.0)
    assert [float(r["search_seconds_once"]) for r in rows] == [60.0] + [0.0] * (len(rows) - 1)
    assert float(near["speedup_image_macs"]) == pytest.approx(
        60000 * MACS["direct"] / (IMAGES["near"] * MACS["near"]), rel=1e-5
    )
    assert float(near["proxy_share"]) == pytest.approx(1797 / 60000, rel=1e-5)
    uniform = next(r for r in rows if r["search"] == "uniform")
    assert (uniform["proxy"], uniform["speedup"], uniform["proxy_share"]) == ("none", "", "")


def test_speedup_is_empty_without_the_baseline(tmp_path):
    rows = read_csv(run(make(tmp_path, searches=("near", "uniform"))) / "results.csv")
    assert [row["speedup"] for row in rows] == ["", ""]


def test_markdown_shows_numbers_conventions_and_verdicts(tmp_path):
    folder = run(make(tmp_path))
    text = (folder / "results.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + len(SEARCHES)
    assert "a: full precision 92.00 % top-1" in text
    assert tables.CONVENTION in text
    assert "25.0x (334x)" in text
    assert "not in it, nor in the speed-ups: 60.0 s here" in text
    said = (folder / "claims.md").read_text()
    assert "not decided" in said
    assert "our measurement" in said
    assert "grid.seeds holds one seed" in said


def test_every_file_is_written_and_recorded(tmp_path):
    params = make(tmp_path, models=("a", "b"))
    folder = run(params)
    assert {path.name for path in folder.iterdir()} == {*report_files(params), "provenance.json"}
    assert read_json(folder / "provenance.json")["outputs"].keys() == set(report_files(params))
    for name in FIGURES:
        width, height = struct.unpack(">II", (folder / f"{name}.png").read_bytes()[16:24])
        assert width > 200
        assert height > 100
        assert (folder / f"{name}.svg").read_text().rstrip().endswith("</svg>")


def test_formats_are_the_parameters(tmp_path):
    params = make(tmp_path)
    params = params.model_copy(update={"report": params.report.model_copy(update={"formats": ("svg",)})})
    assert not list(run(params).glob("*.png"))


def test_same_results_give_the_same_bytes(tmp_path):
    params = make(tmp_path)
    folder = run(params)
    first = {name: (folder / name).read_bytes() for name in report_files(params)}
    script = "import json, pathlib, sys\n"
    script += "from seam.experiment.params import parse_params\nfrom seam.stages.report import report\n"
    script += "report(parse_params(json.loads(sys.argv[1])), pathlib.Path(sys.argv[2]))"
    again = subprocess.run(
        [sys.executable, "-c", script, params.model_dump_json(), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert [name for name in first if (folder / name).read_bytes() != first[name]] == []


def test_a_search_has_one_look_of_its_own(tmp_path):
    chosen = styles(make(tmp_path))
    assert list(chosen) == list(SEARCHES)
    assert len({(style.colour, style.marker) for style in chosen.values()}) == len(SEARCHES)


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("grid", ["two models", "one model", "three budgets", "one search"])
def test_no_text_overlaps_or_leaves_the_figure(tmp_path, monkeypatch, name, grid):
    shapes = {
        "two models": {"models": ("resnet18", "mobilenetv2")},
        "one model": {"seeds": (0, 1)},
        "three budgets": {"budgets": ("w2a2", "w3a3", "w4a4")},
        "one search": {"searches": ("uniform",)},
    }
    params = make(tmp_path, **shapes[grid])
    shown, draw = [], matplotlib.text.Text.draw

    def watched(text, *args, **kwargs):  # only what is really drawn: ticks outside the limits are not
        shown.append(text)
        draw(text, *args, **kwargs)

    with matplotlib.rc_context(RC):
        figure = getattr(figures, name)(load(params), styles(params))
        figure.draw_without_rendering()
        monkeypatch.setattr(matplotlib.text.Text, "draw", watched)
        figure.canvas.draw()
        monkeypatch.undo()
        boxes = [(t.get_text(), t.get_window_extent()) for t in shown if t.get_text().strip()]
    matplotlib.pyplot.close(figure)
    page = figure.bbox
    for said, box in boxes:
        left, bottom, right, top = box.x0 - page.x0, box.y0 - page.y0, page.x1 - box.x1, page.y1 - box.y1
        assert min(left, bottom, right, top) > -1, said
    for (said, one), (other, two) in itertools.combinations(boxes, 2):
        width = min(one.x1, two.x1) - max(one.x0, two.x0)
        height = min(one.y1, two.y1) - max(one.y0, two.y0)
        assert width <= 1 or height <= 1, f"{said!r} and {other!r} overlap"


def test_points_are_the_results(tmp_path):
    params = make(tmp_path, seeds=(0, 1))
    figure = figures.accuracy_cost(load(params), styles(params))
    time = figure.axes[0]
    points = {
        tuple(round(float(v), 3) for v in xy)
        for group in time.collections
        for xy in getattr(group, "get_offsets", list)()
    }
    assert {(2.0, 90.0), (2.0, 89.9), (50.0, 89.0)} <= points
    assert time.get_xscale() == "log"


def test_bars_are_the_bits(tmp_path):
    params = make(tmp_path, searches=("near",))
    figure = figures.bits(load(params), styles(params))
    heights = sorted(bar.get_height() for bar in figure.axes[0].patches)
    assert heights == [-8, -8, -3, -2, 2, 3, 8, 8]


def test_curves_keep_first_and_last(tmp_path):
    history = {"step": list(range(5000)), "loss": [math.sin(i) for i in range(5000)]}
    thin = curves(history, most=100)
    assert len(thin["step"]) == 100
    assert (thin["step"][0], thin["step"][-1]) == (0, 4999)
    assert all(thin["loss"][i] == history["loss"][step] for i, step in enumerate(thin["step"]))
    assert curves({"step": [1.0]}, most=100) == {"step": [1.0]}


def test_report_needs_the_claims(tmp_path):
    params = make(tmp_path)
    with pytest.raises(SeamError, match=r"claims.json: no such file"):
        report_stage(params, tmp_path / "r/report")


def test_broken_history_is_named(tmp_path):
    params = make(tmp_path)
    claims_stage(params, tmp_path / "r/claims.json")
    (tmp_path / "r/search/a/near/w3a3/0/history.csv").write_text("step,loss\n0,abc\n")
    with pytest.raises(SeamError, match=r"near/w3a3/0/history.csv: not a table of numbers"):
        report_stage(params, tmp_path / "r/report")


@pytest.mark.parametrize(("text", "drawn"), [("step,loss\n1,2.5\n2,1.5\n", 1), ("step,distance\n1,2.5\n", 0)])
def test_a_history_needs_no_column_but_step(tmp_path, text, drawn):
    params = make(tmp_path)
    claims_stage(params, tmp_path / "r/claims.json")
    for path in (tmp_path / "r/search").glob("*/*/*/*/history.csv"):
        path.write_text("step,epoch,loss,budget,entropy,lr,seconds\n")
    (tmp_path / "r/search/a/near/w3a3/0/history.csv").write_text(text)
    report_stage(params, tmp_path / "r/report")
    figure = figures.search_curves(load(params), styles(params))
    panels = {axes.get_ylabel(): axes for axes in figure.axes if axes.get_ylabel()}
    assert len(panels["loss"].lines) == drawn
    assert [text.get_text() for text in panels["logit entropy (bits)"].texts] == ["not recorded"]
    assert [text.get_text() for legend in figure.legends for text in legend.get_texts()] == ["near"][:drawn]


def test_report_of_the_real_run(smoke_results):
    params, root = smoke_results
    folder = root / params.results / "report"
    assert {path.name for path in folder.iterdir()} == {*report_files(params), "provenance.json"}
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for job, row in zip(params.jobs(), rows, strict=True):
        metrics = read_json(root / params.results / "evaluate" / job.folder / "metrics.json")
        assert float(row["top1"]) == pytest.approx(metrics["top1"], rel=1e-5)
        assert float(row["bitops_g"]) == pytest.approx(metrics["bitops_g"], rel=1e-5)
