import math

import pytest
import torch

from seam.training.margin import MarginLoss, class_margin


def by_hand(features, labels):
    z = features / features.norm(dim=1, keepdim=True)
    classes = sorted(set(labels.tolist()))
    centroids = {c: z[labels == c].mean(0) for c in classes}
    intra = sum((z[i] - centroids[int(c)]).square().sum().item() for i, c in enumerate(labels)) / len(labels)
    pairs = [(a, b) for a in classes for b in classes if a != b]
    inter = sum((centroids[a] - centroids[b]).square().sum().item() for a, b in pairs) / len(pairs)
    return math.log(inter + 0.1) - math.log(intra + 0.1)


def clusters(spread, classes=(0, 1, 3), each=20):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 6, generator=generator)
    labels = torch.tensor(classes).repeat_interleave(each)
    return centres[labels] + spread * torch.randn(len(labels), 6, generator=generator), labels


def test_metric_equals_the_definition_also_with_an_absent_class():
    features, labels = clusters(0.3)
    assert class_margin(features, labels) == pytest.approx(by_hand(features, labels), abs=1e-4)


def test_tighter_classes_have_a_larger_margin_and_scale_does_not_matter():
    tight, labels = clusters(0.1)
    loose, _ = clusters(0.8)
    assert class_margin(tight, labels) > class_margin(loose, labels) + 1
    assert class_margin(tight * 7, labels) == pytest.approx(class_margin(tight, labels), abs=1e-4)


def test_first_loss_is_the_negated_metric_of_the_batch():
    features, labels = clusters(0.3)
    loss = MarginLoss(4, 6)(features, labels)
    assert loss.item() == pytest.approx(-class_margin(features, labels), abs=1e-4)


def test_gradient_descent_on_the_loss_separates_the_classes():
    features, labels = clusters(0.8)
    features.requires_grad_()
    margin = MarginLoss(4, 6)
    before = class_margin(features.detach(), labels)
    for _ in range(20):
        (gradient,) = torch.autograd.grad(margin(features, labels), features)
        with torch.no_grad():
            features -= 20 * gradient
    assert class_margin(features.detach(), labels) > before + 1


def test_centroids_move_with_momentum_in_training_only():
    features, labels = clusters(0.3)
    margin = MarginLoss(4, 6, momentum=0.75)
    margin(features, labels)
    first = margin.centroids.clone()
    margin.eval()
    margin(-features, labels)
    assert torch.equal(margin.centroids, first)
    margin.train()
    margin(-features, labels)
    torch.testing.assert_close(margin.centroids[0], 0.75 * first[0] - 0.25 * first[0])
    assert not margin.centroids[2].any() and margin.seen.tolist() == [1, 1, 0, 1]


def test_the_batch_part_of_the_centroids_is_differentiable():
    # With fixed centroids the inter term would have no gradient: scaling it alone must change the gradient.
    features, labels = clusters(0.3)
    features.requires_grad_()
    margin = MarginLoss(4, 6, momentum=0.0)
    (a,) = torch.autograd.grad(margin(features, labels), features)
    frozen = MarginLoss(4, 6, momentum=1.0)
    frozen.centroids.copy_(margin.centroids)
    frozen.seen.copy_(margin.seen)
    (b,) = torch.autograd.grad(frozen(features, labels), features)
    assert (a - b).abs().max() > 1e-4
