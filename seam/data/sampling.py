"""Choosing a small part of a dataset: at random, class-balanced, by herding, or by k-center."""

import numpy as np
import numpy.typing as npt

from seam.errors import SeamError, unknown

METHODS = ("random", "balanced", "herding", "k_center")
NEED_FEATURES = ("herding", "k_center")
BLOCK = 64


def sample_indices(
    labels: npt.ArrayLike, count: int, method: str, seed: int, features: npt.ArrayLike | None = None
) -> np.ndarray:
    """The positions of `count` images, ascending (int64).

    labels: integer classes, [N]; features: floats, [N, F], for herding and k_center.

    random      uniform, without replacement
    balanced    uniform within each class; class counts differ by at most one (see `class_shares`)
    herding     the same class counts; within a class, the images whose running mean follows the class mean best
                (Welling 2009; greedy, on L2-normalised features, as in iCaRL, Rebuffi et al. 2017)
    k_center    greedy farthest-first cover of all features, labels unused (Sener & Savarese 2018), from the image
                nearest to the mean on

    The same arguments give the same result; herding and k_center ignore the seed; ties go to the lowest index.
    SeamError: unknown method, count outside 1..N, features missing or of another length or not finite.
    """
    labels = np.asarray(labels).astype(np.int64, copy=False)
    if method not in METHODS:
        raise unknown("sampling method", str(method), METHODS)
    if not 1 <= count <= len(labels):
        raise SeamError(f"sampling: count must be from 1 to the {len(labels)} images there are (found {count})")
    draw = np.random.default_rng(seed)
    if method in NEED_FEATURES:
        features = _checked(features, len(labels), method)
    if method == "random":
        chosen = draw.choice(len(labels), count, replace=False)
    elif method == "k_center":
        chosen = _k_center(features, count)
    else:
        parts = []
        for label, share in class_shares(labels, count).items():
            members = np.flatnonzero(labels == label)
            if method == "balanced":
                parts.append(draw.choice(members, share, replace=False))
            else:
                parts.append(members[_herding(features[members], share)])
        chosen = np.concatenate(parts)
    return np.sort(chosen).astype(np.int64)


def class_shares(labels: np.ndarray, count: int) -> dict[int, int]:
    """How many images each class gives, by label.

    As even as can be: counts differ by at most one, the remainder going to the lowest labels; what a class with too few
    images cannot give is spread over the others in the same way.
    """
    found, sizes = np.unique(labels, return_counts=True)
    shares = np.zeros(len(found), dtype=np.int64)
    while (left := count - shares.sum()) > 0:
        free = np.flatnonzero(shares < sizes)
        each, rest = divmod(int(left), len(free))
        # A class fills up before the remainder is dealt out, so that the remainder is shared by those that can give it.
        if each:
            shares[free] = np.minimum(shares[free] + each, sizes[free])
        else:
            shares[free[:rest]] += 1
    return dict(zip(found.tolist(), shares.tolist(), strict=True))


def _checked(features: npt.ArrayLike | None, count: int, method: str) -> np.ndarray:
    if features is None:
        raise SeamError(f"sampling: {method} needs features; take the pretrained model's pre-logits")
    features = np.asarray(features)
    if features.ndim != 2 or len(features) != count:
        raise SeamError(f"sampling: features must be [{count}, F] (found {list(features.shape)})")
    if not np.isfinite(features).all():
        raise SeamError("sampling: features hold values that are not finite; check the model's weights")
    return features


def _herding(features: np.ndarray, count: int) -> np.ndarray:
    """Greedy herding: pick k makes the mean of k picks nearest to the mean mu of all.

    argmin ||mu - (sum of earlier picks + x) / k|| = argmax x.(k mu - sum of earlier picks), all x being of length one.
    """
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    x = features.astype(np.float64) / np.where(norms > 0, norms, 1)
    towards_mean = x @ x.mean(axis=0)
    towards_sum = np.zeros(len(x))
    free = np.ones(len(x), dtype=bool)
    chosen = np.empty(count, dtype=np.int64)
    for k in range(count):
        score = (k + 1) * towards_mean - towards_sum
        chosen[k] = _first_best(np.where(free, score, -np.inf), slack=1e-9 * (k + 1))
        free[chosen[k]] = False
        towards_sum += x @ x[chosen[k]]
    return chosen


def _k_center(features: np.ndarray, count: int) -> np.ndarray:
    """Greedy farthest-first traversal: each pick is the image farthest from all earlier picks.

    The distances of `BLOCK` likely next picks come from one matrix product: one pass over the features instead of many.
    """
    # Single precision, for speed, loses little once the common part is gone.
    x = (features - features.mean(axis=0)).astype(np.float32)
    squares = (x * x).sum(axis=1)
    slack = 1e-5 * float(squares.max())
    chosen = np.empty(count, dtype=np.int64)
    chosen[0] = _first_best(-squares, slack)
    nearest = np.full(len(x), np.inf, dtype=np.float32)  # squared distance to the nearest pick
    ahead: dict[int, np.ndarray] = {}  # squared distances of an image to all
    for k in range(1, count):
        last = int(chosen[k - 1])
        if last not in ahead:
            farthest = np.argpartition(nearest, -min(BLOCK, len(x)))[-BLOCK:]
            block = np.unique(np.append(farthest, last))
            distances = squares[block, None] - 2 * (x[block] @ x.T) + squares
            ahead = dict(zip(block.tolist(), distances, strict=True))
        np.minimum(nearest, ahead[last], out=nearest)
        nearest[last] = -np.inf  # never twice, also among equal images
        chosen[k] = _first_best(nearest, slack)
    return chosen


def _first_best(score: np.ndarray, slack: float) -> int:
    """The lowest index within `slack` of the greatest score: rounding must not decide between equal images."""
    return int(np.argmax(score >= score.max() - slack))
