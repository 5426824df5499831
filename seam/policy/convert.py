"""A policy for other tools: CSV, and torchao's FqnToConfig."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from seam.errors import unknown
from seam.io import write_csv, write_json
from seam.policy.file import entries

CSV_COLUMNS = ("layer", "w", "a", "macs", "params", "fixed")


def convert(policy: Mapping[str, Any], to: str, out: str | Path) -> None:
    """Write the content of a policy file as `to` ("csv" or "torchao"); SeamError for another format."""
    if to not in FORMATS:
        raise unknown("format", to, FORMATS, "--to")
    FORMATS[to](policy, out)


def _write_csv(policy: Mapping[str, Any], out: str | Path) -> None:
    rows = [
        {"layer": layer.name, **{key: getattr(layer, key) for key in CSV_COLUMNS[1:-1]}, "fixed": int(layer.fixed)}
        for layer in entries(policy)
    ]
    write_csv(out, rows, CSV_COLUMNS)


def torchao(policy: Mapping[str, Any]) -> dict[str, Any]:
    """Weight-only configuration of each layer, as `torchao.core.config.config_to_dict` writes an FqnToConfig.

    A layer of b bits gets IntxWeightOnlyConfig with torch.int<b> (torchao: 1 to 8 bits, symmetric, steps of its own
    from the weights). Layers in full precision are left out. Activation bits have no place in a weight-only
    configuration.
    """
    return {
        "_type": "FqnToConfig",
        "_version": 1,
        "_data": {
            "fqn_to_config": {
                layer.name: {
                    "_type": "IntxWeightOnlyConfig",
                    "_version": 2,
                    "_data": {"weight_dtype": {"_type": "torch.dtype", "_data": f"int{layer.w}"}},
                }
                for layer in entries(policy)
                if not layer.full_precision
            }
        },
    }


def _write_torchao(policy: Mapping[str, Any], out: str | Path) -> None:
    write_json(out, torchao(policy))


FORMATS: dict[str, Callable[[Mapping[str, Any], str | Path], None]] = {"csv": _write_csv, "torchao": _write_torchao}
