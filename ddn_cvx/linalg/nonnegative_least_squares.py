"""Nonnegative least squares: multipliers that redundant constraints leave nonnegative."""

from __future__ import annotations

import torch

# Correlations of a column with the residual below this, relative to the lengths of both, are zero:
# rounding errors of the least-squares solution.
_ZERO_CORRELATION = 1e-11
# Entries that reach zero at the same step length, but for rounding, are all dropped.
_SAME_STEP = 1 + 1e-12
# Iterations for each entry: an entry seldom joins and is dropped more than once.
_ITERATIONS_PER_ENTRY = 4


def nonnegative_least_squares(
    matrix: torch.Tensor, right: torch.Tensor, free: torch.Tensor, allowed: torch.Tensor
) -> torch.Tensor:
    """``min |matrix @ y - right|`` over ``y >= 0``, the free entries of either sign.

    The active-set method of Lawson and Hanson, "Solving least squares problems" (1974), chapter
    23, all elements at once, each with its own passive set. A step's least-squares problem is
    solved with minimum norm, so that dependent columns do no harm.

    Args:
        matrix: shape ``(B, n, m)``.
        right: shape ``(B, n)``.
        free: entries that may be negative, bool, ``(B, m)``.
        allowed: entries that may be nonzero, bool, ``(B, m)``; the others stay zero.

    Returns:
        ``y``, shape ``(B, m)``.
    """
    # Columns of unit length: neither the order in which entries join nor zero depends on units.
    length = matrix.norm(dim=1, keepdim=True)  # (B, 1, m)
    length = torch.where(length > 0, length, 1.0)
    matrix = matrix / length
    passive = free & allowed
    signed = allowed & ~free
    y = torch.zeros_like(passive, dtype=matrix.dtype)
    scale = matrix.norm(dim=1).amax(1, keepdim=True) * right.norm(dim=1, keepdim=True)
    done = torch.zeros_like(passive[:, 0])
    for _ in range(_ITERATIONS_PER_ENTRY * (matrix.shape[2] + 1)):
        masked = matrix * passive.unsqueeze(1)
        target = (torch.linalg.pinv(masked) @ right.unsqueeze(2)).squeeze(2) * passive
        blocking = signed & passive & (target <= 0)
        blocked = blocking.any(1)
        # Where an entry would become negative: step until the first one is zero, and drop it.
        ratio = torch.where(blocking, y / (y - target).clamp_min(1e-300), torch.inf)
        reach = torch.where(blocked, ratio.amin(1), 1.0).unsqueeze(1)
        moved = torch.where(done.unsqueeze(1), y, y + reach * (target - y))
        dropped = blocking & (ratio <= reach * _SAME_STEP)
        y = torch.where(dropped, 0.0, moved)
        passive = passive & ~dropped
        # Elsewhere the entry whose growth lowers the residual fastest joins.
        rest = right - (matrix @ y.unsqueeze(2)).squeeze(2)
        gain = (matrix.mT @ rest.unsqueeze(2)).squeeze(2)
        gain = torch.where(signed & ~passive, gain, -torch.inf)
        best, index = gain.max(1)
        joins = ~blocked & ~done & (best > _ZERO_CORRELATION * scale.squeeze(1))
        done = done | (~blocked & ~joins)
        if bool(done.all()):
            break
        joined = torch.zeros_like(passive).scatter(1, index.unsqueeze(1), joins.unsqueeze(1))
        passive = passive | joined
    # The minimum-norm solution over the final set, in the user's units, where it keeps the signs.
    masked = matrix * length * passive.unsqueeze(1)
    final = (torch.linalg.pinv(masked) @ right.unsqueeze(2)).squeeze(2) * passive
    keeps = ~(signed & (final < 0)).any(1, keepdim=True)
    return torch.where(keeps, final, y / length.squeeze(1))
