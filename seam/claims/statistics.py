"""Estimates with intervals, and verdicts computed from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist, fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

HOLDS, FAILS, OPEN = "holds", "does not hold", "not decided"


class Verdict(NamedTuple):
    verdict: str  # HOLDS, FAILS or OPEN
    reason: str


def estimate(values: Mapping[Any, float], confidence: float, unit: str, *, ratio: bool = False) -> dict[str, Any]:
    """Mean of independent replicates with a two-sided Student t interval.

    values: replicate (a seed, say) -> measured value. unit: what one replicate is, stated with n in the result.
    ratio: the values are ratios: geometric mean, interval computed on the logarithms.
    The interval is null, with the reason in `no_interval`, for a single value and for values without any spread
    (equal values carry no information about the spread; a width of zero would claim certainty).
    """
    sample = [math.log(v) if ratio else v for v in values.values()]
    back = math.exp if ratio else float
    n, mean = len(sample), fmean(sample)
    result = {"value": _short(back(mean)), "interval": None, "confidence": confidence, "n": n, "unit": unit}
    if n < 2:
        result["no_interval"] = f"a single {unit}"
    elif (spread := stdev(sample)) <= 1e-9 * max(1.0, abs(mean)):
        result["no_interval"] = f"{n} equal values give no spread"
    else:
        from scipy.stats import t

        half = float(t.ppf(0.5 + confidence / 2, n - 1)) * spread / math.sqrt(n)
        result["interval"] = [_short(back(mean - half)), _short(back(mean + half))]
    result["values"] = {str(key): _short(value) for key, value in values.items()}
    return result


def over_images(differences: np.ndarray, confidence: float) -> dict[str, Any]:
    """Mean difference of two accuracies in percentage points, with an interval over the test images.

    differences: [N], for each test image: right on one side - right on the other, -1 to 1 (a mean over models or runs
    may lie between). The interval is Wald's for pairs as Agresti and Min adjust it (Statistics in Medicine 24, 2005):
    half an image more in each of the four cells of McNemar's table, so that few differing images, or none, still leave
    it a width. It says what other images of the same kind would give, not what other runs would.
    """
    n, mean = len(differences), float(differences.mean())
    middle = n * mean / (n + 2)
    variance = (float((differences**2).sum()) + 1) / (n + 2) - middle**2
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * math.sqrt(variance / (n + 2))
    interval = [_short(100 * (middle - half)), _short(100 * (middle + half))]
    return {
        "value": _short(100 * mean), "interval": interval, "confidence": confidence, "n": n, "unit": "test image"
    }  # fmt: skip


def above(estimated: Mapping[str, Any], bound: float, *, point_decides: bool = False) -> Verdict:
    """Whether the true mean lies above `bound`: the interval must lie on one side of it.

    point_decides: without an interval the point estimate decides (for costs: counted, or timed once a job).
    """
    value, interval = estimated["value"], estimated["interval"]
    limit = f"{bound:g}"
    if interval is None:
        why = estimated["no_interval"]
        if not point_decides:
            return Verdict(OPEN, f"{why}: no interval to compare with {limit}")
        return Verdict(HOLDS if value > bound else FAILS, f"{value:.3g} against {limit} ({why})")
    low, high = interval
    shown = f"[{low:.3g}, {high:.3g}]"
    if low > bound:
        return Verdict(HOLDS, f"the interval {shown} lies above {limit}")
    if high <= bound:
        return Verdict(FAILS, f"the interval {shown} does not reach above {limit}")
    return Verdict(OPEN, f"the interval {shown} includes {limit}")


def every(parts: Mapping[str, str]) -> Verdict:
    """The verdict of 'all of these hold', from the verdicts of the parts."""
    for verdict in (FAILS, OPEN):
        named = [name for name, part in parts.items() if part == verdict]
        if named:
            return Verdict(verdict, f"{verdict}: {', '.join(named)}")
    return Verdict(HOLDS, "every part holds")


def _short(value: float) -> float:
    """Seven significant digits: enough for any reader, and no noise of the last bit in committed files."""
    return float(f"{value:.7g}")
