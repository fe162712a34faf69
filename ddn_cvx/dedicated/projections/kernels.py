"""Hand-written projections and vector-Jacobian products where all rows share one scalar datum.

On large batches, time is passes over memory, and a formula of torch operations makes one for each
operation. A kernel makes few, in the dtype of the points, with sums over a row in float64. It has
no second derivatives: these, forward mode and ``vmap`` use the formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddn_cvx.dedicated.common import cached_chunks

# Numbers of one chunk of rows over which several passes are made: 512 KiB of float64, as the points
# and their projections share the cache.
_CHUNK_NUMBERS = 1 << 16

_TINY = torch.finfo(torch.float64).tiny

Saved = tuple[Tensor, ...]


class Kernel(NamedTuple):
    """A projection and its vector-Jacobian product.

    Attributes:
        value: ``value(x, number, *vectors)`` to the projection ``(R, n)`` and the tensors to save
            for ``pull``; None for data that the kernel does not take: numbers that are not finite,
            overflow, points whose derivative is a special case.
        pull: ``pull(incoming, saved, number, *vectors)`` to the gradient of the points ``(R, n)``
            and a function that computes the gradient of the number, a scalar.
    """

    value: Callable[..., tuple[Tensor, Saved] | None]
    pull: Callable[..., tuple[Tensor, Callable[[], Tensor]]]


class _KernelFunction(torch.autograd.Function):
    """Attaches derivatives to a kernel's projection: of first order its own, then the formula's."""

    @staticmethod
    def forward(
        ctx: Any, kernel: Kernel, formula: Any, found: Any, x: Any, number: Any, *vectors: Any
    ) -> Tensor:
        projected: Tensor = found[0]
        ctx.kernel, ctx.formula, ctx.number = kernel, formula, float(number)
        ctx.given = number if isinstance(number, Tensor) else None
        ctx.vectors = len(vectors)
        ctx.save_for_backward(x, *vectors, *found[1])
        return projected

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> Any:
        x, *rest = ctx.saved_tensors
        vectors, saved = rest[: ctx.vectors], tuple(rest[ctx.vectors :])
        wants_x, wants_number = ctx.needs_input_grad[3:5]
        if torch.is_grad_enabled():
            leaves = [t for t, w in ((x, wants_x), (ctx.given, wants_number)) if w]
            number = ctx.number if ctx.given is None else ctx.given
            again = ctx.formula(x, number, *vectors)
            gradients = list(torch.autograd.grad(again, leaves, incoming[0], create_graph=True))
            by_x = gradients.pop(0) if wants_x else None
            by_number = gradients.pop(0) if wants_number else None
        else:
            by_x, number_of = ctx.kernel.pull(incoming[0], saved, ctx.number, *vectors)
            by_number = number_of().to(ctx.given) if wants_number else None
        return None, None, None, by_x, by_number, *([None] * ctx.vectors)


attach_kernel = _KernelFunction.apply


def _dots(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(1, keepdim=True)


# -- L2 --------------------------------------------------------------------------------------------


def _scaled(x: Tensor, radius: float, ball: bool) -> tuple[Tensor, Saved] | None:
    if radius <= 0:  # the derivative of a point is a special case
        return None
    size = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float64)
    scale = radius / size
    # Underflow and overflow show as zero and infinity.
    if not math.isfinite(float(size.sum() if ball else (size + scale).sum())):
        return None
    if ball:
        scale = scale.clamp_max(1.0)
        size = size.clamp_min(_TINY)
    rounded = scale.to(x.dtype)
    return x * rounded, (x, size, scale, rounded)


def _pull_scaled(
    incoming: Tensor, saved: Saved, radius: float, ball: bool
) -> tuple[Tensor, Callable[[], Tensor]]:
    x, size, scale, rounded = saved
    along = _dots(incoming, x) / size
    if ball:
        along = torch.where(size > radius, along, 0.0)
    back = (scale * along / size).to(x.dtype)
    gradient = torch.addcmul(incoming * rounded, x, back, value=-1.0)
    return gradient, along.sum


L2_BALL = Kernel(
    lambda x, radius: _scaled(x, radius, True),
    lambda g, s, radius: _pull_scaled(g, s, radius, True),
)
L2_SPHERE = Kernel(
    lambda x, radius: _scaled(x, radius, False),
    lambda g, s, radius: _pull_scaled(g, s, radius, False),
)


# -- max norm --------------------------------------------------------------------------------------


def _clamped(x: Tensor, radius: float) -> tuple[Tensor, Saved] | None:
    if not math.isfinite(float(x.sum())):
        return None
    return x.clamp(-radius, radius), (x,)


def _pull_clamped(
    incoming: Tensor, saved: Saved, radius: float
) -> tuple[Tensor, Callable[[], Tensor]]:
    (x,) = saved
    # On the bounds torch's derivative is zero and this one is one: torch gets larger bounds.
    kind = np.float32 if x.dtype == torch.float32 else np.float64
    outside = float(np.nextafter(kind(radius), kind(np.inf)))
    gradient = torch.ops.aten.hardtanh_backward(incoming, x, -outside, outside)
    return gradient, lambda: (incoming * x.sign() * (x.abs() > radius)).sum()


LINF_BALL = Kernel(_clamped, _pull_clamped)


# -- planes ----------------------------------------------------------------------------------------


def _moved(
    x: Tensor, offset: float, normal: Tensor, halfspace: bool
) -> tuple[Tensor, Saved] | None:
    exact, rounded = normal.double(), normal.to(x.dtype)
    square = torch.dot(exact, exact)
    excess = (x @ rounded - offset) / square
    if not (float(square) > 0 and math.isfinite(float(excess.sum()))):
        return None
    if halfspace:
        excess = excess.clamp_min_(0.0)
    return torch.addr(x, excess.to(x.dtype), rounded, alpha=-1.0), (excess, square)


def _pull_moved(
    incoming: Tensor, saved: Saved, normal: Tensor, halfspace: bool
) -> tuple[Tensor, Callable[[], Tensor]]:
    excess, square = saved
    rounded = normal.to(incoming.dtype)
    along = (incoming @ rounded) / square
    if halfspace:
        along = torch.where(excess > 0, along, 0.0)
    return torch.addr(incoming, along.to(incoming.dtype), rounded, alpha=-1.0), along.sum


HYPERPLANE = Kernel(
    lambda x, b, a: _moved(x, b, a, False), lambda g, s, b, a: _pull_moved(g, s, a, False)
)
HALFSPACE = Kernel(
    lambda x, b, a: _moved(x, b, a, True), lambda g, s, b, a: _pull_moved(g, s, a, True)
)


# -- simplices -------------------------------------------------------------------------------------


def simplex_kernel(threshold: Callable[..., Any], kind: str) -> Kernel:
    """The kernel of the simplex, the L1 sphere or the L1 ball.

    Args:
        threshold: takes points and radii, float64, to the largest entries and the thresholds minus
            these, all ``(R, 1)``.
        kind: "simplex", "sphere" or "ball".
    """

    def project(x: Tensor, radius: float) -> tuple[Tensor, Tensor]:
        points = x.double() if kind == "simplex" else x.double().abs()
        top, tau = threshold(points, points.new_full((len(x), 1), radius))
        tau = top + tau
        inside = torch.zeros_like(tau, dtype=torch.bool)
        if kind == "ball":
            inside = points.sum(1, keepdim=True) <= radius
            tau = torch.where(inside, 0.0, tau)
        u = (points - tau).clamp_min_(0.0)
        if kind != "simplex":
            # From inside the sphere, a zero entry moves to the positive side.
            u.copysign_(torch.where(x == 0, 1.0, x))
        return u, inside

    def value(x: Tensor, radius: float) -> tuple[Tensor, Saved] | None:
        # At radius zero the derivative is a special case.
        if radius <= 0 or not math.isfinite(float(x.sum())):
            return None
        u = torch.empty_like(x)
        inside = torch.empty((len(x), 1), dtype=torch.bool, device=x.device)
        for part in cached_chunks(len(x), x.shape[1], x.device, _CHUNK_NUMBERS):
            u[part], inside[part] = project(x[part], radius)
        return u, (u, inside)

    def pull(incoming: Tensor, saved: Saved, radius: float) -> tuple[Tensor, Callable[[], Tensor]]:
        u, inside = saved
        gradient, mean = torch.empty_like(u), u.new_empty((len(u), 1))
        for part in cached_chunks(len(u), u.shape[1], u.device, _CHUNK_NUMBERS):
            g = incoming[part]
            sign = u[part].sign()
            active = sign if kind == "simplex" else sign.abs()
            along = _dots(g, sign) / active.sum(1, keepdim=True).clamp_min(1.0)
            if kind == "ball":
                along = torch.where(inside[part], 0.0, along)
                active = torch.where(inside[part], 1.0, active)
            mean[part] = along
            torch.addcmul(g * active, sign, along, value=-1.0, out=gradient[part])
        # The radius has the gradient that the points lose along their signs.
        return gradient, mean.sum

    return Kernel(value, pull)
