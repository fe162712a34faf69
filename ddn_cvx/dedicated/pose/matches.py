"""Matched points with weights: checked, in double precision, with one batch dimension."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Matches(NamedTuple):
    """Pairs of points, of which some count.

    Attributes:
        first, second: shape ``(B, n, d)``; where they do not count, points of a curve.
        weights: shape ``(B, n)``; zero where they do not count, and one for bad elements.
        valid: elements whose data are finite, with nonnegative weights that are not all zero,
            shape ``(B,)``.
        batch: the batch shape.
    """

    first: torch.Tensor
    second: torch.Tensor
    weights: torch.Tensor
    valid: torch.Tensor
    batch: torch.Size


def matched(
    first: torch.Tensor,
    second: torch.Tensor,
    weights: torch.Tensor | None,
    size: int,
    names: tuple[str, str],
) -> Matches:
    """Of points ``(*batch, n, size)``, called ``names``, and weights ``(*batch, n)`` or None."""
    for name, points in zip(names, (first, second), strict=True):
        if not points.is_floating_point():
            raise TypeError(f"{name} must be floating-point; got {points.dtype}.")
    if first.ndim < 2 or first.shape[-1] != size or second.shape[-2:] != first.shape[-2:]:
        raise ValueError(
            f"Expected matched points of shape (*batch, n, {size}), both the same n; got "
            f"{tuple(first.shape)} and {tuple(second.shape)}."
        )
    n, double = first.shape[-2], torch.float64
    w = first.new_ones(n) if weights is None else weights
    if w.shape[-1:] != (n,):
        raise ValueError(f"weights must end in {n}; got shape {tuple(w.shape)}.")
    shapes = (first.shape[:-2], second.shape[:-2], w.shape[:-1])
    try:
        batch = torch.broadcast_shapes(*shapes)
    except RuntimeError:
        given = [tuple(shape) for shape in shapes]
        raise ValueError(f"Batch shapes of points and weights do not broadcast: {given}.") from None
    x, y = (
        points.to(double).expand(*batch, n, size).reshape(-1, n, size) for points in (first, second)
    )
    w = w.to(double).expand(*batch, n).reshape(-1, n)
    there = w.detach() != 0
    finite = (x.detach().isfinite() & y.detach().isfinite()).all(-1)
    valid = (finite | ~there).all(-1) & ((w.detach() >= 0) & w.detach().isfinite()).all(-1)
    valid = valid & there.any(-1)
    keep = there & finite & valid.unsqueeze(-1)
    # A bad element gets points, and weights to divide by, that make no NaN.
    place = torch.linspace(-1, 1, n, dtype=double, device=x.device)
    curve = torch.stack([place**power for power in range(1, size + 1)], -1)
    x, y = (torch.where(keep.unsqueeze(-1), points, curve) for points in (x, y))
    w = torch.where(keep, w, torch.where(valid.unsqueeze(-1), 0.0, 1.0))
    return Matches(x, y, w, valid, batch)
