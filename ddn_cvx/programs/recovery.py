"""From the primal or dual vector of a compiled program to a cvxpy variable."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ddn_cvx.batch.columns import picked
from ddn_cvx.batch.device import OnDevice


@dataclass(frozen=True, eq=False)
class Recovery:
    """How a variable is read from the primal or dual vector: a gather and a scale.

    Attributes:
        source: ``"primal"`` or ``"dual"``.
        index: position of each entry of the variable (row-major) in the vector.
        scale: factor of each entry; zero where the variable's structure makes the entry zero.
        shape: the variable's shape.
        exponential: take the exponential (geometric programs are solved in logarithms).
    """

    source: str
    index: np.ndarray
    scale: np.ndarray
    shape: tuple[int, ...]
    exponential: bool = False

    @classmethod
    def in_order(cls, source: str, start: int, shape: tuple[int, ...]) -> Recovery:
        """A variable whose entries (row-major) are the vector's from ``start`` on."""
        size = int(np.prod(shape, dtype=np.int64))
        return cls(source, start + np.arange(size), np.ones(size), shape)

    @classmethod
    def of_variable(
        cls, start: int, stored: np.ndarray, shape: tuple[int, ...], *, exponential: bool = False
    ) -> Recovery:
        """A primal variable of which only some entries are stored, from ``start`` on.

        Args:
            stored: number of the stored entry that each entry (row-major) equals; -1 where the
                variable's structure makes the entry zero.
        """
        index, scale = start + stored.clip(min=0), (stored >= 0).astype(np.float64)
        return cls("primal", index, scale, shape, exponential)

    @cached_property
    def _places(self) -> OnDevice:
        return OnDevice(self.index, self.scale, self.scale != 0)

    @cached_property
    def _has_zeros(self) -> bool:
        return bool((self.scale == 0).any())

    @cached_property
    def _columns(self) -> slice | None:
        """The columns of the vector that are the variable, if it is that simple."""
        size, start = len(self.index), int(self.index[0]) if len(self.index) else 0
        if not np.array_equal(self.index, start + np.arange(size)) or (self.scale != 1).any():
            return None
        return slice(start, start + size)

    def __call__(self, primal: torch.Tensor, dual: torch.Tensor) -> torch.Tensor:
        """The variable, shape ``(B, *shape)``, from ``(B, n)`` and ``(B, m)``; a tensor of its own.

        The variable shares no memory with the vectors, which the backward pass reads.
        """
        vector = primal if self.source == "primal" else dual
        if self._columns is not None:
            value = vector[:, self._columns].clone()
        else:
            index, scale, nonzero = self._places(vector.device)
            value = picked(vector, index) * scale
            if self._has_zeros:  # a zero times an infinite gradient would be NaN
                value = torch.where(nonzero, value, 0.0)
        if self.exponential:
            value = value.exp()
        return value.reshape((value.shape[0], *self.shape))
