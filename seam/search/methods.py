"""The search methods: finding one by its name, and what it needs."""

import importlib
from pathlib import Path
from types import ModuleType

from seam.errors import SeamError, unknown

_NOT_METHODS = {"__init__", "methods", "problem"}


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
