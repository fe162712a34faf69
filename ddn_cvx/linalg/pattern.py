"""Sparsity of a matrix: where the values of a batch of sparse matrices stand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ddn_cvx.batch.columns import placed
from ddn_cvx.batch.device import OnDevice


@dataclass(frozen=True, eq=False)
class Pattern:
    """Sparsity of a matrix whose values are stored column by column (CSC).

    Attributes:
        indices, indptr: scipy's CSC structure.
        shape: number of rows and columns.
    """

    indices: np.ndarray
    indptr: np.ndarray
    shape: tuple[int, int]

    @classmethod
    def of_entries(
        cls, rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]
    ) -> tuple[Pattern, np.ndarray]:
        """The pattern of entries, repeated ones allowed, and the stored value that each becomes."""
        height = max(1, shape[0])
        positions, values = np.unique(columns * height + rows, return_inverse=True)
        counts = np.bincount(positions // height, minlength=shape[1])
        indptr = np.concatenate([[0], np.cumsum(counts)])
        return cls(positions % height, indptr, shape), values

    @cached_property
    def rows(self) -> np.ndarray:
        """Row of each stored value."""
        return np.asarray(self.indices, dtype=np.int64)

    @cached_property
    def columns(self) -> np.ndarray:
        """Column of each stored value."""
        return np.repeat(np.arange(self.shape[1], dtype=np.int64), np.diff(self.indptr))

    @cached_property
    def places(self) -> OnDevice:
        """Rows, columns and row-major positions of the stored values, as tensors."""
        return OnDevice(self.rows, self.columns, self.rows * self.shape[1] + self.columns)

    @cached_property
    def stored(self) -> int:
        """Number of stored values."""
        return len(self.indices)

    def sparse(self, values: np.ndarray) -> Any:
        """The scipy CSC matrix with these values, shape ``(stored,)``."""
        import scipy.sparse

        return scipy.sparse.csc_matrix((values, self.indices, self.indptr), shape=self.shape)

    def dense(self, values: torch.Tensor) -> torch.Tensor:
        """Dense matrices ``(B, rows, columns)`` from values of shape ``(B, stored)``."""
        rows, columns = self.shape
        _, _, flat = self.places(values.device)
        dense: torch.Tensor = placed(values, flat, rows * columns).unflatten(1, (rows, columns))
        return dense
