"""The absolute value of a symmetric matrix, differentiable where eigenvalues repeat.

``|X|`` is smooth wherever no eigenvalue is zero, but derivatives through an eigendecomposition
divide by differences of eigenvalues. Here ``|X|`` is the solution of ``Y Y = X X``, whose
linearisation divides by sums of their sizes alone.
"""

from __future__ import annotations

import torch

# Chord steps: each makes one more order of derivatives right.
_ORDERS = 2
# Sums of two eigenvalues' sizes below this share of the largest size are rounding errors of zero.
_ZERO_SHARE = 1e-15


def sylvester_weights(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``1 / (|l_i| + |l_j|)`` or zero where both vanish, and a mask of where they do not.

    Both have shape ``(..., s, s)``.
    """
    magnitude = values.abs()
    total = magnitude.unsqueeze(-1) + magnitude.unsqueeze(-2)
    present = total > _ZERO_SHARE * magnitude.amax(-1)[..., None, None]
    return torch.where(present, 1 / torch.where(present, total, 1.0), 0.0), present


def absolute(X: torch.Tensor, values: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """``|X|`` of symmetric matrices ``(..., s, s)``; differentiable to second order.

    A chord step with the constant Sylvester operator changes no value. The derivative does not
    exist in directions of zero eigenvalues; their contribution is set to zero.

    Args:
        X: symmetric.
        values, vectors: its eigendecomposition, constant.
    """
    weights, _ = sylvester_weights(values)
    Y = (vectors * values.abs().unsqueeze(-2)) @ vectors.mT
    for _ in range(_ORDERS):
        gap = Y @ Y - X @ X
        gap = gap - gap.detach()
        Y = Y - vectors @ (weights * (vectors.mT @ gap @ vectors)) @ vectors.mT
    return Y
