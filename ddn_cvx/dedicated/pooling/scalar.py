"""Robust pooling of scalars: the global minimizer, differentiable in points, scale and weights."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddn_cvx.batch.elements import put, select
from ddn_cvx.batch.inputs import fold_mapped, unfold_mapped
from ddn_cvx.dedicated.common import cached_chunks, check_positive, in_chunks
from ddn_cvx.dedicated.pooling.convex import (
    convex_minimum,
    flat_interval,
    huber_minimum,
    pseudo_huber_sums,
)
from ddn_cvx.dedicated.pooling.mean_shift import local_minimum
from ddn_cvx.dedicated.pooling.penalties import PENALTIES, penalty_named
from ddn_cvx.dedicated.pooling.truncated_quadratic import truncated_minimum
from ddn_cvx.dedicated.pooling.welsch import welsch_minimum

# Curvature, relative to its value if all points were one, below which the objective does not curve.
_FLAT_CURVATURE = 1e-9
# Points of one chunk of rows: 2 MiB of float64, twice that of a projection, as each is read often.
_CHUNK_POINTS = 1 << 18
# Difference of two minima, relative to the largest objective, below which they tie.
_TIE = 1e-12


class Pooled(NamedTuple):
    """Minimizers, detached, each of the pooled shape; float64.

    Attributes:
        u: the minimizer; NaN where a point or ``alpha`` is not finite, ``alpha`` is not positive, a
            weight is negative, or all weights are zero.
        objective: ``sum_i w_i phi(u - x_i)``.
        certificate: the largest amount by which the objective could be lower elsewhere: zero where
            the minimizer is global by construction, of the order of rounding for a certified Welsch
            minimum, infinite for a local one.
        runner_up: the amount by which the objective is higher at the best other local minimum that
            was met; infinite for the convex penalties.
        degenerate: the minimizer is not isolated, or the objective does not curve there: the
            gradient is that of the chosen point, see :func:`robust_pool`.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.pooling import Pooled, solve_pool
        >>> pooled = solve_pool(torch.tensor([0.0, 2.0]), "quadratic")
        >>> isinstance(pooled, Pooled), float(pooled.u), float(pooled.objective)
        (True, 1.0, 1.0)
    """

    u: Tensor
    objective: Tensor
    certificate: Tensor
    runner_up: Tensor
    degenerate: Tensor


def robust_pool(
    x: Tensor,
    penalty: str,
    alpha: Tensor | float = 1.0,
    weights: Tensor | None = None,
    *,
    dim: int | tuple[int, ...] = -1,
    search: str = "global",
) -> Tensor:
    """``y = argmin_u sum_i w_i phi(u - x_i; alpha)`` over the pooled dimensions.

    Gould, Hartley and Campbell, "Deep declarative networks" (2021), section 5.1. The gradient is
    that of the implicit function theorem, with ``H = sum_i w_i phi''(y - x_i)``:

        dy/dx_i = w_i phi''(y - x_i) / H,    dy/dw_i = -phi'(y - x_i) / H,
        dy/dalpha = -sum_i w_i dphi'/dalpha / H.

    Where the minimizer is not unique:

    - Huber's minimizers can be an interval without inliers: its midpoint is returned, whose
      derivative is one half for the point of each end (shared evenly by points that tie);
    - of several global minimizers of a nonconvex penalty the first in the search is returned, with
      its own derivative, though the minimizer jumps where another one becomes lower;
    - where ``H`` is zero otherwise (two merging modes), the derivative is infinite, and is returned
      as infinite or NaN, not clipped.

    Args:
        x: the points, any shape; float32 or float64, computed in float64.
        penalty: "quadratic", "pseudo_huber", "huber", "welsch" or "truncated_quadratic".
        alpha: positive, a number or a tensor that broadcasts with the pooled shape.
        weights: nonnegative, broadcasting with ``x``; a mask is a weight of zero. None for ones.
        dim: the pooled dimensions.
        search: "global", or "local" for one local minimizer of the Welsch penalty by mean shift.

    Returns:
        The pooled shape: that of ``x`` without ``dim``, in ``x``'s dtype.

    Raises:
        ValueError: an unknown penalty or search; ``alpha`` is a number that is not positive.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.pooling import robust_pool
        >>> x = torch.tensor([0.0, 1.0, 2.0, 50.0])
        >>> [round(float(robust_pool(x, name, 2.0)), 3) for name in ("quadratic", "huber")]
        [13.25, 1.667]
        >>> float(robust_pool(x, "truncated_quadratic", 2.0))
        1.0
    """
    rows, alphas, mass, shape = _checked(x, penalty, alpha, weights, dim, search)
    u = _Pool.apply(rows, alphas, mass, penalty, search)  # type: ignore[no-untyped-call]
    return u.reshape(shape).to(x.dtype)  # type: ignore[no-any-return]


@torch.no_grad()
def solve_pool(
    x: Tensor,
    penalty: str,
    alpha: Tensor | float = 1.0,
    weights: Tensor | None = None,
    *,
    dim: int | tuple[int, ...] = -1,
    search: str = "global",
) -> Pooled:
    """As :func:`robust_pool`, with measures of the minimizers' quality; not differentiable.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.pooling import solve_pool
        >>> pooled = solve_pool(torch.tensor([0.0, 0.1, 5.0]), "welsch")
        >>> round(float(pooled.u), 3), bool(pooled.certificate < 1e-12), bool(pooled.degenerate)
        (0.05, True, False)
    """
    rows, scale, w, shape = _checked(x, penalty, alpha, weights, dim, search)
    rows, w = rows.double(), None if w is None else w.double()
    u, certificate, runner_up, flat = _minimizers(rows, scale, w, penalty, search, runner_up=True)
    phi = PENALTIES[penalty]
    if w is not None:
        rows = torch.where(w > 0, rows, u.unsqueeze(1))
    z = u.unsqueeze(1) - rows
    value, curvature = phi.value(z, scale), phi.curvature(z, scale)
    if w is not None:
        value, curvature = w * value, w * curvature
    mass = rows.shape[1] if w is None else w.sum(1)
    unit = phi.curvature(torch.zeros_like(scale), scale).squeeze(1)
    tied = runner_up <= _TIE * mass * phi.value(10 * scale, scale).squeeze(1)
    curved = curvature.sum(1) > _FLAT_CURVATURE * mass * unit
    pooled = Pooled(u, value.sum(1), certificate, runner_up, flat | tied | ~curved)
    return Pooled(*(field.reshape(shape) for field in pooled))


def _checked(
    x: Tensor,
    penalty: str,
    alpha: Tensor | float,
    weights: Tensor | None,
    dim: int | tuple[int, ...],
    search: str,
) -> tuple[Tensor, Tensor, Tensor | None, torch.Size]:
    """Points ``(R, n)``, scales ``(R, 1)``, weights ``(R, n)``, and the pooled shape.

    Points and weights keep their dtype: chunks of them are converted when they are used.
    """
    penalty_named(penalty)
    if search not in ("global", "local"):
        raise ValueError(f"search must be 'global' or 'local'; got {search!r}.")
    check_positive("alpha", alpha)
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    pooled = sorted({axis % x.ndim for axis in dims})
    if not pooled or len(pooled) != len(dims):
        raise ValueError(f"dim must name different dimensions to pool; got {dim!r}.")
    kept = [axis for axis in range(x.ndim) if axis not in pooled]

    def rows_of(tensor: Tensor) -> Tensor:
        tensor = tensor.to(x.dtype).expand(x.shape).permute(*kept, *pooled)
        return tensor.flatten(len(kept)).reshape(shape.numel(), count)

    shape = torch.Size([x.shape[axis] for axis in kept])
    count = torch.Size([x.shape[axis] for axis in pooled]).numel()
    if count == 0:
        raise ValueError(f"No points to pool: x has shape {tuple(x.shape)} and dim is {dim!r}.")
    scale = torch.as_tensor(alpha, dtype=torch.float64, device=x.device)
    try:
        scale = scale.expand(shape).reshape(shape.numel(), 1)
    except RuntimeError:
        raise ValueError(
            f"alpha of shape {tuple(scale.shape)} does not broadcast with the pooled shape "
            f"{tuple(shape)}."
        ) from None
    return rows_of(x), scale, None if weights is None else rows_of(weights), shape


def _minimizers(
    x: Tensor, alpha: Tensor, weights: Tensor | None, penalty: str, search: str, *, runner_up: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Minimizer, certificate, gap to the runner-up, and rows with many minimizers; ``(R,)``."""
    usable = (alpha > 0).squeeze(1) & alpha.squeeze(1).isfinite()
    if weights is None:
        usable = usable & x.sum(1, dtype=torch.float64).isfinite()
    else:
        present = weights > 0
        usable = usable & present.any(1) & (weights >= 0).all(1) & weights.sum(1).isfinite()
        # Points of weight zero take the place of others: they must not enter the search.
        first = x.gather(1, present.to(torch.int8).argmax(1, keepdim=True))
        x = torch.where(present, x, first)
        usable = usable & x.sum(1, dtype=torch.float64).isfinite()
    kept = usable.nonzero().squeeze(1)
    whole = len(kept) == len(x)
    rows = (x, alpha, weights) if whole else select((x, alpha, weights), kept)
    minimum = functools.partial(_minimum, penalty, search, runner_up)
    solved: tuple[Tensor, Tensor, Tensor, Tensor] = in_chunks(minimum, _chunks(rows[0]), *rows)
    if whole:
        return solved
    blank = alpha.new_full((len(x),), torch.nan)
    return put((blank, blank, blank, torch.ones_like(usable)), kept, solved)


