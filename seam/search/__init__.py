"""Search methods: every module in this folder is one method, found by its file name.

A method is one function

    def preferences(problem: Problem) -> numpy.ndarray   # [layers, weight bits, activation bits], higher is better

and `seam.assign` turns the table into the best policy within the budget. A module may set SPEND, the least share of the
budget that its policies use, in place of the parameter `spend`; RAISE = False, where bits that cost nothing must stay
as its preferences have them (`seam.assign.raise_free`); QUANTIZERS = False, where it calls none, so that no kernels
need be there for them; and NETWORK = False, where the layers' sizes are all it needs: with `proxy: none` it is then
given no network, and its job does not load torch. IMAGES is how many images a method looks at that does not look at
all of the proxy's; its option `images` changes that. CLASSIFIER = True asks for a new classifier, for the proxy's
classes, where these are not the target's.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from seam.errors import SeamError, unknown

_NOT_METHODS = {"__init__", "problem"}
METHODS = tuple(sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in _NOT_METHODS))


def solve(method: ModuleType, problem: Any, table: Any, budgets: Any) -> list[tuple[int, int]]:
    """The best policy within the budgets for a method's table of preferences, bits that cost nothing at the widest."""
    from seam.assign import assign, raise_free

    spend = getattr(method, "SPEND", problem.settings.spend)
    bits, groups = problem.settings.bits, problem.groups
    assigned = assign(table, problem.names, bits, budgets, spend, groups=groups)
    return raise_free(assigned, bits, budgets, groups) if getattr(method, "RAISE", True) else assigned


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
