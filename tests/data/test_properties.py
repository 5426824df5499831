"""What holds for all samples of a dataset."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from seam.data.sampling import METHODS, NEED_FEATURES, class_shares, sample_indices

quick = settings(derandomize=True, deadline=None, max_examples=60, database=None)


@st.composite
def samples(draw):
    labels = np.array(draw(st.lists(st.integers(0, 4), min_size=1, max_size=60)))
    seed = draw(st.integers(0, 2**32 - 1))
    features = np.random.default_rng(seed).integers(-2, 3, (len(labels), 3)).astype(np.float32)  # many are equal
    return labels, draw(st.integers(1, len(labels))), draw(st.sampled_from(METHODS)), seed, features


@quick
@given(samples())
def test_exact_distinct_ascending_and_stable(sample):
    labels, count, method, seed, features = sample
    kept = labels.copy(), features.copy()
    chosen = sample_indices(labels, count, method, seed, features)
    assert chosen.dtype == np.int64 and len(chosen) == count
    assert (np.diff(chosen) > 0).all() and chosen[0] >= 0 and chosen[-1] < len(labels)
    assert np.array_equal(chosen, sample_indices(labels, count, method, seed, features))
    assert np.array_equal(kept[0], labels) and np.array_equal(kept[1], features)
    if method in NEED_FEATURES:
        assert np.array_equal(chosen, sample_indices(labels, count, method, seed ^ 1, features))


@quick
@given(samples())
def test_classes_give_as_evenly_as_they_can(sample):
    labels, count, _, seed, _ = sample
    sizes, shares = np.bincount(labels), class_shares(labels, count)
    assert sum(shares.values()) == count and all(0 <= share <= sizes[label] for label, share in shares.items())
    most = max(shares.values())
    assert all(share >= most - 1 or share == sizes[label] for label, share in shares.items())
    chosen = sample_indices(labels, count, "balanced", seed)
    assert {k: int((labels[chosen] == k).sum()) for k in shares} == shares


@quick
@given(samples())
def test_new_names_of_classes_in_the_same_order_change_nothing(sample):
    labels, count, method, seed, features = sample
    renamed = sample_indices(labels * 7 + 3, count, method, seed, features)
    assert np.array_equal(renamed, sample_indices(labels, count, method, seed, features))
