"""The flat unknown ``u`` of a nonlinear program, and the cvxpy variables it is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ddn_cvx.batch.device import OnDevice
from ddn_cvx.batch.inputs import flat
from ddn_cvx.programs.recovery import Recovery

if TYPE_CHECKING:
    import cvxpy as cp


class Unknown:
    """Packs variables into ``u`` and back; a variable with structure brings only its free entries.

    A symmetric variable is its lower triangle, a diagonal one its diagonal, a sparse one its
    nonzeros: their other entries are never unknowns.

    Args:
        variables: of the program, in the order of ``u``.

    Attributes:
        variables: as given.
        slots: number of each variable, by its id.
        size: number of unknowns ``n``.
        recoveries: how each variable is read from ``u``.
    """

    def __init__(self, variables: list[cp.Variable]) -> None:
        self.variables = variables
        self.shapes = [tuple(variable.shape) for variable in variables]
        self.slots: dict[int, int] = {v.id: slot for slot, v in enumerate(variables)}
        self.recoveries: list[Recovery] = []
        gathers, starts, self.sizes = [], [], []
        offset = 0
        for variable in variables:
            free = _free_entries(variable)  # (entries,) number of the free entry, or -1 for zero
            size = int(free.max(initial=-1)) + 1
            gathers.append(free)
            first = np.zeros(size, dtype=np.int64)
            reverse = np.flatnonzero(free >= 0)[::-1]
            first[free[reverse]] = reverse
            starts.append(first)
            self.recoveries.append(Recovery.of_variable(offset, free, tuple(variable.shape)))
            self.sizes.append(size)
            offset += size
        self.size = offset
        self._plain = [bool((free == np.arange(len(free))).all()) for free in gathers]
        self._gathers = [OnDevice(free) for free in gathers]
        self._starts = [OnDevice(first) for first in starts]

    def unpack(self, u: torch.Tensor) -> list[torch.Tensor]:
        """``(B, n)`` to each variable's ``(B, *shape)``."""
        parts = u.split(self.sizes, 1)
        values = []
        for part, plain, gather, shape in zip(
            parts, self._plain, self._gathers, self.shapes, strict=True
        ):
            entries = part
            if not plain:
                (free,) = gather(u.device)
                padded = torch.cat([part, torch.zeros_like(part[:, :1])], 1)
                entries = padded[:, free]  # -1 is the zero at the end
            values.append(entries.reshape(u.shape[0], *shape))
        return values

    def pack(self, values: list[torch.Tensor]) -> torch.Tensor:
        """Each variable's ``(B, *shape)`` to ``(B, n)``."""
        parts = []
        for value, plain, start in zip(values, self._plain, self._starts, strict=True):
            entries = flat(value)
            parts.append(entries if plain else entries[:, start(value.device)[0]])
        return torch.cat(parts, 1)


def _free_entries(variable: Any) -> np.ndarray:
    """For each entry, row by row, the number of the free entry it equals; -1 for a zero."""
    shape, attributes = tuple(variable.shape), variable.attributes
    count = int(np.prod(shape, dtype=np.int64))
    if any(attributes[name] for name in ("symmetric", "PSD", "NSD")) and len(shape) == 2:
        side = shape[0]
        free = np.zeros(shape, dtype=np.int64)
        rows, columns = np.tril_indices(side)
        free[rows, columns] = free[columns, rows] = np.arange(len(rows))
        return free.reshape(-1)
    if attributes["diag"]:
        side = shape[0]
        return np.where(np.eye(side, dtype=bool), np.arange(side)[:, None], -1).reshape(-1)
    if attributes["sparsity"]:
        free = np.full(shape, -1, dtype=np.int64)
        index = variable.sparse_idx
        free[index] = np.arange(len(index[0]))
        return free.reshape(-1)
    return np.arange(count)
