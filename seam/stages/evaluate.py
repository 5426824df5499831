"""`seam evaluate --params`: a policy on the target's test images."""

from pathlib import Path

from seam import io
from seam.experiment import provenance
from seam.experiment.params import Job, Params
from seam.runtime.imports import import_torch
from seam.runtime.process import set_up


def evaluate(params: Params, job: Job, weights: Path, policy: Path, finetuned: Path, out: Path) -> None:
    """Measure a policy, calibrated only and after finetuning.

    Writes metrics.json, hits.json, classes.json and cost.json, whose part `calibrate` is of `evaluate.calibration`.
    """
    import_torch()

    from seam.experiment.results import pack, read_full_precision, read_model_classes
    from seam.policy.file import totals
    from seam.quant.finetuned import load_finetuned
    from seam.quant.kernels import use_kernels
    from seam.runtime.meter import Meter
    from seam.stages.resume import forget, resume_file
    from seam.stages.target import calibrate, quantized
    from seam.training.evaluate import evaluate_each

    of_model = [weights.with_name("metrics.json"), weights.with_name("classes.json")]
    inputs = [weights, *of_model, policy, finetuned]
    provenance.check_inputs(params, inputs, job)
    settings, training = params.evaluate, params.training("finetune", job.model)
    device = set_up(params.device, settings.threads, job.seed)
    meter = Meter(device)
    with meter.part("kernels"):
        meter.kernels, meter.seconds_once = use_kernels(training.kernels, device=device)
    measured = quantized(params, job.model, weights, policy, device)
    network = measured.network
    resume = resume_file(params, "evaluate", job._asdict(), inputs)
    with meter.part("calibrate"):
        more = {"settings": settings.reconstruct, "seed": job.seed, "resume": resume}
        order = training.seed  # the images with which finetuning begins
        calibrate(measured, settings.calibration, settings.calibration_images, order, device, **more)
    test = measured.target.images(network, "test", params.target.test_images)
    with meter.part("evaluate"):
        calibrated, hits_before, classes_before = evaluate_each(network, test, settings.batch_size, device)
        load_finetuned(network, finetuned)
        tuned, hits, classes = evaluate_each(network, test, settings.batch_size, device)
    full, full_classes = read_full_precision(of_model[0]), read_model_classes(of_model[1])
    costs = totals(measured.layers, measured.bits)
    keys = ("top1", "top5", "class_margin")
    metrics = {
        **tuned,
        **{f"calibrated_{k}": calibrated[k] for k in keys},
        **{f"fp_{k}": full[k] for k in keys},
        **{k: v for k, v in costs.items() if k in ("bitops_g", "bitops_g_fixed", "size_mb")},
        "budget_share": measured.policy.get("budget", {}).get("share"),
        "images": len(test),
    }
    packed = {"top1": pack(hits.numpy()), "calibrated_top1": pack(hits_before.numpy())}
    geometry = {**full_classes, "calibrated": classes_before, "finetuned": classes}
    outputs = [out / n for n in ("metrics.json", "hits.json", "classes.json", "cost.json")]
    with provenance.writing(params, "evaluate", job, inputs, outputs) as folder:
        io.write_json(folder / "metrics.json", metrics)
        io.write_json(folder / "hits.json", {"images": len(test), **packed})
        io.write_json(folder / "classes.json", geometry)
        io.write_json(folder / "cost.json", meter.cost())
    forget(resume)
    print(
        f"evaluate: {job.name}, top-1 {metrics['top1']:.2f} % "
        f"(full precision {metrics['fp_top1']:.2f}, calibrated only {metrics['calibrated_top1']:.2f}), "
        f"{metrics['bitops_g']:.3f} GBitOPs, {metrics['size_mb']:.2f} MB"
    )
