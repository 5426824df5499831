"""A small policy, for the tests of policy files."""

from seam.models.layers import Layer
from seam.policy.budget import parse_budget
from seam.policy.file import make_policy

BITS = (2, 3, 4)
LAYERS = [
    Layer("stem", 100, 10, True),
    Layer("a", 1000, 20, False),
    Layer("b", 500, 40, False),
    Layer("fc", 30, 30, True),
]
MODEL = {"alias": "mine", "name": "toy", "num_classes": 10, "in_chans": 1, "input_size": [1, 8, 8]}
MINIMAL = {"schema": "seam-policy/1", "layers": {layer.name: {"w": 4, "a": 4} for layer in LAYERS}}
PROXY = {
    "dataset": "digits",
    "count": 1797,
    "image_size": [8, 8],
    "sha256": "0" * 64,
    "data_sha256": {"digits.csv": "1" * 64},
    "indices": None,
}
COST = {"seconds": 1.5, "images": 640, "steps": 10, "image_macs": 640000, "device": "cpu"}


def policy(assigned=((2, 3), (4, 2)), layers=LAYERS, **more):
    budget = parse_budget("w4a4", layers, BITS)
    return make_policy(layers, assigned, budget, MODEL, method="seam", search="digits", seed=0, **more)
