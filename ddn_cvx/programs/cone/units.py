"""Units in which a cone program's data are of ordinary size.

Solvers, tolerances and faces of cones are full of absolute thresholds; a program in metres must not
be solved differently in nanometres. For any ``rho, sigma > 0`` the program with the data

    (P rho / sigma, q / sigma, A, b / rho)

has the solution ``(x / rho, y / sigma)`` of the original: ``rho`` is a unit for ``x`` and the
slacks, ``sigma`` one for the objective and the multipliers. As powers of two they change nothing
by rounding. They are constants of each element: the solution map commutes with them, whatever they
are, and so does its derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ddn_cvx.batch.device import perhaps_any
from ddn_cvx.programs.cone.program import ConeData, ConeProgram

Choice = Callable[[torch.Tensor], torch.Tensor]

# Units are kept between this and its reciprocal: their products and squares do not overflow.
_LARGEST = 2.0**500


class Units(NamedTuple):
    """``rho`` and ``sigma`` of each element, both of shape ``(B, 1)``."""

    rho: torch.Tensor
    sigma: torch.Tensor

    def select(self, elements: torch.Tensor) -> Units:
        """The units of some elements (an index tensor)."""
        return Units(self.rho[elements], self.sigma[elements])

    def scale(self, data: ConeData) -> ConeData:
        """The data in these units."""
        return ConeData(*self.scaled(data.P, data.q, data.A, data.b))

    def scaled(
        self, P: torch.Tensor, q: torch.Tensor, A: torch.Tensor, b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Data in these units; their tangents; their gradient from that of the data in units."""
        return P * (self.rho / self.sigma), q / self.sigma, A, b / self.rho


def natural_units(program: ConeProgram, data: ConeData) -> Units:
    """Units of data that are all small or all large; one where there are data on both sides of one.

    Data of very different sizes have no unit of their own: a bound of 1e9 that is never active must
    not make all other data small.
    """
    if not program.is_quadratic or torch._C._are_functorch_transforms_active():
        return _units(program, data, _nearest_to_one)
    P, q, _ = _sizes(data)
    if perhaps_any(_nearest_to_one(_lengths_where_curved(P, q)) != 1):
        return _units(program, data, _nearest_to_one)
    # Where the lengths q / P lie on both sides of one, rho is one: the rows need not be read.
    rho = torch.ones_like(q[:, :1])
    return Units(rho, _unit(torch.cat([P, q], 1), _nearest_to_one))


def largest_units(program: ConeProgram, data: ConeData) -> Units:
    """Units in which the largest data are of size one."""
    return _units(program, data, lambda sizes: sizes.amax(1, keepdim=True))


def row_sizes(program: ConeProgram, data: ConeData) -> torch.Tensor:
    """Largest entry of each row of ``A``; one where the row is zero; shape ``(B, m)``."""
    rows, _, _ = program.A_pattern.places(data.b.device)
    return _largest_at(data.b, rows, data.A)


def column_sizes(program: ConeProgram, data: ConeData) -> torch.Tensor:
    """Largest entry of each column of ``A`` and ``P``, one where both are zero, ``(B, n)``."""
    _, columns, _ = program.A_pattern.places(data.q.device)
    values = data.A
    if program.is_quadratic:
        _, others, _ = program.P_pattern.places(data.q.device)
        columns, values = torch.cat([columns, others]), torch.cat([values, data.P], 1)
    return _largest_at(data.q, columns, values)


def _largest_at(like: torch.Tensor, places: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    index = places.expand(values.shape[0], -1)
    zeros = torch.zeros(values.shape[0], like.shape[1], dtype=like.dtype, device=like.device)
    largest = zeros.scatter_reduce(1, index, values.abs(), "amax").nan_to_num(0.0, 0.0)
    return torch.where(largest > 0, largest, torch.ones_like(largest))


def _units(program: ConeProgram, data: ConeData, choose: Choice) -> Units:
    P, q, b = _sizes(data)
    # Estimates of the size of x: b over its row of A, and where the objective curves, q over P.
    lengths = [b / row_sizes(program, data.detach())]
    if program.is_quadratic:
        lengths.append(_lengths_where_curved(P, q))
    rho = _unit(torch.cat(lengths, 1), choose)
    sigma = _unit(torch.cat([P * rho, q], 1), choose)
    return Units(rho, sigma)


def _sizes(data: ConeData) -> tuple[torch.Tensor, ...]:
    return data.P.detach().abs(), data.q.detach().abs(), data.b.detach().abs()


def _lengths_where_curved(P: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    largest = P.amax(1, keepdim=True)
    return torch.where(largest > 0, q / largest, 0.0)


def _unit(sizes: torch.Tensor, choose: Choice) -> torch.Tensor:
    """The power of two at or below the chosen size.

    One if all sizes are zero, or if a size is not finite, as those of an excluded element may be.
    """
    if sizes.shape[1] == 0:
        return sizes.new_ones(sizes.shape[0], 1)
    chosen = choose(sizes)  # (B, 1)
    unit = chosen / (2 * torch.frexp(chosen).mantissa)
    return unit.clamp(1 / _LARGEST, _LARGEST).nan_to_num(1.0)


def _nearest_to_one(sizes: torch.Tensor) -> torch.Tensor:
    """The number nearest to one between the smallest size that is not zero and the largest."""
    smallest = torch.where(sizes > 0, sizes, torch.inf).amin(1, keepdim=True)
    largest = sizes.amax(1, keepdim=True)
    return torch.ones_like(largest).clamp(smallest, largest)  # zero where that is the largest