def _chunks(x: Tensor) -> list[slice]:
    """Rows that are worked on together."""
    return cached_chunks(len(x), x.shape[1], x.device, _CHUNK_POINTS)


def _minimum(
    penalty: str, search: str, runner_up: bool, x: Tensor, alpha: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weights = None if weights is None else weights.double()
    infinite = alpha.new_full((len(x),), torch.inf)
    certificate, gap = torch.zeros_like(infinite), infinite
    flat = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    if len(x) == 0:
        return infinite, infinite, infinite, flat
    if penalty == "truncated_quadratic":  # its sort is faster in single precision
        u, gap = truncated_minimum(x, alpha, weights, runner_up=runner_up)
        return u, certificate, gap, flat
    x = x.double()
    if penalty == "quadratic":
        u = x.mean(1) if weights is None else (weights * x).sum(1) / weights.sum(1)
    elif penalty == "pseudo_huber":
        u = convex_minimum(pseudo_huber_sums, x, alpha, weights)
    elif penalty == "huber":
        u, flat = huber_minimum(x, alpha, weights)
    elif search == "local":
        u, certificate = local_minimum(x, alpha, weights), infinite
    else:
        u, certificate, gap = welsch_minimum(x, alpha, weights, runner_up=runner_up)
    return u, certificate, gap, flat


class _Pool(torch.autograd.Function):
    """``(x, alpha, w) -> u`` for rows; differentiable to any order, forward mode, ``vmap``."""

    @staticmethod
    def forward(
        x: Tensor, alpha: Tensor, weights: Tensor | None, penalty: str, search: str
    ) -> Tensor:
        return _minimizers(x, alpha, weights, penalty, search, runner_up=False)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, alpha, weights, ctx.penalty, _ = inputs
        ctx.save_for_backward(x, alpha, weights, output)
        ctx.save_for_forward(x, alpha, weights, output)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> Any:
        x, alpha, weights, u = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]

        def products(x: Tensor, alpha: Tensor, w: Any, u: Tensor, g: Tensor) -> list[Tensor | None]:
            derivatives = _derivatives(ctx.penalty, x, alpha, w, u, wanted)
            return [
                None if part is None else (g.unsqueeze(1) * part).to(tensor.dtype)
                for part, tensor in zip(derivatives, (x, alpha, w), strict=True)
            ]

        differentiated = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
        slices = [] if differentiated else _chunks(x)
        return *in_chunks(products, slices, x, alpha, weights, u, incoming[0]), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        x, alpha, weights, u = ctx.saved_tensors
        change = torch.zeros_like(u)
        wanted = tuple(tangent is not None for tangent in tangents[:3])
        derivatives = _derivatives(ctx.penalty, x, alpha, weights, u, wanted)
        for derivative, tangent in zip(derivatives, tangents[:3], strict=True):
            if derivative is not None:
                change = change + (derivative * tangent).sum(1)
        return change

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        present = inputs[: 2 if inputs[2] is None else 3]
        folded = fold_mapped(info.batch_size, in_dims[: len(present)], present)
        u = _Pool.apply(*folded, *inputs[len(present) :])  # type: ignore[no-untyped-call]
        (values,), (dim,) = unfold_mapped(info.batch_size, (u,))
        return values, dim


