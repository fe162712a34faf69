"""First-order code for the everyday case: rows in memory, one number for all, one backward pass.

A formula of torch operations costs a pass over the memory for each; on large batches that is all it
costs. A kernel makes few passes, in the dtype of the points, with the sums over a row in float64,
and cannot be differentiated again: whoever asks for second derivatives, forward mode or ``vmap``
gets the formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

# Numbers that are worked on at a time where several passes are made: they stay in the cache.
_PART = 1 << 16

_TINY = torch.finfo(torch.float64).tiny

Saved = tuple[torch.Tensor, ...]


class Kernel(NamedTuple):
    """A projection and its vector-Jacobian product, by hand.

    Attributes:
        value: ``value(x, number, *vectors)`` to the projection ``(R, n)`` and what ``pull`` needs;
            or None where it does not hold: for numbers that are not finite, overflow, or a point
            whose derivative is special.
        pull: ``pull(incoming, saved, number, *vectors)`` to the gradient of the points ``(R, n)``
            and a function that gives that of the number, a scalar.
    """

    value: Callable[..., tuple[torch.Tensor, Saved] | None]
    pull: Callable[..., tuple[torch.Tensor, Callable[[], torch.Tensor]]]


def run_kernel(
    kernel: Kernel,
    formula: Callable[..., torch.Tensor],
    x: torch.Tensor,
    number: torch.Tensor | float,
    *vectors: torch.Tensor,
) -> torch.Tensor | None:
    """The projection of rows ``x`` ``(R, n)``, or None where the kernel does not hold.

    Args:
        kernel: by which.
        formula: the same as differentiable torch operations, for derivatives of higher order.
        number: a scalar datum, shared by the rows.
        vectors: data without derivative, shape ``(n,)``.
    """
    plain = float(number.detach() if isinstance(number, torch.Tensor) else number)
    found = kernel.value(x.detach(), plain, *vectors)
    if found is None:
        return None
    wanted = x.requires_grad or (isinstance(number, torch.Tensor) and number.requires_grad)
    if not (wanted and torch.is_grad_enabled()):
        return found[0]
    projected: torch.Tensor = _Kernel.apply(kernel, formula, found, x, number, *vectors)  # type: ignore[no-untyped-call]
    return projected


class _Kernel(torch.autograd.Function):
    """Attaches a kernel's derivative to what it has found."""

    @staticmethod
    def forward(
        ctx: Any, kernel: Kernel, formula: Any, found: Any, x: Any, number: Any, *vectors: Any
    ) -> torch.Tensor:
        projected: torch.Tensor = found[0]
        ctx.kernel, ctx.formula, ctx.number = kernel, formula, float(number)
        ctx.given = number if isinstance(number, torch.Tensor) else None
        ctx.vectors = len(vectors)
        ctx.save_for_backward(x, *vectors, *found[1])
        return projected

    @staticmethod
    def backward(ctx: Any, *incoming: torch.Tensor) -> Any:
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


def _dots(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x * y).sum(1, keepdim=True)


# -- L2 --------------------------------------------------------------------------------------------


def _scaled(x: torch.Tensor, radius: float, ball: bool) -> tuple[torch.Tensor, Saved] | None:
    if radius <= 0:  # has derivatives of its own
        return None
    size = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float64)
    scale = radius / size
    # Zero and infinity are also what underflow and overflow leave.
    if not math.isfinite(float(size.sum() if ball else (size + scale).sum())):
        return None
    if ball:
        scale = scale.clamp_max(1.0)
        size = size.clamp_min(_TINY)
    rounded = scale.to(x.dtype)
    return x * rounded, (x, size, scale, rounded)


def _pull_scaled(
    incoming: torch.Tensor, saved: Saved, radius: float, ball: bool
) -> tuple[torch.Tensor, Callable[[], torch.Tensor]]:
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


def _clamped(x: torch.Tensor, radius: float) -> tuple[torch.Tensor, Saved] | None:
    if not math.isfinite(float(x.sum())):
        return None
    return x.clamp(-radius, radius), (x,)


