"""Nonlinear programs: compiled from cvxpy or torch functions, and who solves them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from ddn_cvx.adjoints.registry import NONLINEAR_ADJOINTS
from ddn_cvx.batch.inputs import BatchedInputs
from ddn_cvx.declaration import Declaration
from ddn_cvx.engine.choose_method import choose_method
from ddn_cvx.engine.plan import Plan
from ddn_cvx.errors import DeclarationError
from ddn_cvx.kkt.certificate import KKTCertificate
from ddn_cvx.programs.diagnosis import explanation
from ddn_cvx.programs.nonlinear.at_inputs import NonlinearInstance
from ddn_cvx.programs.nonlinear.derivatives import Derivatives
from ddn_cvx.programs.nonlinear.from_torch import compile_torch
from ddn_cvx.solvers.answer import Answer
from ddn_cvx.solvers.nonlinear.ladder import NonlinearLadder
from ddn_cvx.solvers.nonlinear.settings import (
    DEDICATED,
    TORCH,
    Settings,
    installed_nonlinear_solvers,
    settings_from,
)
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
        settings: of the layer.
        reason: why this path was taken, for ``repr(layer)``.
        adjoint: "implicit", "unrolled" for comparison, or a dedicated solver's "native".

    Raises:
        DeclarationError: the problem has no meaning as a nonlinear program, or the adjoint does not
            go with the program and the solver.
    """

    declaration: Declaration | TorchProblem
    settings: Settings
    reason: str
    adjoint: str

    warm_starts = False

    def __post_init__(self) -> None:
        from ddn_cvx.programs.nonlinear.from_cvxpy import compile_nonlinear

        given = self.declaration
        self.compiled: Any = (
            compile_torch(given) if isinstance(given, TorchProblem) else compile_nonlinear(given)
        )
        self.derivatives = Derivatives(self.compiled.program)
        if self.adjoint not in self.adjoints:
            raise DeclarationError(
                f"The adjoint of this nonlinear program is one of {', '.join(self.adjoints)} "
                "('unrolled' only without inequalities, 'native' only with solver='DEDICATED'); "
                f"got {self.adjoint!r}."
            )

    @property
    def _problem(self) -> Any:
        """The problem of cvxpy, or None."""
        return getattr(self.declaration, "problem", None)

    @property
    def adjoints(self) -> tuple[str, ...]:
        """The adjoints that the program and its solver allow."""
        program, (solver, _) = self.compiled.program, self._solver(self.settings)
        listed = NONLINEAR_ADJOINTS.items()
        return tuple(name for name, a in listed if a.supports(program, solver) is None)

    @property
    def why_no_start(self) -> str | None:
        """Why ``initial=`` is refused, if it is."""
        if self.settings.solver != DEDICATED:
            return None
        return (
            "initial= is for local solvers; this layer's dedicated solver takes no start. Pass "
            f"solver={TORCH!r} for the local solution near a start."
        )

    # -- what was chosen ------------------------------------------------------------------------

    def plan(self, solver_args: dict[str, Any], on_failure: str, **_: Any) -> Plan:
        """See :class:`~ddn_cvx.engine.cone_path.ConePath`; the same for every batch."""
        settings = settings_from(self.settings, solver_args)
        fallback = None if settings.fallback is None else self._foreign(settings.fallback)
        solver = self._solver(settings)[0]
        adjoint = NONLINEAR_ADJOINTS[self.adjoint]
        return Plan(
            self.compiled.program,
            self._at,
            NonlinearLadder(solver, fallback, settings.starts, settings.seed),
            (settings.solver, settings.fallback or ""),
            adjoint,
            on_failure,
            self.compiled.requested,
            self.compiled.duals,
            shared=self.compiled.program.shared,
            traced=adjoint.solve and functools.partial(adjoint.solve, solver),
        )

    def _at(self, tensors: Tensors, batch: int) -> NonlinearInstance:
        return NonlinearInstance(self.derivatives, tensors, batch)

    def _solver(self, settings: Settings) -> tuple[Any, str]:
        """The solver, and in words how it solves."""
        listed = NONLINEAR_SOLVERS[settings.solver]
        if listed.build is not None:
            return self._foreign(settings.solver), listed.described
        method, why = choose_method(self.compiled.program, settings)
        return method, f"{method.name}: {why}"

    def _foreign(self, name: str) -> Any:
        build = NONLINEAR_SOLVERS[name].build
        if self._problem is None or build is None:
            raise DeclarationError(
                "UNO and IPOPT are reached through cvxpy; a TorchProblem is solved by TORCH only."
            )
        return build(self.declaration, self.compiled, name)

    def describe(self) -> list[str]:
        """See :class:`~ddn_cvx.engine.cone_path.ConePath`."""
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
        lines.append(f"solver={settings.solver!r} ({self._solver(settings)[1]})")
        if settings.starts > 1:
            lines.append(f"starts={settings.starts}, the best kept")
        if settings.fallback is not None:
            lines.append(f"fallback={settings.fallback!r}, one element at a time")
        how = NONLINEAR_ADJOINTS[self.adjoint].describe(program)
        lines.append(f"adjoint={self.adjoint!r} ({how})")
        return lines

    def another_solver(self) -> str | None:
        """A solver that is not the layer's, for its audit; None if there is none here."""
        if self._problem is None:
            return None
        if self.settings.solver != TORCH:
            return TORCH
        found = installed_nonlinear_solvers() if self._problem.is_dnlp() else ()
        return found[0] if found else None

    def advice(self) -> str:
        """Why the problem is not a cone program, and what to write instead."""
        explained = explanation(self.declaration)
        return explained.text if explained else ""

    # -- one call -------------------------------------------------------------------------------

    def instance(self, plan: Plan, inputs: BatchedInputs) -> tuple[NonlinearInstance, torch.Tensor]:
        """See :class:`~ddn_cvx.engine.cone_path.ConePath`."""
        tensors = tuple(self.compiled.inputs(inputs.tensors))
        return self._at(tensors, len(inputs.bad)), inputs.bad

    def start(self, inputs: BatchedInputs, instance: Any, initial: Starts) -> torch.Tensor:
        """Where a local solver starts, shape ``(B, n)``."""
        given = {} if initial is None else self._given(inputs, initial)
        tensors = tuple(tensor.detach() for tensor in instance.inputs)
        with torch.no_grad():
            declared = getattr(self.declaration, "start", None)
            if declared is not None and self._problem is not None:
                found = declared(*(torch.nan_to_num(tensor) for tensor in tensors))
                for variable, value in zip(self._problem.variables(), found, strict=True):
                    given.setdefault(variable.id, value)
            start = self.compiled.start(tensors, given, len(inputs.bad), inputs.device)
            return cast(torch.Tensor, start.detach())

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
            key = 0 if self._problem is None else variable.id
            given[key] = full.reshape(count, *shape)
        return given

    def degenerate(self, instance: NonlinearInstance, answer: Answer) -> torch.Tensor:
        """The derivative is one-sided, or not unique."""
        assert answer.degeneracy is not None
        flags = int(Degeneracy.WEAKLY_ACTIVE | Degeneracy.NO_CURVATURE)
        return (answer.degeneracy & flags) != 0

    def certificate(
        self, plan: Plan, instance: NonlinearInstance, answer: Answer
    ) -> KKTCertificate:
        """See :class:`~ddn_cvx.engine.cone_path.ConePath`."""
        return KKTCertificate(instance, answer.primal, answer.dual, self.compiled.primals)
