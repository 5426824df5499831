"""report.html: one file with the right numbers, that loads nothing, takes no name for markup, and stays the same."""

import re

import pytest
from handmade import make_params, write_results

from seam.experiment.results import load
from seam.io import read_json
from seam.report import charts, page, tables
from seam.report.style import GREY_MARKERS, MARKERS
from seam.stages.claims import claims as claims_stage
from seam.stages.report import report as report_stage


@pytest.fixture
def params(tmp_path):
    params = make_params(tmp_path / "r", models=("a", "b"), seeds=(0, 1))
    write_results(params, lambda job: 90.0 - 2 * job.seed, seconds=lambda job: 50.0 if job.search == "direct" else 2.0)
    claims_stage(params, tmp_path / "r/claims.json")
    return params


def made(params, title=""):
    results, claims = load(params), read_json(load(params).root / "claims.json")
    rows = tables.rows(results, claims["design"]["roles"]["baseline"])
    return page.report_page(results, rows, claims, title)


def without_library(text):
    """The page but for plotly's own code, which is inlined once."""
    code = max(re.findall(r"<script>(.*?)</script>", text, re.DOTALL), key=len)
    assert len(code) > 1e6 and text.count(code) == 1
    return text.replace(code, "")


def test_the_stage_writes_it_and_the_same_results_give_the_same_bytes(params, tmp_path):
    report_stage(params, tmp_path / "r/report")
    first = (tmp_path / "r/report/report.html").read_text()
    assert first == made(params) and first.startswith("<!doctype html>")


def test_it_loads_nothing(params):
    text = without_library(made(params))
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=", text)
    assert set(re.findall(r'href="([^"]*)"', text)) == {"#claims", "#results", "#charts", "#environment"}
    assert not re.search(r"@import|url\(", text)


def test_claims_lead_and_numbers_are_those_of_the_tables(params):
    text = without_library(made(params))
    assert text.index('id="claims"') < text.index('id="results"') < text.index('id="charts"')
    body = re.sub(r"<[^>]+>", "|", text)
    assert "89.00 ± 1.41" in body  # of 90 and 88
    assert "25.0x" in body and "full precision 92.00 %" in body
    assert "near: top-1 after finetuning is not more than 0.5 points below direct" in body
    for verdict in ("holds", "not decided"):
        assert f"|{verdict}|" in body


def test_every_chart_is_there_for_every_model(params):
    text = made(params)
    drawn = re.findall(r'id="(chart-\d+-\d+)"', text)
    results, chosen = load(params), page.styles(params)
    wanted = [
        f"chart-{i}-{j}"
        for i, (*_, draw) in enumerate(charts.CHARTS)
        for j, model in enumerate(("a", "b"))
        if draw(results, model, chosen) is not None
    ]
    assert drawn == wanted and len(wanted) == 2 * len(charts.CHARTS)
    assert all(text.count(f'"{name}"') >= 2 for name in wanted)  # and is drawn by a script


def test_names_are_never_markup(params):
    text = without_library(made(params, title="<img src=x onerror=alert(1)>"))
    assert "<img" not in text and "&lt;img src=x" in text
    assert charts.plain("<b>&") == "&lt;b&gt;&amp;"


def test_pareto_front():
    points = [(3.0, 90.0), (1.0, 80.0), (2.0, 85.0), (2.5, 84.0), (1.0, 79.0), (4.0, 90.0)]
    assert charts.pareto(points) == [(1.0, 80.0), (2.0, 85.0), (3.0, 90.0)]


def test_every_marker_has_a_symbol():
    assert {*MARKERS, *GREY_MARKERS} <= charts.SYMBOLS.keys()


def test_equal_policies_of_several_seeds_share_a_row(params):
    figure = charts.bits(load(params), "a", page.styles(params))
    rows = figure.data[0].y
    assert any(row.startswith("uniform, seed 0, 1") for row in rows) and any(row == "near, seed 0 " for row in rows)
    weights, inputs = figure.data
    assert len(weights.z) == len(rows) and weights.visible and not inputs.visible


@pytest.mark.parametrize("seconds", [12.1, 0.3, 990.0])
def test_the_axis_of_seconds_has_a_tick_however_close_the_searches_are(tmp_path, monkeypatch, seconds):
    monkeypatch.chdir(tmp_path)
    params = make_params(tmp_path / "r", models=("a",), searches=("near", "direct"))
    write_results(params, lambda job: 90.0, seconds=lambda job: seconds)
    axis = charts.accuracy_seconds(load(params), "a", page.styles(params)).layout.xaxis
    least, most = (10**end for end in axis.range)
    assert least < seconds < most and [tick for tick in axis.tickvals if least < tick < most]
