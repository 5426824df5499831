"""What is left of the differences between policies where BatchNorm's statistics are re-estimated too, as `seam
calibrate` does by default (level `norm`)?

    python benchmarks/norm_level.py lite0.safetensors PHOTOS --threads 1
    snakemake --cores 2 --configfile experiments/pretrained.yaml --until search
    python benchmarks/norm_level.py --experiment experiments/pretrained.yaml --model resnet18 --images 1000 --threads 1

    python benchmarks/norm_level.py ... --methods jacobian,jacobian-64,jacobian-64x4 --proxies digits \\
        --csv benchmarks/norm_images.csv  # with fewer images

Networks and images as in benchmarks/ranks.py, but all photographs that do not calibrate are judged on. EfficientNet's
policies are searched here by --methods on --proxies with --seeds; those of an experiment's network are the ones in its
results, of --searches (jacobian-fit-steps-digits: of the experiment with `options: {calibration: steps}` for
jacobian-fit-digits), unless --methods are given. Each is calibrated at level `norm` on 256 images of the target. --csv
gets a row a policy.
"""

import copy
from itertools import product
from pathlib import Path

from ranks import arguments, subject
from transfer import BITS, FOR_STEPS, resumable

from seam.runtime.cores import limit_threads

SEARCHES = ("jacobian-steps-digits", "jacobian-digits", "jacobian-fit-digits", "uniform")
METHODS = {  # options of each
    "jacobian-steps": ("jacobian", FOR_STEPS["jacobian"]),
    "jacobian": ("jacobian", {"calibration": "norm"}),
    "jacobian-fit-steps": ("jacobian_fit", FOR_STEPS["jacobian_fit"]),
    "uniform": ("uniform", {}),
    "jacobian-64": ("jacobian", {"images": 64}),
    "jacobian-64x4": ("jacobian", {"images": 64, "draws": 4}),
}
DEFAULT = ("jacobian-steps", "jacobian", "jacobian-fit-steps", "uniform")
COLUMNS = ("model", "budget", "search", "proxy", "seed", "top1", "cross_entropy", "images", "machine")


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.set_defaults(images=1000)
    parser.add_argument("--csv", type=Path, default=Path("benchmarks/norm_level.csv"))
    parser.add_argument("--searches", default=",".join(SEARCHES))
    parser.add_argument("--methods", help="by default " + ",".join(DEFAULT))
    parser.add_argument("--proxies", default="digits,fashion_mnist,cifar10")
    parser.add_argument("--seeds", default="0,1")
    options = parser.parse_args()
    limit_threads(options.threads)

    from seam import tool
    from seam.experiment.params import load_params
    from seam.policy.file import read_policy
    from seam.runtime.meter import processor_name

    ranked = subject(options)
    done, add = resumable(options.csv, COLUMNS, keys=5)
    machine = f"{processor_name()}, {options.threads} threads"

    def judge(policy: dict, *about: str) -> None:
        net = tool.quantize(copy.deepcopy(ranked.model), policy)
        measured = tool.evaluate(tool.calibrate(net, ranked.calibration, level="norm"), ranked.judged)
        values = (round(measured["top1"], 2), round(measured["loss"], 4), len(ranked.judged), machine)
        add(ranked.name, *about, *values)

    for budget in options.budgets.split(","):
        if options.experiment and not options.methods:
            place = Path(load_params(options.experiment).results) / "search" / options.model
            for search in options.searches.split(","):
                if (ranked.name, budget, search, "", "0") not in done:
                    judge(read_policy(place / search / budget / "0/policy.json"), budget, search, "", "0")
            continue
        chosen = options.methods.split(",") if options.methods else DEFAULT
        for proxy, seed in product(options.proxies.split(","), options.seeds.split(",")):
            images = ranked.images(proxy, 128, int(seed))
            images.name = proxy
            for search in chosen:
                method, given = METHODS[search]
                about = (search, "", "0") if method == "uniform" else (search, proxy, seed)
                if (ranked.name, budget, *about) not in done:
                    settings = {"method": method, "seed": int(seed), "settings": {"bits": BITS, "options": given}}
                    judge(tool.search(ranked.model, images, budget, **settings), budget, *about)
                    done.add((ranked.name, budget, *about))


if __name__ == "__main__":
    main()
