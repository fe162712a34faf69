"""The monotone cone: isotonic regression."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ddn_cvx.dedicated.common import check_positive, nondifferentiable
from ddn_cvx.dedicated.projections.rows import Datum, project_rows

# Rounds of merging; most sequences need fewer than twenty, the worst ones a round for each entry.
_MERGING_ROUNDS = 64


def monotone_cone(
    x: Tensor, weights: Tensor | float = 1.0, *, decreasing: bool = False, dim: int = -1
) -> Tensor:
    """The nearest point of ``{u : u_1 <= u_2 <= ... <= u_n}``, isotonic regression.

    Minimizes ``sum_i w_i (u_i - x_i)^2`` by pooling adjacent violators (Ayer, Brunk, Ewing, Reid
    and Silverman, 1955): neighbours in the wrong order get their weighted mean. The order of merges
    does not matter, so each round merges all violators of the batch at once; sequences that need
    more rounds than a fixed number go to SciPy, one by one.

    Neighbours that are equal without being merged are a kink; the derivative is that of the side
    where they are not merged.

    Args:
        x: any shape, float32 or float64; computed in float64.
        weights: positive, broadcasting with ``x`` after ``dim`` has been moved to the end;
            gradients reach them.
        decreasing: ``u_1 >= u_2 >= ...`` instead.
        dim: the ordered dimension.

    Result and errors as for :func:`~ddn_cvx.dedicated.projections.simplex`, with the weights in the
    place of the radius.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.projections import monotone_cone
        >>> monotone_cone(torch.tensor([1.0, 3.0, 2.0, 4.0]))
        tensor([1.0000, 2.5000, 2.5000, 4.0000])
    """
    if decreasing:
        return -monotone_cone(-x, weights, dim=dim)
    check_positive("weights", weights)
    return project_rows(_onto_monotone, x, Datum("weights", weights, vector=True), dim=dim)


def _onto_monotone(x: Tensor, weights: Tensor) -> Tensor:
    bad = (weights.detach() <= 0).any(1, keepdim=True)
    weights = torch.where(bad, 1.0, weights)
    block, centre = nondifferentiable(_blocks, x, weights)
    # Measured from the rows' means, so that a large common shift of x costs no digits.
    weighted = weights * (x - centre)
    total = torch.zeros_like(x).scatter_add(1, block, weighted)
    mass = torch.zeros_like(x).scatter_add(1, block, weights)
    u = centre + (total / torch.where(mass.detach() > 0, mass, 1.0)).gather(1, block)
    return torch.where(bad, torch.nan, u)


def _blocks(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The block of equal values that each entry belongs to, ``(R, n)``, and the rows' means."""
    rows, n = x.shape
    centre = x.mean(1, keepdim=True)
    starts = torch.ones(rows * n, dtype=torch.bool, device=x.device)
    first = torch.arange(rows * n, device=x.device)
    mass = weights.reshape(-1)
    total = mass * (x - centre).reshape(-1)
    row = torch.div(first, n, rounding_mode="floor")
    for _ in range(_MERGING_ROUNDS):
        mean = total / mass
        wrong = (mean[:-1] > mean[1:]) & (row[:-1] == row[1:])
        violating = wrong.nonzero().squeeze(1)
        if len(violating) == 0:
            row = row[:0]
            break
        # Rows without a violator have converged: the work shrinks from round to round.
        unfinished = torch.zeros(rows, dtype=torch.bool, device=x.device)
        unfinished[row[violating]] = True
        starts[first[violating + 1]] = False
        leads = torch.nn.functional.pad(~wrong, (1, 0), value=True)
        group = leads.cumsum(0) - 1
        kept = leads.nonzero().squeeze(1)
        total = total.new_zeros(len(kept)).index_add_(0, group, total)
        mass = mass.new_zeros(len(kept)).index_add_(0, group, mass)
        live = unfinished[row[kept]].nonzero().squeeze(1)
        chosen = kept[live]
        first, row, total, mass = first[chosen], row[chosen], total[live], mass[live]
    starts = starts.view(rows, n)
    if len(row):
        _by_scipy(x, weights, starts, row.unique())
    return starts.cumsum(1) - 1, centre


def _by_scipy(x: Tensor, weights: Tensor, starts: Tensor, rows: Tensor) -> None:
    """Set in ``starts`` where blocks begin, for ``rows``, one by one."""
    from scipy.optimize import isotonic_regression

    values, mass = x[rows].cpu().numpy(), weights[rows].cpu().numpy()
    begin = np.zeros(values.shape, dtype=bool)
    for index in range(len(values)):
        found = isotonic_regression(values[index], weights=mass[index])
        begin[index, found.blocks[:-1]] = True
    starts[rows] = torch.from_numpy(begin).to(starts.device)
