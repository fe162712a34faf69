"""Outer products at the stored places of a sparse matrix: gradients of its values."""

from __future__ import annotations

import weakref

import numpy as np
import torch

from ddn_cvx.batch.columns import picked
from ddn_cvx.batch.device import OnDevice
from ddn_cvx.linalg.pattern import Pattern

# Columns of which more than this share is stored are multiplied out whole.
_FILLED = 0.3


def outer_at(pattern: Pattern, *pairs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The stored entries of the sum of ``u v'``, shape ``(B, stored)``.

    Args:
        pattern: of a matrix of shape ``(m, n)``.
        *pairs: vectors ``u`` ``(B, m)`` and ``v`` ``(B, n)``.
    """
    if pattern not in _OUTER:
        _OUTER[pattern] = _Outer(pattern)
    return _OUTER[pattern](pairs)


class _Outer:
    """Filled columns by one matrix product, the other entries one by one."""

    def __init__(self, pattern: Pattern) -> None:
        m = pattern.shape[0]
        counts = np.bincount(pattern.columns, minlength=pattern.shape[1])
        whole = (counts > _FILLED * m).nonzero()[0]
        column_of = np.full(pattern.shape[1], -1)
        column_of[whole] = np.arange(len(whole))
        filled = column_of[pattern.columns] >= 0
        apart = (~filled).nonzero()[0]
        # Where each stored entry is found behind one another: filled columns, then the others.
        order = np.empty(pattern.stored, dtype=np.int64)
        order[filled] = column_of[pattern.columns[filled]] * m + pattern.rows[filled]
        order[apart] = len(whole) * m + np.arange(len(apart))
        self._in_order = np.array_equal(order, np.arange(len(whole) * m + len(apart)))
        self._places = OnDevice(whole, pattern.rows[apart], pattern.columns[apart], order)
        self._none_apart = len(apart) == 0

    def __call__(self, pairs: tuple[tuple[torch.Tensor, torch.Tensor], ...]) -> torch.Tensor:
        columns, rows_apart, columns_apart, order = self._places(pairs[0][0].device)
        parts = []
        if len(columns):
            u = torch.stack([u for u, _ in pairs], 1)  # (B, pairs, m)
            v = torch.stack([picked(v, columns) for _, v in pairs], 2)
            parts.append((v @ u).flatten(1))
        if not (self._none_apart and parts):
            first, *others = (picked(u, rows_apart) * picked(v, columns_apart) for u, v in pairs)
            parts.append(sum(others, start=first))
        entries = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return entries if self._in_order else picked(entries, order)


_OUTER: weakref.WeakKeyDictionary[Pattern, _Outer] = weakref.WeakKeyDictionary()
