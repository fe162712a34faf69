"""Second-order, positive semidefinite and exponential cones."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ddn_cvx.dedicated.common import attached, nondifferentiable
from ddn_cvx.dedicated.projections.rows import project_matrices, project_rows
from ddn_cvx.linalg.matrix_absolute import absolute

# Bisections of the exponential cone's root, as many as a double has bits, and Newton steps that
# remove the rounding of the midpoints.
_BISECTIONS = 64
_NEWTON_STEPS = 3
# Doublings of the distance within which a missing end of the bracket is sought: exp overflows at
# 710, before 2^11.
_BRACKET_DOUBLINGS = 11
# Where the projection onto the exponential cone lies.
_INSIDE, _POLAR, _FACE, _SURFACE = 0.0, 1.0, 2.0, 3.0


def second_order_cone(x: Tensor, *, dim: int = -1) -> Tensor:
    """The nearest point of ``{(t, z): |z| <= t}``, with ``t`` the first entry along ``dim``.

    Bauschke, "Projection algorithms and monotone operators" (1996), theorem 3.3.6. Where the
    projection has a kink (on the cone, on its polar, at the origin) the derivative is that of the
    inside of the cone or of the polar.

    Args:
        x: any shape, float32 or float64; computed in float64.
        dim: the dimension of the cone.

    Returns:
        The shape and dtype of ``x``. Rows with a number that is not finite are NaN and have
        gradient zero.

    Raises:
        TypeError: ``x`` is not floating-point.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.projections import second_order_cone
        >>> second_order_cone(torch.tensor([0.0, 3.0, 4.0]))
        tensor([2.5000, 1.5000, 2.0000])
    """
    return project_rows(_onto_second_order, x, dim=dim)


def positive_semidefinite_cone(x: Tensor) -> Tensor:
    """The nearest positive semidefinite matrix, in Frobenius norm, to the symmetric part of ``x``.

    Higham, "Computing a nearest symmetric positive semidefinite matrix" (1988). The derivative is
    that of ``(S + |S|) / 2`` with ``|S| = (S S)^(1/2)``, which needs no gaps between eigenvalues:
    repeated ones are regular points, also for second derivatives. Where two eigenvalues are zero
    the derivative in their directions does not exist; one half is returned, the mean of both sides.

    Argument, result, here symmetric, and errors as for
    :func:`~ddn_cvx.dedicated.projections.birkhoff_polytope`.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.projections import positive_semidefinite_cone
        >>> positive_semidefinite_cone(torch.diag(torch.tensor([2.0, -1.0])))
        tensor([[2., 0.],
                [0., 0.]])
    """
    return project_matrices(_onto_semidefinite, x)


def exponential_cone(x: Tensor, *, dim: int = -1) -> Tensor:
    """The nearest point of ``cl {(r, s, t): s > 0, s exp(r / s) <= t}``.

    Friberg, "Projection onto the exponential cone: a univariate root-finding problem" (2021). The
    derivative on the cone's surface is that of the inside, on the edges of its flat face that of
    the face.

    Arguments, result and errors as for :func:`second_order_cone`; ``dim`` has three entries, in
    cvxpy's order, or a ValueError is raised.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.projections import exponential_cone
        >>> exponential_cone(torch.tensor([[0.0, 1.0, 3.0], [-1.0, -1.0, 2.0]]))
        tensor([[ 0.,  1.,  3.],
                [-1.,  0.,  2.]])
    """
    if x.ndim == 0 or x.shape[dim] != 3:
        raise ValueError(f"Expected 3 entries along dim={dim}; got shape {tuple(x.shape)}.")
    return project_rows(_onto_exponential, x, dim=dim)


def _onto_second_order(x: Tensor) -> Tensor:
    height, rest = x[:, :1], x[:, 1:]
    size = rest.detach().abs().amax(1, keepdim=True) if rest.shape[1] else 0 * height.detach()
    scaled = rest / torch.where(size > 0, size, 1.0)
    length = size * scaled.detach().square().sum(1, keepdim=True).sqrt()
    inside, polar = length <= height.detach(), length <= -height.detach()
    # The norm has no derivative at zero: where its value is not used, it is taken of ones.
    safe = torch.where(inside | polar, 1.0, scaled)
    norm = safe.square().sum(1, keepdim=True).sqrt()
    top = 0.5 * (height + size * norm)
    u = torch.cat([top, top * (safe / norm)], 1)
    return torch.where(inside, x, torch.where(polar, 0.0, u))


def _onto_semidefinite(X: Tensor) -> Tensor:
    S = (X + X.mT) / 2
    values, vectors = nondifferentiable(torch.linalg.eigh, S, chunked=False)
    projected = (vectors * values.clamp_min(0.0).unsqueeze(1)) @ vectors.mT
    smooth = 0.5 * (S + absolute(S, values, vectors))
    u: Tensor = projected + (smooth - smooth.detach())
    return u


def _onto_exponential(x: Tensor) -> Tensor:
    ratio, kind = nondifferentiable(_ray, x, chunked=False)
    ratio = torch.where(kind == _SURFACE, ratio, 0.0)
    v = torch.where(kind == _SURFACE, x, 1.0)
    slope = _slope(v.detach(), ratio)
    inverse = (1 / torch.where(slope != 0, slope, 1.0)).unsqueeze(2)
    ratio = attached(ratio, functools.partial(_determinant, v), inverse, x)
    ray = _primal_ray(ratio)
    along = (v * ray).sum(1, keepdim=True) / ray.square().sum(1, keepdim=True)
    surface = along.clamp_min(0.0) * ray
    zero = torch.zeros_like(x[:, :1])
    face = torch.cat([x[:, :1].clamp_max(0.0), zero, x[:, 2:].clamp_min(0.0)], 1)
    u = torch.where(kind == _INSIDE, x, torch.where(kind == _POLAR, 0.0, surface))
    return torch.where(kind == _FACE, face, u)


def _primal_ray(ratio: Tensor) -> Tensor:
    """The cone's ray ``(r / s, 1, exp(r / s))``, scaled to be finite; ``(R, 3)``."""
    shift = ratio.detach().clamp_min(0.0)
    small = (-shift).exp()
    return torch.cat([ratio * small, small, (ratio - shift).exp()], 1)