def _derivatives(
    penalty: str,
    x: Tensor,
    alpha: Tensor,
    weights: Tensor | None,
    u: Tensor,
    wanted: tuple[bool, ...],
) -> list[Tensor | None]:
    """``du/dx`` ``(R, n)``, ``du/dalpha`` ``(R, 1)``, ``du/dw`` ``(R, n)``; zero where u is NaN.

    Args:
        wanted: which of the three are computed; the others are None.
    """
    phi = PENALTIES[penalty]
    x, weights = x.double(), None if weights is None else weights.double()
    bad = u.isnan().unsqueeze(1)
    place = torch.where(bad, 0.0, u.unsqueeze(1))
    # Points of weight zero and rows without a solution must not bring in NaN or infinity.
    if weights is not None:
        x = torch.where(weights == 0, place, x)
    x, alpha = torch.where(bad, place, x), torch.where(bad, 1.0, alpha)
    z = place - x
    weighted = phi.curvature(z, alpha)
    weighted = weighted if weights is None else weights * weighted
    H = torch.where(bad, 1.0, weighted.sum(1, keepdim=True))
    w = 1.0 if weights is None else weights
    derivatives: list[Tensor | None] = [
        weighted / H if wanted[0] else None,
        -(w * phi.mixed(z, alpha)).sum(1, keepdim=True) / H if wanted[1] else None,
        -phi.slope(z, alpha) / H if wanted[2] else None,
    ]
    transformed = torch._C._are_functorch_transforms_active()
    if penalty == "huber" and (transformed or bool((H == 0).any())):
        derivatives = _at_interval(u, x, alpha, weights, derivatives)
    return [None if part is None else torch.where(bad, 0.0, part) for part in derivatives]


def _at_interval(
    u: Tensor, x: Tensor, alpha: Tensor, weights: Tensor | None, derivatives: list[Tensor | None]
) -> list[Tensor | None]:
    """Derivatives of the midpoint of Huber's interval: one half for the points of its two ends."""
    with torch.no_grad():
        place = torch.nan_to_num(u)
        low, high, flat = flat_interval(place, x, alpha, weights)
        share = torch.zeros_like(x)
        for end in (low - alpha.squeeze(1), high + alpha.squeeze(1)):
            # + alpha - alpha has changed the point by rounding
            held = (x - end.unsqueeze(1)).abs() <= 1e-12 * (1 + x.abs() + alpha)
            held = held if weights is None else held & (weights > 0)
            share = share + 0.5 * held / held.sum(1, keepdim=True).clamp_min(1)
    flat = flat.unsqueeze(1)
    at_flat = (share, torch.zeros_like(alpha), torch.zeros_like(x))
    return [
        None if part is None else torch.where(flat, value, part)
        for part, value in zip(derivatives, at_flat, strict=True)
    ]
