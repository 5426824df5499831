"""Do a method's scores rank policies as their accuracy does? EfficientNet-Lite0 with its ImageNet weights, calibrated
only, judged on photographs of ImageNet's classes.

    python benchmarks/ranks.py lite0.safetensors PHOTOS [--budgets w5a5,w4a4] [--count 60] [--images 744]

As benchmarks/transfer.py, which says what PHOTOS is. At each budget --count policies are drawn: half by random
preferences, half by `jacobian`'s with noise, so that good ones are among them. Their calibrated top-1 and cross-entropy
go to --policies (a row a policy; a run goes on with the missing ones). Then each method scores all of them from a
proxy's images alone, by the sum of its preferences, and --csv gets Spearman's and Kendall's correlation of the scores
with top-1, Spearman's with an interval by bootstrap over the policies (95 %), and Spearman's with the cross-entropy.
(MQ-Bench-101 of EMQ, Dong et al., ICCV 2023, asks the same of one network with fixed activations.)
"""

import argparse
import copy
import csv
from pathlib import Path

from transfer import BITS, CALIBRATION, photographs

from seam.runtime.cores import available_cores, limit_threads

METHODS = ("jacobian", "sensitivity", "sensitivity kl", "hawq", "fit", "sqnr")
PROXIES = ("digits", "cifar10", "photographs")  # 128 images of each
POLICY_COLUMNS = ("budget", "number", "kind", "bits", "top1", "cross_entropy", "images", "machine")
COLUMNS = ("budget", "method", "proxy", "policies", "spearman", "low", "high", "kendall", "spearman_ce")
NOISE = (0.3, 1.0, 3.0)  # in standard deviations of the logarithms of `jacobian`'s errors


def rows_of(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, columns: tuple, *values: object) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([columns, values] if new else [values])
    print(*values, flush=True)


def draw(number: int, table, problem) -> tuple[str, list[tuple[int, int]]]:
    """The policy of a number: even ones by random preferences, odd ones by noisy errors of `jacobian`."""
    import numpy as np

    from seam.search import jacobian, random
    from seam.search.problem import solve

    generator = np.random.default_rng(number)
    if number % 2 == 0:
        return "random", solve(random, problem, generator.random(table.shape), problem.budgets)
    errors = np.log(np.maximum(-table, 1e-12))
    noise = NOISE[number // 2 % len(NOISE)]
    noisy = -np.exp(errors + noise * errors.std() * generator.standard_normal(table.shape))
    return f"noise {noise}", solve(jacobian, problem, noisy, problem.budgets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--policies", type=Path, default=Path("benchmarks/ranks_policies.csv"))
    parser.add_argument("--csv", type=Path, default=Path("benchmarks/ranks.csv"))
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--budgets", default="w5a5,w4a4")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--images", type=int, default=744)
    parser.add_argument("--threads", type=int, default=available_cores())
    options = parser.parse_args()
    limit_threads(options.threads)
    import numpy as np
    import torch
    from scipy.stats import kendalltau, spearmanr

    from seam import tool
    from seam.data.sampling import sample_indices
    from seam.models.build import build
    from seam.models.find import find_layers
    from seam.policy.budget import parse_budget
    from seam.quant.apply import calibrate, quantize
    from seam.runtime.meter import Meter, processor_name
    from seam.search.interface import load_method
    from seam.search.problem import prepare
    from seam.settings import Model, SearchSettings
    from seam.training.evaluate import evaluate

    device = torch.device("cpu")
    model = build(Model(name="tf_efficientnet_lite0", weights=str(options.weights)), None, 3)
    layers = find_layers(model, (3, 224, 224))
    photos = photographs(options.photos, model)
    calibration = photos.subset(range(CALIBRATION))
    judged = photos.subset(range(CALIBRATION, min(CALIBRATION + options.images, len(photos))))
    machine = f"{processor_name()}, {options.threads} threads"

    def proxy_images(proxy: str):
        if proxy == "photographs":  # the target's own: those that calibrate
            return photographs(options.photos, model, 64).subset(range(128))
        images = tool.open_images(proxy, model, image_size=64, data_root=options.data_root)
        return images.subset(sample_indices(images.labels.numpy(), 128, "balanced", 0))

    def searched(name: str, images, budget):
        """A method's problem and its table of preferences."""
        method, _, distance = name.partition(" ")
        settings = SearchSettings(bits=BITS, options={"distance": distance} if distance else {})
        found, meter = load_method(method), Meter(device)
        problem = prepare(found, copy.deepcopy(model), images, layers, [budget], settings, 0, device, meter)
        return problem, found.preferences(problem)

    for spec in options.budgets.split(","):
        budget = parse_budget(spec, layers, BITS)
        problem, table = searched("jacobian", proxy_images("digits"), budget)
        known = rows_of(options.policies) if options.policies.exists() else []
        done = {(row["budget"], int(row["number"])) for row in known}
        for number in range(options.count):
            if (spec, number) in done:
                continue
            kind, bits = draw(number, table, problem)
            given = {layer.name: layer.fixed_bits for layer in layers if layer.fixed}
            given |= dict(zip(problem.names, bits, strict=True))
            net = quantize(copy.deepcopy(model), given, layers)
            calibrate(net, [next(iter(calibration.batches(len(calibration), seed=0)))])
            measured = evaluate(net, judged, 50, device)
            text = " ".join(f"{w}/{a}" for w, a in bits)
            append(
                *(options.policies, POLICY_COLUMNS, spec, number, kind, text),
                *(round(measured["top1"], 2), measured["loss"], len(judged), machine),
            )

        drawn = [row for row in rows_of(options.policies) if row["budget"] == spec]
        places = {width: k for k, width in enumerate(BITS)}
        chosen = np.array([[[places[int(b)] for b in p.split("/")] for p in row["bits"].split()] for row in drawn])
        top1, loss = (np.array([float(row[key]) for row in drawn]) for key in ("top1", "cross_entropy"))
        resamples = np.random.default_rng(0).integers(len(drawn), size=(1000, len(drawn)))
        for proxy in PROXIES:
            for name in METHODS:
                _, table = searched(name, proxy_images(proxy), budget)
                rows = np.arange(len(table))
                scores = table[rows, chosen[:, :, 0], chosen[:, :, 1]].sum(1)
                low, high = np.nanpercentile([spearmanr(scores[i], top1[i])[0] for i in resamples], [2.5, 97.5])
                append(
                    *(options.csv, COLUMNS, spec, name, proxy, len(drawn), round(spearmanr(scores, top1)[0], 3)),
                    *(round(low, 3), round(high, 3), round(kendalltau(scores, top1)[0], 3)),
                    round(spearmanr(scores, -loss)[0], 3),
                )


if __name__ == "__main__":
    main()
