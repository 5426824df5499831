"""Tables: results as CSV and Markdown, claims as Markdown and on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from seam.experiment.results import JobResult, Results

if TYPE_CHECKING:
    pass
from seam.report.text import factor, fixed, markdown, seconds

CONVENTION = (
    "GBitOPs = sum of MACs x weight bits x activation bits / 1e9 over the searchable layers at the target's input "
    "size; the first and the last layer are fixed at 8/8 and counted apart (`bitops_g_fixed` in results.csv)."
)
Row = dict[str, Any]


def rows(results: Results, baseline: str) -> list[Row]:
    """One row a job, in grid order: the columns of results.csv. Empty text where a value does not exist.

    baseline: the search that speed-ups are measured against, at the same model, budget and seed.
    """
    return [_row(result, results.get(result.job.model, baseline, *result.job[2:])) for result in results]


def _row(result: JobResult, baseline: JobResult | None) -> Row:
    job, metrics, cost, totals = result.job, result.metrics, result.search_cost, result.policy["totals"]
    compare = result.searched and baseline is not None and baseline.searched
    return {
        "model": job.model,
        "search": job.search,
        "budget": job.budget,
        "seed": job.seed,
        "method": result.method,
        "proxy": result.proxy_name,
        "proxy_images": result.proxy["count"],
        "proxy_share": _number(result.share),
        "images_seen": cost.get("images", ""),
        "top1": _number(metrics["top1"]),
        "delta_fp": _number(metrics["top1"] - metrics["fp_top1"]),
        "top5": _number(metrics.get("top5")),
        "calibrated_top1": _number(metrics.get("calibrated_top1")),
        "class_margin": _number(metrics.get("class_margin")),
        "bitops_g": _number(metrics["bitops_g"]),
        "bitops_g_fixed": _number(metrics.get("bitops_g_fixed")),
        "budget_share": _number(metrics["budget_share"]),
        "size_mb": _number(metrics["size_mb"]),
        "mean_w": _number(totals.get("mean_w")),
        "mean_a": _number(totals.get("mean_a")),
        "search_seconds": _number(cost["seconds"]),
        "search_seconds_once": _number(cost["seconds_once"]),
        "search_image_macs": cost["image_macs"],
        "speedup": _number(baseline.search_cost["seconds"] / cost["seconds"]) if compare else "",
        "speedup_image_macs": _number(baseline.search_cost["image_macs"] / cost["image_macs"]) if compare else "",
        "finetune_seconds": _number(result.finetune_cost["seconds"]),
        "calibrate_seconds": _number(result.evaluate_cost["parts"]["calibrate"]),
        "peak_memory_mb": _number(cost.get("peak_memory_mb")),
        "logit_entropy": _number(cost.get("logit_entropy")),
    }


def _number(value: float | None) -> float | str:
    return "" if value is None else float(f"{value:.6g}")


def results_markdown(results: Results, table: Sequence[Row], title: str = "") -> str:
    """results.md: the full-precision accuracy, then one row a job, then the conventions."""
    head = [
        "Model",
        "Search",
        "Budget",
        "Seed",
        "Method",
        "Proxy",
        "Images seen",
        "Calibrated top-1 %",
        "Top-1 %",
        "Δ FP",
    ]
    head += ["Class margin", "GBitOPs ¹", "Of budget", "Size MB"]
    head += ["Search s ²", "Image-MACs ³", "Speed-up ⁴ s (image-MACs)"]
    body = []
    for row in table:
        speed = f"{factor(row['speedup'])} ({factor(row['speedup_image_macs'])})" if row["speedup"] else "–"
        body.append(
            [row["model"], row["search"], row["budget"], row["seed"], row["method"], row["proxy"],
             f"{row['images_seen']:,}" if row["images_seen"] else "–",
             fixed(row["calibrated_top1"], 2), fixed(row["top1"], 2), fixed(row["delta_fp"], 2, sign=True),
             fixed(row["class_margin"], 3), fixed(row["bitops_g"], 4), fixed(row["budget_share"], 3),
             fixed(row["size_mb"], 3), seconds(row["search_seconds"]),
             f"{row['search_image_macs']:.2e}" if row["search_image_macs"] else "–", speed]
        )  # fmt: skip
    compiling = sum(row["search_seconds_once"] for row in table)
    precise = {result.job.model: result.metrics["fp_top1"] for result in results}
    lines = [
        f"# {title or 'Results'}",
        "",
        *(f"- {model}: full precision {top1:.2f} % top-1" for model, top1 in precise.items()),
        "",
        *markdown(head, body, left=6),
        "",
        f"¹ {CONVENTION}",
        "",
        "² From the start of the process to the policy, loading of kernels included. Compiling them is done once on a "
        f"machine and is not in it, nor in the speed-ups: {seconds(compiling)} s here.",
        "",
        "³ Images seen by the search x MACs of one forward pass at the size they were seen at.",
        "",
        "⁴ Cost of the baseline search (claims.baseline) / cost of this search, at the same model, budget and seed.",
        "– where a search sees no images or the grid holds no baseline.",
        "",
        "Top-1 is after finetuning, calibrated top-1 before it; both on the target's test images.",
    ]
    return "\n".join(lines) + "\n"
