"""Regularisation that keeps layers smooth, so that stale histories matter less.

A history of layer l that is off by e moves the output of a node by at most e (k1 k2 |N(v)|)^(L - l), with k1 and k2 the
Lipschitz constants of messages and updates (https://arxiv.org/abs/2106.05609). Three ways to keep these small: a penalty on
what noise at the input of a layer does to its output, which is the published one; a bound of the spectral norm of weights; and
weight decay.
"""

from torch_gas.extensions.perturbation import LocalPerturbation, local_perturbation
from torch_gas.extensions.weights import parameter_groups, spectral_norm

__all__ = ["LocalPerturbation", "local_perturbation", "parameter_groups", "spectral_norm"]
