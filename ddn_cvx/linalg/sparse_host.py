"""Sparse linear systems of one pattern, factored one by one on the host, differentiable again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ddn_cvx.batch.columns import added, picked
from ddn_cvx.batch.device import OnDevice
from ddn_cvx.batch.inputs import fold_mapped, unfold_mapped
from ddn_cvx.linalg.dense import DIRECT_TOLERANCE, apply_policy

# LSMR's relative tolerances, near rounding, and its iterations: N without rounding errors, and more
# for a badly conditioned system.
_LSMR_TOLERANCE = 1e-14
_LSMR_ITERATIONS_PER_UNKNOWN = 20


class _SparseSolve(torch.autograd.Function):
    """``values, r -> K^-1 r`` for ``K`` with values ``(B, stored)`` at one pattern; see ``.dense``.

    The gradient of the values is that of the matrix, read at the pattern: ``-w[rows] z[columns]``.
    """

    @staticmethod
    def forward(
        values: torch.Tensor,
        right: torch.Tensor,
        rows: np.ndarray,
        columns: np.ndarray,
        on_failure: str,
    ) -> torch.Tensor:
        solution, residual = solve_sparse_checked(values, right, rows, columns)
        return apply_policy(solution, residual, on_failure)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        values, _, ctx.rows, ctx.columns, ctx.on_failure = inputs
        ctx.save_for_backward(values, output)
        ctx.save_for_forward(values, output)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        values, solution = ctx.saved_tensors
        adjoint = _SparseSolve.apply(values, gradients[0], ctx.columns, ctx.rows, ctx.on_failure)  # type: ignore[no-untyped-call]
        rows, columns = OnDevice(ctx.rows, ctx.columns)(values.device)
        return -picked(adjoint, rows) * picked(solution, columns), adjoint, None, None, None

    @staticmethod
    def jvp(ctx: Any, d_values: Any, d_right: Any, *_: Any) -> Any:
        values, solution = ctx.saved_tensors
        change = torch.zeros_like(solution) if d_right is None else d_right
        if d_values is not None:
            rows, columns = OnDevice(ctx.rows, ctx.columns)(values.device)
            change = added(change, rows, -d_values * picked(solution, columns))
        return _SparseSolve.apply(values, change, ctx.rows, ctx.columns, ctx.on_failure)  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, in_dims: Any, values: Any, right: Any, *rest: Any) -> Any:
        folded = fold_mapped(info.batch_size, in_dims[:2], (values, right))
        output = _SparseSolve.apply(*folded, *rest)  # type: ignore[no-untyped-call]
        (solution,), (dim,) = unfold_mapped(info.batch_size, (output,))
        return solution, dim


def sparse_solve(
    values: torch.Tensor,
    right: torch.Tensor,
    rows: np.ndarray,
    columns: np.ndarray,
    on_failure: str,
) -> torch.Tensor:
    """Solve ``K z = right`` with ``K[rows, columns] = values`` for each element.

    Args:
        values: shape ``(B, stored)``; entries at one place add up.
        right: shape ``(B, N)``.
        rows, columns: the pattern.
        on_failure: as in :func:`ddn_cvx.linalg.dense.linear_solve`.

    Returns:
        Shape ``(B, N)``, on the device of ``right``.
    """
    return _SparseSolve.apply(values, right, rows, columns, on_failure)  # type: ignore[no-any-return, no-untyped-call]


def solve_sparse_checked(
    values: torch.Tensor, right: torch.Tensor, rows: np.ndarray, columns: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`sparse_solve`, outside autograd, with the relative residual, shape ``(B,)``."""
    import scipy.sparse

    size = right.shape[1]
    solutions, residuals = np.zeros(tuple(right.shape)), np.zeros(right.shape[0])
    host_values, host_right = values.detach().cpu().numpy(), right.detach().cpu().numpy()
    for element in range(right.shape[0]):
        entries = (host_values[element], (rows, columns))
        matrix = scipy.sparse.csc_matrix(entries, shape=(size, size))
        solutions[element], residuals[element] = _ladder(matrix, host_right[element])
    return torch.from_numpy(solutions).to(right), torch.from_numpy(residuals).to(right)


def _ladder(matrix: Any, right: np.ndarray) -> tuple[np.ndarray, float]:
    """Sparse LU with one refinement; then LSMR, the minimum-norm solution of a singular system."""
    from scipy.sparse.linalg import lsmr, splu

    if not right.any():
        return np.zeros_like(right), 0.0
    best, best_residual = np.zeros_like(right), 1.0
    try:
        factors = splu(matrix)
        solution = factors.solve(right)
        solution += factors.solve(right - matrix @ solution)
        residual = _relative(matrix, solution, right)
        if residual <= DIRECT_TOLERANCE:
            return solution, residual
        if residual < best_residual:
            best, best_residual = solution, residual
    except RuntimeError:  # exactly singular
        pass
    limit = _LSMR_ITERATIONS_PER_UNKNOWN * matrix.shape[0]
    tolerances = {"atol": _LSMR_TOLERANCE, "btol": _LSMR_TOLERANCE, "conlim": 0.0}
    solution = lsmr(matrix, right, maxiter=limit, **tolerances)[0]
    residual = _relative(matrix, solution, right)
    return (solution, residual) if residual < best_residual else (best, best_residual)


def _relative(matrix: Any, solution: np.ndarray, right: np.ndarray) -> float:
    difference = np.abs(matrix @ solution - right).max()
    return float(difference / np.abs(right).max()) if np.isfinite(difference) else np.inf
