"""Small results written by hand in the pipeline's file formats: inputs for the arithmetic of claims and reports."""

from pathlib import Path

import numpy as np

from seam.experiment.params import Params, parse_params
from seam.experiment.results import pack
from seam.io import write_csv, write_json, write_text

SEARCHES = {
    "near": {"method": "seam", "proxy": {"dataset": "digits", "split": "all"}},
    "direct": {"method": "seam", "proxy": {"dataset": "fashion_mnist"}, "epochs": 1},
    "plain": {"method": "seam", "proxy": {"dataset": "digits", "split": "all"}, "margin_weight": 0.0},
    "uniform": {"method": "uniform", "proxy": "none"},
    "random-0": {"method": "random", "proxy": "none", "options": {"draw": 0}},
    "random-1": {"method": "random", "proxy": "none", "options": {"draw": 1}},
}
IMAGES = {"near": 1797, "direct": 60000, "plain": 1797}
STEPS = {"near": 6, "direct": 20, "plain": 6}
MACS = {"near": 1e6, "direct": 1e7, "plain": 1e6}


def make_params(
    results: Path, models=("a",), searches=tuple(SEARCHES), budgets=("w3a3",), seeds=(0,), **claims
) -> Params:
    """Parameters over the searches above; `claims` overrides their roles."""
    roles = {
        "baseline": "direct",
        "proxies": ["near"],
        "without_margin": {"near": "plain"},
        "references": ["uniform", "random-0", "random-1"],
        "margin_points": 0.5,
    }
    return parse_params(
        {
            "name": "handmade",
            "results": str(results),
            "grid": {"models": models, "searches": searches, "budgets": budgets, "seeds": seeds},
            "target": {"dataset": "fashion_mnist"},
            "models": {model: {"name": "test_resnet"} for model in models},
            "pretrain": {"epochs": 1},
            "finetune": {"epochs": 1},
            "evaluate": {"calibration": "steps"},  # the default when tests/corpus was made
            "searches": SEARCHES,
            "budgets": {budget: budget for budget in budgets},
            "claims": {**roles, **claims},
            "report": {"formats": ["png", "svg"], "dpi": 60},
            "mlflow": {"uri": f"sqlite:///{results.parent}/mlflow.db"},
        }
    )


