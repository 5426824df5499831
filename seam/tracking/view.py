"""The view that MLflow opens: which columns its table shows, in which order, and which charts.

MLflow has no call for this. Its page keeps a saved view in a tag of the experiment, `mlflow.sharedViewState.<name>`:
{"name", "createdAt", "updatedAt", "state"}, where `state` is JSON text again, of the page's own fields that differ from
their defaults. `?viewStateShareKey=<name>` in an address opens it, and the page lists it among its views.
"""

import json
from typing import Any

NAME = "seam"
# Metrics, in this order -> width in pixels: they fit beside the page's other panels.
COLUMNS = {"top1": 65, "calibrated_top1": 115, "bitops_g": 75, "size_mb": 70, "search_seconds": 115, "speedup": 75}
PARALLEL = ("search_seconds", "bitops_g", "size_mb", "calibrated_top1", "top1")
ORDER = "model_error"  # a parameter, "resnet18 010.62": MLflow sorts by one column only, this by model and top-1
RUNS = "tags.`seam.job` != 'summary'"  # the summary has no metrics


def experiment_tags(created: int) -> dict[str, str]:
    """The tags of an experiment that was created then (Unix time, milliseconds): a training's, with the view."""
    view = {"name": NAME, "createdAt": created, "updatedAt": created, "state": json.dumps(_state())}
    return {
        "mlflow.experimentKind": "custom_model_development",  # else its page for language models, with empty charts
        "mlflow.experiment.primaryMetric.name": "top1",
        f"mlflow.sharedViewState.{NAME}": json.dumps(view),
    }


def address(server: str, experiment_id: str, charts: bool = False) -> str:
    """The address of the view at a server: its table, or its charts."""
    mode = "CHART" if charts else "TABLE"
    query = f"workflowType=machine_learning&viewStateShareKey={NAME}&compareRunsMode={mode}"
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"


def _state() -> dict[str, Any]:
    columns = [f"metrics.`{key}`" for key in COLUMNS]
    return {
        "searchFilter": RUNS,
        "orderByKey": f"params.`{ORDER}`",
        "orderByAsc": True,
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": dict(zip(columns, COLUMNS.values(), strict=True)),
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,  # keeps the sections in this order
        "compareRunSections": [_section("costs", "Accuracy against cost", 2), _section("all", "Costs to accuracy", 1)],
        "compareRunCharts": [
            _card("SCATTER", "costs", xaxis=_metric("search_seconds"), yaxis=_metric("top1"), runsCountToCompare=100),
            _card("SCATTER", "costs", xaxis=_metric("bitops_g"), yaxis=_metric("top1"), runsCountToCompare=100),
            _card("PARALLEL", "all", selectedParams=[], selectedMetrics=list(PARALLEL), showAllRuns=True),
        ],
    }


def _section(uuid: str, name: str, columns: int) -> dict[str, Any]:
    return {"uuid": uuid, "name": name, "display": True, "isReordered": True, "columns": columns, "cardHeight": 400}


def _card(kind: str, section: str, **more: Any) -> dict[str, Any]:
    name = "-".join([section, *(axis["key"] for axis in (more.get("xaxis"), more.get("yaxis")) if axis)])
    return {"uuid": name, "type": kind, "metricSectionId": section, "deleted": False, **more}


def _metric(key: str) -> dict[str, str]:
    return {"key": key, "type": "METRIC"}
