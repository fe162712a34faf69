"""Spheres of the L1, L2 and max norm, which are not convex: a nearest point, and where it is tied.

Gould, Hartley and Campbell, "Deep declarative networks" (2021), section 5.2, take these three as
declarative nodes. What a node returns where several points are nearest is stated with each.
"""

from __future__ import annotations

import torch

from ddn_cvx.dedicated.projections.balls import onto_linf_ball
from ddn_cvx.dedicated.projections.kernels import L2_SPHERE, simplex_kernel
from ddn_cvx.dedicated.projections.rows import Datum, project_rows
from ddn_cvx.dedicated.projections.simplex import onto_simplex, threshold

_L1_SPHERE = simplex_kernel(threshold, "sphere")


def l1_sphere(
    x: torch.Tensor, radius: torch.Tensor | float = 1.0, *, dim: int = -1
) -> torch.Tensor:
    """A nearest point of ``{u : sum |u_i| = radius}``.

    The magnitudes go onto the simplex, from inside as from outside: the nearest facet is the one of
    the signs of ``x``. Inside, every sign serves for an entry that is zero; plus is taken. The
    derivative is that of the facet: inside and on the sphere ``I - s s' / n`` in ``x`` and
    ``s / n`` in ``radius``, for signs ``s``.

    Arguments, result and errors as for :func:`~ddn_cvx.dedicated.projections.simplex.simplex`.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.projections.spheres import l1_sphere
        >>> l1_sphere(torch.tensor([[0.2, -0.4], [2.0, 0.5], [0.0, 0.0]]))
        tensor([[ 0.4000, -0.6000],
                [ 1.0000,  0.0000],
                [ 0.5000,  0.5000]])
    """
    datum = Datum("radius", radius, nonnegative=True)
    return project_rows(_onto_l1_sphere, x, datum, dim=dim, kernel=_L1_SPHERE)


def l2_sphere(
    x: torch.Tensor, radius: torch.Tensor | float = 1.0, *, dim: int = -1
) -> torch.Tensor:
    """A nearest point of ``{u : |u| = radius}``: ``radius x / |x|``.

    At ``x = 0`` every point is nearest; the first axis is returned, where the derivative in ``x``,
    which does not exist, comes out as zero.

    Arguments, result and errors as for :func:`~ddn_cvx.dedicated.projections.simplex.simplex`.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.projections.spheres import l2_sphere
        >>> l2_sphere(torch.tensor([[0.3, 0.4], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [1.0000, 0.0000]])
    """
    datum = Datum("radius", radius, nonnegative=True)
    return project_rows(_onto_l2_sphere, x, datum, dim=dim, kernel=L2_SPHERE)


def linf_sphere(
    x: torch.Tensor, radius: torch.Tensor | float = 1.0, *, dim: int = -1
) -> torch.Tensor:
    """A nearest point of ``{u : max |u_i| = radius}``.

    From outside the entries are clamped. From inside *one* entry moves to the sphere, the largest
    in magnitude: of several that tie, the first; an entry of zero moves up. The derivative is that
    of this choice: zero for the entries that are moved, the identity for the others.

    Arguments, result and errors as for :func:`~ddn_cvx.dedicated.projections.simplex.simplex`.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.projections.spheres import linf_sphere
        >>> linf_sphere(torch.tensor([[0.5, -0.5], [3.0, 0.2]]))
        tensor([[ 1.0000, -0.5000],
                [ 1.0000,  0.2000]])
    """
    return project_rows(_onto_linf_sphere, x, Datum("radius", radius, nonnegative=True), dim=dim)


def _signs(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.detach() < 0, -1.0, 1.0).to(x)


def _onto_l1_sphere(x: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    sign = _signs(x)
    return sign * onto_simplex(sign * x, radius)


def _onto_l2_sphere(x: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    # By its largest entry, or squares would overflow and underflow.
    size = x.detach().abs().amax(1, keepdim=True)
    first = torch.zeros_like(x.detach())
    first[:, :1] = 1.0
    scaled = torch.where(size > 0, x / torch.where(size > 0, size, 1.0), first)
    return radius * (scaled / scaled.square().sum(1, keepdim=True).sqrt())


def _onto_linf_sphere(x: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    magnitude = x.detach().abs()
    inside = magnitude.amax(1, keepdim=True) < radius.detach()
    largest = magnitude.argmax(1, keepdim=True)
    raised = torch.zeros_like(magnitude).scatter(1, largest, 1.0) > 0
    return torch.where(inside & raised, _signs(x) * radius, onto_linf_ball(x, radius))
