"""How a layer over cone programs works: compile, solve, recover, apply the failure policy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from ddn_cvx.batching import BatchedInputs
from ddn_cvx.conic.adjoints.base import Adjoint
from ddn_cvx.conic.adjoints.diffcp import MODES, DiffcpAdjoint
from ddn_cvx.conic.adjoints.kkt import KKTAdjoint
from ddn_cvx.conic.choose import choose_solver, explain_adjoint
from ddn_cvx.conic.program import ConeData, ConeProgram, compile_program
from ddn_cvx.conic.solution_map import ElementsFailed, Engine, SolutionMap
from ddn_cvx.conic.solvers import by_name
from ddn_cvx.conic.solvers.base import LIMITS, ConeSolver, Settings
from ddn_cvx.conic.solvers.clarabel import Clarabel
from ddn_cvx.conic.solvers.ladder import Outcome, ladder
from ddn_cvx.declaration import Declaration
from ddn_cvx.errors import DeclarationError, SolveError
from ddn_cvx.solution import Certificate, Multipliers, Solution
from ddn_cvx.status import Status

# Settings that only SCS (or diffcp in front of it) understands: they choose it.
_SCS_SETTINGS = frozenset(
    {"eps", "eps_abs", "eps_rel", "max_iters", "acceleration_lookback", "scale", "alpha", "rho_x"}
)
# What cvxpylayers hands to diffcp beside the solver's settings.
_DIFFCP_SETTINGS = ("mode", "solve_method", "n_jobs_backward", "derivative_kwargs")

# A constraint counts as weakly active when slack and multiplier are both below this, relative to
# the largest of them.
_WEAK = 1e-6


@dataclass(eq=False)
class LayerEngine:
    """The compiled declaration with what the user asked for.

    Attributes:
        declaration: what is solved.
        solver: name that was asked for, or None.
        adjoint: name that was asked for, or None.
        solver_args: the layer's settings.
        compile_options: ``verbose`` and ``canon_backend``.
    """

    declaration: Declaration
    solver: str | None
    adjoint: str | None
    solver_args: Settings
    compile_options: dict[str, Any]
    warm_starts: bool = False
    _programs: dict[bool, ConeProgram] = field(default_factory=dict, repr=False)

    @classmethod
    def create(
        cls,
        declaration: Declaration,
        *,
        solver: Any,
        adjoint: str | None,
        verbose: bool,
        canon_backend: str | None,
        solver_args: Settings,
    ) -> LayerEngine:
        """Compile now what the first call will need, so that errors come at construction."""
        engine = cls(
            declaration,
            None if solver is None else str(solver).upper(),
            adjoint,
            solver_args,
            {"verbose": verbose, "canon_backend": canon_backend},
        )
        engine.plan({})
        return engine

    # -- what was chosen ------------------------------------------------------------------------

    def program(self, quadratic_objective: bool) -> ConeProgram:
        """The program in the wanted form, compiled on first use."""
        if quadratic_objective not in self._programs:
            self._programs[quadratic_objective] = compile_program(
                self.declaration, quadratic_objective=quadratic_objective, **self.compile_options
            )
        return self._programs[quadratic_objective]

    def plan(self, solver_args: Settings, on_failure: str = "nan") -> Engine:
        """Program, solvers and adjoint for a call with these settings."""
        settings = {**self.solver_args, **solver_args}
        adjoint = self._adjoint(settings)
        program = self.program(quadratic_objective=isinstance(adjoint, KKTAdjoint))
        solver = self._solver(program, settings)
        settings = {key: settings[key] for key in settings if key not in _DIFFCP_SETTINGS}
        if self.compile_options["verbose"]:
            settings.setdefault("verbose", True)
        return Engine(
            program,
            ladder(solver, settings),
            adjoint,
            on_failure,
            limited=bool(LIMITS & settings.keys()),
        )

    def _adjoint(self, settings: Settings) -> Adjoint:
        name = self.adjoint or settings.get("mode") or "kkt"
        if name == "kkt":
            return KKTAdjoint()
        if name in MODES:
            return DiffcpAdjoint(name)
        raise DeclarationError(
            f"Unknown adjoint {name!r}; choose 'kkt', {', '.join(map(repr, MODES))} or 'native'."
        )

    def _solver(self, program: ConeProgram, settings: Settings) -> ConeSolver:
        method = settings.get("solve_method")
        if method is not None:
            return by_name(str(method))
        if self.solver is not None:
            return by_name(self.solver)
        if _SCS_SETTINGS & settings.keys():
            return by_name("SCS")
        return by_name(choose_solver(program)[0])

    @property
    def solver_name(self) -> str:
        """Name of the first solver of the ladder."""
        return self.plan({}).rungs[0][0].name

    @property
    def adjoint_name(self) -> str:
        """Name of the adjoint."""
        return self.plan({}).adjoint.name

    def describe(self) -> list[str]:
        """Lines for ``repr(layer)``: the program, what was chosen and why."""
        plan = self.plan({})
        program, cones = plan.program, plan.program.cones
        kinds = [
            f"{cones.zero} zero" if cones.zero else "",
            f"{cones.nonnegative} nonnegative" if cones.nonnegative else "",
            f"{len(cones.second_order)} second-order" if cones.second_order else "",
            f"{len(cones.semidefinite)} semidefinite" if cones.semidefinite else "",
            f"{cones.exponential} exponential" if cones.exponential else "",
            f"{len(cones.power)} power" if cones.power else "",
        ]
        listed = ", ".join(kind for kind in kinds if kind) or "none"
        objective = "quadratic" if program.is_quadratic else "linear"
        asked = self.solver is not None or bool(self.solver_args)
        reason = "as asked" if asked else choose_solver(program)[1]
        exact = isinstance(plan.adjoint, KKTAdjoint)
        how = explain_adjoint(program) if exact else "diffcp's, residual checked"
        return [
            f"cone program: {program.variables} variables, {program.rows} rows, {objective} "
            f"objective, cones: {listed}",
            f"solver={self.solver_name!r} ({reason})",
            f"adjoint={self.adjoint_name!r} ({how})",
        ]

    # -- solving --------------------------------------------------------------------------------

    def forward(
        self,
        inputs: BatchedInputs,
        solver_args: Settings,
        on_failure: str,
        *,
        warm_start: bool = False,
    ) -> list[torch.Tensor]:
        """The requested variables, each of shape ``(B, *shape)``, float64, differentiable."""
        plan = self.plan(solver_args, on_failure)
        data, excluded = self._data(plan.program, inputs)
        try:
            primal, dual, *_ = SolutionMap.apply(
                data.P, data.q, data.A, data.b, excluded, plan
            )
        except ElementsFailed as failure:
            solution = self._solution(plan, inputs, data, failure.outcome)
            raise solve_error(solution) from None
        return [recovery(primal, dual) for recovery in plan.program.recoveries]

    def solve(self, inputs: BatchedInputs, solver_args: Settings) -> Solution:
        """Solve without differentiating."""
        plan = self.plan(solver_args)
        data, excluded = self._data(plan.program, inputs)
        outcome = plan.solve(data, excluded)
        return self._solution(plan, inputs, data, outcome)

    def _data(
        self, program: ConeProgram, inputs: BatchedInputs
    ) -> tuple[ConeData, torch.Tensor]:
        data = program.data(inputs.stacked(program.logarithm))
        excluded = inputs.bad
        for values in (data.P, data.q, data.A, data.b):
            excluded = excluded | ~values.detach().isfinite().all(1)
        return data, excluded

    def _solution(
        self, plan: Engine, inputs: BatchedInputs, data: ConeData, outcome: Outcome
    ) -> Solution:
        program = plan.program
        failed = plan.has_failed(outcome.status).unsqueeze(1)
        primal = torch.where(failed, torch.nan, outcome.primal)
        dual = torch.where(failed, torch.nan, outcome.dual)

        def restored(value: torch.Tensor) -> torch.Tensor:
            return inputs.restore(value).to(inputs.dtype)

        def multipliers(group: Any) -> Multipliers:
            if group is None:
                return None
            values = tuple(restored(recovery(primal, dual)) for recovery in group)
            return values[0] if len(values) == 1 else values

        host = ConeData(data.P.detach(), data.q.detach(), data.A.detach(), data.b.detach())
        names = [solver.name for solver, _ in plan.rungs]
        return Solution(
            primal=tuple(restored(recovery(primal, dual)) for recovery in program.recoveries),
            dual=tuple(multipliers(group) for group in program.dual_recoveries),
            status=inputs.restore(outcome.status),
            residual=inputs.restore(outcome.residual),
            iterations=inputs.restore(outcome.iterations),
            degenerate=inputs.restore(_is_degenerate(program, host, outcome)),
            solver=tuple(names[int(rung)] for rung in outcome.rung.tolist()),
            _declaration=self.declaration,
            _inputs=inputs.tensors,
            _certificate=Certificate(program, host, outcome.primal, outcome.dual),
        )


def solve_error(solution: Solution) -> SolveError:
    """The error of a batch with failing elements; also a ``diffcp.SolverError``."""
    import diffcp

    from ddn_cvx.layer import failure_message

    class ConeSolveError(SolveError, diffcp.SolverError):  # type: ignore[misc, name-defined]
        """Raised in cvxpylayers' stead: code that catches diffcp's error keeps working."""

    ConeSolveError.__name__ = ConeSolveError.__qualname__ = "SolveError"
    message, elements = failure_message(solution.status, solution.residual)
    return ConeSolveError(message, solution, elements)


def _is_degenerate(program: ConeProgram, data: ConeData, outcome: Outcome) -> torch.Tensor:
    """An inequality or second-order cone is active with a (nearly) zero multiplier."""
    from ddn_cvx.conic.residuals import products

    _, Ax, _ = products(program, data, outcome.primal, outcome.dual)
    slack, dual = data.b - Ax, outcome.dual
    solved = outcome.status == Status.SOLVED
    weak = torch.zeros_like(solved)
    cones = program.cones
    part = slice(cones.zero, cones.linear)
    if cones.nonnegative:
        size = 1 + torch.maximum(slack[:, part].abs().amax(1), dual[:, part].abs().amax(1))
        weak = (torch.maximum(slack[:, part], dual[:, part]) < _WEAK * size.unsqueeze(1)).any(1)
    for group in cones.groups:
        index = group.index_on(slack.device)
        if index.shape[1] < 2:
            continue
        size = torch.maximum(slack[:, index].norm(dim=-1), dual[:, index].norm(dim=-1))
        weak = weak | (size < _WEAK / math.sqrt(index.shape[1])).any(1)
    return weak & solved


__all__ = ["Clarabel", "LayerEngine", "solve_error"]
