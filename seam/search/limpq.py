"""Learned quantization steps as importance: one joint training, each step under bit-widths drawn at random.

LIMPQ (Tang et al., ECCV 2022, arXiv 2203.08368): each tensor has a step of its own for each bit-width, learned with the
weights (LSQ, Esser et al. 2020); a tensor that is hard to quantize ends with large ones. The assignment minimises the
sum of the learned steps s, the weights' and the inputs',

    P_lwa = -(s_lw + s_la).

What differs: one random assignment a training step (the paper also takes each bit-width for all layers in turn),
weights with a step a channel, of which the mean counts, and steps that start at their least squared error instead of
0.1 / b. Sees labels: on a foreign proxy the network gets a new classifier and learns the proxy's classes.
"""

import numpy as np
import torch
import torch.nn.functional as F

from seam.quant.fused_activations import clamp_in_quantizers
from seam.search.problem import Problem
from seam.search.training import mixture, parameter_groups, train

DATA = True
CLASSIFIER = True
_SURE = 60.0  # nats: the drawn bit-width has all of the probability in float32


def preferences(problem: Problem) -> np.ndarray:
    """[L, B, B] minus the learned steps of each layer's weight and input."""
    net = mixture(problem)
    logits = [net.weight_logits, net.input_logits]

    def loss(x: torch.Tensor, y: torch.Tensor, done: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        for table in logits:
            drawn = torch.randint(table.shape[1], (len(table),)).to(problem.device)
            table.data.copy_(_SURE * F.one_hot(drawn, table.shape[1]))
        return F.cross_entropy(net(x), y), {}

    weights, steps, _ = parameter_groups(net, problem.settings)
    with clamp_in_quantizers(problem.model, problem.images.shape):
        train(problem, net, loss, [weights, steps])
    net.refresh()
    of_weights = torch.stack([steps.detach().mean(1) for steps in net.weight_steps]).double().cpu().numpy()
    of_inputs = net.input_steps.detach()[net.group].double().cpu().numpy()
    of_inputs[[i for i, g in enumerate(net.group) if net.group.index(g) != i]] = 0  # once, with the group's first layer
    return -(of_weights[:, :, None] + of_inputs[:, None, :])
