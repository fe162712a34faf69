"""A solver in the units in which the largest data are of size one."""

from __future__ import annotations

from ddn_cvx.programs.cone.program import ConeData, ConeProgram
from ddn_cvx.programs.cone.units import largest_units
from ddn_cvx.solvers.cone.base import ConeSolver, RawSolution, Settings


class InLargestUnits:
    """Hands a solver the data in :func:`~ddn_cvx.programs.cone.units.largest_units`.

    A rung of the ladder for elements that the solver could not solve in their natural units.
    """

    on_device = False

    def __init__(self, solver: ConeSolver) -> None:
        self._solver = solver
        self.name, self.defaults = solver.name, solver.defaults

    def solve(self, program: ConeProgram, data: ConeData, settings: Settings) -> RawSolution:
        """See :class:`~ddn_cvx.solvers.cone.base.ConeSolver`."""
        units = largest_units(program, data)
        raw = self._solver.solve(program, units.scale(data), settings)
        primal, dual = raw.primal * units.rho, raw.dual * units.sigma
        return RawSolution(primal, dual, raw.status, raw.iterations)
