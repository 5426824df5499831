"""Torch, imported as quickly as a command needs it."""

import gc
import importlib
import sys
import types
from typing import Any

_COMPILER = "torch._dynamo"


def import_torch() -> None:
    """Import torch, torchvision and timm before anything else that does, without torch's compiler.

    The compiler (Dynamo and Inductor) takes as long to import as the rest of torch, and torchvision, timm and every
    optimizer import it, though nothing is compiled. Stand-ins answer what these ask; whatever else is asked of them
    imports the real one: so does the compilation of kernels. For command lines only, whose process is their own.

    Torch's objects are taken from the garbage collector for good: at exit alone it would go through them again for
    half a second. (All objects of all libraries would take longer still, but triton, which the compiler loads, reports
    those that are never collected.)
    """
    if "torch" in sys.modules:
        return
    import torch

    gc.freeze()
    if _COMPILER not in sys.modules:
        torch._dynamo = _Later(_COMPILER, disable=_as_it_is, graph_break=_nothing)
        _Later(f"{_COMPILER}.utils", is_compile_supported=_is_compile_supported)
    import timm  # noqa: F401
    import torchvision.transforms.v2  # noqa: F401


class _Later(types.ModuleType):
    """Stands in for a module until something is asked of it that it does not know."""

    def __init__(self, name: str, **known: Any):
        super().__init__(name)
        vars(self).update(known)
        sys.modules[name] = self

    def __getattr__(self, key: str) -> Any:
        # Imports and inspection look for such names in any module; for __path__ in a package if a part of it is wanted.
        if key.startswith("__") and (key, self.__name__) != ("__path__", _COMPILER):
            raise AttributeError(key)
        _end_of_stand_ins()
        return getattr(importlib.import_module(self.__name__), key)


def _end_of_stand_ins() -> None:
    for name in [name for name, module in sys.modules.items() if isinstance(module, _Later)]:
        del sys.modules[name]
    if isinstance(vars(sys.modules["torch"]).get("_dynamo"), _Later):
        del sys.modules["torch"]._dynamo


def _as_it_is(fn: Any = None, *_: Any, **__: Any) -> Any:
    """The decorator that keeps the compiler from a function: as long as there is none, nothing has to be done."""
    return fn or _as_it_is


def _nothing() -> None:
    pass


def _is_compile_supported(device: Any) -> bool:
    _end_of_stand_ins()
    return importlib.import_module(f"{_COMPILER}.utils").is_compile_supported(device)
