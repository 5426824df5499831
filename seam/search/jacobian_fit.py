"""Training-free: the geometric mean of two estimates of what quantizing a tensor does, `jacobian`'s and `fit`'s.

    E_tb = sqrt(E'_tb E''_tb),        P_lwa = -(E_lw + E_la),

with E' = mean_i ||J_ti D||^2, how far the error D = Q_b(t) - t moves the features, and E'' = Tr(F_t) mean(D^2), what
errors of its size that point anywhere do to the predictions. D is known where the other tensors are not quantized yet;
once they are, what is rounded is another number, and part of where D pointed is lost. So the truth is between both, and
the mistakes that each makes are not the other's: the mean ranks policies better than either, as long as steps alone are
calibrated (docs/results.md). A geometric mean has no scale to choose, though the two are distances of different things.

Options: `images`; `draws` of each estimate, in batches of 16 images; `calibration`, of the first one.
"""

import numpy as np

from seam.search import fit, jacobian
from seam.search.problem import Problem
from seam.search.tensors import negated, view

DATA = True
QUANTIZERS = False  # their errors are taken where those of `jacobian` and `fit` are
IMAGES = 128
DRAWS = 2


def preferences(problem: Problem) -> np.ndarray:
    """[L, B, B] minus the sum of both tensors' errors, of each layer's (weight bits, activation bits)."""
    seen = view(problem, (*fit.OPTIONS, "calibration"), IMAGES, DRAWS)
    of_features = jacobian.feature_errors(problem, seen)
    of_predictions = fit.trace_times_error(problem, seen, fit.fisher_traces, "fit")
    return negated(np.sqrt(of_features * of_predictions))
