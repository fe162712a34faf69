"""How a layer over cone programs works: compile, solve, recover, apply the failure policy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ddn_cvx.adjoints.diffcp import MODES, DiffcpAdjoint
from ddn_cvx.adjoints.native import (
    DiffcpPair,
    InterfacePair,
    InterfaceSolver,
    MoreauPair,
    NativeEngine,
    NativeMap,
    NativePair,
)
from ddn_cvx.batch.inputs import BatchedInputs, forward_levels
from ddn_cvx.declaration import Declaration
from ddn_cvx.engine.choose import Extent, choose_solver, explain_adjoint
from ddn_cvx.engine.peer import PeerEngine
from ddn_cvx.engine.policy import solve_error
from ddn_cvx.engine.solution_map import ElementsFailed, Engine, SolutionMap
from ddn_cvx.errors import DeclarationError
from ddn_cvx.kkt.adjoint import KKTAdjoint
from ddn_cvx.kkt.certificate import ConeCertificate
from ddn_cvx.kkt.cone_nested_forward import reattached
from ddn_cvx.kkt.point import Adjoint
from ddn_cvx.kkt.residuals import slack_at
from ddn_cvx.programs.cone.compile import compile_program
from ddn_cvx.programs.cone.program import ConeData, ConeProgram
from ddn_cvx.programs.cone.units import natural_units
from ddn_cvx.solution import Multipliers, Solution
from ddn_cvx.solvers.cone import ADJOINTS, SCS, InteriorPoint, by_name
from ddn_cvx.solvers.cone.base import (
    DIFFCP_SETTINGS,
    LIMITS,
    LOOP_SETTINGS,
    ConeSolver,
    Settings,
)
from ddn_cvx.solvers.cone.ladder import Outcome, ladder
from ddn_cvx.status import Status

# Solvers that run only inside cvxpylayers (they need Julia or JAX).
_PEER_ONLY = frozenset({"CUCLARABEL", "MPAX"})

# Settings that only SCS (or diffcp in front of it) understands: they choose it.
_SCS_SETTINGS = frozenset(
    {
        "acceleration_interval",
        "acceleration_lookback",
        "adaptive_scale",
        "alpha",
        "eps",
        "eps_abs",
        "eps_infeas",
        "eps_rel",
        "log_csv_filename",
        "max_iters",
        "normalize",
        "rho_x",
        "scale",
        "time_limit_secs",
        "warm_starts",
        "write_data_filename",
    }
)
# A call's program and data, and its solution, to start the next from.
Previous = tuple[ConeProgram, ConeData, torch.Tensor, torch.Tensor]

# A constraint counts as weakly active when slack and multiplier are both below this, relative to
# the largest of them.
_WEAK = 1e-6


def create_engine(
    declaration: Declaration,
    *,
    solver: Any,
    adjoint: str | None,
    verbose: bool,
    canon_backend: str | None,
    solver_args: Settings,
) -> LayerEngine | PeerEngine:
    """The engine for what the user asked; compiles, so that errors come at construction."""
    name = solver.upper() if isinstance(solver, str) else None
    if name in _PEER_ONLY or getattr(solver, "is_parametric", False):
        return PeerEngine(
            declaration,
            name or solver,
            verbose=verbose,
            canon_backend=canon_backend,
            solver_args=solver_args,
        )
    if adjoint not in (None, *ADJOINTS):
        raise DeclarationError(
            f"Unknown adjoint {adjoint!r}; choose one of {', '.join(map(repr, ADJOINTS))}."
        )
    options = {"verbose": verbose, "canon_backend": canon_backend}
    engine = LayerEngine(declaration, name or solver, adjoint, solver_args, options)
    if engine.interface is not None:
        engine.interface.setup(engine.program("interface").context)
    engine.plan({})
    return engine


@dataclass(eq=False)
class LayerEngine:
    """The compiled declaration with what the user asked for.

    Attributes:
        declaration: what is solved.
        solver: name that was asked for, a cvxpylayers ``SolverInterface``, or None.
        adjoint: name that was asked for, or None.
        solver_args: the layer's settings.
        compile_options: ``verbose`` and ``canon_backend``.
    """

    declaration: Declaration
    solver: Any
    adjoint: str | None
    solver_args: Settings
    compile_options: dict[str, Any]
    _programs: dict[str, ConeProgram] = field(default_factory=dict, repr=False)
    _previous: Previous | None = field(default=None, repr=False)

    # -- what was chosen ------------------------------------------------------------------------

    @property
    def interface(self) -> Any:
        """The foreign ``SolverInterface``, or None."""
        return None if isinstance(self.solver, str | None) else self.solver

    @property
    def warm_starts(self) -> bool:
        """Calls can start from the previous call's solution."""
        return self.solver in ("MOREAU", "INTERIOR")

    def program(self, form: str) -> ConeProgram:
        """The program, compiled on first use.

        Args:
            form: "quadratic" keeps a quadratic objective, "linear" does not (diffcp's adjoint), and
                "interface" is what the foreign interface asks for.
        """
        if form not in self._programs:
            interface = self.interface if form == "interface" else None
            self._programs[form] = compile_program(
                self.declaration,
                interface=interface,
                quadratic_objective=(
                    interface.supports_quad_obj if interface else form == "quadratic"
                ),
                **self.compile_options,
            )
        return self._programs[form]

    def plan(
        self,
        solver_args: Settings,
        on_failure: str = "nan",
        *,
        needs_gradient: bool = False,
        extent: Extent | None = None,
    ) -> Engine | NativeEngine:
        """Program, solvers and adjoint for a call with these settings; by default, a large one."""
        settings = {**self.solver_args, **solver_args}
        if self.compile_options["verbose"]:
            settings.setdefault("verbose", True)
        mode = str(settings.get("mode", ""))
        name = self.adjoint or ("native" if self.interface or mode.startswith("lpgd") else mode)
        name = name or "kkt"
        if name == "native":
            return self._native(settings, on_failure, needs_gradient)
        if name != "kkt" and name not in MODES:
            raise DeclarationError(f"diffcp's modes are {', '.join(MODES)} and lpgd; got {name!r}.")
        adjoint: Adjoint = KKTAdjoint() if name == "kkt" else DiffcpAdjoint(name)
        form = "interface" if self.interface else "quadratic" if name == "kkt" else "linear"
        program = self.program(form)
        if not program.is_checked:
            raise DeclarationError(
                f"adjoint={name!r} reads the rows of a semidefinite cone in SCS's order; this "
                f"interface asks for {self.interface.canon_solver}'s. Use adjoint='native', the "
                "interface's own, or canon_solver='SCS'."
            )
        if name != "kkt" and program.is_quadratic:
            raise DeclarationError(
                f"adjoint={name!r} is diffcp's, which knows no quadratic objective; this "
                "interface asks for one (supports_quad_obj). Use adjoint='kkt' or 'native'."
            )
        solver = self._solver(program, settings, extent)
        ignored = DIFFCP_SETTINGS if isinstance(solver, SCS) else DIFFCP_SETTINGS | LOOP_SETTINGS
        settings = {key: settings[key] for key in settings if key not in ignored}
        return Engine(
            program,
            ladder(solver, settings),
            adjoint,
            on_failure,
            limited=bool(LIMITS & settings.keys()),
        )

    def _native(self, settings: Settings, on_failure: str, needs_gradient: bool) -> NativeEngine:
        pair: NativePair
        form = "linear"
        if self.interface is not None:
            pair, form = InterfacePair(self.interface), "interface"
        elif self.solver == "MOREAU":
            pair, form = MoreauPair(), "quadratic"
        elif self.solver == "INTERIOR":
            raise DeclarationError(
                "solver='INTERIOR' has no backward pass of its own; adjoint='kkt' is exact."
            )
        else:
            pair = DiffcpPair()
            method = "Clarabel" if self.solver == "CLARABEL" else "SCS"
            settings = {"solve_method": method, **settings}
        return NativeEngine(self.program(form), pair, settings, on_failure, needs_gradient)

    def _solver(
        self, program: ConeProgram, settings: Settings, extent: Extent | None
    ) -> ConeSolver:
        method = settings.get("solve_method")
        if method is not None:
            return by_name(str(method))
        if self.interface is not None:
            return InterfaceSolver(self.interface)
        if self.solver is not None:
            return by_name(self.solver)
        if _SCS_SETTINGS & settings.keys():
            return by_name("SCS")
        chosen = by_name(choose_solver(program, extent).name)
        own = settings.keys() - DIFFCP_SETTINGS - LOOP_SETTINGS
        if isinstance(chosen, InteriorPoint) and own - InteriorPoint.known:
            return by_name("CLARABEL")  # whose settings have more names
        return chosen

    @property
    def solver_name(self) -> str:
        """Name of the first solver of the ladder, for a large batch."""
        return self.solver_for(None)

    def solver_for(self, extent: Extent | None) -> str:
        """Name of the first solver of the ladder for such a batch."""
        plan = self.plan({}, extent=extent)
        return plan.pair.name if isinstance(plan, NativeEngine) else plan.rungs[0][0].name

    @property
    def adjoint_name(self) -> str:
        """Name of the adjoint."""
        plan = self.plan({})
        return "native" if isinstance(plan, NativeEngine) else plan.adjoint.name

    def describe(self) -> list[str]:
        """Lines for ``repr(layer)``: the program, what was chosen and why."""
        plan = self.plan({})
        program, cones = plan.program, plan.program.cones
        kinds = {
            "zero": cones.zero,
            "nonnegative": cones.nonnegative,
            "second-order": len(cones.second_order),
            "semidefinite": len(cones.semidefinite),
            "exponential": cones.exponential,
            "power": len(cones.power),
        }
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count) or "none"
        objective = "quadratic" if program.is_quadratic else "linear"
        asked = self.solver is not None or bool(self.solver_args)
        reason = "as asked" if asked else choose_solver(program).reason
        how = {
            "kkt": explain_adjoint(program),
            "native": "the solver's own, unchecked",
        }.get(self.adjoint_name, "diffcp's, its residual checked")
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
        if warm_start and self._previous is not None:
            program, former, primal, dual = self._previous
            point = (primal, dual, slack_at(program, former, primal))
            solver_args = {**solver_args, "warm_start": point}
        wanted = any(tensor.requires_grad for tensor in inputs.tensors)
        needs_gradient = torch.is_grad_enabled() and wanted
        plan = self.plan(
            solver_args, on_failure, needs_gradient=needs_gradient, extent=_extent(inputs)
        )
        data, excluded = self._data(plan.program, inputs)
        function = NativeMap if isinstance(plan, NativeEngine) else SolutionMap
        try:
            primal, dual, *_ = function.apply(data.P, data.q, data.A, data.b, excluded, plan)  # type: ignore[no-untyped-call]
            if forward_levels() > 1:
                primal, dual = reattached(plan.program, data, primal.detach(), dual.detach())
        except ElementsFailed as failure:
            if torch._C._are_functorch_transforms_active():
                solution = _statuses_only(failure.outcome)  # no values leave a vmap that raises
            else:
                solution = self._solution(plan, inputs, data, failure.outcome)
            raise solve_error(solution) from failure.reason
        if self.warm_starts and not torch._C._are_functorch_transforms_active():
            self._previous = plan.program, data.detach(), primal.detach(), dual.detach()
        return [recovery(primal, dual) for recovery in plan.program.recoveries]

    def solve(self, inputs: BatchedInputs, solver_args: Settings) -> Solution:
        """Solve without differentiating."""
        plan = self.plan(solver_args, extent=_extent(inputs))
        data, excluded = self._data(plan.program, inputs)
        if isinstance(plan, NativeEngine):
            outcome, *_ = plan.run(data, excluded)
        else:
            outcome = plan.solve(data, excluded, natural_units(plan.program, data.detach()))
        return self._solution(plan, inputs, data, outcome)

    def _data(self, program: ConeProgram, inputs: BatchedInputs) -> tuple[ConeData, torch.Tensor]:
        if self.interface is not None:
            self.interface.set_params([tensor.detach().cpu().numpy() for tensor in inputs.tensors])
        if program.factored is not None and inputs.tensors:
            tensors, indefinite = program.factored.lift(inputs.tensors)
            inputs = replace(inputs, tensors=tensors, bad=inputs.bad | indefinite)
        data = program.data(inputs.stacked(program.logarithm))
        # A sum is finite only if all of its terms are, and costs one pass.
        total = sum(values.detach().sum(1) for values in (data.P, data.q, data.A, data.b))
        return data, inputs.bad | ~torch.as_tensor(total).isfinite()

    def _solution(
        self, plan: Engine | NativeEngine, inputs: BatchedInputs, data: ConeData, outcome: Outcome
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

        detached = ConeData(data.P.detach(), data.q.detach(), data.A.detach(), data.b.detach())
        if isinstance(plan, NativeEngine):
            names = [plan.pair.name]
        else:
            names = [solver.name for solver, _ in plan.rungs]
        return Solution(
            primal=tuple(restored(recovery(primal, dual)) for recovery in program.recoveries),
            dual=tuple(multipliers(group) for group in program.dual_recoveries),
            status=inputs.restore(outcome.status),
            residual=inputs.restore(outcome.residual),
            iterations=inputs.restore(outcome.iterations),
            degenerate=inputs.restore(_is_degenerate(program, detached, outcome)),
            solver=tuple(names[int(rung)] for rung in outcome.rung.tolist()),
            _declaration=self.declaration,
            _inputs=inputs.tensors,
            _certificate=ConeCertificate(program, detached, outcome.primal, outcome.dual),
        )


def _statuses_only(outcome: Outcome) -> Solution:
    """A solution without values; its elements are numbered through all mapped dimensions."""
    return Solution(
        primal=(),
        dual=(),
        status=outcome.status,
        residual=outcome.residual,
        iterations=outcome.iterations,
        degenerate=torch.zeros_like(outcome.status, dtype=torch.bool),
    )


def _is_degenerate(program: ConeProgram, data: ConeData, outcome: Outcome) -> torch.Tensor:
    """An inequality or second-order cone is active with a (nearly) zero multiplier."""
    units = natural_units(program, data)
    slack = slack_at(program, data, outcome.primal) / units.rho
    dual = outcome.dual / units.sigma
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


def _extent(inputs: BatchedInputs) -> Extent | None:
    """None under vmap, where the batch is larger than it looks."""
    if torch._C._are_functorch_transforms_active():
        return None
    return Extent(len(inputs.bad), inputs.bad.device)
