"""The exact adjoint as users ask for it: "kkt" for cone programs, "implicit" for nonlinear ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ddn_cvx.kkt.adjoint import pull_back, push_forward
from ddn_cvx.kkt.reduced.prepared import has_reduced_kkt
from ddn_cvx.kkt.reduced.structure import sparse_structure
from ddn_cvx.kkt.system import DENSE_UNKNOWNS, FORMED_UNKNOWNS


@dataclass(frozen=True)
class Implicit:
    """Solves the KKT system of the solution; see :mod:`ddn_cvx.kkt.adjoint`.

    Attributes:
        name: under which the user asked for it.
    """

    name: str = "kkt"
    by_solver = False
    form = "quadratic"
    solve = None  # autograd follows no solver

    def supports(self, program: Any, solver: Any = None) -> None:
        """Every program."""
        return

    def describe(self, program: Any) -> str:
        """How the system is solved at this size."""
        unknowns = program.variables + program.rows
        if not program.has_pattern:
            dense = unknowns <= FORMED_UNKNOWNS
            return f"the KKT system at the solution, {'dense' if dense else 'MINRES'}"
        if has_reduced_kkt(program):
            kind = "dense" if sparse_structure(program) is None else "sparse"
            return f"exact, batched {kind} factors without the inactive rows"
        if unknowns <= DENSE_UNKNOWNS:
            return f"exact, batched dense LU of {unknowns} unknowns"
        return f"exact, sparse LU of {unknowns} unknowns, element by element"

    pull_back = staticmethod(pull_back)
    push_forward = staticmethod(push_forward)
