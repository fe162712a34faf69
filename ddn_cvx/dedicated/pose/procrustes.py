"""Weighted Procrustes, also Wahba's problem: the rigid motion between matched points."""

from __future__ import annotations

import torch

from ddn_cvx.dedicated.constants import constant, eager
from ddn_cvx.dedicated.pose.matches import matched
from ddn_cvx.dedicated.pose.rotations import exponential

# Chord steps: each makes one more order of derivatives right.
_ORDERS = 2
# The rotation counts as free about an axis with less curvature than this, relatively.
_FREE = 1e-12


@eager
def procrustes(
    source: torch.Tensor,
    target: torch.Tensor,
    weights: torch.Tensor | None = None,
    *,
    translation: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(R, t) = argmin sum_i w_i |R x_i + t - y_i|^2`` over rotations and translations.

    By the singular vectors of ``M = sum_i w_i y_i x_i'`` (Kabsch 1976; Wahba 1965; Umeyama 1991).
    They are not differentiated: the rotation is where ``R' M`` is symmetric, and the derivative of
    that needs ``tr(S) I - S`` with ``S = R' M`` to be invertible, whatever singular values repeat.
    Where it is not (points on a line, or a reflection that is as good), the rotation is free about
    an axis: one is returned, and the derivative about that axis is zero.

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
        >>> from ddn_cvx.dedicated.pose.procrustes import procrustes
        >>> x = torch.eye(3)
        >>> R, t = procrustes(x, x + torch.tensor([0.0, 0.0, 2.0]))
        >>> torch.allclose(t, torch.tensor([0.0, 0.0, 2.0]), atol=1e-6)
        True
    """
    x, y, w, valid, batch = matched(source, target, weights, 3, ("source", "target"))
    w = w.unsqueeze(-1)
    total = w.sum(-2, keepdim=True)
    from_, to = (w * x).sum(-2, keepdim=True) / total, (w * y).sum(-2, keepdim=True) / total
    if not translation:
        from_, to = torch.zeros_like(from_), torch.zeros_like(to)
    M = (w * (y - to)).mT @ (x - from_)
    start, inverse = constant(_rotation, M, in_parts=False)
    turn = torch.zeros_like(from_).squeeze(-2)
    for _ in range(_ORDERS):
        S = (start @ exponential(turn)).mT @ M
        skew = torch.stack(
            [S[:, 2, 1] - S[:, 1, 2], S[:, 0, 2] - S[:, 2, 0], S[:, 1, 0] - S[:, 0, 1]], -1
        )
        change = skew - skew.detach()
        turn = turn + (inverse @ change.unsqueeze(-1)).squeeze(-1)
    R = start @ exponential(turn)
    t = (to - from_ @ R.mT).squeeze(-2)
    R = torch.where(valid[:, None, None], R, torch.nan)
    t = torch.where(valid[:, None], t, torch.nan)
    return (
        R.reshape(*batch, 3, 3).to(source.dtype),
        t.reshape(*batch, 3).to(source.dtype),
    )


def _rotation(M: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where ``tr(R' M)`` is largest, and the inverse of ``tr(S) I - S``, zero about free axes."""
    U, _, Vh = torch.linalg.svd(M)
    sign = torch.ones_like(M[:, 0])
    sign[:, 2] = torch.where(torch.linalg.det(U @ Vh) < 0, -1.0, 1.0)
    R = (U * sign.unsqueeze(-2)) @ Vh
    S = R.mT @ M
    S = (S + S.mT) / 2
    trace = S.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    values, vectors = torch.linalg.eigh(trace * torch.eye(3, dtype=M.dtype, device=M.device) - S)
    free = values <= _FREE * values.amax(-1, keepdim=True).clamp_min(1e-300)
    reciprocal = torch.where(free, 0.0, 1 / torch.where(free, 1.0, values))
    return R, (vectors * reciprocal.unsqueeze(-2)) @ vectors.mT
