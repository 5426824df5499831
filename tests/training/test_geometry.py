"""Class geometry: distances of centroids, and points on the plane that they span."""

import math

import pytest
import torch

from seam.training.geometry import MOST_CLASSES, POINTS, class_geometry


def features(spread=0.0):
    """Three classes of 30 images, at right angles in 8 dimensions, lengths at random."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    z = torch.eye(8)[labels] + spread * torch.randn(90, 8, generator=generator)
    return z * torch.rand(90, 1, generator=generator).add(0.5), labels


def test_distances_are_those_of_normalised_centroids():
    found = class_geometry(*features())
    assert found["distances"] == [
        [pytest.approx(math.sqrt(2) if i != j else 0, abs=1e-4) for j in range(3)] for i in range(3)
    ]


def test_points_keep_their_distances_on_the_plane_of_the_centroids():
    found = class_geometry(*features())
    assert len(found["points"]) == 3 * POINTS
    places = {k: next(p[:2] for p in found["points"] if p[2] == k) for k in range(3)}
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert math.dist(places[i], places[j]) == pytest.approx(math.sqrt(2), abs=1e-3)
    spread = class_geometry(*features(0.1))["points"]
    for k in range(3):
        own = torch.tensor([p[:2] for p in spread if p[2] == k])
        assert own.std(0).max() < 0.3


def test_the_same_features_give_the_same_points_whichever_way_an_axis_is_found():
    z, labels = features(0.1)
    assert class_geometry(z, labels) == class_geometry(z.clone(), labels)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    turned = class_geometry(z[:, order], labels)["points"]
    for (x, y, _), (u, v, _) in zip(class_geometry(z, labels)["points"], turned, strict=True):
        assert abs(abs(x) - abs(u)) < 2e-4 and abs(abs(y) - abs(v)) < 2e-4


@pytest.mark.parametrize("count", [1, MOST_CLASSES + 1])
def test_too_few_or_too_many_classes_have_none(count):
    labels = torch.arange(count)
    assert class_geometry(torch.randn(count, 4), labels) == {"distances": [], "points": []}