def _determinant(v: Tensor, ratio: Tensor) -> Tensor:
    """Zero where ``v`` lies in the plane of the primal ray of ``ratio`` and the normal there.

    Decreasing in ``ratio`` where the components along both are positive (Friberg, theorem 3.3);
    scaled by ``exp(-|ratio|)`` against overflow.
    """
    r, s, t = v[:, :1], v[:, 1:2], v[:, 2:]
    size = ratio.detach().abs()
    up, down, one = (ratio - size).exp(), (-ratio - size).exp(), (-size).exp()
    curve = t * (1 - ratio + ratio * ratio) * one
    return curve - s * (ratio * down + up) + r * ((1 - ratio) * up + down)


def _slope(v: Tensor, ratio: Tensor) -> Tensor:
    """The derivative of :func:`_determinant` at a root, where that of the scaling vanishes."""
    r, s, t = v[:, :1], v[:, 1:2], v[:, 2:]
    size = ratio.detach().abs()
    up, down, one = (ratio - size).exp(), (-ratio - size).exp(), (-size).exp()
    return t * (2 * ratio - 1) * one + s * ((ratio - 1) * down - up) - r * (ratio * up + down)


def _ray(v: Tensor) -> tuple[Tensor, Tensor]:
    """``r / s`` of the projection, and the part of the cone on which it lies, both ``(R, 1)``."""
    r, s, t = v[:, :1], v[:, 1:2], v[:, 2:]
    positive, above = s > 0, r > 0
    safe_r, safe_s, safe_t = (torch.where(v != 0, v.abs(), 1.0) for v in (r, s, t))
    # In logarithms: next to the face the exponential overflows.
    inside = positive & (t > 0) & (r / safe_s + safe_s.log() <= safe_t.log())
    inside = inside | ((s == 0) & (r <= 0) & (t >= 0))
    polar = above & (t < 0) & (s / safe_r - 1 + safe_r.log() <= safe_t.log())
    polar = polar | ((r == 0) & (s <= 0) & (t <= 0))
    face = (r <= 0) & (s <= 0)
    kind = torch.full_like(r, _SURFACE).masked_fill(face, _FACE)
    kind = kind.masked_fill(polar, _POLAR).masked_fill(inside, _INSIDE)
    # The components along the ray and its normal are positive between these bounds.
    low = torch.where(above, 1 - s / safe_r, -torch.inf)
    high = torch.where(positive, r / safe_s, torch.inf)
    low, high = _bracketed(v, low, high)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        right = _determinant(v, middle) > 0
        low, high = torch.where(right, middle, low), torch.where(right, high, middle)
    ratio = 0.5 * (low + high)
    value = _determinant(v, ratio)
    for _ in range(_NEWTON_STEPS):
        slope = _slope(v, ratio)
        moved = ratio - value / torch.where(slope != 0, slope, 1.0)
        there = _determinant(v, moved)
        better = there.abs() < value.abs()
        ratio, value = torch.where(better, moved, ratio), torch.where(better, there, value)
    return ratio, kind


def _bracketed(v: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Finite bounds of the root: a missing one is sought at distances that double."""
    reach = 1.0
    known_low, known_high = low.isfinite(), high.isfinite()
    low = torch.where(known_low, low, torch.where(known_high, high, 0.0) - reach)
    high = torch.where(known_high, high, torch.where(known_low, low, 0.0) + reach)
    for _ in range(_BRACKET_DOUBLINGS):
        reach = 2 * reach
        below = ~known_low & (_determinant(v, low) < 0)
        beyond = ~known_high & (_determinant(v, high) > 0)
        low, high = torch.where(below, low - reach, low), torch.where(beyond, high + reach, high)
    return low, high
