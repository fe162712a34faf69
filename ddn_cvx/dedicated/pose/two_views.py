"""Homography and fundamental matrix from weighted matches, as smallest eigenvectors."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ddn_cvx.dedicated.constants import constant, eager
from ddn_cvx.dedicated.pose.matches import matched

# Chord steps: each makes one more order of derivatives right.
_ORDERS = 2
# The smallest eigenvalue counts as repeated when the next is nearer than this, relatively.
_REPEATED = 1e-12


def homography(
    first: torch.Tensor, second: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
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
        negative weight, or points that leave more than one answer, are NaN, with gradient zero.

    Raises:
        TypeError: ``first`` or ``second`` is not floating-point.
        ValueError: a shape does not fit.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.pose.two_views import homography
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> H = homography(x, x + 3)
        >>> shift = torch.tensor([[1.0, 0.0, 3.0], [0.0, 1.0, 3.0], [0.0, 0.0, 1.0]])
        >>> torch.allclose(H / H[2, 2], shift, atol=1e-5)
        True
    """
    return _matrix(first, second, weights, _homography_rows, inverse=True)


def fundamental_matrix(
    first: torch.Tensor, second: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """``F`` of norm one with ``second' F first = 0``: the eight-point algorithm, with weights.

    Hartley, "In defense of the eight-point algorithm" (1997), without its last step: the rank is
    not made two. The sign is such that the entry of largest magnitude is positive.

    Arguments, result and errors as for :func:`homography`; at least 8 points.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.pose.two_views import fundamental_matrix
        >>> fundamental_matrix(torch.rand(9, 2), torch.rand(9, 2)).shape
        torch.Size([3, 3])
    """
    return _matrix(first, second, weights, _fundamental_rows, inverse=False)


def _homography_rows(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    zero = torch.zeros_like(x)
    u, v = y[..., :1], y[..., 1:2]
    return torch.cat([torch.cat([x, zero, -u * x], -1), torch.cat([zero, x, -v * x], -1)], -2)


def _fundamental_rows(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (y.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)


@eager
def _matrix(
    first: torch.Tensor,
    second: torch.Tensor,
    weights: torch.Tensor | None,
    rows_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    inverse: bool,
) -> torch.Tensor:
    """The smallest eigenvector of weighted rows, back in the points' own coordinates."""
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
    good = (valid & simple)[:, None, None]
    matrix = torch.where(good, sign[:, None, None] * matrix, torch.nan)
    return matrix.reshape(*batch, 3, 3).to(first.dtype)


def _normalised(points: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Homogeneous, centred, of mean squared length two; and the matrix that does it."""
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


def smallest_eigenvector(G: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of symmetric matrices ``(B, k, k)``, unit vectors ``(B, k)``, and where it is the only one.

    The derivative is that of ``(G - lambda I) u = 0``, ``|u| = 1``: the gaps between the other
    eigenvalues do not matter. Where the smallest repeats it is zero.
    """
    start, inverse, simple = constant(_smallest, G, in_parts=False)
    u = start
    for _ in range(_ORDERS):
        Gu = (G @ u.unsqueeze(-1)).squeeze(-1)
        rest = Gu - (u * Gu).sum(-1, keepdim=True) * u
        rest = rest - rest.detach()
        u = u - (inverse @ rest.unsqueeze(-1)).squeeze(-1)
        u = u / u.square().sum(-1, keepdim=True).sqrt()
    return u, simple


def _smallest(G: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    values, vectors = torch.linalg.eigh(G)
    gaps = values - values[:, :1]
    simple = gaps[:, 1] > _REPEATED * values[:, -1].clamp_min(1e-300)
    wide = (gaps > 0) & simple.unsqueeze(-1)
    wide = wide & (torch.arange(gaps.shape[-1], device=G.device) > 0)
    reciprocal = torch.where(wide, 1 / torch.where(wide, gaps, 1.0), 0.0)
    return vectors[..., 0], (vectors * reciprocal.unsqueeze(-2)) @ vectors.mT, simple
