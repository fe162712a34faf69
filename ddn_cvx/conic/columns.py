"""Columns of a batch of rows, by number.

``gather`` and ``scatter`` along rows take a fraction of the time of ``index_select`` and
``index_copy``.
"""

from __future__ import annotations

import torch


def picked(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Columns ``index`` ``(k,)`` of ``(B, n)``: ``(B, k)``."""
    return values.gather(1, index.expand(values.shape[0], -1))


def placed(values: torch.Tensor, index: torch.Tensor, size: int) -> torch.Tensor:
    """Values ``(B, k)`` in columns ``index`` ``(k,)``, all different, of zeros ``(B, size)``."""
    zeros = values.new_zeros(values.shape[0], size)
    return zeros.scatter(1, index.expand(values.shape[0], -1), values)
