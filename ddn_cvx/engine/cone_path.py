"""Cone programs: compiled for the form that solver and adjoint ask for, and who solves them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ddn_cvx.adjoints.native import Native
from ddn_cvx.adjoints.registry import DEFAULT, adjoint_by_name
from ddn_cvx.batch.inputs import BatchedInputs
from ddn_cvx.declaration import Declaration
from ddn_cvx.engine.choose import Extent, choose_solver
from ddn_cvx.engine.plan import Adjoint, Plan
from ddn_cvx.errors import DeclarationError, UnsupportedError
from ddn_cvx.kkt.certificate import ConeCertificate
from ddn_cvx.kkt.second_order import weakly_active
from ddn_cvx.programs.cone.compile import compile_program
from ddn_cvx.programs.cone.instance import ConeInstance
from ddn_cvx.programs.cone.program import ConeData, ConeProgram
from ddn_cvx.solvers.answer import Answer
from ddn_cvx.solvers.cone.base import LIMITS, ConeSolver, Settings
from ddn_cvx.solvers.cone.clarabel import Clarabel
from ddn_cvx.solvers.cone.interface import InterfacePair, InterfaceSolver, NativeSolver
from ddn_cvx.solvers.cone.ladder import Ladder, ladder
from ddn_cvx.solvers.cone.scs import OWN_SETTINGS, SCS
from ddn_cvx.solvers.registry import by_name, native_pair
from ddn_cvx.status import Status


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

    @functools.cached_property
    def warm_starts(self) -> bool:
        """Calls can start from the previous call's solution."""
        is_named = self.solver is not None and self.interface is None
        return is_named and by_name(self.solver).warm_starts

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
        """Program, solver and adjoint of a call; ``extent`` is None for a large batch."""
        settings = {**self.solver_args, **solver_args}
        if self.compile_options["verbose"]:
            settings.setdefault("verbose", True)
        mode = str(settings.get("mode") or DEFAULT)
        limited = bool(LIMITS & settings.keys())
        adjoint = adjoint_by_name(self.adjoint or (Native.name if self.interface else mode))
        if adjoint.by_solver:
            pair = InterfacePair(self.interface) if self.interface else native_pair(self.solver)
            program, names = self.program(pair.form), (pair.name,)
            instead = "adjoint='kkt' goes with every solver"
            _require(pair.supports(program), f"adjoint={adjoint.name!r} of {pair.name}", instead)
            solve: Any = NativeSolver(pair, settings, needs_gradient, limited)
        else:
            program = self._checked_program(adjoint)
            solver = self._solver(program, settings, extent)
            instead = "with solver=None the layer chooses a solver that can"
            _require(solver.supports(program), f"solver={solver.name!r}", instead)
            settings = {key: settings[key] for key in settings if key not in solver.ignored}
            solve = Ladder(ladder(solver, settings))
            names = tuple(rung.solver.name for rung in solve.rungs)
        return Plan(
            program,
            lambda tensors, batch: ConeInstance(program, ConeData(*tensors)),
            solve,
            names,
            adjoint,
            on_failure,
            program.recoveries,
            program.dual_recoveries,
            limited=limited,
        )

    def _checked_program(self, adjoint: Adjoint) -> ConeProgram:
        program = self.program("interface" if self.interface else adjoint.form)
        if not program.is_checked:
            raise DeclarationError(
                f"adjoint={adjoint.name!r} reads the rows of a semidefinite cone in SCS's order; "
                f"this interface asks for {self.interface.canon_solver}'s. Use adjoint='native', "
                "the interface's own, or canon_solver='SCS'."
            )
        subject, instead = f"adjoint={adjoint.name!r}", "adjoint='kkt' takes every one"
        _require(adjoint.supports(program), subject, instead)
        return program

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
        if OWN_SETTINGS & settings.keys():
            return SCS()
        chosen = by_name(choose_solver(program, extent).name)
        unknown = chosen.known is not None and settings.keys() - chosen.known - chosen.ignored
        return Clarabel() if unknown else chosen  # whose settings have more names

    def describe(self) -> list[str]:
        """Lines for ``repr(layer)``: the program, what was chosen and why."""
        plan = self.plan({}, "nan")
        program = plan.program
        objective = "quadratic" if program.is_quadratic else "linear"
        reason = "as asked"
        if self.solver is None and plan.adjoint.by_solver:
            reason = f"the one behind adjoint={plan.adjoint.name!r}"
        elif self.solver is None and not self.solver_args:
            reason = choose_solver(program).reason
        counts = program.cones.counts().items()
        cones = ", ".join(f"{count} {kind}" for kind, count in counts if count) or "none"
        return [
            f"cone program: {program.variables} variables, {program.rows} rows, {objective} "
            f"objective, cones: {cones}",
            f"solver={plan.solver_names[0]!r} ({reason})",
            f"adjoint={plan.adjoint.name!r} ({plan.adjoint.describe(program)})",
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
        """The program at the inputs, and which elements have bad ones, bool, ``(B,)``."""
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

    def start(self, inputs: BatchedInputs, instance: Any, initial: Any) -> None:
        """None: the solution is global."""
        return

    def degenerate(self, instance: ConeInstance, answer: Answer) -> torch.Tensor:
        """Where an active inequality or cone has a (nearly) zero multiplier, bool, ``(B,)``."""
        units = answer.units or instance.in_natural_units()[1]
        slack, dual = instance.slack(answer.primal) / units.rho, answer.dual / units.sigma
        weak = weakly_active(instance.program.cones, slack, dual)
        return weak & (answer.status == Status.SOLVED)

    def certificate(self, plan: Plan, instance: ConeInstance, answer: Answer) -> ConeCertificate:
        """By which a solution checks itself."""
        recoveries = plan.program.primal_recoveries, plan.program.dual_recoveries
        return ConeCertificate(instance, answer.primal, answer.dual, *recoveries)


def _require(reason: str | None, subject: str, instead: str) -> None:
    """Refuse what was asked for by name and does not take the program.

    Raises:
        UnsupportedError: there is a reason.
    """
    if reason is not None:
        message = f"{subject} cannot take this program: {reason}; {instead}."
        raise UnsupportedError(message, reason)
