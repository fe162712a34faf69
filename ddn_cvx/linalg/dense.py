"""Batched dense linear systems that know how well they were solved.

One function, differentiable to any order, with forward mode and ``vmap``; every KKT system of the
package goes through it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ddn_cvx.batch.elements import chunks
from ddn_cvx.batch.inputs import fold_mapped, unfold_mapped
from ddn_cvx.batch.policy import enforce
from ddn_cvx.errors import AdjointError, DegenerateWarning

Factor = Callable[[torch.Tensor], Sequence[torch.Tensor]]

# Relative residuals. A direct solution is accepted below the first, far above the rounding errors
# of a refined one; else the minimum-norm solution is taken, and accepted below the second, the
# accuracy that gradients are to have; else the element has no trustworthy gradient.
DIRECT_TOLERANCE = 1e-9
MINIMUM_NORM_TOLERANCE = 1e-6

# Singular values below this share of the largest count as zero: rounding, in a matrix of which the
# entries have rounding errors themselves.
_ZERO_SINGULAR_VALUE = 1e-11

# Sides from which on LAPACK may factor by blocks of columns.
_BLOCKED = 128
# Matrix entries that are factored together: one gigabyte.
_CHUNK_ENTRIES = 1 << 27


class _LinearSolve(torch.autograd.Function):
    """``K, r -> K^-1 r``; where ``K`` is singular, the minimum-norm least-squares solution.

    With ``z = K^-1 r`` and incoming gradient ``g``: ``w = K^-T g``, ``dr = w``, ``dK = -w z'``.
    Forward mode: ``dz = K^-1 (dr - dK z)``. Both reuse this function, so that they are themselves
    differentiable.
    """

    @staticmethod
    def forward(
        matrix: torch.Tensor, right: torch.Tensor, on_failure: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        solution, residual = solve_checked(matrix, right)
        return apply_policy(solution, residual, on_failure), residual

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        matrix, _, on_failure = inputs
        solution, residual = output
        ctx.on_failure = on_failure
        ctx.save_for_backward(matrix, solution)
        ctx.save_for_forward(matrix, solution)
        ctx.mark_non_differentiable(residual)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        matrix, solution = ctx.saved_tensors
        adjoint, _ = _LinearSolve.apply(matrix.mT, gradients[0], ctx.on_failure)  # type: ignore[no-untyped-call]
        return -adjoint.unsqueeze(-1) * solution.unsqueeze(-2), adjoint, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        matrix, solution = ctx.saved_tensors
        matrix_tangent, right_tangent, _ = tangents
        right = torch.zeros_like(solution) if right_tangent is None else right_tangent
        if matrix_tangent is not None:
            right = right - (matrix_tangent @ solution.unsqueeze(-1)).squeeze(-1)
        tangent, _ = _LinearSolve.apply(matrix, right, ctx.on_failure)  # type: ignore[no-untyped-call]
        return tangent, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, matrix: Any, right: Any, on_failure: Any) -> Any:
        folded = fold_mapped(info.batch_size, in_dims[:2], (matrix, right))
        output = _LinearSolve.apply(*folded, on_failure)  # type: ignore[no-untyped-call]
        return unfold_mapped(info.batch_size, output)


def linear_solve(
    matrix: torch.Tensor, right: torch.Tensor, on_failure: str = "raise"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve ``matrix @ z = right`` for each element, and say how well.

    Args:
        matrix: shape ``(B, N, N)``.
        right: shape ``(B, N)``.
        on_failure: what to do about elements that even the minimum-norm solution misses: "raise"
            :class:`~ddn_cvx.AdjointError`, make them "nan", or "warn" as well.

    Returns:
        ``z``, shape ``(B, N)``, and ``|K z - r| / |r|``, shape ``(B,)``.
    """
    if not torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active():
        solution, residual = solve_checked(matrix, right)
        return apply_policy(solution, residual, on_failure), residual
    return _LinearSolve.apply(matrix, right, on_failure)  # type: ignore[no-any-return, no-untyped-call]


