"""Random policies at equal cost: independent random preferences, then the best policy within the budget. Sees no data.

The option `draw` tells apart several random policies of one seed.
"""

import numpy as np

from seam.search.problem import Problem

NETWORK = False


def preferences(problem: Problem) -> np.ndarray:
    """[L, B, B] of independent uniform numbers, seeded by (seed, draw)."""
    rng = np.random.default_rng([problem.seed, int(problem.settings.options.get("draw", 0))])
    return rng.random(problem.budgets[0].table.shape)
