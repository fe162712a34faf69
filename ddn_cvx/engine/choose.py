"""Which solver and which adjoint: the rule that ``repr(layer)`` prints.

- SCS where a factorisation would no longer fit: a semidefinite cone of side over 80, or over five
  million stored entries.
- INTERIOR, batched in torch, for zero, nonnegative, second-order and semidefinite cones, where the
  batch is worth it: on a GPU any, on the host so many elements that they outweigh the cost of its
  calls. Its matrices are sparse where that takes fewer operations; dense ones should be small or
  well filled, as those of a semidefinite cone with most of the rows are for every solver.
  Programs with exponential cones stay with Clarabel on the host, where INTERIOR took one and a half
  to eight times its time for 1 to 4096 elements; so do those with power cones.
  Dense quadratic programs whose objective may be strictly convex are tried by their active set.
- CLARABEL, sparse, one element at a time, for the rest.

All of them reach a relative accuracy of 1e-9 and better, at which the gradient of a regular problem
is right to 1e-6. Moreau, where it is installed, is used when asked for: at its own tolerances of
1e-10 it stopped at residuals of 1e-6 (``benchmarks/convex_engine.py``).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ddn_cvx.kkt.reduced.structure import sparse_structure
from ddn_cvx.kkt.reduced.substitution import reduction_of
from ddn_cvx.linalg.triangle import triangle
from ddn_cvx.programs.cone.program import ConeProgram
from ddn_cvx.solvers.cone.clarabel import Clarabel
from ddn_cvx.solvers.cone.interior_point.active_set import may_apply
from ddn_cvx.solvers.cone.interior_point.solver import InteriorPoint
from ddn_cvx.solvers.cone.scs import SCS

# Beyond these, one interior-point step (a sparse factorisation with dense semidefinite blocks)
# costs more than thousands of SCS's.
_LARGEST_SIDE = 80
_MOST_ENTRIES = 5_000_000
# Unknowns of a dense program, after substitution; and the share of entries that are stored, from
# which on a dense factorisation is no worse than a sparse one.
_DENSE_COLUMNS = 500
_FILLED = 0.2
_SMALL_COLUMNS = 60
_SEMIDEFINITE_COLUMNS = 250
# The batched method's calls cost about as much as this many operations of a sparse solver, or as
# this many numbers of its own sparse factors.
_CALLS = 2e7
_SPARSE_CALLS = 1e5
# Minimum cost of one element in a sparse solver, in operations.
_ELEMENT = 4e5
# Cost there of a semidefinite cone: of each of its rows, and of its dense block per rows cubed.
_ROW = 8e3
_BLOCK = 1 / 12
# Cost model of the active-set method: its calls, in operations of a sparse solver, and how many of
# its own operations cost as much as one of those.
_FEWER_CALLS = 8e6
_MORE_OPERATIONS = 10.0


class Choice(NamedTuple):
    """A solver's name, and why."""

    name: str
    reason: str


class Extent(NamedTuple):
    """Number of elements of a batch, and its device."""

    batch: int
    device: torch.device


def choose_solver(program: ConeProgram, extent: Extent | None = None) -> Choice:
    """For a batch; None for a large one."""
    side = max(program.cones.semidefinite, default=0)
    entries = program.P_pattern.stored + program.A_pattern.stored
    if side > _LARGEST_SIDE:
        return Choice(SCS.name, f"semidefinite cone of side {side} > {_LARGEST_SIDE}")
    if entries > _MOST_ENTRIES:
        return Choice(SCS.name, f"{entries} stored entries > {_MOST_ENTRIES}")
    if not program.cones.is_symmetric and (extent is None or extent.device.type == "cpu"):
        kind = "exponential" if program.cones.exponential else "power"
        return Choice(Clarabel.name, f"interior point, one by one, for {kind} cones on the host")
    if sparse_structure(program) is not None:
        size = f"sparse, {program.variables} unknowns and {program.rows} rows"
        return _batched(program, extent, size)
    columns, rows, filled = reduction_of(program).size
    most = _DENSE_COLUMNS
    if program.cones.semidefinite:
        most = most if filled > _FILLED else _SEMIDEFINITE_COLUMNS
        filled = max(filled, (triangle(side) / rows) ** 2)
    if columns > most or (columns > _SMALL_COLUMNS and filled < _FILLED):
        shown = f"{rows} x {columns} matrix with {100 * filled:.0f} % of its entries"
        return Choice(Clarabel.name, f"interior point, sparse: {shown}")
    return _batched(program, extent, f"dense, {columns} unknowns and {rows} rows")


def _batched(program: ConeProgram, extent: Extent | None, size: str) -> Choice:
    least = fewest_worth_it(program)
    if extent is not None and extent.batch < least and extent.device.type == "cpu":
        return Choice(Clarabel.name, f"interior point, one by one: fewer than {least} elements")
    few = "" if least == 1 else f"; {Clarabel.name!r} for fewer than {least} elements on the host"
    return Choice(InteriorPoint.name, f"batched, {size}{few}")


def fewest_worth_it(program: ConeProgram) -> int:
    """Elements from which on the batched method's calls are worth it."""
    structure = sparse_structure(program)
    if structure is not None:
        elimination = structure.elimination
        return max(1, round(_SPARSE_CALLS / (elimination.updates + elimination.stored)))
    unknowns = program.variables + program.rows
    _, _, filled = reduction_of(program).size
    operations = filled * unknowns**3
    if may_apply(program):
        return max(1, round(_FEWER_CALLS / (_ELEMENT + _MORE_OPERATIONS * operations)))
    if program.cones.semidefinite:
        sizes = [triangle(side) for side in program.cones.semidefinite]
        blocks = sum(_ROW * size + _BLOCK * size**3 for size in sizes)
        return max(1, round(_CALLS / (blocks + operations)))
    return max(1, round(_CALLS / (_ELEMENT + operations)))
