"""Symmetric matrices as vectors: the scaled lower triangle, column by column.

Entries off the diagonal are multiplied by ``sqrt(2)``, so that the inner product of two vectors is
that of the matrices.
"""

from __future__ import annotations

import numpy as np
import torch

from ddn_cvx.batch.device import OnDevice


def triangle(side: int) -> int:
    """Entries of the vector of a symmetric matrix of a side."""
    return side * (side + 1) // 2


def from_upper_triangle(matrix: torch.Tensor) -> torch.Tensor:
    """The symmetric matrix ``(..., n, n)`` with the given one's upper triangle."""
    return matrix.triu() + matrix.triu(1).mT


def scaled_triangle(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Position of each entry of a symmetric matrix (row-major) in its vector, and its scale.

    An entry of the matrix is its scale times the vector's entry; an entry of the vector is the sum
    of the entries of the matrix that have its position, each times its scale.
    """
    columns, rows = np.triu_indices(side)
    index = np.zeros((side, side), dtype=np.int64)
    index[rows, columns] = index[columns, rows] = np.arange(len(rows))
    scale = np.where(np.eye(side, dtype=bool), 1.0, np.sqrt(0.5))
    return index.reshape(-1), scale.reshape(-1)


class ScaledTriangle:
    """The vectors ``(..., d)`` of symmetric matrices ``(..., side, side)``.

    Args:
        side: of the matrices.

    Attributes:
        places: tensors of :func:`scaled_triangle`; then row, column and position (row-major) of
            each entry of a vector, the factor of the matrix's entry there, and the vector's entries
            on the diagonal.

    Example:
        >>> both = ScaledTriangle(2)
        >>> both.vector(torch.tensor([[1.0, 2.0], [2.0, 3.0]]))
        tensor([1.0000, 2.8284, 3.0000])
        >>> both.matrix(torch.tensor([1.0, 0.0, 3.0]))
        tensor([[1., 0.],
                [0., 3.]])
    """

    def __init__(self, side: int) -> None:
        self.side, self.size = side, triangle(side)
        columns, rows = np.triu_indices(side)
        factor = np.where(rows == columns, 1.0, np.sqrt(2))
        self.places = OnDevice(
            *scaled_triangle(side), rows, columns, rows * side + columns, factor,
            np.flatnonzero(rows == columns),
        )  # fmt: skip

    def matrix(self, v: torch.Tensor) -> torch.Tensor:
        """``(..., d)`` as ``(..., side, side)``."""
        index, scale, *_ = self.places(v.device)
        entries = v.index_select(-1, index) * scale.to(v.dtype)
        X: torch.Tensor = entries.unflatten(-1, (self.side, self.side))
        return X

    def vector(self, X: torch.Tensor) -> torch.Tensor:
        """``(..., side, side)``, symmetric, as ``(..., d)``."""
        *_, position, factor, _ = self.places(X.device)
        return X.flatten(-2).index_select(-1, position) * factor.to(X.dtype)

    def entries(self, X: torch.Tensor) -> torch.Tensor:
        """The lower triangle without the scale: one number for each entry, ``(..., d)``."""
        return X.flatten(-2).index_select(-1, self.places(X.device)[4])

    def pairs(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """For each entry of a vector the numbers ``(..., side)`` of its row and its column."""
        _, _, rows, columns, *_ = self.places(values.device)
        return values.index_select(-1, rows), values.index_select(-1, columns)

    def congruence(self, R: torch.Tensor) -> torch.Tensor:
        """The matrix ``(..., d, d)`` that maps the vector of ``V`` to that of ``R V R'``."""
        _, _, rows, columns, _, factor, _ = self.places(R.device)
        of_rows, of_columns = R.index_select(-2, rows), R.index_select(-2, columns)
        straight = of_rows.index_select(-1, rows) * of_columns.index_select(-1, columns)
        crossed = of_rows.index_select(-1, columns) * of_columns.index_select(-1, rows)
        factor = factor.to(R.dtype)
        return (straight + crossed) * (factor.unsqueeze(1) * factor / 2)
