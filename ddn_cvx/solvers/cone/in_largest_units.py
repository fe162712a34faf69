"""A solver that is given data whose largest entries are one: the rung for unusual units."""

from __future__ import annotations

from ddn_cvx.programs.cone.program import ConeData, ConeProgram
from ddn_cvx.programs.cone.units import largest_units
from ddn_cvx.solvers.answer import Answer
from ddn_cvx.solvers.cone.base import ConeSolver, Settings


class InLargestUnits(ConeSolver):
    """Solves in :func:`~ddn_cvx.programs.cone.units.largest_units`: where natural units failed.

    Args:
        solver: that solves; name and default settings are its own.
    """

    def __init__(self, solver: ConeSolver) -> None:
        self._solver = solver
        self.name, self.defaults = solver.name, solver.defaults

    def supports(self, program: ConeProgram) -> str | None:
        """See :class:`~ddn_cvx.solvers.cone.base.ConeSolver`."""
        return self._solver.supports(program)

    def solve(self, program: ConeProgram, data: ConeData, settings: Settings) -> Answer:
        """See :class:`~ddn_cvx.solvers.cone.base.ConeSolver`."""
        units = largest_units(program, data)
        raw = self._solver.solve(program, units.scale(data), settings)
        primal, dual = raw.primal * units.rho, raw.dual * units.sigma
        return Answer(primal, dual, raw.status, raw.iterations)
