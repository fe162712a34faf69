"""Nonlinear programs: compiled from cvxpy or torch functions, and who solves them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ddn_cvx.adjoints.implicit import Implicit
from ddn_cvx.adjoints.traced import Traced
from ddn_cvx.adjoints.unrolled import unrolled
from ddn_cvx.batch.inputs import BatchedInputs
from ddn_cvx.declaration import Declaration
from ddn_cvx.engine.choose import Extent
from ddn_cvx.engine.choose_method import choose_method
from ddn_cvx.engine.plan import Plan
from ddn_cvx.errors import DeclarationError
from ddn_cvx.kkt.certificate import KKTCertificate
from ddn_cvx.kkt.multipliers import recover_multipliers
from ddn_cvx.kkt.system import FORMED_UNKNOWNS
from ddn_cvx.programs.diagnosis import explanation
from ddn_cvx.programs.nonlinear.at_inputs import BoundProgram
from ddn_cvx.programs.nonlinear.derivatives import Derivatives
from ddn_cvx.programs.nonlinear.from_torch import CompiledTorch, compile_torch
from ddn_cvx.solvers.answer import Answer
from ddn_cvx.solvers.nonlinear.dedicated import Dedicated
from ddn_cvx.solvers.nonlinear.ladder import NonlinearLadder
from ddn_cvx.solvers.nonlinear.settings import (
    Settings,
    installed_nonlinear_solvers,
    settings_from,
)
from ddn_cvx.solvers.nonlinear.uno_ipopt import External
from ddn_cvx.solvers.registry import NONLINEAR_SOLVERS
from ddn_cvx.status import Degeneracy
from ddn_cvx.torch_problem import TorchProblem

Tensors = tuple[torch.Tensor, ...]
Starts = Mapping[Any, Any] | Sequence[Any] | None


@dataclass(eq=False)
class NonlinearPath:
    """A declaration that becomes a nonlinear program, with what the user asked for.

    Attributes:
        declaration: what is solved.
        compiled: its program.
        settings: of the layer.
        reason: why this path was taken, for ``repr(layer)``.
        adjoint: "implicit", "unrolled" for comparison, or a dedicated solver's "native".

    Raises:
        DeclarationError: the adjoint does not go with the program and the solver.
    """

    declaration: Declaration | TorchProblem
    compiled: Any
    settings: Settings
    reason: str
    adjoint: str = "implicit"

    warm_starts = False

    def __post_init__(self) -> None:
        self.derivatives = Derivatives(self.compiled.program)
        if self.adjoint not in self.adjoints:
            raise DeclarationError(
                f"The adjoint of this nonlinear program is one of {', '.join(self.adjoints)} "
                "('unrolled' only without inequalities, 'native' only with solver='DEDICATED'); "
                f"got {self.adjoint!r}."
            )

    @property
    def adjoints(self) -> tuple[str, ...]:
        """The adjoints that the program allows."""
        if self.settings.solver == "DEDICATED":
            return ("implicit", "native")
        program = self.compiled.program
        unrolls = program.rows == program.cones.zero and self.settings.solver == "TORCH"
        return ("implicit", "unrolled") if unrolls else ("implicit",)

    @property
    def why_no_start(self) -> str | None:
        """Why ``initial=`` is refused, if it is."""
        if self.settings.solver != "DEDICATED":
            return None
        return (
            "initial= is for local solvers; this layer's dedicated solver takes no start. Pass "
            "solver='TORCH' for the local solution near a start."
        )

    # -- what was chosen ------------------------------------------------------------------------

    def plan(
        self,
        solver_args: dict[str, Any],
        on_failure: str,
        *,
        needs_gradient: bool = False,
        extent: Extent | None = None,
    ) -> Plan:
        """See :class:`~ddn_cvx.engine.engine.Path`."""
        settings = settings_from(self.settings, solver_args)
        program = self.compiled.program
        fallback = None if settings.fallback is None else self._external(settings.fallback)
        if settings.solver == "TORCH":
            solver: Any = choose_method(program, settings)[0]
        else:
            solver = self._external(settings.solver)
        names = (settings.solver, settings.fallback or "")
        adjoint: Any = Implicit("implicit")
        if self.adjoint == "unrolled":
            adjoint = Traced("unrolled", unrolled)
        elif self.adjoint == "native":
            adjoint = Traced("native", functools.partial(_by_own_derivative, solver))
        return Plan(
            self.compiled.program,
            self._at,
            NonlinearLadder(solver, fallback, settings.starts, settings.seed),
            names,
            adjoint,
            on_failure,
            self.compiled.requested,
            self.compiled.duals,
            shared=program.shared,
            traced=None if self.adjoint == "implicit" else adjoint,
        )

    def _at(self, tensors: Tensors, batch: int) -> BoundProgram:
        return BoundProgram(self.derivatives, tensors, batch)

    def _external(self, name: str) -> External | Dedicated:
        if not isinstance(self.declaration, Declaration):
            raise DeclarationError(
                "UNO and IPOPT are reached through cvxpy; a TorchProblem is solved by TORCH only."
            )
        if name == "DEDICATED":
            return Dedicated(self.declaration, self.compiled)
        return External(self.declaration, self.compiled, name)

    def describe(self) -> list[str]:
        """See :class:`~ddn_cvx.engine.engine.Path`."""
        program, settings = self.compiled.program, self.settings
        cones = program.cones
        kinds = {
            "equality": cones.zero,
            "inequality": cones.nonnegative,
            "second-order cone": len(cones.second_order),
            "semidefinite cone": len(cones.semidefinite),
        }
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count) or "none"
        lines = [
            f"nonlinear program ({self.reason}): {program.variables} variables, constraints: "
            f"{listed}"
        ]
        explained = explanation(self.declaration)
        lines += [explained.line] if explained else []
        lines += self.compiled.notes
        if settings.solver == "TORCH":
            method, why = choose_method(program, settings)
            how = f"{method.name}: {why}"
        else:
            how = NONLINEAR_SOLVERS[settings.solver]
        lines.append(f"solver={settings.solver!r} ({how})")
        if settings.starts > 1:
            lines.append(f"starts={settings.starts}, the best kept")
        if settings.fallback is not None:
            lines.append(f"fallback={settings.fallback!r}, one element at a time")
        dense = program.variables + program.rows <= FORMED_UNKNOWNS
        how = {
            "implicit": f"the KKT system at the solution, {'dense' if dense else 'MINRES'}",
            "unrolled": "backpropagation through Newton's iterations, unchecked",
            "native": "the solver's own, unchecked",
        }[self.adjoint]
        lines.append(f"adjoint={self.adjoint!r} ({how})")
        return lines

    def another_solver(self) -> str | None:
        """A solver that is not the layer's, for its audit; None if there is none here."""
        if isinstance(self.declaration, TorchProblem):
            return None
        if self.settings.solver != "TORCH":
            return "TORCH"
        found = installed_nonlinear_solvers() if self.declaration.problem.is_dnlp() else ()
        return found[0] if found else None

    def advice(self) -> str:
        """Why the problem is not a cone program, and what to write instead."""
        explained = explanation(self.declaration)
        return explained.text if explained else ""

    # -- one call -------------------------------------------------------------------------------

    def instance(self, plan: Plan, inputs: BatchedInputs) -> tuple[BoundProgram, torch.Tensor]:
        """See :class:`~ddn_cvx.engine.engine.Path`."""
        tensors = tuple(self.compiled.inputs(inputs.tensors))
        return self._at(tensors, len(inputs.bad)), inputs.bad

    def start(self, inputs: BatchedInputs, instance: BoundProgram, initial: Starts) -> torch.Tensor:
        """See :class:`~ddn_cvx.engine.engine.Path`."""
        given = {} if initial is None else self._given(inputs, initial)
        tensors = tuple(tensor.detach() for tensor in instance.inputs)
        with torch.no_grad():
            declared = getattr(self.declaration, "start", None)
            if isinstance(self.declaration, Declaration) and declared is not None:
                found = declared(*(torch.nan_to_num(tensor) for tensor in tensors))
                variables = self.declaration.problem.variables()
                for variable, value in zip(variables, found, strict=True):
                    given.setdefault(variable.id, value)
            start: torch.Tensor = self.compiled.start(
                tensors, given, len(inputs.bad), inputs.device
            )
            return start.detach()

    def _given(self, inputs: BatchedInputs, initial: Any) -> dict[int, torch.Tensor]:
        variables = self.declaration.variables
        if isinstance(initial, Mapping):
            pairs = list(initial.items())
        else:
            if isinstance(initial, torch.Tensor) or len(initial) != len(variables):
                raise ValueError(
                    f"initial must be a dictionary of variables, or a sequence with one start for "
                    f"each of the layer's {len(variables)} variables."
                )
            pairs = list(zip(variables, initial, strict=True))
        count = inputs.bad.shape[0]
        given = {}
        for variable, value in pairs:
            tensor = torch.as_tensor(value).detach().to(inputs.device, torch.float64)
            shape = tuple(variable.shape)
            try:
                full = tensor.expand(*inputs.batch_shape, *shape)
            except RuntimeError:
                raise ValueError(
                    f"The start of {variable.name()} has shape {tuple(tensor.shape)}; expected "
                    f"(*batch, {', '.join(map(str, shape))}) with batch "
                    f"{tuple(inputs.batch_shape)}."
                ) from None
            key = 0 if isinstance(self.compiled, CompiledTorch) else variable.id
            given[key] = full.reshape(count, *shape)
        return given

    def degenerate(self, instance: BoundProgram, answer: Answer) -> torch.Tensor:
        """The derivative is one-sided, or not unique."""
        assert answer.degeneracy is not None
        flags = int(Degeneracy.WEAKLY_ACTIVE | Degeneracy.NO_CURVATURE)
        return (answer.degeneracy & flags) != 0

    def certificate(self, plan: Plan, instance: BoundProgram, answer: Answer) -> KKTCertificate:
        """See :class:`~ddn_cvx.engine.engine.Path`."""
        return KKTCertificate(instance, answer.primal, answer.dual, self.compiled.primals)


def nonlinear_path(
    declaration: Declaration | TorchProblem, settings: Settings, reason: str, adjoint: str
) -> NonlinearPath:
    """Compile.

    Raises:
        DeclarationError: the problem has no meaning as a nonlinear program.
    """
    if isinstance(declaration, TorchProblem):
        return NonlinearPath(declaration, compile_torch(declaration), settings, reason, adjoint)
    from ddn_cvx.programs.nonlinear.from_cvxpy import compile_nonlinear

    return NonlinearPath(declaration, compile_nonlinear(declaration), settings, reason, adjoint)


def _by_own_derivative(
    solver: Dedicated, instance: BoundProgram, start: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A dedicated solver's point, differentiable by its own rule, and its multipliers."""
    primal = solver.primal(instance.inputs)
    with torch.no_grad():
        dual = recover_multipliers(instance.detach(), torch.nan_to_num(primal.detach()))
    return primal, dual
