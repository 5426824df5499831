"""Would `jacobian` gain by what it leaves out: terms between tensors, or a linearisation at the quantized network?

    python benchmarks/jacobian_terms.py lite0.safetensors PHOTOS [--budgets w4a4]
    python benchmarks/jacobian_terms.py --experiment experiments/pretrained.yaml --model resnet18 --images 1000 \\
        --policies benchmarks/ranks_pretrained_policies.csv

As benchmarks/ranks.py, whose drawn policies are ranked again. What is compared, from the same images and draws:
    first order: the method with calibration: steps, a sum over tensors, with four draws.
    terms between, half, a quarter: with the products of different tensors' projected errors, in full or weighed less;
        the same draws give them, as the square of a policy's whole sum. The choice is the best of 40 programmes, each
        with the products' gradient at the mean of the policies so far (Frank and Wolfe's way).
    at its choice, at uniform: the Jacobian is that of the network quantized to the first order's own choice, or to the
        same bits everywhere, with straight-through gradients. geometric: the mean of that at its choice and the first.
--csv gets a row each: Spearman's correlation with top-1 and with cross-entropy, that over the better half of the
policies, and the choice's top-1 and cross-entropy, at the first budget and at others (no policies were drawn there).
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ranks import arguments, drawn, subject
from scipy.stats import spearmanr
from transfer import BITS, resumable

from seam.runtime.cores import limit_threads

IMAGES, DRAWS, PROGRAMMES = 128, 4, 40
WEIGHTS = {"terms between": 1.0, "half": 0.5, "a quarter": 0.25}
COLUMNS = ("model", "budget", "variant", "proxy", "policies", "spearman", "spearman_ce", "spearman_better_half")
COLUMNS += ("chosen_top1", "chosen_ce", "images", "machine")


class Sketch:
    """A network as `jacobian` looks at it, at full precision or quantized."""

    def __init__(self, ranked, proxy: str, budget):
        import torch

        from seam.models.shared_inputs import layer_input, replace_input
        from seam.runtime.meter import Meter
        from seam.search import jacobian
        from seam.search.problem import prepare
        from seam.search.tensors import view
        from seam.settings import SearchSettings

        device = torch.device("cpu")
        given = (copy.deepcopy(ranked.model), ranked.images(proxy, IMAGES), ranked.layers, [budget])
        settings = SearchSettings(bits=BITS)
        self.problem = prepare(jacobian, *given, settings, 0, device, Meter(device), own_classes=False)
        self.x, _, _, self.watched = view(self.problem, (), IMAGES, DRAWS)
        modules = dict(self.problem.model.named_modules())
        self.layers = [modules[name] for name in self.watched]
        self.whole = [layer.weight.data for layer in self.layers]
        self.places: Sequence[tuple[int, int]] | None = None

        def quantized(i: int, one):
            def hook(_, args, kwargs):
                if self.places is None:
                    return None
                x, place = layer_input(args, kwargs), self.places[i][1]
                steps, (low, high) = one.inputs.steps[place].view(-1, *[1] * (x.dim() - 1)), one.inputs.bounds[:, place]
                clipped = (x / steps).clamp(low, high)
                return replace_input(args, kwargs, (clipped + (clipped.round() - clipped).detach()) * steps)

            return hook

        for i, (layer, one) in enumerate(zip(self.layers, self.watched.values(), strict=True)):
            layer.register_forward_pre_hook(quantized(i, one), with_kwargs=True)  # after the one that notes the input

    def projections(self, places: Sequence[tuple[int, int]] | None = None) -> np.ndarray:
        """[2, L, B, S] u_i J_ti D_b of weights and inputs, for all images and draws, of the network at a policy."""
        import torch

        from seam.search import jacobian

        self.places = places
        for i, (layer, one) in enumerate(zip(self.layers, self.watched.values(), strict=True)):
            layer.weight.data = self.whole[i] if places is None else self.whole[i] + one.errors[places[i][0]]
        noise, found = torch.Generator().manual_seed(0), []
        for x in self.x.split(jacobian.BATCH):
            directions = jacobian._directions(self.problem, len(x), DRAWS, None, noise)
            jacobian._propagate(self.problem.model, x, directions, self.watched)
            found.append(self._projected(len(x)))
            for one in self.watched.values():
                one.forget()
        return torch.cat(found, -1).numpy()

    def _projected(self, count: int):
        import torch

        layers = list(self.watched.values())
        found = torch.zeros(2, len(layers), len(BITS), DRAWS * count, dtype=torch.float64)

        def add(into, x, gradients: list, error: Callable) -> None:
            for b in range(len(BITS)) if gradients else ():
                moved = error(x, b).reshape(count, -1)
                into[b] += torch.stack([(g.reshape(count, -1) * moved).sum(1) for g in gradients]).flatten()

        with torch.no_grad():
            for i, one in enumerate(layers):
                for x, gradients in zip(one.reads, one.given, strict=True):
                    add(found[0, i], x, gradients, one.moved)
                for x, gradients in zip(one.reads, one.taken, strict=True):
                    add(found[1, one.group], x, gradients, one.inputs.error)
        return found


def errors(projections: np.ndarray) -> np.ndarray:
    """[2, L, B] as the method has them."""
    from seam.search.tensors import falling

    return np.apply_along_axis(falling, 2, (projections**2).mean(-1))


def between(projections: np.ndarray, policy: np.ndarray) -> float:
    """The sum of the products of different tensors' errors, of a policy [L, 2]."""
    own = np.take_along_axis(projections, policy.T[:, :, None, None], 2)
    return float((own.sum((0, 1)) ** 2).mean() - (own**2).mean(-1).sum())