def write_results(
    params: Params,
    top1,
    seconds=lambda job: 10.0,
    device=lambda job: "cpu",
    share=lambda job: 1.0,
    calibrated=None,
    bits=lambda job: 3 + job.seed if job.search != "uniform" else 3,
) -> None:
    """Write the files of every job. The functions give a job's value: top-1 (percent), search seconds, ...

    calibrated: top-1 before finetuning; 20 points below top-1 by default. bits: of one layer of the policy; by default
    those that each seed finds, the same for `uniform`.
    """
    calibrated = calibrated or (lambda job: top1(job) - 20)
    root = Path(params.results)
    manifest = {
        "dataset": "fashion_mnist",
        "path": None,
        "classes": [f"class {i}" for i in range(10)],
        "image_size": [28, 28],
        "channels": 1,
        "train": {"count": 60000, "per_class": [6000] * 10},
        "test": {"count": 10000, "per_class": [1000] * 10},
        "mean": [0.286],
        "std": [0.353],
        "sha256": {"train": "0"},
    }
    write_json(root / "data/target/manifest.json", manifest)
    for job in params.jobs():
        count = IMAGES.get(job.search, 0)
        proxy = {"dataset": None, "count": 0}
        if count:
            proxy = {
                "dataset": "digits" if count < 60000 else "fashion_mnist",
                "count": count,
                "image_size": [8, 8],
                "split": "all",
                "sampling": "balanced",
                "seed": 0,
                "sha256": "1",
                "share_of_target": count / 60000,
            }
        write_json(root / f"proxies/{job.model}/{job.search}/proxy.json", proxy)
        metrics = {
            "top1": top1(job),
            "top5": 99.0,
            "class_margin": 1.0,
            "calibrated_top1": calibrated(job),
            "fp_top1": 92.0,
            "bitops_g": 2.0 * share(job),
            "bitops_g_fixed": 0.5,
            "size_mb": 1.5,
            "budget_share": share(job),
            "images": 10000,
        }
        write_json(root / f"evaluate/{job.folder}/metrics.json", metrics)
        hits = {"top1": packed(top1(job)), "calibrated_top1": packed(calibrated(job))}
        write_json(root / f"evaluate/{job.folder}/hits.json", {"images": 10000, **hits})
        apart = {"distances": [[0.0, 1.0], [1.0, 0.0]], "points": [[0.5, 0.0, 0], [-0.5, 0.1, 1]]}
        kinds = dict.fromkeys(("full_precision", "calibrated", "finetuned"), apart)
        write_json(root / f"evaluate/{job.folder}/classes.json", {"names": ["cat", "<dog>"], **kinds})
        layers = {"conv1": (8, True), "body.0": (bits(job), False), "body.1": (2, False), "fc": (8, True)}
        policy = {
            "schema": "seam-policy/1",
            "model": {"alias": job.model, "name": "test_resnet"},
            "budget": {
                "spec": job.budget,
                "unit": "GBitOPs",
                "limit": 2.0,
                "spent": 2.0 * share(job),
                "share": share(job),
            },
            "method": params.method(job.search),
            "search": job.search,
            "seed": job.seed,
            "layers": {
                k: {"w": bits, "a": bits, "macs": 10, "params": 5, "fixed": fixed}
                for k, (bits, fixed) in layers.items()
            },
            "totals": {
                "bitops_g": 2.0 * share(job),
                "bitops_g_fixed": 0.5,
                "size_mb": 1.5,
                "mean_w": 2.5,
                "mean_a": 2.5,
            },
        }
        write_json(root / f"search/{job.folder}/policy.json", policy)
        steps = STEPS.get(job.search, 0)
        cost = {
            "seconds": seconds(job),
            "seconds_once": 60.0 if job == next(params.jobs()) else 0.0,
            "images": count,
            "steps": steps,
            "epochs": 1,
            "image_macs": count * MACS.get(job.search, 0),
            "peak_memory_mb": 100.0,
            "device": device(job),
            "device_name": device(job),
            "threads": 2,
            "started": "2026-01-31T12:00:00.000+00:00",
            "ended": "2026-01-31T12:00:10.000+00:00",
        }
        write_json(root / f"search/{job.folder}/cost.json", cost)
        history = [
            {
                "step": i,
                "epoch": 0,
                "loss": 2.0 / (i + 1),
                "ce": 1.0,
                "margin": -0.5,
                "budget": 1.1,
                "entropy": 1.0,
                "seconds": i,
            }
            for i in range(steps)
        ]
        if history:
            write_csv(root / f"search/{job.folder}/history.csv", history)
        else:
            write_text(root / f"search/{job.folder}/history.csv", "step,epoch,loss,ce,margin,budget,entropy,seconds\n")
        write_json(
            root / f"finetune/{job.folder}/cost.json",
            {"seconds": 30.0, "images": 1000, "ended": "2026-01-31T12:01:00.000+00:00"},
        )
        write_json(root / f"evaluate/{job.folder}/cost.json", {"seconds": 5.0, "parts": {"calibrate": 2.0}})
        tuned = [
            {"step": i, "epoch": 0, "loss": 1.0 / (i + 1), "top1": 50.0 + i, "lr": 0.1, "seconds": i} for i in range(5)
        ]
        write_csv(root / f"finetune/{job.folder}/history.csv", tuned)


def packed(top1: float) -> str:
    """hits.json's text for an accuracy in percent over 10,000 images: right about the first of them."""
    return pack(np.arange(10000) < round(100 * top1))
