"""Sparsity of a matrix: where the values of a batch of sparse matrices stand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ddn_cvx.batch.columns import picked
from ddn_cvx.batch.device import OnDevice

# Share of a column's entries that are stored, from which on the whole column is multiplied out.
_FILLED_SHARE = 0.3


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
    def outer_products(self) -> OuterProducts:
        """Gradients of ``u' M v`` by the stored values."""
        return OuterProducts(self)

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
        dense: torch.Tensor = (
            values.new_zeros(len(values), rows * columns)
            .scatter(1, flat.expand(len(values), -1), values)
            .unflatten(1, (rows, columns))
        )
        return dense


class OuterProducts:
    """The stored entries of sums of ``u v'``; filled columns as a whole, other entries singly."""

    def __init__(self, pattern: Pattern) -> None:
        m = pattern.shape[0]
        counts = np.bincount(pattern.columns, minlength=pattern.shape[1])
        whole = (counts > _FILLED_SHARE * m).nonzero()[0]
        column_of = np.full(pattern.shape[1], -1)
        column_of[whole] = np.arange(len(whole))
        filled = column_of[pattern.columns] >= 0
        single = (~filled).nonzero()[0]
        # Place of each stored entry among the computed ones: filled columns, then single entries.
        order = np.empty(pattern.stored, dtype=np.int64)
        order[filled] = column_of[pattern.columns[filled]] * m + pattern.rows[filled]
        order[single] = len(whole) * m + np.arange(len(single))
        self._in_order = np.array_equal(order, np.arange(len(whole) * m + len(single)))
        self._places = OnDevice(whole, pattern.rows[single], pattern.columns[single], order)
        self._has_whole, self._all_whole = len(whole) > 0, len(whole) == pattern.shape[1]
        self._has_single = len(single) > 0 or not len(whole)

    def __call__(self, *pairs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """``(B, stored)`` for pairs of ``u`` ``(B, m)`` and ``v`` ``(B, n)``."""
        whole, rows, columns, order = self._places(pairs[0][0].device)
        filled: Any = None
        single: Any = None
        # In place where no derivative needs what was there.
        kept = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
        add: Any = torch.addcmul if kept else torch.Tensor.addcmul_
        for u, v in pairs:
            # A matrix product with two inner columns takes twice as long.
            if self._has_whole:
                v_whole = v if self._all_whole else v.index_select(1, whole)
                one, other = v_whole.unsqueeze(2), u.unsqueeze(1)
                filled = one * other if filled is None else add(filled, one, other)
            if self._has_single:
                one, other = picked(u, rows), picked(v, columns)
                single = one * other if single is None else add(single, one, other)
        entries: torch.Tensor = single if filled is None else filled.flatten(1)
        if self._has_whole and self._has_single:
            entries = torch.cat([entries, single], 1)
        return entries if self._in_order else picked(entries, order)
