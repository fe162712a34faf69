"""Starting points of an iterative solver."""

from __future__ import annotations

import torch

from ddn_cvx.programs.nonlinear.at_inputs import NonlinearInstance

# Distance of a start from its bounds, relative to the bound's size and to the width between two
# (kappa_1 and kappa_2 of Waechter and Biegler 2006, section 3.6).
_INSIDE = 1e-2


def inside_bounds(program: NonlinearInstance, start: torch.Tensor) -> torch.Tensor:
    """Move a start, shape ``(B, n)``, strictly inside its bounds.

    A bound is an affine inequality row with one nonzero coefficient. The methods keep a positive
    slack positive, so that logarithms and roots are never evaluated outside their bounded domain.
    """
    low, high = bounds(program, start)
    width = high - low
    room = torch.where(width > 0, _INSIDE * width, torch.zeros_like(width))
    size_low = torch.where(low.isfinite(), low, 0.0).abs().clamp_min(1.0)
    size_high = torch.where(high.isfinite(), high, 0.0).abs().clamp_min(1.0)
    inner_low = low + torch.minimum(_INSIDE * size_low, room)
    inner_high = high - torch.minimum(_INSIDE * size_high, room)
    return torch.where(width > 0, start.clamp(inner_low, inner_high), start)


def bounds(program: NonlinearInstance, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower and upper bound of each unknown, shape ``(B, n)``; infinite where there is none."""
    low = torch.full_like(start, -torch.inf)
    high = torch.full_like(start, torch.inf)
    definition = program.program
    cones = definition.cones
    if definition.affine is None or not cones.nonnegative:
        return low, high
    rows = definition.affine.clone()
    rows[: cones.zero] = False
    rows[cones.linear :] = False
    chosen = rows.nonzero().squeeze(1).to(start.device)
    if not len(chosen):
        return low, high
    _, _, c, jacobian = program.first(start)
    c, jacobian = c[:, chosen], jacobian[:, chosen]  # (B, r), (B, r, n)
    single = (jacobian != 0).sum(2) == 1
    column = jacobian.abs().argmax(2)  # (B, r)
    slope = jacobian.gather(2, column.unsqueeze(2)).squeeze(2)
    safe = torch.where(single, slope, 1.0)
    limit = start.gather(1, column) - c / safe
    above = torch.where(single & (slope > 0), limit, torch.inf)
    below = torch.where(single & (slope < 0), limit, -torch.inf)
    high = high.scatter_reduce(1, column, above, "amin")
    low = low.scatter_reduce(1, column, below, "amax")
    return torch.nan_to_num(low, nan=-torch.inf, neginf=-torch.inf, posinf=torch.inf), (
        torch.nan_to_num(high, nan=torch.inf, neginf=-torch.inf, posinf=torch.inf)
    )


def further_starts(start: torch.Tensor, count: int, seed: int) -> list[torch.Tensor]:
    """``count - 1`` random starts around the first, the same for every element of a batch.

    The draws do not depend on the batch: an element's starts are its own start plus the same
    offsets, in units of the start's size.
    """
    generator = torch.Generator().manual_seed(seed)
    size = start.abs().amax(1, keepdim=True).clamp_min(1.0)
    offsets = torch.randn((count - 1, start.shape[1]), generator=generator, dtype=torch.float64)
    return [start + size * offset.to(start) for offset in offsets]
