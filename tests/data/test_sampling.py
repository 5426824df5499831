import numpy as np
import pytest

from seam.data.readers import DigitsReader
from seam.data.sampling import BLOCK, METHODS, class_shares, sample_indices
from seam.errors import SeamError


@pytest.fixture(scope="module")
def digits():
    """(features [1797, 64] in float32, labels [1797])."""
    pixels, labels = DigitsReader().arrays("all")
    return pixels.reshape(len(labels), -1).astype(np.float32) / 255, labels


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [1, 7, 100, 1797])
def test_every_method_gives_distinct_ascending_positions(digits, method, count):
    features, labels = digits
    chosen = sample_indices(labels, count, method, 0, features)
    assert chosen.dtype == np.int64 and len(chosen) == count
    assert (np.diff(chosen) > 0).all() and chosen[0] >= 0 and chosen[-1] < len(labels)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_arguments_give_the_same_positions(digits, method):
    features, labels = digits
    first, again, other = (sample_indices(labels, 90, method, seed, features) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert np.array_equal(first, other) == (method in ("herding", "k_center"))


@pytest.mark.parametrize("method", ["balanced", "herding"])
def test_classes_give_equal_shares_and_the_lowest_the_remainder(digits, method):
    features, labels = digits
    counts = np.bincount(labels[sample_indices(labels, 73, method, 0, features)])
    assert counts.tolist() == [8, 8, 8] + [7] * 7


def test_random_is_uniform_over_images_not_classes(digits):
    _, labels = digits
    skewed = np.concatenate([labels, np.zeros(5000, dtype=np.int64)])
    counts = np.bincount(skewed[sample_indices(skewed, 1000, "random", 0)])
    expected = 1000 * np.bincount(skewed) / len(skewed)
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


@pytest.mark.parametrize(
    ("sizes", "count", "shares"),
    [
        ((9, 9, 9), 5, (2, 2, 1)),
        ((2, 9, 9), 12, (2, 5, 5)),
        ((2, 9, 9), 13, (2, 6, 5)),
        ((1, 2, 9), 9, (1, 2, 6)),
        ((9, 1, 1), 4, (2, 1, 1)),
        ((3, 0, 3), 3, (2, None, 1)),
        ((5, 5), 10, (5, 5)),
    ],
)
def test_what_a_small_class_cannot_give_is_spread_over_the_others(sizes, count, shares):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    assert class_shares(labels, count) == {i: s for i, s in enumerate(shares) if s is not None}
    chosen = sample_indices(labels, count, "balanced", 0)
    assert np.bincount(labels[chosen], minlength=len(sizes)).tolist() == [s or 0 for s in shares]


def test_herding_is_the_greedy_choice(digits):
    """Against the definition, image by image: the next pick brings the mean of the picks nearest to the class mean."""
    features, labels = digits
    members = np.flatnonzero(labels == 3)
    x = features[members].astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    picks: list[int] = []
    for _ in range(12):
        errors = [
            np.inf if i in picks else np.linalg.norm(x.mean(axis=0) - x[[*picks, i]].mean(axis=0))
            for i in range(len(x))
        ]
        picks.append(int(np.argmin(errors)))
    chosen = sample_indices(labels, 120, "herding", 0, features)
    assert chosen[labels[chosen] == 3].tolist() == sorted(members[picks].tolist())


@pytest.mark.parametrize("count", [30, 3 * BLOCK])
def test_k_center_is_the_greedy_choice(digits, count):
    """Against the definition in double precision: each pick is the farthest from all picks before it."""
    features, labels = digits
    x = features.astype(np.float64)
    picks = [int(np.argmin(((x - x.mean(axis=0)) ** 2).sum(axis=1)))]
    while len(picks) < count:
        distance = np.min([((x - x[p]) ** 2).sum(axis=1) for p in picks], axis=0)
        picks.append(int(np.argmax(distance)))
    assert sample_indices(labels, count, "k_center", 0, features).tolist() == sorted(picks)


@pytest.mark.parametrize("method", ["herding", "k_center"])
def test_ties_go_to_the_lowest_index(digits, method):
    features, labels = digits
    twice = np.concatenate([features, features])
    chosen = sample_indices(np.concatenate([labels, labels]), 50, method, 0, twice)
    # Of two equal images the first is taken first; k_center takes no second one while others are left.
    seconds = chosen[chosen >= len(labels)] - len(labels)
    assert np.isin(seconds, chosen).all()
    if method == "k_center":
        assert len(seconds) == 0


@pytest.mark.parametrize("count", [0, -1, 1798])
def test_a_count_out_of_range_is_refused(digits, count):
    with pytest.raises(SeamError, match=f"from 1 to the 1797 images.*{count}"):
        sample_indices(digits[1], count, "random", 0)


def test_a_misspelt_method_is_refused_with_the_close_name(digits):
    with pytest.raises(SeamError, match="herdin.*did you mean herding"):
        sample_indices(digits[1], 10, "herdin", 0)


def test_features_are_checked(digits):
    features, labels = digits
    with pytest.raises(SeamError, match="herding needs features"):
        sample_indices(labels, 10, "herding", 0)
    with pytest.raises(SeamError, match=r"must be \[1797, F\] \(found \[1000, 64\]\)"):
        sample_indices(labels, 10, "k_center", 0, features[:1000])
    broken = features.copy()
    broken[5, 5] = np.nan
    with pytest.raises(SeamError, match="not finite"):
        sample_indices(labels, 10, "k_center", 0, broken)
