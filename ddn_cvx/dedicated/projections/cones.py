"""Second-order, positive semidefinite and exponential cones."""

from __future__ import annotations

import torch

from ddn_cvx.dedicated.constants import constant
from ddn_cvx.dedicated.projections.rows import project_rows
from ddn_cvx.linalg.matrix_absolute import absolute

# Steps that make so many derivatives right of what an iteration has found.
_ORDERS = 2
# Bisections of an exponential cone's ray: to the last digit of a double.
_BISECTIONS = 64
_NEWTON_STEPS = 3


def second_order_cone(x: torch.Tensor, *, dim: int = -1) -> torch.Tensor:
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
        >>> from ddn_cvx.dedicated.projections.cones import second_order_cone
        >>> second_order_cone(torch.tensor([0.0, 3.0, 4.0]))
        tensor([2.5000, 1.5000, 2.0000])
    """
    return project_rows(_onto_second_order, x, dim=dim)


def positive_semidefinite_cone(x: torch.Tensor) -> torch.Tensor:
    """The nearest positive semidefinite matrix, in Frobenius norm, to the symmetric part of ``x``.

    Higham, "Computing a nearest symmetric positive semidefinite matrix" (1988). The derivative is
    that of ``(S + |S|) / 2`` with ``|S| = (S S)^(1/2)``, which needs no gaps between eigenvalues:
    repeated ones are regular points, also for second derivatives. Where two eigenvalues are zero
    the derivative in their directions, which does not exist, is one half: the mean of both sides.

    Args:
        x: matrices, shape ``(..., n, n)``, float32 or float64; computed in float64.

    Returns:
        Shape ``(..., n, n)``, symmetric, dtype of ``x``. Matrices with a number that is not finite
        are NaN and have gradient zero.

    Raises:
        TypeError: ``x`` is not floating-point.
        ValueError: the last two dimensions differ.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.projections.cones import positive_semidefinite_cone
        >>> positive_semidefinite_cone(torch.diag(torch.tensor([2.0, -1.0])))
        tensor([[2., 0.],
                [0., 0.]])
    """
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise ValueError(f"Expected matrices of shape (..., n, n); got {tuple(x.shape)}.")
    return project_rows(_onto_semidefinite, x.flatten(-2)).reshape(x.shape)


def exponential_cone(x: torch.Tensor, *, dim: int = -1) -> torch.Tensor:
    """The nearest point of ``cl {(r, s, t): s > 0, s exp(r / s) <= t}``.

    Friberg, "Projection onto the exponential cone: a univariate root-finding problem" (2021). The
    derivative on the cone's surface is that of the inside, on the edges of its flat face that of
    the face.

    Args:
        x: three entries along ``dim``, in cvxpy's order; float32 or float64, computed in float64.
        dim: the dimension of the cone.

    Returns:
        The shape and dtype of ``x``. Rows with a number that is not finite are NaN and have
        gradient zero.

    Raises:
        TypeError: ``x`` is not floating-point.
        ValueError: ``dim`` does not have three entries.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.projections.cones import exponential_cone
        >>> exponential_cone(torch.tensor([[0.0, 1.0, 3.0], [-1.0, -1.0, 2.0]]))
        tensor([[ 0.,  1.,  3.],
                [-1.,  0.,  2.]])
    """
    if x.ndim == 0 or x.shape[dim] != 3:
        raise ValueError(f"Expected 3 entries along dim={dim}; got shape {tuple(x.shape)}.")
    return project_rows(_onto_exponential, x, dim=dim)


def _onto_second_order(x: torch.Tensor) -> torch.Tensor:
    height, rest = x[:, :1], x[:, 1:]
    size = rest.detach().abs().amax(1, keepdim=True) if rest.shape[1] else 0 * height.detach()
    scaled = rest / torch.where(size > 0, size, 1.0)
    length = size * scaled.detach().square().sum(1, keepdim=True).sqrt()
    inside, polar = length <= height.detach(), length <= -height.detach()
    # The norm has no derivative at zero; there, and where it is not asked for, of a constant.
    safe = torch.where(inside | polar, 1.0, scaled)
    norm = safe.square().sum(1, keepdim=True).sqrt()
    top = 0.5 * (height + size * norm)
    u = torch.cat([top, top * (safe / norm)], 1)
    return torch.where(inside, x, torch.where(polar, 0.0, u))


def _onto_semidefinite(x: torch.Tensor) -> torch.Tensor:
    side = round(x.shape[1] ** 0.5)
    S = x.unflatten(1, (side, side))
    S = (S + S.mT) / 2
    values, vectors = constant(_eigen, S, in_parts=False)
    projected = (vectors * values.clamp_min(0.0).unsqueeze(1)) @ vectors.mT
    moved = 0.5 * (S + absolute(S, values, vectors))
    u: torch.Tensor = projected + (moved - moved.detach())
    return u.flatten(1)


def _eigen(S: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values, vectors = torch.linalg.eigh(S)
    return values, vectors


def _onto_exponential(x: torch.Tensor) -> torch.Tensor:
    ratio, kind = constant(_ray, x, in_parts=False)
    ratio = torch.where(kind == _SURFACE, ratio, 0.0)
    v = torch.where(kind == _SURFACE, x, 1.0)
    for _ in range(_ORDERS):
        value, slope = _determinant(v, ratio)
        value = value - value.detach()
        slope = slope.detach()
        ratio = ratio - value / torch.where(slope != 0, slope, 1.0)
    ray = _primal_ray(ratio)
    along = (v * ray).sum(1, keepdim=True) / ray.square().sum(1, keepdim=True)
    surface = along.clamp_min(0.0) * ray
    zero = torch.zeros_like(x[:, :1])
    r, t = x[:, :1], x[:, 2:]
    face = torch.cat([torch.where(r > 0, zero, r), zero, torch.where(t < 0, zero, t)], 1)
    u = torch.where(kind == _INSIDE, x, torch.where(kind == _POLAR, 0.0, surface))
    return torch.where(kind == _FACE, face, u)


_INSIDE, _POLAR, _FACE, _SURFACE = 0.0, 1.0, 2.0, 3.0


def _primal_ray(ratio: torch.Tensor) -> torch.Tensor:
    """The cone's ray ``(r / s, 1, exp(r / s))``, scaled to be finite; ``(R, 3)``."""
    shift = ratio.detach().clamp_min(0.0)
    small = (-shift).exp()
    return torch.cat([ratio * small, small, (ratio - shift).exp()], 1)


