"""Mixed-precision quantization policies searched on a small proxy dataset. The Python API is `seam.tool`."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`seam.quantize`, `seam.calibrate` and `seam.open_images`; imported when asked for, since torch takes seconds."""
    if name == "__version__":  # it stands in pyproject.toml alone
        from importlib.metadata import version

        return version("seam")
    if name in ("calibrate", "open_images", "quantize"):
        from seam import tool

        return getattr(tool, name)
    raise AttributeError(f"module 'seam' has no attribute '{name}'; see seam.tool")
