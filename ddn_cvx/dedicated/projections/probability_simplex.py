"""The simplex: nonnegative vectors with a given sum."""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.dedicated.common import nondifferentiable
from ddn_cvx.dedicated.projections.kernels import SIMPLEX, threshold
from ddn_cvx.dedicated.projections.rows import Datum, project_rows


def simplex(x: Tensor, radius: Tensor | float = 1.0, *, dim: int = -1) -> Tensor:
    """The nearest point of ``{u : u >= 0, sum(u) = radius}``.

    ``u = max(x - tau, 0)`` with the ``tau`` at which the entries sum to ``radius`` (Held, Wolfe and
    Crowder, "Validation of subgradient optimization", 1974), found by Newton's method, which
    terminates finitely (Michelot, "A finite algorithm for finding the projection of a point onto
    the canonical simplex", 1986).

    The derivative at a kink (an entry that just reaches zero) is that of the side where it stays
    zero; with radius zero, that of the side where the radius grows.

    Args:
        x: any shape, float32 or float64; computed in float64.
        radius: not negative; a number, or a tensor that broadcasts with the shape of ``x`` without
            ``dim``; gradients reach it.
        dim: the dimension that sums to ``radius``.

    Returns:
        The shape and dtype of ``x``. Rows with a number that is not finite, or with a negative
        radius, are NaN and have gradient zero.

    Raises:
        TypeError: ``x`` is not floating-point.
        ValueError: a shape does not broadcast; a radius that is a number is negative.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.projections import simplex
        >>> simplex(torch.tensor([3.0, 2.5, -1.0]))
        tensor([0.7500, 0.2500, 0.0000])
    """
    datum = Datum("radius", radius, nonnegative=True)
    return project_rows(onto_simplex, x, datum, dim=dim, kernel=SIMPLEX)


def onto_simplex(x: Tensor, radius: Tensor) -> Tensor:
    """Rows ``(R, n)``, float64, onto the simplices of ``radius`` ``(R, 1)``."""
    top, tau = nondifferentiable(threshold, x, radius)
    # Measured from the largest entry, so that a large common shift of x costs no digits.
    x = x - top
    active = (x.detach() > tau) | (x.detach() == 0)
    count = active.sum(1, keepdim=True)
    level = ((x * active).sum(1, keepdim=True) - radius) / count
    return torch.where(active, x - level, 0.0).clamp_min(0.0)
