"""What a search method is: how it is found by its file's name, and what its file says of it.

A method is one function

    def preferences(problem: Problem) -> numpy.ndarray   # [layers, weight bits, activation bits], higher is better

and `seam.policy.assign` turns the table into the best policy within the budget. A module may set SPEND, the least share
of the budget that its policies use, in place of the parameter `spend`; RAISE = False, where bits that cost nothing must
stay as its preferences have them (`raise_free`); QUANTIZERS = False, where it calls none, so that no kernels need be
there for them; and NETWORK = False, where the layers' sizes are all it needs: with `proxy: none` it is then given no
network, and its job does not load torch. IMAGES is how many images a method looks at that does not look at all of the
proxy's; its option `images` changes that. CLASSIFIER = True asks for a new classifier, for the proxy's classes, where
these are not the target's.
DATA = True says that it looks at the proxy's images, so that it cannot do with `proxy: none`.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from seam.errors import SeamError, unknown

_NOT_METHODS = {"__init__", "interface", "problem", "tensors", "training"}
METHODS = tuple(sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in _NOT_METHODS))


def needs_network(method: ModuleType) -> bool:
    """Whether a method looks at the network, and not only at its layers' sizes."""
    return getattr(method, "NETWORK", True)


def needs_classifier(method: ModuleType) -> bool:
    """Whether a method scores the proxy's classes, and not only looks at features."""
    return getattr(method, "CLASSIFIER", False)


def needs_kernels(method: ModuleType) -> bool:
    """Whether a method calls quantizers or mixtures, whose kernels must be ready then."""
    return getattr(method, "QUANTIZERS", True)


def needs_images(method: ModuleType) -> bool:
    """Whether a method looks at the proxy's images."""
    return getattr(method, "DATA", False)


def image_count(method: ModuleType, options: Mapping[str, Any]) -> int | None:
    """How many images a method looks at, if not at all that it is given."""
    return options.get("images", method.IMAGES) if hasattr(method, "IMAGES") else None


def least_share(method: ModuleType, spend: float) -> float:
    """The least share of the budget that a method's policies use; `spend` where it says nothing."""
    return getattr(method, "SPEND", spend)


def raises_free_bits(method: ModuleType) -> bool:
    """Whether bits that cost nothing may be raised to the widest, whatever the preferences."""
    return getattr(method, "RAISE", True)


def load_method(name: str) -> ModuleType:
    """Import a method: a file of this folder, or any importable module given with a dot in its name."""
    if name not in METHODS and "." not in name:
        raise unknown("method", name, METHODS)
    try:
        module = importlib.import_module(name if "." in name else f"seam.search.{name}")
    except ImportError as error:
        raise SeamError(f"method {name}: cannot be imported ({error})") from None
    if not hasattr(module, "preferences"):
        raise SeamError(f"method {name}: the module has no function preferences(problem)")
    return module
