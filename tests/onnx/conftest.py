import functools
import importlib
import pkgutil

import pytest


@pytest.fixture(scope="session", autouse=True)
def translations_listed_once():
    """torch's exporter lists onnxscript's translations anew for each network, which takes half a second."""
    from onnxscript import _framework_apis

    with pytest.MonkeyPatch.context() as patch:
        for module in pkgutil.iter_modules(_framework_apis.__path__):  # one for each release of torch
            apis = importlib.import_module(f"{_framework_apis.__name__}.{module.name}")
            if hasattr(apis, "get_torchlib_ops"):
                patch.setattr(apis, "get_torchlib_ops", functools.cache(apis.get_torchlib_ops))
        yield
