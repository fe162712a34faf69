"""Cone programs: compiled for the form that solver and adjoint ask for, and who solves them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from ddn_cvx.adjoints.implicit import Implicit
from ddn_cvx.adjoints.native import Native
from ddn_cvx.adjoints.registry import adjoint_by_name
from ddn_cvx.batch.inputs import BatchedInputs
from ddn_cvx.declaration import Declaration
from ddn_cvx.engine.choose import Extent, choose_solver, explain_adjoint
from ddn_cvx.engine.plan import Adjoint, Plan
from ddn_cvx.errors import DeclarationError, UnsupportedError
from ddn_cvx.kkt.certificate import ConeCertificate
from ddn_cvx.kkt.second_order import weakly_active
from ddn_cvx.programs.cone.compile import compile_program
from ddn_cvx.programs.cone.instance import ConeInstance
from ddn_cvx.programs.cone.program import ConeData, ConeProgram
from ddn_cvx.solvers.answer import Answer
from ddn_cvx.solvers.cone.base import (
    DIFFCP_SETTINGS,
    LIMITS,
    LOOP_SETTINGS,
    ConeSolver,
    Settings,
)
from ddn_cvx.solvers.cone.clarabel import Clarabel
from ddn_cvx.solvers.cone.interface import InterfacePair, InterfaceSolver, NativeSolver
from ddn_cvx.solvers.cone.interior_point.solver import InteriorPoint
from ddn_cvx.solvers.cone.ladder import Ladder, ladder
from ddn_cvx.solvers.cone.scs import SCS
from ddn_cvx.solvers.registry import by_name, listed_solver, native_pair
from ddn_cvx.status import Status

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


@dataclass(eq=False)
class ConePath:
    """A declaration that becomes a cone program, with what the user asked for.

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

    def __post_init__(self) -> None:
        if self.interface is not None:
            self.interface.setup(self.program("interface").context)

    @property
    def interface(self) -> Any:
        """The foreign ``SolverInterface``, or None."""
        return None if isinstance(self.solver, str | None) else self.solver

    @cached_property
    def warm_starts(self) -> bool:
        """Calls can start from the previous call's solution."""
        name = self.solver if isinstance(self.solver, str) else None
        return name is not None and listed_solver(name).warm_starts

    @property
    def why_no_start(self) -> str:
        """Why ``initial=`` is refused."""
        solver = self.plan({}, "nan").solver_names[0]
        return (
            "initial= is for nonlinear programs; this layer solves a convex problem with "
            f"{solver}, whose answer does not depend on a start."
        )

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

    # -- what was chosen ------------------------------------------------------------------------

    def plan(
        self,
        solver_args: Settings,
        on_failure: str,
        *,
        needs_gradient: bool = False,
        extent: Extent | None = None,
    ) -> Plan:
        """See :class:`~ddn_cvx.engine.engine.Path`."""
        settings = {**self.solver_args, **solver_args}
        if self.compile_options["verbose"]:
            settings.setdefault("verbose", True)
        mode = str(settings.get("mode") or "kkt")
        name = self.adjoint or ("native" if self.interface else mode)
        adjoint = adjoint_by_name(name)
        if isinstance(adjoint, Native):
            return self._native(settings, on_failure, needs_gradient)
        program = self.program("interface" if self.interface else adjoint.form)
        if not program.is_checked:
            raise DeclarationError(
                f"adjoint={name!r} reads the rows of a semidefinite cone in SCS's order; this "
                f"interface asks for {self.interface.canon_solver}'s. Use adjoint='native', the "
                "interface's own, or canon_solver='SCS'."
            )
        _require(adjoint.supports(program), f"adjoint={name!r}", "adjoint='kkt' takes every one")
        solver = self._solver(program, settings, extent)
        instead = "with solver=None the layer chooses a solver that can"
        _require(solver.supports(program), f"solver={solver.name!r}", instead)
        ignored = DIFFCP_SETTINGS if isinstance(solver, SCS) else DIFFCP_SETTINGS | LOOP_SETTINGS
        settings = {key: settings[key] for key in settings if key not in ignored}
        rungs = ladder(solver, settings)
        return _plan(
            program,
            Ladder(rungs),
            tuple(rung.name for rung, _ in rungs),
            adjoint,
            on_failure,
            limited=bool(LIMITS & settings.keys()),
        )

    def _native(self, settings: Settings, on_failure: str, needs_gradient: bool) -> Plan:
        pair = native_pair(self.solver) if self.interface is None else InterfacePair(self.interface)
        program = self.program(pair.form)
        instead = "adjoint='kkt' goes with every solver"
        _require(pair.supports(program), f"adjoint='native' of {pair.name}", instead)
        limited = bool(LIMITS & settings.keys())
        solver = NativeSolver(pair, settings, needs_gradient, limited)
        return _plan(program, solver, (pair.name,), Native(), on_failure, limited=limited)

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
            return SCS()
        chosen = by_name(choose_solver(program, extent).name)
        own = settings.keys() - DIFFCP_SETTINGS - LOOP_SETTINGS
        if isinstance(chosen, InteriorPoint) and own - InteriorPoint.known:
            return Clarabel()  # whose settings have more names
        return chosen

    def describe(self) -> list[str]:
        """See :class:`~ddn_cvx.engine.engine.Path`."""
        plan = self.plan({}, "nan")
        program = plan.program
        objective = "quadratic" if program.is_quadratic else "linear"
        asked = self.solver is not None or bool(self.solver_args)
        reason = "as asked" if asked else choose_solver(program).reason
        exact = isinstance(plan.adjoint, Implicit)
        how = explain_adjoint(program) if exact else plan.adjoint.described
        return [
            f"cone program: {program.variables} variables, {program.rows} rows, {objective} "
            f"objective, cones: {_listed(program)}",
            f"solver={plan.solver_names[0]!r} ({reason})",
            f"adjoint={plan.adjoint.name!r} ({how})",
        ]

    def another_solver(self) -> str:
        """A solver that is not the layer's, for its audit."""
        first = self.plan({}, "nan").solver_names[0]
        return Clarabel.name if first == SCS.name else SCS.name

    def advice(self) -> str:
        """Nothing: it is a cone program."""
        return ""

    # -- one call -------------------------------------------------------------------------------

    def instance(self, plan: Plan, inputs: BatchedInputs) -> tuple[ConeInstance, torch.Tensor]:
        """See :class:`~ddn_cvx.engine.engine.Path`."""
        program: ConeProgram = plan.program
        if self.interface is not None:
            self.interface.set_params([tensor.detach().cpu().numpy() for tensor in inputs.tensors])
        if program.factored is not None and inputs.tensors:
            tensors, indefinite = program.factored.lift(inputs.tensors)
            inputs = replace(inputs, tensors=tensors, bad=inputs.bad | indefinite)
        data = program.data(inputs.stacked(program.logarithm))
        # A sum is finite only if all of its terms are, and costs one pass.
        P, q, A, b = (values.detach().sum(1) for values in (data.P, data.q, data.A, data.b))
        return ConeInstance(program, data), inputs.bad | ~(P + q + A + b).isfinite()

    def start(self, inputs: BatchedInputs, instance: ConeInstance, initial: Any) -> None:
        """None: the solution is global."""
        return

    def degenerate(self, instance: ConeInstance, answer: Answer) -> torch.Tensor:
        """An inequality or a cone is active with a (nearly) zero multiplier."""
        units = answer.units or instance.in_natural_units()[1]
        slack, dual = instance.slack(answer.primal) / units.rho, answer.dual / units.sigma
        weak = weakly_active(instance.program.cones, slack, dual)
        return weak & (answer.status == Status.SOLVED)

    def certificate(self, plan: Plan, instance: ConeInstance, answer: Answer) -> ConeCertificate:
        """See :class:`~ddn_cvx.engine.engine.Path`."""
        program = instance.program
        return ConeCertificate(
            instance,
            answer.primal,
            answer.dual,
            program.primal_recoveries,
            program.dual_recoveries,
        )


def _require(reason: str | None, subject: str, instead: str) -> None:
    """Refuse what was asked for by name and does not take the program.

    Raises:
        UnsupportedError: there is a reason.
    """
    if reason is not None:
        message = f"{subject} cannot take this program: {reason}; {instead}."
        raise UnsupportedError(message, reason)


def _listed(program: ConeProgram) -> str:
    counts = program.cones.counts().items()
    return ", ".join(f"{count} {kind}" for kind, count in counts if count) or "none"


def _plan(
    program: ConeProgram,
    solver: Any,
    solver_names: tuple[str, ...],
    adjoint: Adjoint,
    on_failure: str,
    *,
    limited: bool,
) -> Plan:
    return Plan(
        program,
        functools.partial(_at, program),
        solver,
        solver_names,
        adjoint,
        on_failure,
        program.recoveries,
        program.dual_recoveries,
        limited=limited,
    )


def _at(program: ConeProgram, tensors: tuple[torch.Tensor, ...], batch: int) -> ConeInstance:
    return ConeInstance(program, ConeData(*tensors))
