"""Affine maps from the stacked parameters to the entries of the canonical problem data."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

# Up to this many entries a map whose rows mix parameters is applied as one dense matrix product;
# above it, memory would grow with (rows x parameters).
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
    _cache: dict[Any, tuple[torch.Tensor, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

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

    @property
    def outputs(self) -> int:
        """Number of rows of ``M``."""
        return len(self.offset)

    @property
    def is_constant(self) -> bool:
        """The data does not depend on the parameters."""
        return len(self.rows) == 0

    def __call__(self, stacked: torch.Tensor) -> torch.Tensor:
        """Apply to ``stacked`` of shape ``(B, N)``; returns ``(B, R)``."""
        batch = stacked.shape[0]
        offset, *tensors = self._tensors(stacked.device)
        match self._form:
            case "constant":
                return offset.expand(batch, -1)
            case "dense":
                return torch.addmm(offset, stacked, tensors[0])
            case "gather":
                columns, values = tensors
                return offset + stacked.index_select(1, columns) * values
            case _:
                rows, columns, values = tensors
                terms = stacked.index_select(1, columns) * values
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

    def _tensors(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        if device not in self._cache:
            self._cache[device] = tuple(tensor.to(device) for tensor in self._build())
        return self._cache[device]

    def _build(self) -> tuple[torch.Tensor, ...]:
        offset = torch.from_numpy(self.offset)
        rows, columns, values = map(torch.from_numpy, (self.rows, self.columns, self.values))
        match self._form:
            case "constant":
                return (offset,)
            case "dense":
                dense = torch.zeros(self.inputs, self.outputs, dtype=torch.float64)
                dense[columns, rows] = values
                return offset, dense
            case "gather":
                column_of = torch.zeros(self.outputs, dtype=torch.int64)
                value_of = torch.zeros(self.outputs, dtype=torch.float64)
                column_of[rows], value_of[rows] = columns, values
                return offset, column_of, value_of
            case _:
                return offset, rows, columns, values

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}
