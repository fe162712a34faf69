"""How a layer works: plan, solve, recover, apply the failure policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ddn_cvx.batch.inputs import BatchedInputs, forward_levels
from ddn_cvx.declaration import Declaration
from ddn_cvx.engine.choose import Extent
from ddn_cvx.engine.cone_path import ConePath
from ddn_cvx.engine.nonlinear_path import NonlinearPath
from ddn_cvx.engine.plan import Plan
from ddn_cvx.engine.policy import ElementsFailed, enforce_on_answer, solve_error
from ddn_cvx.engine.solution_map import SolutionMap
from ddn_cvx.kkt.nested_forward import reattached
from ddn_cvx.programs.cone.units import Units
from ddn_cvx.solution import Multipliers, Solution
from ddn_cvx.solvers.answer import Answer
from ddn_cvx.solvers.nonlinear.ladder import judged
from ddn_cvx.status import Status
from ddn_cvx.torch_problem import TorchProblem

Starts = Mapping[Any, Any] | Sequence[Any] | None
Recoveries = Sequence[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]

# Plans of so many different batch sizes and failure policies are kept.
_PLANS = 64


@dataclass(eq=False)
class Engine:
    """A compiled declaration with what the user asked for.

    Attributes:
        declaration: what is solved.
        path: compiles it and chooses what solves it.
    """

    declaration: Declaration | TorchProblem
    path: ConePath | NonlinearPath
    _plans: dict[Any, Plan] = field(default_factory=dict, repr=False)
    _previous: tuple[Any, torch.Tensor, torch.Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.plan({})  # errors of settings come at construction

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}}

    def plan(
        self,
        solver_args: dict[str, Any],
        on_failure: str = "nan",
        *,
        needs_gradient: bool = False,
        extent: Extent | None = None,
    ) -> Plan:
        """The plan of a call with these settings; by default, of one with a large batch."""
        options: dict[str, Any] = {"needs_gradient": needs_gradient, "extent": extent}
        if solver_args:
            return self.path.plan(solver_args, on_failure, **options)
        key = on_failure, needs_gradient, extent
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            plan = self._plans[key] = self.path.plan({}, on_failure, **options)
        return plan

    @property
    def solver_name(self) -> str:
        """Name of the solver that takes a large batch first."""
        return self.solver_for(None)

    def solver_for(self, extent: Extent | None) -> str:
        """Name of the solver that takes such a batch first."""
        return self.plan({}, extent=extent).solver_names[0]

    @property
    def adjoint_name(self) -> str:
        """Name of the adjoint."""
        return self.plan({}).adjoint.name

    # -- solving --------------------------------------------------------------------------------

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
        if warm_start and self._previous is not None:
            former, primal, dual = self._previous
            point = (primal, dual, former.slack(primal))
            solver_args = {**solver_args, "warm_start": point}
        needs_gradient = torch.is_grad_enabled() and inputs.requires_grad
        begun = self._begin(inputs, solver_args, on_failure, needs_gradient, initial)
        plan, instance, *_ = begun
        try:
            primal, dual = _by_map(*begun) if plan.traced is None else _traced(*begun)
        except ElementsFailed as failure:
            if torch._C._are_functorch_transforms_active():
                solution = _statuses_only(failure.answer)  # no values leave a vmap that raises
            else:
                solution = self._solution(plan, inputs, instance, failure.answer)
            raise solve_error(solution) from failure.answer.reason
        if self.path.warm_starts and not torch._C._are_functorch_transforms_active():
            self._previous = instance.detach(), primal.detach(), dual.detach()
        return [recovery(primal, dual) for recovery in plan.recoveries]

    def solve(
        self, inputs: BatchedInputs, solver_args: dict[str, Any], *, initial: Starts = None
    ) -> Solution:
        """Solve without differentiating."""
        plan, instance, excluded, start = self._begin(inputs, solver_args, "nan", False, initial)
        answer = plan.solve(instance, excluded, start)
        return self._solution(plan, inputs, instance, answer)

    def _begin(
        self,
        inputs: BatchedInputs,
        solver_args: dict[str, Any],
        on_failure: str,
        needs_gradient: bool,
        initial: Starts,
    ) -> tuple[Plan, Any, torch.Tensor, torch.Tensor | None]:
        """The plan, the instance, the excluded elements and the start of a call."""
        # Under vmap the batch is larger than it looks.
        mapped = torch._C._are_functorch_transforms_active()
        extent = None if mapped else Extent(len(inputs.bad), inputs.bad.device)
        plan = self.plan(solver_args, on_failure, needs_gradient=needs_gradient, extent=extent)
        instance, excluded = self.path.instance(plan, inputs)
        start = self.path.start(inputs, instance, initial)
        if start is not None:
            excluded = excluded | ~start.isfinite().all(1)
        return plan, instance, excluded, start

    def _solution(
        self, plan: Plan, inputs: BatchedInputs, instance: Any, answer: Answer
    ) -> Solution:
        failed = plan.has_failed(answer.status).unsqueeze(1)
        primal = torch.where(failed, torch.nan, answer.primal)
        dual = torch.where(failed, torch.nan, answer.dual)

        def read(recoveries: Recoveries) -> tuple[torch.Tensor, ...]:
            values = (recovery(primal, dual) for recovery in recoveries)
            return tuple(inputs.restore(value).to(inputs.dtype) for value in values)

        def multipliers(recoveries: Recoveries | None) -> Multipliers:
            values = None if recoveries is None else read(recoveries)
            return values[0] if values is not None and len(values) == 1 else values

        def shaped(value: torch.Tensor | None) -> torch.Tensor | None:
            return None if value is None else inputs.restore(value)

        instance = instance.detach()
        return Solution(
            primal=read(plan.recoveries),
            dual=tuple(multipliers(group) for group in plan.dual_recoveries),
            status=inputs.restore(answer.status),
            residual=inputs.restore(answer.residual),
            iterations=inputs.restore(answer.iterations),
            degenerate=inputs.restore(self.path.degenerate(instance, answer)),
            degeneracy=shaped(answer.degeneracy),
            runner_up=shaped(answer.runner_up),
            solver=tuple(plan.solver_names[rung] for rung in answer.rung.tolist()),
            _declaration=self.declaration if isinstance(self.declaration, Declaration) else None,
            _inputs=inputs.tensors,
            _certificate=self.path.certificate(plan, instance, answer),
        )


def _by_map(
    plan: Plan, instance: Any, excluded: torch.Tensor, start: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The solution with its implicit derivative."""
    primal, dual, _, rho, sigma, _ = SolutionMap.apply(  # type: ignore[no-untyped-call]
        plan, excluded, start, *instance.tensors
    )
    if forward_levels() < 2:
        return primal, dual
    primal, dual = primal.detach(), dual.detach()
    instance = instance.harmless(primal.isnan().any(1))
    if not rho.shape[1]:
        return reattached(instance, primal, dual)
    units = Units(rho.detach(), sigma.detach())
    primal, dual = reattached(instance.in_units(units), primal / units.rho, dual / units.sigma)
    return primal * units.rho, dual * units.sigma


def _traced(
    plan: Plan, instance: Any, excluded: torch.Tensor, start: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A solution that is differentiated as it was computed; checked, not polished."""
    assert plan.traced is not None
    assert start is not None
    start = torch.where(excluded.unsqueeze(1), 0.0, start)
    primal, dual = plan.traced(instance.harmless(excluded), start)
    with torch.no_grad():
        answer = judged(instance.detach(), primal.detach(), dual.detach())
    status = torch.where(excluded, int(Status.BAD_INPUT), answer.status)
    answer = replace(answer, status=status)
    failed = plan.has_failed(answer.status)
    enforce_on_answer(answer, failed, plan.on_failure)
    mask = failed.unsqueeze(1)
    return torch.where(mask, torch.nan, primal), torch.where(mask, torch.nan, dual)


def _statuses_only(answer: Answer) -> Solution:
    """A solution without values; its elements are numbered through all mapped dimensions."""
    return Solution(
        primal=(),
        dual=(),
        status=answer.status,
        residual=answer.residual,
        iterations=answer.iterations,
        degenerate=torch.zeros_like(answer.status, dtype=torch.bool),
    )
