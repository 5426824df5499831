"""MLflow's pages in a browser, as a person meets them: open the view, read it, sort, compare two runs.

Skipped where there is no Chromium (`apt-get install chromium`). Screenshots are in the test's temporary folder.
"""

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from engines import free_ports
from handmade import make_params, write_results

from seam.experiment.params import Job
from seam.stages.claims import claims as claims_stage
from seam.stages.log import log as log_stage
from seam.stages.report import report as report_stage
from seam.tracking.view import COLUMNS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium)")
WAIT = 60_000  # milliseconds that the page may take for one thing, on a busy machine


MODELS, SEARCHED = ("mobilenet", "resnet"), ("near", "direct", "uniform", "random-0")


def top1(job) -> float:
    return 90.0 - 3.3 * SEARCHED.index(job.search) - 4 * (job.model == "mobilenet") + 0.21 * job.seed


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the parameters and the logged results of two models, four searches and two seeds."""
    folder = tmp_path_factory.mktemp("browser")
    params = make_params(folder / "r", models=MODELS, searches=SEARCHED, seeds=(0, 1))
    params = params.model_copy(update={"report": params.report.model_copy(update={"formats": ("png",)})})
    seconds = {"near": 6.1, "direct": 146.0, "uniform": 0.4, "random-0": 0.5}
    share = {"near": 1.0, "direct": 0.98, "uniform": 0.95, "random-0": 0.9}
    write_results(
        params,
        top1,
        seconds=lambda job: seconds[job.search] + job.seed,
        share=lambda job: share[job.search],
        bits=lambda job: 3 + SEARCHED.index(job.search),
    )
    claims_stage(params, folder / "r/claims.json")
    report_stage(params, folder / "r/report")
    log_stage(params, folder / "r/mlflow.json")
    (folder / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json", exclude_unset=True)))
    return folder


@pytest.fixture(scope="module")
def address(place):
    """The address that `seam ui` prints, on a port of its own."""
    (port,) = free_ports()
    command = [sys.executable, "-m", "seam", "ui", "--params", str(place / "params.yaml"), "--port", str(port)]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    with (place / "ui.log").open("w") as output:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=output, text=True, env=clean, cwd=place)
    timer = threading.Timer(240, process.terminate)
    timer.start()
    try:
        line = process.stdout.readline()
        assert line.startswith(f"MLflow: http://127.0.0.1:{port}/"), line + (place / "ui.log").read_text()
        yield line.split()[1]
    finally:
        timer.cancel()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not listening(port)


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, address):
    """The view as a first visitor finds it, with all the panels that MLflow opens by itself."""
    page = browser.new_page(viewport={"width": 1600, "height": 1000}, locale="en-US")
    page.set_default_timeout(WAIT)
    page.goto(address)
    page.locator(".ag-row").first.wait_for()
    yield page
    page.close()


def shot(page, folder: Path, name: str) -> None:
    page.wait_for_timeout(1500)  # what moves has come to rest
    page.screenshot(path=folder / name)


def names(page) -> list[str]:
    """The runs of the table, from above."""
    rows = """rows => rows.map(row => [Number(row.getAttribute("row-index")), row.querySelector("a").innerText])"""
    found = page.locator(".ag-pinned-left-cols-container .ag-row:has(a)").evaluate_all(rows)
    return [name.strip() for _, name in sorted(found)]


def until(page, read, wanted) -> None:
    """Wait until the page shows what is wanted."""
    end = time.monotonic() + WAIT / 1000
    while read() != wanted and time.monotonic() < end:
        page.wait_for_timeout(300)
    assert read() == wanted


def expected(order) -> list[str]:
    """The names of all runs in an order, which is a function of a job."""
    jobs = [Job(*job) for job in itertools.product(MODELS, SEARCHED, ("w3a3",), (0, 1))]
    return [job.name for job in sorted(jobs, key=order)]


def test_the_view_shows_the_numbers_in_order(page, tmp_path):
    until(page, lambda: names(page), expected(lambda job: (job.model, -top1(job))))
    shot(page, tmp_path, "table.png")
    assert page.get_by_text("16 matching runs").is_visible()
    table = page.locator(".ag-root-wrapper").bounding_box()
    right = 0
    for key in COLUMNS:
        head = page.locator(f'.ag-header-cell[col-id="metrics.`{key}`"]')
        box = head.bounding_box()
        assert head.inner_text().strip() == key
        assert right <= box["x"] and box["x"] + box["width"] <= table["x"] + table["width"] + 1
        right = box["x"] + box["width"]
    row = [page.locator(f'.ag-row[row-index="2"] [col-id="metrics.`{key}`"]').inner_text() for key in COLUMNS]
    assert row == ["82.91", "62.91", "1.96", "1.5", "147", "1"]
    assert page.locator(".ag-header-cell[col-id^=metrics]").count() == len(COLUMNS)


def test_a_click_sorts(page, tmp_path):
    page.locator('.ag-header-cell[col-id="metrics.`top1`"]').click()
    until(page, lambda: names(page), expected(lambda job: -top1(job)))
    shot(page, tmp_path, "sorted.png")


def test_two_runs_compared_show_both_policies(page, tmp_path):
    until(page, lambda: names(page), expected(lambda job: (job.model, -top1(job))))
    for name in ("resnet-near-w3a3-0", "resnet-direct-w3a3-0"):
        row = page.locator(".ag-pinned-left-cols-container .ag-row", has_text=name)
        row.locator(".ag-selection-checkbox").click()
    page.locator("[data-component-id='mlflow.assistant.chat_panel.close']").click()  # it would hide the list of files
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text("Comparing 2 Runs from 1 Experiment").wait_for()
    page.get_by_text("Visualizations").click()  # folds them
    bits = page.locator("tr", has_text="bits.body.0")
    bits.wait_for()
    assert bits.inner_text().split() == ["bits.body.0", "3/3", "4/4"]
    page.get_by_text("bits.png").click()
    charts = "[...document.querySelectorAll('img')].filter(i => i.naturalWidth > 600 && /^blob:|artifact/.test(i.src))"
    # the page may show an image a second time, so sources are counted
    page.wait_for_function(f"() => new Set({charts}.map(i => i.src)).size == 2")
    page.set_viewport_size({"width": 1600, "height": 2000})
    shot(page, tmp_path, "compare.png")


def test_the_charts_hold_all_runs(browser, address, tmp_path):
    page = browser.new_page(viewport={"width": 1600, "height": 1500}, locale="en-US")
    page.goto(address.replace("TABLE", "CHART"))
    for title in ("search_seconds vs. top1", "bitops_g vs. top1", "Parallel Coordinates"):
        page.get_by_text(title, exact=True).wait_for(timeout=WAIT)
    page.wait_for_function("() => document.querySelectorAll('.scatterlayer .point').length >= 32", timeout=WAIT)
    shot(page, tmp_path, "charts.png")
    assert page.locator(".scatterlayer").first.locator(".point").count() == 16
    page.close()
