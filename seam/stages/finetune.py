"""`seam finetune --params`: quantization-aware training of the target model under a policy."""

from pathlib import Path
from typing import Any

from seam import io
from seam.experiment import provenance
from seam.experiment.params import Job, Params
from seam.runtime.imports import import_torch
from seam.runtime.process import set_up


def finetune(params: Params, job: Job, weights: Path, policy: Path, out: Path) -> None:
    """Finetune the model under the policy and write model.safetensors, history.csv and cost.json."""
    import_torch()
    from seam.quant.kernels import use_kernels
    from seam.runtime.meter import Meter
    from seam.stages.pretrain import COLUMNS
    from seam.stages.resume import forget, resume_file
    from seam.stages.target import CALIBRATION_IMAGES, calibrate, quantized
    from seam.tracking.live import live
    from seam.training.supervised import train as train_supervised

    provenance.check_inputs(params, [weights, policy], job)
    settings = params.training("finetune", job.model)
    device = set_up(params.device, settings.threads, job.seed)
    meter = Meter(device)
    with meter.part("kernels"):
        meter.kernels, meter.seconds_once = use_kernels(settings.kernels, device=device)
    with meter.part("setup"):
        start = quantized(params, job.model, weights, policy, device)
    with meter.part("calibrate"):
        calibrate(start, settings.calibration, CALIBRATION_IMAGES, settings.seed, device)
    resume = resume_file(params, "finetune", job._asdict(), [weights, policy])
    teacher = _teacher(start, weights, device) if settings.distillation else None
    with live(params, job, "finetune", meter) as log:
        more = {"live": log.log, "label": f"finetune {job.name}", "teacher": teacher}
        more["section"] = params.training_key("finetune", job.model)
        history = train_supervised(start.network, settings, start.train, job.seed, device, meter, resume=resume, **more)
    outputs = [out / n for n in ("model.safetensors", "history.csv", "cost.json")]
    with provenance.writing(params, "finetune", job, [weights, policy], outputs) as folder:
        io.save_tensors(folder / "model.safetensors", start.network.state_dict())
        io.write_csv(folder / "history.csv", history, COLUMNS)
        io.write_json(folder / "cost.json", meter.cost())
    forget(resume)
    print(f"finetune: {job.name}, {meter.seconds():.0f} s")


def _teacher(start: Any, weights: Path, device: Any) -> Any:
    """The full-precision network."""
    import torch

    return start.target.network(weights).to(device, memory_format=torch.channels_last)
