"""Balls of the L1, L2 and max norm; their radius may be learned."""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.dedicated.projections.kernels import L1_BALL, L2_BALL, LINF_BALL
from ddn_cvx.dedicated.projections.probability_simplex import onto_simplex
from ddn_cvx.dedicated.projections.rows import Datum, project_rows


def l1_ball(x: Tensor, radius: Tensor | float = 1.0, *, dim: int = -1) -> Tensor:
    """The nearest point of ``{u : sum |u_i| <= radius}``.

    Outside the ball the magnitudes go onto the simplex (Duchi, Shalev-Shwartz, Singer and Chandra,
    "Efficient projections onto the l1-ball for learning in high dimensions", 2008, section 4).

    Arguments, result and errors as for :func:`~ddn_cvx.dedicated.projections.simplex`. On
    the sphere itself the derivative is that of the inside: the identity in ``x``, zero in
    ``radius``.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.projections import l1_ball
        >>> l1_ball(torch.tensor([3.0, -1.0, 0.5]), 3.0)
        tensor([ 2.5000, -0.5000,  0.0000])
    """
    datum = Datum("radius", radius, nonnegative=True)
    return project_rows(_onto_l1_ball, x, datum, dim=dim, kernel=L1_BALL)


def l2_ball(x: Tensor, radius: Tensor | float = 1.0, *, dim: int = -1) -> Tensor:
    """The nearest point of ``{u : |u| <= radius}``.

    Arguments, result and errors as for :func:`~ddn_cvx.dedicated.projections.simplex`;
    derivatives on the sphere as for :func:`l1_ball`.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.projections import l2_ball
        >>> l2_ball(torch.tensor([3.0, 4.0]))
        tensor([0.6000, 0.8000])
    """
    datum = Datum("radius", radius, nonnegative=True)
    return project_rows(_onto_l2_ball, x, datum, dim=dim, kernel=L2_BALL)


def linf_ball(x: Tensor, radius: Tensor | float = 1.0, *, dim: int = -1) -> Tensor:
    """The nearest point of ``{u : max |u_i| <= radius}``.

    Arguments, result and errors as for :func:`~ddn_cvx.dedicated.projections.simplex`;
    derivatives on the sphere as for :func:`l1_ball`.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.projections import linf_ball
        >>> linf_ball(torch.tensor([3.0, -0.5]))
        tensor([ 1.0000, -0.5000])
    """
    datum = Datum("radius", radius, nonnegative=True)
    return project_rows(onto_linf_ball, x, datum, dim=dim, kernel=LINF_BALL)


def _onto_l1_ball(x: Tensor, radius: Tensor) -> Tensor:
    inside = x.detach().abs().sum(1, keepdim=True) <= radius.detach()
    sign = x.detach().sign()
    return torch.where(inside, x, sign * onto_simplex(sign * x, radius))


def _onto_l2_ball(x: Tensor, radius: Tensor) -> Tensor:
    # Scaled by the largest entry: squares would overflow.
    size = x.detach().abs().amax(1, keepdim=True)
    scaled = x / torch.where(size > 0, size, 1.0)
    inside = scaled.detach().square().sum(1, keepdim=True).sqrt() * size <= radius.detach()
    # The norm has no derivative at zero: inside the ball, where it is not used, it is that of ones.
    norm = torch.where(inside, 1.0, scaled).square().sum(1, keepdim=True).sqrt()
    return torch.where(inside, x, radius * (scaled / norm))


def onto_linf_ball(x: Tensor, radius: Tensor) -> Tensor:
    """The projection of rows ``(R, n)`` onto the cubes of ``radius`` ``(R, 1)``."""
    beyond = x.detach().abs() > radius.detach()
    return torch.where(beyond, x.detach().sign() * radius, x)
