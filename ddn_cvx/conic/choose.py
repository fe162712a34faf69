"""Which solver and which adjoint, by cones and size: the rule that ``repr(layer)`` prints.

Clarabel, an interior-point method, reaches a relative accuracy of 1e-11 on every cone, at which the
gradient of a regular problem is right to 1e-5 and better; SCS, which scales further, does not, and
is chosen only where a factorisation would no longer fit.
"""

from __future__ import annotations

from ddn_cvx.conic.adjoints.kkt import DENSE_UNKNOWNS
from ddn_cvx.conic.program import ConeProgram

# Beyond these, one interior-point step (a sparse factorisation with dense semidefinite blocks)
# costs more than thousands of SCS's.
_LARGEST_SIDE = 80
_MOST_ENTRIES = 5_000_000


def choose_solver(program: ConeProgram) -> tuple[str, str]:
    """Name of the solver, and why."""
    side = max(program.cones.semidefinite, default=0)
    entries = program.P_pattern.stored + program.A_pattern.stored
    if side > _LARGEST_SIDE:
        return "SCS", f"semidefinite cone of side {side} > {_LARGEST_SIDE}"
    if entries > _MOST_ENTRIES:
        return "SCS", f"{entries} stored entries > {_MOST_ENTRIES}"
    return "CLARABEL", "interior point, relative accuracy 1e-11 on every cone of this size"


def explain_adjoint(program: ConeProgram) -> str:
    """How the exact adjoint solves its system at this size."""
    unknowns = program.variables + program.rows
    if unknowns <= DENSE_UNKNOWNS:
        return f"exact, batched dense LU of {unknowns} unknowns"
    return f"exact, sparse LU of {unknowns} unknowns, element by element"
