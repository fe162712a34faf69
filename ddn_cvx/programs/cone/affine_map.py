"""Affine maps from the stacked parameters to the entries of the canonical problem data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ddn_cvx.batch.columns import picked
from ddn_cvx.batch.device import OnDevice

# Entries (rows x parameters) up to which a map whose rows mix parameters is applied as one dense
# matrix product: 8 MiB of float64. A larger map is applied entry by entry.
_DENSE_ENTRIES = 1 << 20


@dataclass(frozen=True, eq=False)
class AffineMap:
    """``p -> M p + c`` for a sparse ``M``, batched and differentiable to any order.

    Attributes:
        rows, columns, values: ``M`` in coordinate form, ordered by row.
        offset: ``c``, shape ``(R,)``.
        inputs: number of entries of ``p``.
    """

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    offset: np.ndarray
    inputs: int

    @classmethod
    def from_sparse(cls, matrix: Any, offset: np.ndarray) -> AffineMap:
        """Build from a scipy sparse matrix of shape ``(R, N)`` and an offset of shape ``(R,)``."""
        coordinates = matrix.tocoo()
        coordinates.sum_duplicates()
        order = np.lexsort((coordinates.col, coordinates.row))
        kept = order[coordinates.data[order] != 0.0]
        return cls(
            coordinates.row[kept].astype(np.int64),
            coordinates.col[kept].astype(np.int64),
            coordinates.data[kept].astype(np.float64),
            np.asarray(offset, dtype=np.float64),
            int(matrix.shape[1]),
        )

    def then(self, matrix: Any) -> AffineMap:
        """First this map and then a sparse matrix of shape ``(S, R)``."""
        return AffineMap.from_sparse(matrix @ self._sparse(), matrix @ self.offset)

    def plus(self, other: AffineMap) -> AffineMap:
        """The sum with another map of the same shape."""
        return AffineMap.from_sparse(self._sparse() + other._sparse(), self.offset + other.offset)

    @classmethod
    def stacked(cls, maps: tuple[AffineMap, ...]) -> AffineMap:
        """The outputs of several maps behind one another."""
        starts = np.cumsum([0, *(part.outputs for part in maps)])
        rows = [part.rows + start for part, start in zip(maps, starts[:-1], strict=True)]
        return cls(
            np.concatenate(rows),
            np.concatenate([part.columns for part in maps]),
            np.concatenate([part.values for part in maps]),
            np.concatenate([part.offset for part in maps]),
            maps[0].inputs,
        )

    def _sparse(self) -> Any:
        import scipy.sparse

        coordinates = (self.values, (self.rows, self.columns))
        return scipy.sparse.csr_matrix(coordinates, shape=(self.outputs, self.inputs))

    @cached_property
    def outputs(self) -> int:
        """Number of rows of ``M``."""
        return len(self.offset)

    @cached_property
    def is_constant(self) -> bool:
        """The data does not depend on the parameters."""
        return len(self.rows) == 0

    @cached_property
    def is_gather(self) -> bool:
        """Every output reads at most one parameter, and some do."""
        return self._form == "gather"

    def __call__(self, stacked: torch.Tensor) -> torch.Tensor:
        """Apply to ``stacked`` of shape ``(B, N)``; returns ``(B, R)``."""
        batch = stacked.shape[0]
        offset, *tensors = self._constants(stacked.device)
        match self._form:
            case "constant":
                return offset.expand(batch, -1)
            case "dense":
                return torch.addmm(offset, stacked, tensors[0])
            case "gather":
                columns, values = tensors
                return torch.addcmul(offset, picked(stacked, columns), values)
            case _:
                rows, columns, values = tensors
                terms = picked(stacked, columns) * values
                return offset.expand(batch, -1).index_add(1, rows, terms)

    @cached_property
    def _form(self) -> str:
        if self.is_constant:
            return "constant"
        if len(np.unique(self.rows)) == len(self.rows):
            return "gather"  # every row reads at most one parameter
        if self.outputs * self.inputs <= _DENSE_ENTRIES:
            return "dense"
        return "scatter"

    @cached_property
    def _constants(self) -> OnDevice:
        match self._form:
            case "constant":
                return OnDevice(self.offset)
            case "dense":
                dense = np.zeros((self.inputs, self.outputs))
                dense[self.columns, self.rows] = self.values
                return OnDevice(self.offset, dense)
            case "gather":
                column_of = np.zeros(self.outputs, dtype=np.int64)
                value_of = np.zeros(self.outputs)
                column_of[self.rows], value_of[self.rows] = self.columns, self.values
                return OnDevice(self.offset, column_of, value_of)
            case _:
                return OnDevice(self.offset, self.rows, self.columns, self.values)
