"""Weighted Procrustes, also Wahba's problem: the rigid motion between matched points."""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.dedicated.common import attached, isolated, nondifferentiable, restored
from ddn_cvx.dedicated.pose.inputs import matched
from ddn_cvx.dedicated.pose.rotations import axial_vector, exponential

# Curvature about an axis, relative to the largest, below which the rotation about it is free.
_FREE_CURVATURE = 1e-12


@isolated
def procrustes(
    source: Tensor, target: Tensor, weights: Tensor | None = None, *, translation: bool = True
) -> tuple[Tensor, Tensor]:
    """``(R, t) = argmin sum_i w_i |R x_i + t - y_i|^2`` over rotations and translations.

    By the singular vectors of ``M = sum_i w_i y_i x_i'`` (Kabsch 1976; Wahba 1965; Umeyama 1991),
    which are not differentiated: the optimality condition is that ``S = R' M`` is symmetric, and
    its derivative needs ``tr(S) I - S`` to be invertible, even where singular values repeat. Where
    it is singular (points on a line, or a reflection with the same cost), the rotation about some
    axis is free: one minimizer is returned, and its derivative about that axis is zero.

    Args:
        source, target: matched points, shape ``(*batch, n, 3)``, float32 or float64; computed in
            float64.
        weights: nonnegative, shape ``(*batch, n)``; None for ones. A weight of zero is a mask:
            its point may be anything; gradients for the weight and the point are zero.
        translation: with False, ``t`` is zero: Wahba's problem.

    Returns:
        ``R`` ``(*batch, 3, 3)`` and ``t`` ``(*batch, 3)``, dtype of ``source``. Elements with an
        input that is not finite, a negative weight, or without weight are NaN, with gradient zero.

    Raises:
        TypeError: ``source`` or ``target`` is not floating-point.
        ValueError: a shape does not fit.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.pose import procrustes
        >>> x = torch.eye(3)
        >>> R, t = procrustes(x, x + torch.tensor([0.0, 0.0, 2.0]))
        >>> torch.allclose(t, torch.tensor([0.0, 0.0, 2.0]), atol=1e-6)
        True
    """
    x, y, w, valid, batch = matched(source, target, weights, 3, ("source", "target"))
    w = w.unsqueeze(-1)
    total = w.sum(-2, keepdim=True)
    x_mean, y_mean = (w * x).sum(-2, keepdim=True) / total, (w * y).sum(-2, keepdim=True) / total
    if not translation:
        x_mean, y_mean = torch.zeros_like(x_mean), torch.zeros_like(y_mean)
    M = (w * (y - y_mean)).mT @ (x - x_mean)
    start, inverse = nondifferentiable(_rotation, M, chunked=False)

    def asymmetry(turn: Tensor) -> Tensor:
        return -axial_vector((start @ exponential(turn)).mT @ M)

    turn = attached(torch.zeros_like(M[..., 0]), asymmetry, inverse, M)
    R = start @ exponential(turn)
    t = (y_mean - x_mean @ R.mT).squeeze(-2)
    return restored(R, batch, source.dtype, valid), restored(t, batch, source.dtype, valid)


def _rotation(M: Tensor) -> tuple[Tensor, Tensor]:
    """The rotation of largest ``tr(R' M)``; the inverse of ``tr(S) I - S``, zero on free axes."""
    U, _, Vh = torch.linalg.svd(M)
    sign = torch.ones_like(M[:, 0])
    sign[:, 2] = torch.where(torch.linalg.det(U @ Vh) < 0, -1.0, 1.0)
    R = (U * sign.unsqueeze(-2)) @ Vh
    S = R.mT @ M
    S = (S + S.mT) / 2
    trace = S.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    values, vectors = torch.linalg.eigh(trace * torch.eye(3, dtype=M.dtype, device=M.device) - S)
    free = values <= _FREE_CURVATURE * values.amax(-1, keepdim=True).clamp_min(1e-300)
    reciprocal = torch.where(free, 0.0, 1 / torch.where(free, 1.0, values))
    return R, (vectors * reciprocal.unsqueeze(-2)) @ vectors.mT
