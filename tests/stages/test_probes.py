"""Probes of a plan: the jobs' own steps, on the target's own images where they are there."""

import numpy as np
import yaml
from engines import REPOSITORY
from PIL import Image

from seam.experiment import results
from seam.experiment.params import parse_params
from seam.quant.quantizer import Quantizer
from seam.stages import probes as measuring
from seam.stages.plan import Grid, plan
from seam.stages.probes import Probes
from seam.training.statistics import IMAGES

SMOKE = REPOSITORY / "experiments/smoke.yaml"


def probes(raw):
    grid = Grid(params := parse_params(raw))
    return Probes(params, grid.target, grid.tests)


def test_the_targets_files_are_read_where_they_are_there(tmp_path):
    for number in range(6):
        for split in ("train", "test"):
            path = tmp_path / f"photos/{split}/{'ab'[number % 2]}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((20, 20, 3), 40 * number, np.uint8)).save(path)
    raw = yaml.safe_load(SMOKE.read_text())
    raw["data_root"] = str(tmp_path / "data")
    raw["target"] = {"dataset": "folder", "path": str(tmp_path / "photos"), "image_size": 16}
    found = probes(raw)
    assert found.target == (6, 6, 2, (3, 16, 16))
    images = found.images(4, found.target)
    assert len(images) == 4 and found.unread == []
    assert all(pixels.min() == pixels.max() for pixels in images.pixels)  # no noise
    raw["target"] = {"dataset": "food101"}
    found = probes(raw)
    assert found.images(4, found.target).shape == (3, 224, 224) and found.unread == ["food101"]


def test_the_probes_are_of_the_jobs_that_run(smoke_results, monkeypatch):
    """Every kind of job is probed with its own code. How right the seconds are, benchmarks/plan.py tells."""
    monkeypatch.chdir(smoke_results[1])
    monkeypatch.setattr(measuring, "MANY", 8)
    params, _ = smoke_results
    content = plan(params)
    found = {(job["stage"], job["search"]): job for job in content["jobs"]}
    assert content["start"] > 0.3
    for result in results.load(params):
        costs = {("search", result.job.search): result.search_cost, ("finetune", ""): result.finetune_cost}
        for key, cost in costs.items():
            if cost["steps"]:
                assert cost["steps"] == found[key]["steps"]
                assert found[key]["seconds"] > content["start"]


def test_a_finetuning_is_probed_with_its_own_teacher_and_as_many_images_as_it_looks_at(monkeypatch):
    raw = yaml.safe_load(SMOKE.read_text())
    raw["finetune"] |= {"batch_size": 16, "distillation": 0.5, "images": None}
    found, seen = probes(raw), []
    monkeypatch.setattr(measuring, "train", lambda model, some, images, *given, **more: seen.append((images, given[3])))
    alias = raw["grid"]["models"][0]
    for kept, count in (("re-estimated", IMAGES), ("frozen", 64)):
        found.trained(Probes.quantized, alias, found.params.finetune.model_copy(update={"batch_norm": kept}))
        images, teacher = seen[-1]
        assert len(images) == count
        assert not teacher.training and not any(isinstance(one, Quantizer) for one in teacher.modules())
