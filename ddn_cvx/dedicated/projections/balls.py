"""Balls and spheres of the L1, L2 and max norm; their radius may be learned.

Spheres are not convex, and their nearest point may not be unique: each docstring states which one
is returned. Gould, Hartley and Campbell, "Deep declarative networks" (2021), section 5.2, use them
as declarative nodes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.dedicated.projections.kernels import (
    L1_BALL,
    L1_SPHERE,
    L2_BALL,
    L2_SPHERE,
    LINF_BALL,
)
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
    return project_rows(_onto_linf_ball, x, datum, dim=dim, kernel=LINF_BALL)


def l1_sphere(x: Tensor, radius: Tensor | float = 1.0, *, dim: int = -1) -> Tensor:
    """A nearest point of ``{u : sum |u_i| = radius}``.

    The magnitudes are projected onto the simplex, from inside as from outside: the nearest facet
    has the signs of ``x``. From inside, both signs of a zero entry are nearest; plus is taken. The
    derivative is that of the facet: inside and on the sphere ``I - s s' / n`` in ``x`` and
    ``s / n`` in ``radius``, for signs ``s``.

    Arguments, result and errors as for :func:`~ddn_cvx.dedicated.projections.simplex`.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.projections import l1_sphere
        >>> l1_sphere(torch.tensor([[0.2, -0.4], [2.0, 0.5], [0.0, 0.0]]))
        tensor([[ 0.4000, -0.6000],
                [ 1.0000,  0.0000],
                [ 0.5000,  0.5000]])
    """
    datum = Datum("radius", radius, nonnegative=True)
    return project_rows(_onto_l1_sphere, x, datum, dim=dim, kernel=L1_SPHERE)


def l2_sphere(x: Tensor, radius: Tensor | float = 1.0, *, dim: int = -1) -> Tensor:
    """A nearest point of ``{u : |u| = radius}``: ``radius x / |x|``.

    At ``x = 0`` every point is nearest: the one on the first axis is returned. The derivative in
    ``x`` does not exist there; it is set to zero.

    Arguments, result and errors as for :func:`~ddn_cvx.dedicated.projections.simplex`.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.projections import l2_sphere
        >>> l2_sphere(torch.tensor([[0.3, 0.4], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [1.0000, 0.0000]])
    """
    datum = Datum("radius", radius, nonnegative=True)
    return project_rows(_onto_l2_sphere, x, datum, dim=dim, kernel=L2_SPHERE)


def linf_sphere(x: Tensor, radius: Tensor | float = 1.0, *, dim: int = -1) -> Tensor:
    """A nearest point of ``{u : max |u_i| = radius}``.

    From outside the entries are clamped. From inside *one* entry moves to the sphere, the first
    largest in magnitude; a zero entry moves to the positive side. The derivative is that of this
    choice: zero for the entries that move, the identity for the others.

    Arguments, result and errors as for :func:`~ddn_cvx.dedicated.projections.simplex`.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.projections import linf_sphere
        >>> linf_sphere(torch.tensor([[0.5, -0.5], [3.0, 0.2]]))
        tensor([[ 1.0000, -0.5000],
                [ 1.0000,  0.2000]])
    """
    return project_rows(_onto_linf_sphere, x, Datum("radius", radius, nonnegative=True), dim=dim)


def _onto_l1_ball(x: Tensor, radius: Tensor) -> Tensor:
    inside = x.detach().abs().sum(1, keepdim=True) <= radius.detach()
    return torch.where(inside, x, _onto_l1_sphere(x, radius))


def _onto_l2_ball(x: Tensor, radius: Tensor) -> Tensor:
    # Scaled by the largest entry: squares would overflow.
    size = x.detach().abs().amax(1, keepdim=True)
    scaled = x.detach() / torch.where(size > 0, size, 1.0)
    inside = scaled.square().sum(1, keepdim=True).sqrt() * size <= radius.detach()
    return torch.where(inside, x, _onto_l2_sphere(x, radius))


def _onto_linf_ball(x: Tensor, radius: Tensor) -> Tensor:
    beyond = x.detach().abs() > radius.detach()
    return torch.where(beyond, x.detach().sign() * radius, x)


def _signs(x: Tensor) -> Tensor:
    return torch.where(x.detach() < 0, -1.0, 1.0).to(x)


def _onto_l1_sphere(x: Tensor, radius: Tensor) -> Tensor:
    sign = _signs(x)
    return sign * onto_simplex(sign * x, radius)


def _onto_l2_sphere(x: Tensor, radius: Tensor) -> Tensor:
    # Scaled by the largest entry: squares would overflow and underflow.
    size = x.detach().abs().amax(1, keepdim=True)
    first = torch.zeros_like(x.detach())
    first[:, :1] = 1.0
    scaled = torch.where(size > 0, x / torch.where(size > 0, size, 1.0), first)
    return radius * (scaled / scaled.square().sum(1, keepdim=True).sqrt())


def _onto_linf_sphere(x: Tensor, radius: Tensor) -> Tensor:
    magnitude = x.detach().abs()
    inside = magnitude.amax(1, keepdim=True) < radius.detach()
    largest = magnitude.argmax(1, keepdim=True)
    raised = torch.zeros_like(magnitude).scatter(1, largest, 1.0) > 0
    return torch.where(inside & raised, _signs(x) * radius, _onto_linf_ball(x, radius))
