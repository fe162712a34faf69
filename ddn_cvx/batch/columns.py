"""Columns of a batch of rows, by number.

``gather``, ``scatter`` and ``scatter_add`` along rows take a fraction of the time of
``index_select``, ``index_copy`` and ``index_add``.
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


def added(values: torch.Tensor, index: torch.Tensor, terms: torch.Tensor) -> torch.Tensor:
    """Terms ``(B, k)`` added to columns ``index`` ``(k,)`` of ``(B, n)``."""
    batch = max(len(values), len(terms))
    if len(values) != batch:
        values = values.expand(batch, -1)
    if len(terms) != batch:
        terms = terms.expand(batch, -1)
    return values.scatter_add(1, index.expand(batch, -1), terms)
