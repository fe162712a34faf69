"""Positive definite systems, block by block where the matrices are block-diagonal."""

from __future__ import annotations

import torch

# A pivot below this many times N eps, relative to its diagonal entry, is rounding: the backward
# error of Cholesky's factorisation is N eps, and the matrix's own entries have errors, too.
_PIVOT_ROUNDING = 100


def block_structure(matrix: torch.Tensor) -> list[torch.Tensor] | None:
    """The blocks of symmetric matrices that are block-diagonal after a common permutation.

    These are the connected components of the graph that joins ``i`` and ``j`` where any element of
    the batch has a nonzero in row ``i`` and column ``j``. Zeros have to be exact; NaN is a nonzero.

    Args:
        matrix: shape ``(B, N, N)``.

    Returns:
        Increasing indices of each block, ordered by their first ones and together ``0 ... N - 1``;
        a diagonal matrix has ``N`` blocks. None where the only block is the whole matrix.
    """
    size = matrix.shape[-1]
    if size < 2:
        return None
    pattern = (matrix != 0).any(0)
    pattern.fill_diagonal_(False)
    if not bool(pattern.any()):
        return list(torch.arange(size, device=matrix.device).split(1))
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    graph = csr_array(pattern.cpu().numpy())
    count, labels = connected_components(graph, directed=False)
    if count == 1:
        return None
    # A stable sort keeps the indices of one component in increasing order.
    label = torch.from_numpy(labels).long()
    order = torch.argsort(label, stable=True).to(matrix.device)
    blocks = order.split(torch.bincount(label).tolist())
    return sorted(blocks, key=lambda block: int(block[0]))


def positive_definite_solve(
    matrix: torch.Tensor, right: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``matrix^-1 right`` by Cholesky's factorisation with one step of iterative refinement.

    Diagonal matrices are divided by; the equal-size blocks of block-diagonal ones are solved as
    one bigger batch. The pattern is the whole batch's, so that an element's neighbours may change
    its last digits.

    Args:
        matrix: symmetric, shape ``(B, N, N)``.
        right: shape ``(B, N)``.

    Returns:
        The solution, shape ``(B, N)``, and whether the matrix is positive definite to working
        precision, bool, shape ``(B,)``. Where it is not, the solution is NaN.
    """
    batch, size = right.shape
    blocks = block_structure(matrix)
    if blocks is None:
        solution, ok = _cholesky_solve(matrix, right)
    elif len(blocks) == size:
        diagonal = torch.diagonal(matrix, dim1=1, dim2=2)
        ok = ((diagonal > 0) & diagonal.isfinite()).all(1)
        solution = right / diagonal
    else:
        solution = torch.zeros_like(right)
        ok = torch.ones_like(right[:, 0], dtype=torch.bool)
        for length in sorted({len(block) for block in blocks}):
            index = torch.stack([block for block in blocks if len(block) == length])  # (k, length)
            parts = matrix[:, index.unsqueeze(2), index.unsqueeze(1)]  # (B, k, length, length)
            part, part_ok = _cholesky_solve(
                parts.reshape(-1, length, length), right[:, index].reshape(-1, length)
            )
            solution[:, index] = part.reshape(batch, -1, length)
            ok = ok & part_ok.reshape(batch, -1).all(1)
    return torch.where(ok.unsqueeze(1), solution, torch.nan), ok


def _cholesky_solve(matrix: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The dense case of :func:`positive_definite_solve`; no solution where the flag is false."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    # A singular matrix often gets through with pivots of rounding size. The pivots are compared
    # with the diagonal, which rounding errors are relative to whatever the scaling of the rows.
    pivot = torch.diagonal(factor, dim1=1, dim2=2).square()
    diagonal = torch.diagonal(matrix, dim1=1, dim2=2)
    threshold = _PIVOT_ROUNDING * matrix.shape[-1] * torch.finfo(matrix.dtype).eps
    ok = (info == 0) & ((pivot > threshold * diagonal) & diagonal.isfinite()).all(1)
    column = right.unsqueeze(2)
    solution = torch.cholesky_solve(column, factor)
    solution = solution + torch.cholesky_solve(column - matrix @ solution, factor)
    return solution.squeeze(2), ok
