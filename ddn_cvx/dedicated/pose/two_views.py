"""Homography and fundamental matrix from weighted matches, as smallest eigenvectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddn_cvx.dedicated.common import attached, isolated, matvec, nondifferentiable, restored
from ddn_cvx.dedicated.pose.inputs import matched

# Gap to the second eigenvalue, relative to the largest, below which the smallest one is repeated.
_EIGENVALUE_GAP = 1e-12


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
    return _matrix(first, second, weights, _homography_rows, inverse=True)


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
    return _matrix(first, second, weights, _fundamental_rows, inverse=False)


def _homography_rows(x: Tensor, y: Tensor) -> Tensor:
    zero = torch.zeros_like(x)
    u, v = y[..., :1], y[..., 1:2]
    return torch.cat([torch.cat([x, zero, -u * x], -1), torch.cat([zero, x, -v * x], -1)], -2)


def _fundamental_rows(x: Tensor, y: Tensor) -> Tensor:
    return (y.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)


@isolated
def _matrix(
    first: Tensor,
    second: Tensor,
    weights: Tensor | None,
    rows_of: Callable[[Tensor, Tensor], Tensor],
    *,
    inverse: bool,
) -> Tensor:
    """The matrix of least algebraic error, in the points' own coordinates.

    Args:
        rows_of: normalised homogeneous points to the rows of the linear equations, ``(B, k, 9)``.
        inverse: whether the second normalisation is undone by its inverse (a homography maps
            points) or by its transpose (a fundamental matrix maps points to lines).
    """
    x, y, w, valid, batch = matched(first, second, weights, 2, ("first", "second"))
    (x, T), (y, U) = _normalised(x, w), _normalised(y, w)
    rows = rows_of(x, y)
    weighted = w.repeat(1, rows.shape[1] // w.shape[1]).unsqueeze(-1) * rows
    G = rows.mT @ weighted
    vector, simple = smallest_eigenvector(G)
    matrix = vector.unflatten(-1, (3, 3))
    matrix = torch.linalg.inv_ex(U).inverse @ matrix @ T if inverse else U.mT @ matrix @ T
    matrix = matrix / matrix.square().sum((-1, -2), keepdim=True).sqrt()
    if inverse:
        sign = torch.where(torch.linalg.det(matrix.detach()) < 0, -1.0, 1.0)
    else:
        largest = matrix.detach().flatten(-2).abs().argmax(-1, keepdim=True)
        at = matrix.detach().flatten(-2).gather(-1, largest).squeeze(-1)
        sign = torch.where(at < 0, -1.0, 1.0)
    return restored(sign[:, None, None] * matrix, batch, first.dtype, valid & simple)


def _normalised(points: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Homogeneous points, centred, of mean squared length two, and the normalising matrix."""
    weight = w.unsqueeze(-1)
    total = weight.sum(-2, keepdim=True).clamp_min(1e-300)
    centre = (weight * points).sum(-2, keepdim=True) / total
    moved = points - centre
    size = ((weight * moved.square()).sum((-1, -2), keepdim=True) / total).clamp_min(1e-300)
    scale = (2 / size).sqrt()
    one, zero = torch.ones_like(scale), torch.zeros_like(scale)
    x, y = -scale * centre[..., :1], -scale * centre[..., 1:]
    rows = [torch.cat(row, -1) for row in ([scale, zero, x], [zero, scale, y], [zero, zero, one])]
    return torch.cat([scale * moved, torch.ones_like(moved[..., :1])], -1), torch.cat(rows, -2)


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


def _unit(u: Tensor) -> Tensor:
    unit: Tensor = u / u.square().sum(-1, keepdim=True).sqrt()
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