def _determinant(v: torch.Tensor, ratio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Zero where ``v`` is spanned by the primal ray of ``ratio`` and its normal; and the slope.

    Decreasing where the parts along both are positive (Friberg, theorem 3.3); scaled by
    ``exp(-|ratio|)``, whose own slope is left out: at the root it does not count.
    """
    r, s, t = v[:, :1], v[:, 1:2], v[:, 2:]
    size = ratio.detach().abs()
    up, down, one = (ratio - size).exp(), (-ratio - size).exp(), (-size).exp()
    value = (
        t * (1 - ratio + ratio * ratio) * one
        - s * (ratio * down + up)
        + r * ((1 - ratio) * up + down)
    )
    slope = t * (2 * ratio - 1) * one + s * ((ratio - 1) * down - up) - r * (ratio * up + down)
    return value, slope


def _ray(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``r / s`` of the projection, and where it lies, both ``(R, 1)``."""
    r, s, t = v[:, :1], v[:, 1:2], v[:, 2:]
    positive = s > 0
    # In logarithms: next to a face the exponential outgrows every t.
    exponent = r / torch.where(positive, s, 1.0) + torch.where(positive, s, 1.0).log()
    inside = positive & (t > 0) & (exponent <= torch.where(t > 0, t, 1.0).log())
    inside = inside | ((s == 0) & (r <= 0) & (t >= 0))
    above = r > 0
    exponent = s / torch.where(above, r, 1.0) - 1 + torch.where(above, r, 1.0).log()
    polar = above & (t < 0) & (exponent <= torch.where(t < 0, -t, 1.0).log())
    polar = polar | ((r == 0) & (s <= 0) & (t <= 0))
    face = (r <= 0) & (s <= 0)
    kind = torch.full_like(r, _SURFACE).masked_fill(face, _FACE)
    kind = kind.masked_fill(polar, _POLAR).masked_fill(inside, _INSIDE)
    # The parts along the ray and along its normal are positive between these bounds.
    low = torch.where(above, 1 - s / torch.where(above, r, 1.0), -torch.inf)
    high = torch.where(positive, r / torch.where(positive, s, 1.0), torch.inf)
    low, high = _bracketed(v, low, high)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        right = _determinant(v, middle)[0] > 0
        low, high = torch.where(right, middle, low), torch.where(right, high, middle)
    ratio = 0.5 * (low + high)
    for _ in range(_NEWTON_STEPS):
        value, slope = _determinant(v, ratio)
        step = value / torch.where(slope != 0, slope, 1.0)
        moved = ratio - step
        better = _determinant(v, moved)[0].abs() < value.abs()
        ratio = torch.where(better, moved, ratio)
    return ratio, kind


def _bracketed(
    v: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Finite bounds of the root: the missing one is sought by doubling the distance."""
    reach = 1.0
    known_low, known_high = low.isfinite(), high.isfinite()
    low = torch.where(known_low, low, torch.where(known_high, high, 0.0) - reach)
    high = torch.where(known_high, high, torch.where(known_low, low, 0.0) + reach)
    for _ in range(11):
        reach = 2 * reach
        below = ~known_low & (_determinant(v, low)[0] < 0)
        beyond = ~known_high & (_determinant(v, high)[0] > 0)
        low, high = torch.where(below, low - reach, low), torch.where(beyond, high + reach, high)
    return low, high