def solve_checked(matrix: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`linear_solve`, outside autograd: LU with one refinement, else minimum norm."""
    batch, size = right.shape
    if batch > 1 and batch * size * size > _CHUNK_ENTRIES:
        slices = chunks(batch, size * size, _CHUNK_ENTRIES)
        parts = [solve_checked(matrix[e], right[e]) for e in slices]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    # Rows are scaled to a largest entry of one, so that pivots are not chosen by the user's units.
    scale = matrix.abs().amax(-1, keepdim=True)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    scaled, side = matrix / scale, right.unsqueeze(-1) / scale
    factors, pivots, _ = factored(torch.linalg.lu_factor_ex, scaled)
    first = torch.linalg.lu_solve(factors, pivots, side)
    solution = first + torch.linalg.lu_solve(factors, pivots, side - scaled @ first)
    solution = solution.squeeze(-1)
    residual = relative_residual(matrix, solution, right)
    missed = ~(residual <= DIRECT_TOLERANCE)
    if bool(missed.any()):
        elements = missed.nonzero().squeeze(1)
        better = minimum_norm(matrix[elements], right[elements])
        solution[elements] = better
        residual[elements] = relative_residual(matrix[elements], better, right[elements])
    return solution, residual


def factored(factor: Factor, matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """An LU or QR factorisation of a batch: of large matrices on a host's threads one by one.

    After ``torch.set_num_threads(k)`` for ``k > 1``, oneMKL's blocked factorisations of a batch,
    which torch calls from threads of its own, return invalid pivots or do not return (torch 2.13).
    Those of one matrix are right, and use the threads themselves.

    Args:
        factor: maps matrices ``(..., N, N)`` to tensors.
        matrix: shape ``(B, N, N)``.
    """
    one_thread = matrix.device.type != "cpu" or torch.get_num_threads() == 1
    if one_thread or len(matrix) < 2 or matrix.shape[-1] < _BLOCKED:
        return tuple(factor(matrix))
    return tuple(map(torch.stack, zip(*map(factor, matrix), strict=True)))


def minimum_norm(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Minimum-norm least-squares solution by equilibrated singular value decomposition.

    Rows are scaled to unit length first, so that the rank decision does not depend on the user's
    units. Shapes as in :func:`linear_solve`.
    """
    scale = matrix.norm(dim=-1, keepdim=True)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    scaled = torch.nan_to_num(matrix / scale, nan=0.0, posinf=0.0, neginf=0.0)
    left, values, right_vectors = torch.linalg.svd(scaled)
    cutoff = values[..., :1] * _ZERO_SINGULAR_VALUE
    inverse = torch.where(values > cutoff, 1 / values, torch.zeros_like(values))
    projected = left.mT @ (right.unsqueeze(-1) / scale)
    return (right_vectors.mT @ (inverse.unsqueeze(-1) * projected)).squeeze(-1)  # type: ignore[no-any-return]


def relative_residual(
    matrix: torch.Tensor, solution: torch.Tensor, right: torch.Tensor
) -> torch.Tensor:
    """``|K z - r| / |r|`` in the infinity norm, shape ``(B,)``; zero for ``r = 0, z = 0``."""
    difference = (matrix @ solution.unsqueeze(-1)).squeeze(-1) - right
    size = right.abs().amax(-1).clamp_min(torch.finfo(right.dtype).tiny)
    return difference.abs().amax(-1) / size


def apply_policy(solution: torch.Tensor, residual: torch.Tensor, on_failure: str) -> torch.Tensor:
    """NaN where the residual missed its tolerance; raises or warns as the policy says."""
    bad = ~(residual <= MINIMUM_NORM_TOLERANCE)
    if not bool(bad.any()):
        return solution

    def elements() -> tuple[int, ...]:
        return tuple(int(element) for element in bad.nonzero().squeeze(1).tolist())

    def message() -> str:
        named = elements()
        shown = ", ".join(f"{e} (residual {float(residual[e]):.1e})" for e in named[:8])
        more = f" and {len(named) - 8} more" if len(named) > 8 else ""
        return (
            f"The derivative does not exist or could not be computed for {len(named)} of "
            f"{len(bad)} batch elements: {shown}{more}; the adjoint system's relative residual "
            f"must be below {MINIMUM_NORM_TOLERANCE:.0e}. The solution is probably not unique "
            "there (a linear program's face, a flat objective). Add a small quadratic term to the "
            'objective, or pass on_failure="nan" to get NaN gradients for these elements only.'
        )

    enforce(
        bad,
        on_failure,
        lambda: AdjointError(message(), elements()),
        lambda: DegenerateWarning(message()),
    )
    return torch.where(bad.unsqueeze(1), torch.full_like(solution, torch.nan), solution)
