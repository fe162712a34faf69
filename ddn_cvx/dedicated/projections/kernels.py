"""Hand-written projections and vector-Jacobian products where all rows share one scalar datum.

On large batches, time is passes over memory, and a formula of torch operations makes one for each
operation. A kernel makes few, in the dtype of the points, with sums over a row in float64. It has
no second derivatives: these, forward mode and ``vmap`` use the formula.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddn_cvx.dedicated.common import cached_chunks

# Numbers of one chunk of rows over which several passes are made: 512 KiB of float64, as the points
# and their projections share the cache.
_CHUNK_NUMBERS = 1 << 16

# Entries of a row below which sorting takes less time than the calls of Newton's method.
_SORTED_ENTRIES = 64

_TINY = torch.finfo(torch.float64).tiny

Saved = Sequence[Tensor]
# The gradient of the points, and a function that computes the gradient of the scalar datum.
Gradients = tuple[Tensor, Callable[[], Tensor]]


class Kernel(NamedTuple):
    """A projection and its vector-Jacobian product.

    Attributes:
        value: ``value(x, number, *vectors)`` to the projection ``(R, n)`` and the tensors to save
            for ``pull``, the vectors among them; None for data that the kernel does not take:
            numbers that are not finite, overflow, points whose derivative is a special case.
        pull: ``pull(incoming, saved, number)`` to the gradients.
    """

    value: Callable[..., tuple[Tensor, Saved] | None]
    pull: Callable[[Tensor, Saved, float], Gradients]


class _KernelFunction(torch.autograd.Function):
    """Attaches derivatives to a kernel's projection: of first order its own, then the formula's."""

    @staticmethod
    def forward(
        ctx: Any, kernel: Kernel, formula: Any, found: Any, plain: float, x: Any, number: Any
    ) -> Tensor:
        projected, saved = found
        ctx.kernel, ctx.formula, ctx.plain, ctx.number = kernel, formula, plain, number
        ctx.save_for_backward(x, *saved)
        result: Tensor = projected
        return result

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> Any:
        x, *saved = ctx.saved_tensors
        wanted = ctx.needs_input_grad[4:]
        by_number = None
        if torch.is_grad_enabled():
            leaves = itertools.compress((x, ctx.number), wanted)
            value = ctx.formula(x, ctx.number)
            found = iter(torch.autograd.grad(value, tuple(leaves), incoming, create_graph=True))
            by_x, by_number = (next(found) if needed else None for needed in wanted)
        else:
            by_x, number_gradient = ctx.kernel.pull(incoming[0], saved, ctx.plain)
            if wanted[1]:
                by_number = number_gradient().to(ctx.number)
        return None, None, None, None, by_x, by_number


attach_kernel = _KernelFunction.apply


def _dots(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(1, keepdim=True)


# -- L2 --------------------------------------------------------------------------------------------


def _scaled(x: Tensor, radius: float, *, ball: bool) -> tuple[Tensor, Saved] | None:
    if not radius > 0:  # the derivative of a point is a special case
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


def _pull_scaled(incoming: Tensor, saved: Saved, radius: float, *, ball: bool) -> Gradients:
    x, size, scale, rounded = saved
    along = _dots(incoming, x) / size
    if ball:
        along = torch.where(size > radius, along, 0.0)
    back = (scale * along / size).to(x.dtype)
    gradient = torch.addcmul(incoming * rounded, x, back, value=-1.0)
    return gradient, along.sum


L2_BALL = Kernel(partial(_scaled, ball=True), partial(_pull_scaled, ball=True))
L2_SPHERE = Kernel(partial(_scaled, ball=False), partial(_pull_scaled, ball=False))


# -- max norm --------------------------------------------------------------------------------------


def _clamped(x: Tensor, radius: float) -> tuple[Tensor, Saved] | None:
    if not (radius >= 0 and math.isfinite(float(x.sum()))):
        return None
    return x.clamp(-radius, radius), (x,)


def _pull_clamped(incoming: Tensor, saved: Saved, radius: float) -> Gradients:
    (x,) = saved
    # On the bounds torch's derivative is zero and this one is one: torch gets larger bounds.
    kind = np.float32 if x.dtype == torch.float32 else np.float64
    outside = float(np.nextafter(kind(radius), kind(np.inf)))
    gradient = torch.ops.aten.hardtanh_backward(incoming, x, -outside, outside)
    return gradient, lambda: (incoming * x.sign() * (x.abs() > radius)).sum()


LINF_BALL = Kernel(_clamped, _pull_clamped)


# -- planes ----------------------------------------------------------------------------------------


def _moved(
    x: Tensor, offset: float, normal: Tensor, *, halfspace: bool
) -> tuple[Tensor, Saved] | None:
    exact, rounded = normal.double(), normal.to(x.dtype)
    square = torch.dot(exact, exact)
    excess = (x @ rounded - offset) / square
    if not (float(square) > 0 and math.isfinite(float(excess.sum()))):
        return None
    if halfspace:
        excess = excess.clamp_min_(0.0)
    return torch.addr(x, excess.to(x.dtype), rounded, alpha=-1.0), (excess, square, normal)


def _pull_moved(incoming: Tensor, saved: Saved, offset: float, *, halfspace: bool) -> Gradients:
    excess, square, normal = saved
    rounded = normal.to(incoming.dtype)
    along = (incoming @ rounded) / square
    if halfspace:
        along = torch.where(excess > 0, along, 0.0)
    return torch.addr(incoming, along.to(incoming.dtype), rounded, alpha=-1.0), along.sum


HYPERPLANE = Kernel(partial(_moved, halfspace=False), partial(_pull_moved, halfspace=False))
HALFSPACE = Kernel(partial(_moved, halfspace=True), partial(_pull_moved, halfspace=True))


# -- simplices -------------------------------------------------------------------------------------


def threshold(x: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """The largest entry, and the threshold ``tau`` minus the largest entry, both ``(R, 1)``.

    ``sum(max(x - tau, 0))`` is ``radius``, in float64.
    """
    n = x.shape[1]
    if n < _SORTED_ENTRIES:
        ordered = x.sort(1, descending=True).values
        top = ordered[:, :1]
        ordered = ordered - top
        rank = torch.arange(1, n + 1, dtype=x.dtype, device=x.device)
        level = (ordered.cumsum(1) - radius) / rank
        last = (ordered > level).sum(1, keepdim=True).clamp_min_(1) - 1
        return top, level.gather(1, last)
    top = x.amax(1, keepdim=True)
    x = x - top
    # sum(max(x - tau, 0)) is convex in tau: from below, Newton's method never oversteps.
    tau = torch.maximum((x.sum(1, keepdim=True) - radius) / n, -radius)
    count = torch.full_like(tau, n + 1)
    for _ in range(n + 1):
        above = x > tau
        fewer = above.sum(1, keepdim=True, dtype=tau.dtype)
        if bool((fewer == count).all()):
            break
        count = fewer
        tau = torch.where(
            count > 0, ((x * above).sum(1, keepdim=True) - radius) / count.clamp_min(1), tau
        )
    return top, tau


def _onto_facet(x: Tensor, radius: float, kind: str) -> tuple[Tensor, Saved] | None:
    # At radius zero the derivative is a special case.
    if not (radius > 0 and math.isfinite(float(x.sum()))):
        return None
    u = torch.empty_like(x)
    inside = torch.zeros((len(x), 1), dtype=torch.bool, device=x.device)

    def project(x: Tensor, inside: Tensor) -> Tensor:  # a function, to free its arrays
        points = x.double() if kind == "simplex" else x.double().abs()
        top, tau = threshold(points, points.new_full((len(x), 1), radius))
        tau = top + tau
        if kind == "ball":
            torch.le(points.sum(1, keepdim=True), radius, out=inside)
            tau = torch.where(inside, 0.0, tau)
        projected = (points - tau).clamp_min_(0.0)
        # From inside the sphere, a zero entry moves to the positive side.
        return projected if kind == "simplex" else projected.copysign_(torch.where(x == 0, 1.0, x))

    for part in cached_chunks(len(x), x.shape[1], x.device, _CHUNK_NUMBERS):
        u[part] = project(x[part], inside[part])
    return u, (u, inside)


def _pull_facet(incoming: Tensor, saved: Saved, radius: float, kind: str) -> Gradients:
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


SIMPLEX, L1_SPHERE, L1_BALL = (
    Kernel(partial(_onto_facet, kind=kind), partial(_pull_facet, kind=kind))
    for kind in ("simplex", "sphere", "ball")
)