def total(table: np.ndarray, policy: np.ndarray) -> float:
    return float(np.take_along_axis(table, policy.T[:, :, None], 2).sum())


def chosen(problem, table: np.ndarray) -> np.ndarray:
    """[L, 2] the programme's choice for errors [2, L, B]."""
    from seam.search import jacobian
    from seam.search.problem import solve
    from seam.search.tensors import negated

    bits = solve(jacobian, problem, negated(table), problem.budgets)
    return np.array([[BITS.index(b) for b in pair] for pair in bits])


def chosen_with_terms(problem, table: np.ndarray, projections: np.ndarray, weight: float) -> np.ndarray:
    best, mean = (np.inf, None), None
    for step in range(PROGRAMMES):
        gradient = 0.0
        if mean is not None:
            others = mean.sum((0, 1)) - mean  # of each tensor: the sum of all others
            gradient = 2 * weight * np.einsum("kls,klbs->klb", others, projections) / projections.shape[-1]
        policy = chosen(problem, table + gradient)
        best = min(
            best, (total(table, policy) + weight * between(projections, policy), policy), key=lambda pair: pair[0]
        )
        own = np.take_along_axis(projections, policy.T[:, :, None, None], 2)[:, :, 0]
        mean = own if mean is None else mean + (own - mean) * 2 / (step + 2)
    return best[1]


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, default=Path("benchmarks/jacobian_terms.csv"))
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--proxies", default="digits")
    options = parser.parse_args()
    limit_threads(options.threads)
    import torch

    from seam.policy.budget import parse_budget
    from seam.runtime.meter import processor_name
    from seam.training.evaluate import evaluate

    ranked = subject(options)
    done, add = resumable(options.csv, COLUMNS, keys=4)
    machine = f"{processor_name()}, {options.threads} threads"

    def judged(policy: np.ndarray) -> tuple[float, float]:
        net = ranked.quantized([(BITS[w], BITS[a]) for w, a in policy], ranked.calibration, "steps")
        found = evaluate(net, ranked.judged, 50, torch.device("cpu"))
        return round(found["top1"], 2), round(found["loss"], 4)

    for spec in options.budgets.split(","):
        policies, top1, loss = drawn(options.policies, ranked.name, "steps", spec, options.count)
        half = top1 >= np.median(top1) if len(top1) else None
        for proxy in options.proxies.split(","):
            names = ("first order", *WEIGHTS, "at its choice", "geometric", "at uniform")
            missing = [variant for variant in names if (ranked.name, spec, variant, proxy) not in done]
            if not missing:
                continue
            sketch = Sketch(ranked, proxy, parse_budget(spec, ranked.layers, BITS))
            projections = sketch.projections()
            first = errors(projections)
            choice = chosen(sketch.problem, first)
            there = errors(sketch.projections(choice))
            uniform = np.full_like(choice, BITS.index(int(spec[1])))  # budgets are w4a4, or alike
            tables = {"first order": first, "at its choice": there, "geometric": np.sqrt(first * there)}
            tables["at uniform"] = errors(sketch.projections(uniform))
            for variant in missing:
                if variant in WEIGHTS:
                    weight = WEIGHTS[variant]
                    policy = chosen_with_terms(sketch.problem, first, projections, weight)
                    scores = [-total(first, p) - weight * between(projections, p) for p in policies]
                else:
                    policy = chosen(sketch.problem, tables[variant])
                    scores = [-total(tables[variant], p) for p in policies]
                found = ("", "", "")
                if len(top1):
                    kept = np.array(scores)
                    pairs = ((kept, top1), (kept, -loss), (kept[half], top1[half]))
                    found = tuple(round(spearmanr(*pair)[0], 3) for pair in pairs)
                about = (ranked.name, spec, variant, proxy, len(top1))
                add(*about, *found, *judged(policy), len(ranked.judged), machine)


if __name__ == "__main__":
    main()
