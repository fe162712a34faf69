"""The Birkhoff polytope of doubly stochastic matrices, by semismooth Newton on the dual."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ddn_cvx.dedicated.constants import constant
from ddn_cvx.dedicated.projections.rows import project_rows

_STEPS = 500
_HALVINGS = 40
# The sums of rows and columns are right to this, or to the rounding of large inputs.
_TOLERANCE = 1e-13
# Sufficient decrease.
_ARMIJO = 1e-4
# From one multiple of the input to the next, once the sums are so near.
_GROWTH = 4.0
_NEAR = 1e-3
# Ridge of the systems that are solved for the derivative, and refinements that take it out.
_RIDGE = 1e-8
_REFINEMENTS = 2


def birkhoff_polytope(x: torch.Tensor) -> torch.Tensor:
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
        >>> from ddn_cvx.dedicated.projections.birkhoff import birkhoff_polytope
        >>> birkhoff_polytope(torch.tensor([[0.6, 0.0], [0.0, 0.2]]))
        tensor([[0.7000, 0.3000],
                [0.3000, 0.7000]])
    """
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise ValueError(f"Expected matrices of shape (..., n, n); got {tuple(x.shape)}.")
    return project_rows(_onto_birkhoff, x.flatten(-2)).reshape(x.shape)


def _onto_birkhoff(x: torch.Tensor) -> torch.Tensor:
    side = round(x.shape[1] ** 0.5)
    X = x.unflatten(1, (side, side))
    u, inverse = constant(_solve, X, in_parts=False)
    # The projection is piecewise linear: one of its derivatives makes all right.
    change = _on_face(X - X.detach(), (u > 0).to(X), inverse)
    projected: torch.Tensor = u + change
    return projected.flatten(1)


def _on_face(V: torch.Tensor, support: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """The part of ``V`` that is on ``support`` and sums to zero along rows and columns."""
    right = _sums(support * V)
    multiplier = _times(inverse, right)
    for _ in range(_REFINEMENTS):
        rest = right - _sums(support * _spread(multiplier))
        multiplier = multiplier + _times(inverse, rest)
    return support * (V - _spread(multiplier))


def _times(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """``matrix @ vector`` for batches of vectors."""
    product: torch.Tensor = (matrix @ vector.unsqueeze(-1)).squeeze(-1)
    return product


def _sums(U: torch.Tensor) -> torch.Tensor:
    """Those of rows, then those of columns: ``(B, 2 n)``."""
    return torch.cat([U.sum(-1), U.sum(-2)], -1)


def _spread(multiplier: torch.Tensor) -> torch.Tensor:
    """``a 1' + 1 b'``, the transpose of :func:`_sums`."""
    a, b = multiplier.chunk(2, -1)
    return a.unsqueeze(-1) + b.unsqueeze(-2)


def _curvature(support: torch.Tensor) -> torch.Tensor:
    """The dual's generalized Hessian, shape ``(B, 2 n, 2 n)``."""
    rows, columns = torch.diag_embed(support.sum(-1)), torch.diag_embed(support.sum(-2))
    top = torch.cat([rows, support], -1)
    return torch.cat([top, torch.cat([support.mT, columns], -1)], -2)


class _Dual(NamedTuple):
    """The dual at a multiplier: its part without the linear term, and its negative gradient.

    Attributes:
        energy: ``|u|^2 / 2``, shape ``(B,)``.
        excess: of the sums over one, shape ``(B, 2 n)``.
        u: the primal, shape ``(B, n, n)``.
    """

    energy: torch.Tensor
    excess: torch.Tensor
    u: torch.Tensor

    @classmethod
    def at(cls, X: torch.Tensor, multiplier: torch.Tensor) -> _Dual:
        u = (X - _spread(multiplier)).clamp_min(0.0)
        return cls(0.5 * u.square().sum((-1, -2)), _sums(u) - 1, u)


def _solve(X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The projection, and the inverse that its derivative needs; ``(B, n, n)``, ``(B, 2n, 2n)``."""
    batch, n = X.shape[0], X.shape[-1]
    identity = torch.eye(2 * n, dtype=X.dtype, device=X.device)
    # A common shift does not matter: every row starts with its largest entry at one.
    X = X - X.amax(-1, keepdim=True)
    size = X.abs().amax((-1, -2)).clamp_min(1.0)
    # Large inputs make a linear assignment problem, whose multipliers are far away: they are
    # approached from small multiples of X, as an auction's prices are.
    scale = 1 / size
    multiplier = torch.cat([X.new_full((batch, n), -1.0), X.new_zeros(batch, n)], -1)
    tolerance = (_TOLERANCE + 2e-15 * size) * n
    u, done = torch.zeros_like(X), torch.zeros(batch, dtype=torch.bool, device=X.device)
    live = torch.arange(batch, device=X.device)
    for _ in range(_STEPS):
        part = scale[live, None, None] * X[live]
        here = _Dual.at(part, multiplier[live])
        error = here.excess.abs().amax(-1)
        final = scale[live] == 1
        good = final & (error <= tolerance[live])
        u[live], done[live] = here.u, good
        ahead = (~final & (error <= _NEAR)).nonzero().squeeze(1)
        if len(ahead):
            further = (_GROWTH * scale[live[ahead]]).clamp_max(1.0)
            multiplier[live[ahead]] *= (further / scale[live[ahead]]).unsqueeze(1)
            scale[live[ahead]] = further
        left = (~good & (final | (error > _NEAR))).nonzero().squeeze(1)
        chosen = live[left]
        live = live[~good]
        if len(live) == 0:
            break
        if len(chosen) == 0:
            continue
        part, here = part[left], _Dual(*(field[left] for field in here))
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
        # Large inputs leave their rounding in the sums.
        u = (u - support * _spread(_times(inverse, _sums(u) - 1))).clamp_min(0.0)
    return u, inverse


def _length(
    X: torch.Tensor, multiplier: torch.Tensor, here: _Dual, step: torch.Tensor
) -> torch.Tensor:
    """Halved until the dual falls, or, where rounding hides that, until the sums are better."""
    slope = (here.excess * step).sum(-1)
    norm, total = here.excess.norm(dim=-1), step.sum(-1)
    length = torch.ones_like(slope)
    rounding = 1e-15 * (1 + here.energy)
    for _ in range(_HALVINGS):
        there = _Dual.at(X, multiplier + length.unsqueeze(-1) * step)
        change = there.energy - here.energy + length * total
        fallen = change <= -_ARMIJO * length * slope
        near = (change <= rounding) & (there.excess.norm(dim=-1) < norm)
        short = ~(fallen | near)
        if not bool(short.any()):
            break
        length = torch.where(short, 0.5 * length, length)
    return length.unsqueeze(-1)
