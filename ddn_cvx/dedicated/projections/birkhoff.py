"""The Birkhoff polytope of doubly stochastic matrices, by semismooth Newton on the dual."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.batch.elements import select
from ddn_cvx.dedicated.common import matvec, nondifferentiable
from ddn_cvx.dedicated.projections.rows import project_matrices

# Limits on Newton steps, beyond which an element is NaN, and on halvings of the step length.
_MAX_STEPS = 500
_MAX_HALVINGS = 40
# Absolute error of the sums of rows and columns; the rounding of large inputs is added to it.
_SUM_TOLERANCE = 1e-13
# Share of the linear model's decrease that a step must reach (Armijo's rule).
_ARMIJO_SHARE = 1e-4
# Continuation in a multiple of the input: the multiple grows by this factor once the absolute
# error of the sums is below this, so that Newton's method starts near the next solution.
_MULTIPLE_GROWTH = 4.0
_CONTINUATION_ERROR = 1e-3
# Ridge of the singular system (constant shifts) that the derivative solves, relative to its unit
# entries; refinement steps that remove its effect.
_RIDGE = 1e-8
_REFINEMENTS = 2


def birkhoff_polytope(x: Tensor) -> Tensor:
    """The nearest doubly stochastic matrix, in Frobenius norm.

    ``u = max(x - a 1' - 1 b', 0)``, with the multipliers ``a``, ``b`` of the sums of rows and
    columns: the minimizers of a smooth, piecewise quadratic dual, found by a regularised semismooth
    Newton method with line search (Li, Sun and Toh, "On the efficient computation of a generalized
    Jacobian of the projector over the Birkhoff polytope", 2020). Near a vertex the dual is flat in
    many directions, hence the regularisation.

    The derivative is the orthogonal projection onto the face's directions: the matrices on the
    support of ``u`` with sums of zero. At a vertex it is zero. An entry that just reaches zero is a
    kink; the derivative is that of the side where it stays zero.

    Args:
        x: matrices, shape ``(..., n, n)``, float32 or float64; computed in float64.

    Returns:
        Shape ``(..., n, n)``, dtype of ``x``. Matrices with a number that is not finite are NaN and
        have gradient zero; so are those, of numbers so large that their differences have lost their
        digits, for which no sums of one are found.

    Raises:
        TypeError: ``x`` is not floating-point.
        ValueError: the last two dimensions differ.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.projections import birkhoff_polytope
        >>> birkhoff_polytope(torch.tensor([[0.6, 0.0], [0.0, 0.2]]))
        tensor([[0.7000, 0.3000],
                [0.3000, 0.7000]])
    """
    return project_matrices(_onto_birkhoff, x)


def _onto_birkhoff(X: Tensor) -> Tensor:
    u, inverse = nondifferentiable(_solve, X, chunked=False)
    # The projection is piecewise linear: its first derivative is exact in a neighbourhood.
    projected: Tensor = u + _on_face(X - X.detach(), (u > 0).to(X), inverse)
    return projected


def _on_face(V: Tensor, support: Tensor, inverse: Tensor) -> Tensor:
    """Project ``V`` onto matrices on ``support`` whose rows and columns sum to zero."""
    right = _sums(support * V)
    multiplier = matvec(inverse, right)
    for _ in range(_REFINEMENTS):
        rest = right - _sums(support * _spread(multiplier))
        multiplier = multiplier + matvec(inverse, rest)
    return support * (V - _spread(multiplier))


def _sums(U: Tensor) -> Tensor:
    """Sums of rows, then sums of columns: ``(B, 2 n)``."""
    return torch.cat([U.sum(-1), U.sum(-2)], -1)


def _spread(multiplier: Tensor) -> Tensor:
    """``a 1' + 1 b'``, the transpose of :func:`_sums`."""
    a, b = multiplier.chunk(2, -1)
    return a.unsqueeze(-1) + b.unsqueeze(-2)


def _curvature(support: Tensor) -> Tensor:
    """The dual's generalized Hessian, shape ``(B, 2 n, 2 n)``."""
    rows, columns = torch.diag_embed(support.sum(-1)), torch.diag_embed(support.sum(-2))
    top = torch.cat([rows, support], -1)
    return torch.cat([top, torch.cat([support.mT, columns], -1)], -2)


class _Dual(NamedTuple):
    """The dual at a multiplier: its nonlinear part, and its negative gradient.

    Attributes:
        energy: ``|u|^2 / 2``, shape ``(B,)``.
        excess: sums of rows and columns minus one, shape ``(B, 2 n)``.
        u: the primal point, shape ``(B, n, n)``.
    """

    energy: Tensor
    excess: Tensor
    u: Tensor

    @classmethod
    def at(cls, X: Tensor, multiplier: Tensor) -> _Dual:
        u = (X - _spread(multiplier)).clamp_min(0.0)
        return cls(0.5 * u.square().sum((-1, -2)), _sums(u) - 1, u)


def _solve(X: Tensor) -> tuple[Tensor, Tensor]:
    """The projection and the inverse for its derivative; ``(B, n, n)``, ``(B, 2 n, 2 n)``."""
    batch, n = X.shape[0], X.shape[-1]
    identity = torch.eye(2 * n, dtype=X.dtype, device=X.device)
    # The projection ignores constants added to rows: each row's largest entry is moved to zero.
    X = X - X.amax(-1, keepdim=True)
    size = X.abs().amax((-1, -2)).clamp_min(1.0)
    # Large inputs approach a linear assignment problem, whose multipliers are large: continuation
    # from small multiples of X leads to them, as the scaling of an auction algorithm does.
    scale = 1 / size
    multiplier = torch.cat([X.new_full((batch, n), -1.0), X.new_zeros(batch, n)], -1)
    tolerance = (_SUM_TOLERANCE + 2e-15 * size) * n
    u, done = torch.zeros_like(X), torch.zeros(batch, dtype=torch.bool, device=X.device)
    live = torch.arange(batch, device=X.device)
    for _ in range(_MAX_STEPS):
        part = scale[live, None, None] * X[live]
        here = _Dual.at(part, multiplier[live])
        error = here.excess.abs().amax(-1)
        final = scale[live] == 1
        good = final & (error <= tolerance[live])
        u[live], done[live] = here.u, good
        ahead = (~final & (error <= _CONTINUATION_ERROR)).nonzero().squeeze(1)
        if len(ahead):
            further = (_MULTIPLE_GROWTH * scale[live[ahead]]).clamp_max(1.0)
            multiplier[live[ahead]] *= (further / scale[live[ahead]]).unsqueeze(1)
            scale[live[ahead]] = further
        left = (~good & (final | (error > _CONTINUATION_ERROR))).nonzero().squeeze(1)
        chosen = live[left]
        live = live[~good]
        if len(live) == 0:
            break
        if len(chosen) == 0:
            continue
        part, here = select((part, here), left)
        ridge = (0.1 * error[left]).clamp(1e-10, 1e-2)
        hessian = _curvature((here.u > 0).to(X)) + ridge[:, None, None] * identity
        step = torch.cholesky_solve(
            here.excess.unsqueeze(-1), torch.linalg.cholesky_ex(hessian).L
        ).squeeze(-1)
        multiplier[chosen] += _length(part, multiplier[chosen], here, step) * step
    u[~done] = torch.nan
    support = (u > 0).to(X)
    hessian = _curvature(support) + _RIDGE * identity
    inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(hessian).L)
    for _ in range(_REFINEMENTS):
        # Removes the rounding errors that large inputs leave in the sums.
        u = (u - support * _spread(matvec(inverse, _sums(u) - 1))).clamp_min(0.0)
    return u, inverse


def _length(X: Tensor, multiplier: Tensor, here: _Dual, step: Tensor) -> Tensor:
    """Step lengths ``(B, 1)``, halved until the dual decreases, or within rounding the error."""
    slope = (here.excess * step).sum(-1)
    norm, total = here.excess.norm(dim=-1), step.sum(-1)
    length = torch.ones_like(slope)
    rounding = 1e-15 * (1 + here.energy)
    for _ in range(_MAX_HALVINGS):
        there = _Dual.at(X, multiplier + length.unsqueeze(-1) * step)
        change = there.energy - here.energy + length * total
        fallen = change <= -_ARMIJO_SHARE * length * slope
        near = (change <= rounding) & (there.excess.norm(dim=-1) < norm)
        short = ~(fallen | near)
        if not bool(short.any()):
            break
        length = torch.where(short, 0.5 * length, length)
    return length.unsqueeze(-1)