def _pull_clamped(
    incoming: torch.Tensor, saved: Saved, radius: float
) -> tuple[torch.Tensor, Callable[[], torch.Tensor]]:
    (x,) = saved
    # Torch's derivative is zero on the bounds, where ours is one: it gets the next numbers beyond.
    kind = np.float32 if x.dtype == torch.float32 else np.float64
    outside = float(np.nextafter(kind(radius), kind(np.inf)))
    gradient = torch.ops.aten.hardtanh_backward(incoming, x, -outside, outside)
    return gradient, lambda: (incoming * x.sign() * (x.abs() > radius)).sum()


LINF_BALL = Kernel(_clamped, _pull_clamped)


# -- planes ----------------------------------------------------------------------------------------


def _moved(
    x: torch.Tensor, offset: float, normal: torch.Tensor, halfspace: bool
) -> tuple[torch.Tensor, Saved] | None:
    exact, rounded = normal.double(), normal.to(x.dtype)
    square = torch.dot(exact, exact)
    excess = (x @ rounded - offset) / square
    if not (float(square) > 0 and math.isfinite(float(excess.sum()))):
        return None
    if halfspace:
        excess = excess.clamp_min_(0.0)
    return torch.addr(x, excess.to(x.dtype), rounded, alpha=-1.0), (excess, square)


def _pull_moved(
    incoming: torch.Tensor, saved: Saved, normal: torch.Tensor, halfspace: bool
) -> tuple[torch.Tensor, Callable[[], torch.Tensor]]:
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
    """For the simplex, the L1 sphere or the L1 ball.

    Args:
        threshold: takes points and radii, float64, to the largest entries and the thresholds less
            these, all ``(R, 1)``.
        kind: "simplex", "sphere" or "ball".
    """

    def project(x: torch.Tensor, radius: float) -> tuple[torch.Tensor, torch.Tensor]:
        points = x.double() if kind == "simplex" else x.double().abs()
        top, tau = threshold(points, points.new_full((len(x), 1), radius))
        tau = top + tau
        inside = torch.zeros_like(tau, dtype=torch.bool)
        if kind == "ball":
            inside = points.sum(1, keepdim=True) <= radius
            tau = torch.where(inside, 0.0, tau)
        u = (points - tau).clamp_min_(0.0)
        if kind != "simplex":
            # Inside the sphere a zero goes up.
            u.copysign_(torch.where(x == 0, 1.0, x))
        return u, inside

    def value(x: torch.Tensor, radius: float) -> tuple[torch.Tensor, Saved] | None:
        # With radius zero the derivative is a special one.
        if radius <= 0 or not math.isfinite(float(x.sum())):
            return None
        u = torch.empty_like(x)
        inside = torch.empty((len(x), 1), dtype=torch.bool, device=x.device)
        for part in _parts(x):
            u[part], inside[part] = project(x[part], radius)
        return u, (u, inside)

    def pull(
        incoming: torch.Tensor, saved: Saved, radius: float
    ) -> tuple[torch.Tensor, Callable[[], torch.Tensor]]:
        u, inside = saved
        gradient, mean = torch.empty_like(u), u.new_empty((len(u), 1))
        for part in _parts(u):
            g = incoming[part]
            sign = u[part].sign()
            active = sign if kind == "simplex" else sign.abs()
            along = _dots(g, sign) / active.sum(1, keepdim=True).clamp_min(1.0)
            if kind == "ball":
                along = torch.where(inside[part], 0.0, along)
                active = torch.where(inside[part], 1.0, active)
            mean[part] = along
            torch.addcmul(g * active, sign, along, value=-1.0, out=gradient[part])
        # What the points lose along the signs is what the radius gets.
        return gradient, mean.sum

    return Kernel(value, pull)


def _parts(x: torch.Tensor) -> list[slice]:
    """Rows that fit the processor's cache together."""
    size = max(1, _PART // max(1, x.shape[1])) if x.device.type == "cpu" else max(1, len(x))
    return [slice(start, start + size) for start in range(0, len(x), size)]
