"""Layers whose bits the user decides: locked to given bits, or excluded from quantization."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from seam.errors import SeamError, unknown
from seam.models.layers import FLOAT_BITS, Layer, settle

_LOCK = re.compile(r"(?P<pattern>.+)=(?P<w>\d+)/(?P<a>\d+)")


def apply_locks(layers: Sequence[Layer], lock: Iterable[str] = (), exclude: Iterable[str] = ()) -> list[Layer]:
    """Fix the bits of the layers that match.

    Args:
        lock: texts such as `blocks.0.*=8/8`: a pattern of layer names (fnmatch) and weight/activation bits of 2 to 8,
            which need not be among the candidates. Of several that match a layer the last one counts.
        exclude: patterns of layers that stay in full precision; they win over locks.

    A locked layer's cost is part of every budget; that of the first and the last layer, and of excluded ones, is
    counted apart. Fixed layers leave their group: they quantize their input for themselves.

    Raises SeamError for an unreadable lock, and for a pattern that matches no layer (with close names).
    """
    for text in lock:
        match = _LOCK.fullmatch(text.strip())
        bits = (int(match["w"]), int(match["a"])) if match else ()
        if not match or not all(2 <= b <= 8 for b in bits):
            raise SeamError(f"lock '{text}': write a pattern of layer names and bits of 2 to 8, such as blocks.0.*=8/8")
        layers = _fix(layers, match["pattern"].strip(), bits, "lock")
    for pattern in exclude:
        layers = _fix(layers, pattern.strip(), FLOAT_BITS, "exclude")
    return settle(layers)


def _fix(layers: Sequence[Layer], pattern: str, bits: tuple[int, int], where: str) -> list[Layer]:
    matching = {layer.name for layer in layers if fnmatchcase(layer.name, pattern)}
    if not matching:
        names = [layer.name for layer in layers]
        if "*" in pattern:  # close to it are the patterns that match
            names += {f"{name[:i]}.*" for name in names for i, letter in enumerate(name) if letter == "."}
        problem = unknown("layer", pattern, names, where)
        raise SeamError(f"{problem} (seam layers lists them)")
    return [
        layer._replace(fixed=True, bits=bits, counted=bits != FLOAT_BITS and (layer.counted or not layer.fixed))
        if layer.name in matching
        else layer
        for layer in layers
    ]
