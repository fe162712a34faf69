"""How a layer over nonlinear programs works: compile, solve, recover, apply the failure policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ddn_cvx.adjoints.unrolled import unrolled
from ddn_cvx.batch.inputs import BatchedInputs, forward_levels
from ddn_cvx.declaration import Declaration
from ddn_cvx.engine.nonlinear_choose import choose_method
from ddn_cvx.engine.nonlinear_solution_map import NonlinearMap
from ddn_cvx.engine.policy import solve_error, warn_of_failures
from ddn_cvx.engine.solution_map import ElementsFailed
from ddn_cvx.engine.starts import NonlinearOutcome, Plan
from ddn_cvx.errors import DeclarationError
from ddn_cvx.kkt.multipliers import recover_multipliers
from ddn_cvx.kkt.nested_forward import reattached
from ddn_cvx.kkt.nonlinear_adjoint import DENSE_UNKNOWNS
from ddn_cvx.kkt.nonlinear_certificate import NonlinearCertificate
from ddn_cvx.programs.nonlinear.at_inputs import BoundProgram
from ddn_cvx.programs.nonlinear.derivatives import Derivatives
from ddn_cvx.programs.nonlinear.from_torch import CompiledTorch, compile_torch
from ddn_cvx.solution import Multipliers, Solution
from ddn_cvx.solvers.nonlinear.dedicated import Dedicated
from ddn_cvx.solvers.nonlinear.settings import Settings, settings_from
from ddn_cvx.solvers.nonlinear.uno_ipopt import External
from ddn_cvx.status import Degeneracy, Status
from ddn_cvx.torch_problem import TorchProblem

Tensors = tuple[torch.Tensor, ...]
Starts = Mapping[Any, Any] | Sequence[Any] | None

# What the solvers other than TORCH are, for ``repr(layer)``.
_OTHERS = {
    "UNO": "through cvxpy, one element at a time",
    "IPOPT": "through cvxpy, one element at a time",
    "DEDICATED": "the declaration's own algorithm",
}


@dataclass(eq=False)
class NonlinearEngine:
    """The compiled declaration with what the user asked for.

    Attributes:
        declaration: what is solved.
        compiled: its program.
        settings: of the layer.
        reason: why this path was taken, for ``repr(layer)``.
        adjoint_name: "implicit", "unrolled" for comparison, or a dedicated solver's "native".
    """

    declaration: Declaration | TorchProblem
    compiled: Any
    settings: Settings
    reason: str
    adjoint_name: str = "implicit"

    warm_starts = False

    def __post_init__(self) -> None:
        self.derivatives = Derivatives(self.compiled.program)
        if self.adjoint_name not in self.adjoints:
            raise DeclarationError(
                f"The adjoint of this nonlinear program is one of {', '.join(self.adjoints)} "
                "('unrolled' only without inequalities, 'native' only with solver='DEDICATED'); "
                f"got {self.adjoint_name!r}."
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
    def solver_name(self) -> str:
        """Name of the solver that takes the batch first."""
        return self.settings.solver

    def describe(self) -> list[str]:
        """Lines for ``repr(layer)``: the program, what was chosen and why."""
        program = self.compiled.program
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
        lines += self.compiled.notes
        method, why = choose_method(program, self.settings)
        how = f"{method.name}: {why}" if self.solver_name == "TORCH" else _OTHERS[self.solver_name]
        lines.append(f"solver={self.solver_name!r} ({how})")
        if self.settings.starts > 1:
            lines.append(f"starts={self.settings.starts}, the best kept")
        if self.settings.fallback is not None:
            lines.append(f"fallback={self.settings.fallback!r}, one element at a time")
        unknowns = program.variables + program.rows
        how = "dense" if unknowns <= DENSE_UNKNOWNS else "MINRES"
        how = f"the KKT system at the solution, {how}"
        if self.adjoint_name == "unrolled":
            how = "backpropagation through Newton's iterations, unchecked"
        elif self.adjoint_name == "native":
            how = "the solver's own, unchecked"
        lines.append(f"adjoint={self.adjoint_name!r} ({how})")
        return lines

    def _external(self, name: str) -> External | Dedicated:
        if not isinstance(self.declaration, Declaration):
            raise DeclarationError(
                "UNO and IPOPT are reached through cvxpy; a TorchProblem is solved by TORCH only."
            )
        if name == "DEDICATED":
            return Dedicated(self.declaration, self.compiled)
        return External(self.declaration, self.compiled, name)

    # -- solving --------------------------------------------------------------------------------

    def plan(self, solver_args: dict[str, Any], on_failure: str) -> Plan:
        """Solver and policies for one call."""
        settings = settings_from(self.settings, solver_args)
        method, _ = choose_method(self.compiled.program, settings)
        fallback = None
        if settings.fallback is not None:
            fallback = self._external(settings.fallback)
        if settings.solver != "TORCH":
            method = self._external(settings.solver)
        return Plan(self.derivatives, method, fallback, settings.starts, settings.seed, on_failure)

    def forward(
        self,
        inputs: BatchedInputs,
        solver_args: dict[str, Any],
        on_failure: str,
        *,
        warm_start: bool = False,
        initial: Starts = None,
    ) -> list[torch.Tensor]:
        """The requested variables, each of shape ``(B, *shape)``, float64, differentiable."""
        plan = self.plan(solver_args, on_failure)
        tensors = self._tensors(inputs)
        start = self._start(inputs, tensors, initial)
        try:
            if self.adjoint_name != "implicit":
                primal, dual = self._as_found(plan, inputs, tensors, start)
                return [recovery(primal, dual) for recovery in self.compiled.requested]
            primal, dual, *_ = NonlinearMap.apply(plan, inputs.bad, start, *tensors)  # type: ignore[no-untyped-call]
            if forward_levels() > 1:
                own = plan.harmless(primal.isnan().any(1), tensors)
                primal, dual = reattached(self.derivatives, primal.detach(), dual.detach(), own)
        except ElementsFailed as failure:
            found = failure.outcome
            assert isinstance(found, NonlinearOutcome)
            solution = self._solution(plan, inputs, tensors, found)
            raise solve_error(solution) from failure.reason
        return [recovery(primal, dual) for recovery in self.compiled.requested]

    def _as_found(
        self, plan: Plan, inputs: BatchedInputs, tensors: Tensors, start: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A solution that is differentiated as it was computed; checked, not polished."""
        own = plan.harmless(inputs.bad, tensors)
        if isinstance(plan.solver, Dedicated):
            primal = plan.solver.primal(own)
            bound = BoundProgram(self.derivatives, tuple(t.detach() for t in own), len(primal))
            with torch.no_grad():
                dual = recover_multipliers(bound, torch.nan_to_num(primal.detach()))
        else:
            primal, dual = unrolled(self.derivatives, start, own)
        outcome = plan.judge(primal.detach(), dual.detach(), tensors, inputs.bad)
        failed = outcome.status != Status.SOLVED
        if bool(failed.any()) and plan.on_failure == "raise":
            raise ElementsFailed(outcome)
        if plan.on_failure == "warn":
            warn_of_failures(outcome.status)
        mask = failed.unsqueeze(1)
        return torch.where(mask, torch.nan, primal), torch.where(mask, torch.nan, dual)

    def solve(
        self, inputs: BatchedInputs, solver_args: dict[str, Any], *, initial: Starts = None
    ) -> Solution:
        """Solve without differentiating."""
        plan = self.plan(solver_args, "nan")
        tensors = self._tensors(inputs)
        outcome = plan.solve(tensors, inputs.bad, self._start(inputs, tensors, initial))
        return self._solution(plan, inputs, tensors, outcome)

    def _tensors(self, inputs: BatchedInputs) -> Tensors:
        return tuple(self.compiled.inputs(inputs.tensors))

    def _start(self, inputs: BatchedInputs, tensors: Tensors, initial: Starts) -> torch.Tensor:
        given = self._given(inputs, initial)
        batch = inputs.bad.shape[0]
        with torch.no_grad():
            plain = tuple(tensor.detach() for tensor in tensors)
            declared = getattr(self.declaration, "start", None)
            if isinstance(self.declaration, Declaration) and declared is not None:
                found = declared(*(torch.nan_to_num(tensor) for tensor in plain))
                for variable, value in zip(
                    self.declaration.problem.variables(), found, strict=True
                ):
                    given.setdefault(variable.id, value)
            start: torch.Tensor = self.compiled.start(plain, given, batch, inputs.device)
            return start

    def _given(self, inputs: BatchedInputs, initial: Starts) -> dict[int, torch.Tensor]:
        if initial is None:
            return {}
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

    def _solution(
        self, plan: Plan, inputs: BatchedInputs, tensors: Tensors, outcome: NonlinearOutcome
    ) -> Solution:
        failed = (outcome.status != 0).unsqueeze(1)
        primal = torch.where(failed, torch.nan, outcome.primal)
        dual = torch.where(failed, torch.nan, outcome.dual)

        def restored(value: torch.Tensor) -> torch.Tensor:
            return inputs.restore(value).to(inputs.dtype)

        def multipliers(group: Any) -> Multipliers:
            if group is None:
                return None
            values = tuple(restored(read(primal, dual)) for read in group)
            return values[0] if len(values) == 1 else values

        names = (plan.solver_name, plan.fallback_name)
        flags = outcome.degeneracy
        one_sided = flags & int(Degeneracy.WEAKLY_ACTIVE | Degeneracy.NO_CURVATURE)
        detached = tuple(tensor.detach() for tensor in tensors)
        bound = BoundProgram(self.derivatives, detached, inputs.bad.shape[0])
        return Solution(
            primal=tuple(restored(recovery(primal, dual)) for recovery in self.compiled.requested),
            dual=tuple(multipliers(group) for group in self.compiled.duals),
            status=inputs.restore(outcome.status),
            residual=inputs.restore(outcome.residual),
            iterations=inputs.restore(outcome.iterations),
            degenerate=inputs.restore(one_sided != 0),
            degeneracy=inputs.restore(flags),
            runner_up=inputs.restore(outcome.runner_up),
            solver=tuple(names[int(rung)] for rung in outcome.rung.tolist()),
            _declaration=self.declaration if isinstance(self.declaration, Declaration) else None,
            _inputs=inputs.tensors,
            _certificate=NonlinearCertificate(bound, outcome.primal, outcome.dual, self.compiled),
        )


def nonlinear_engine(
    declaration: Declaration | TorchProblem,
    settings: Settings,
    reason: str,
    adjoint: str = "implicit",
) -> NonlinearEngine:
    """Compile, so that errors come at construction.

    Raises:
        DeclarationError: the problem has no meaning as a nonlinear program.
    """
    compiled: Any
    if isinstance(declaration, TorchProblem):
        compiled = compile_torch(declaration)
    else:
        from ddn_cvx.programs.nonlinear.from_cvxpy import compile_nonlinear

        compiled = compile_nonlinear(declaration)
    engine = NonlinearEngine(declaration, compiled, settings, reason, adjoint)
    engine.plan({}, "nan")
    return engine
