"""A model's layers as facts: names, costs, groups, fixed bits. Imports no torch, for what needs no network.

`seam.models.find.find_layers` finds them in a network, `seam.models.locks` fixes those that the user decides.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from seam.errors import SeamError

FIXED_BITS = (8, 8)  # weight and activation bits of the first and the last layer, the usual convention
FLOAT_BITS = (32, 32)  # of a layer that stays in full precision


class Layer(NamedTuple):
    """A layer with weights.

    Attributes:
        macs: multiply-accumulates of one image.
        params: weight count.
        fixed: its bits are not searched: the first and last layer, and those that the user locked or excluded.
        group: name of its group, the layers that read the same tensor and share its activation bits ("": alone).
        bits: (weight, activation) bits of a fixed layer; None means 8/8. (32, 32) means not quantized.
        counted: for a fixed layer, whether its cost is part of the budget (locked) or apart (ends, excluded).
        functional: a parent applies its weight (`F.linear(x, self.qkv.weight)`) instead of calling the layer.
    """

    name: str
    macs: int
    params: int
    fixed: bool
    group: str = ""
    bits: tuple[int, int] | None = None
    counted: bool = False
    functional: bool = False

    @property
    def fixed_bits(self) -> tuple[int, int]:
        """(weight, activation) bits of a fixed layer."""
        return self.bits or FIXED_BITS


def group_names(layers: Iterable[Layer]) -> dict[str, str]:
    """Layer name -> group name; a layer without a group is one of its own."""
    return {layer.name: layer.group or layer.name for layer in layers}


def settle(layers: Iterable[Layer]) -> list[Layer]:
    """Name each group after its first searched layer, and let fixed layers stand alone.

    A fixed layer keeps its own input quantizer and bits even where others read the same tensor: its 8 bits (or the
    user's lock) must not decide theirs.
    """
    first: dict[str, str] = {}
    return [
        layer._replace(
            group=layer.name if layer.fixed else first.setdefault(layer.group or layer.name, layer.name),
        )
        for layer in layers
    ]


def check_ties(bits: Mapping[str, tuple[int, int]], groups: Mapping[str, str]) -> None:
    """Raise SeamError, naming two layers, if layers of one group differ in their activation bits."""
    first: dict[str, str] = {}
    for name, (_, a) in bits.items():
        other = first.setdefault(groups.get(name, name), name)
        if bits[other][1] != a:
            raise SeamError(
                f"policy: layers {other} and {name} read the same tensor and must have the same activation bits, "
                f"found {bits[other][1]} and {a}"
            )
