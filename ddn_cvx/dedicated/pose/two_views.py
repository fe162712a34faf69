"""Homography and fundamental matrix from weighted matches, as smallest eigenvectors."""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.dedicated.common import attached, isolated, matvec, nondifferentiable, restored
from ddn_cvx.dedicated.pose.inputs import matched

# Gap to the second eigenvalue, relative to the largest, below which the smallest one is repeated.
_EIGENVALUE_GAP = 1e-12


@isolated
def homography(first: Tensor, second: Tensor, weights: Tensor | None = None) -> Tensor:
    """``H`` of norm one with ``second ~ H first``: least algebraic error in normalised coordinates.

    Hartley and Zisserman, "Multiple View Geometry" (2004), algorithm 4.2, with weights; the sign is
    such that the determinant is not negative. The derivative includes the normalisation.

    Args:
        first, second: matched points, shape ``(*batch, n, 2)``, at least 4, no three on a line;
            float32 or float64, computed in float64.
        weights: nonnegative, shape ``(*batch, n)``; None for ones. A weight of zero is a mask: its
            point may be anything; gradients for the weight and the point are zero.

    Returns:
        Shape ``(*batch, 3, 3)``, dtype of ``first``. Elements with an input that is not finite, a
        negative weight, or points that do not determine the matrix, are NaN, with gradient zero.

    Raises:
        TypeError: ``first`` or ``second`` is not floating-point.
        ValueError: a shape does not fit.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.pose import homography
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> H = homography(x, x + 3)
        >>> shift = torch.tensor([[1.0, 0.0, 3.0], [0.0, 1.0, 3.0], [0.0, 0.0, 1.0]])
        >>> torch.allclose(H / H[2, 2], shift, atol=1e-5)
        True
    """
    x, y, w, valid, batch = matched(first, second, weights, 2, ("first", "second"))
    (x, T), (y, U) = _normalised(x, w), _normalised(y, w)
    zero, u, v = torch.zeros_like(x), y[..., :1], y[..., 1:2]
    rows = torch.cat([torch.cat([x, zero, -u * x], -1), torch.cat([zero, x, -v * x], -1)], -2)
    matrix, simple = _least(rows, w.repeat(1, 2))
    H = _unit(torch.linalg.inv_ex(U).inverse @ matrix @ T, (-1, -2))
    sign = torch.where(torch.linalg.det(H.detach()) < 0, -1.0, 1.0)[:, None, None]
    return restored(sign * H, batch, first.dtype, valid & simple)


@isolated
def fundamental_matrix(first: Tensor, second: Tensor, weights: Tensor | None = None) -> Tensor:
    """``F`` of norm one with ``second' F first = 0``: the eight-point algorithm, with weights.

    Hartley, "In defense of the eight-point algorithm" (1997), without its last step, the projection
    to rank two. The sign is such that the entry of largest magnitude is positive.

    Arguments, result and errors as for :func:`homography`; at least 8 points.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.pose import fundamental_matrix
        >>> fundamental_matrix(torch.rand(9, 2), torch.rand(9, 2)).shape
        torch.Size([3, 3])
    """
    x, y, w, valid, batch = matched(first, second, weights, 2, ("first", "second"))
    (x, T), (y, U) = _normalised(x, w), _normalised(y, w)
    matrix, simple = _least((y.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2), w)
    F = _unit(U.mT @ matrix @ T, (-1, -2))
    entries = F.detach().flatten(-2)
    largest = entries.gather(-1, entries.abs().argmax(-1, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).unsqueeze(-1)
    return restored(sign * F, batch, first.dtype, valid & simple)


def _least(rows: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The matrices of least weighted sum of squares over ``(B, k, 9)``, and where unique."""
    vector, simple = smallest_eigenvector(rows.mT @ (w.unsqueeze(-1) * rows))
    return vector.unflatten(-1, (3, 3)), simple


def _normalised(points: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Homogeneous points, centred, of mean squared length two, and the normalising matrix."""
    weight = w.unsqueeze(-1)
    total = weight.sum(-2, keepdim=True).clamp_min(1e-300)
    centre = (weight * points).sum(-2, keepdim=True) / total
    moved = points - centre
    size = ((weight * moved.square()).sum((-1, -2), keepdim=True) / total).clamp_min(1e-300)
    scale = (2 / size).sqrt()
    eye = torch.eye(3, dtype=w.dtype, device=w.device).expand(len(w), 3, 3)
    top = scale * torch.cat([eye[:, :2, :2], -centre.mT], -1)
    points = torch.nn.functional.pad(scale * moved, (0, 1), value=1.0)
    return points, torch.cat([top, eye[:, 2:]], -2)


def smallest_eigenvector(G: Tensor) -> tuple[Tensor, Tensor]:
    """Unit eigenvectors ``(B, k)`` of symmetric ``(B, k, k)``, and where they are unique.

    The derivative is that of ``(G - lambda I) u = 0``, ``|u| = 1``, which is regular whatever the
    gaps between the other eigenvalues. Where the smallest eigenvalue repeats it is zero.
    """
    start, inverse, simple = nondifferentiable(_smallest, G, chunked=False)

    def residual(u: Tensor) -> Tensor:
        u = _unit(u)
        Gu = matvec(G, u)
        return Gu - (u * Gu).sum(-1, keepdim=True) * u

    return _unit(attached(start, residual, inverse, G)), simple


def _unit(u: Tensor, dims: tuple[int, ...] = (-1,)) -> Tensor:
    unit: Tensor = u / u.square().sum(dims, keepdim=True).sqrt()
    return unit


def _smallest(G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvectors, the pseudo-inverses of ``G - lambda I``, and where ``lambda`` is simple."""
    values, vectors = torch.linalg.eigh(G)
    gaps = values - values[:, :1]
    simple = gaps[:, 1] > _EIGENVALUE_GAP * values[:, -1].clamp_min(1e-300)
    wide = (gaps > 0) & simple.unsqueeze(-1)
    wide = wide & (torch.arange(gaps.shape[-1], device=G.device) > 0)
    reciprocal = torch.where(wide, 1 / torch.where(wide, gaps, 1.0), 0.0)
    return vectors[..., 0], (vectors * reciprocal.unsqueeze(-2)) @ vectors.mT, simple
