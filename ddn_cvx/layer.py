"""The layer: program, solver and adjoint put together as a ``torch.nn.Module``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ddn_cvx.batch.inputs import BatchedInputs, batch_inputs
from ddn_cvx.batch.policy import POLICIES
from ddn_cvx.declaration import Declaration
from ddn_cvx.errors import DeclarationError
from ddn_cvx.solution import Solution
from ddn_cvx.torch_problem import TorchProblem

if TYPE_CHECKING:
    import cvxpy as cp

    from ddn_cvx.audit import Audit
    from ddn_cvx.engine.engine import Engine
    from ddn_cvx.engine.peer import PeerEngine


class DeclarativeLayer(torch.nn.Module):
    """An optimization problem as a differentiable, batched layer.

    The forward pass is the problem's solution, the backward pass the implicit function theorem at
    the solution (Gould, Hartley and Campbell, "Deep declarative networks", 2021). The signature is
    a superset of ``cvxpylayers.torch.CvxpyLayer``: change the import and nothing else.

    Args:
        problem: any continuous cvxpy problem; a :class:`~ddn_cvx.Declaration`, which brings its own
            parameters and variables; or a :class:`~ddn_cvx.TorchProblem`. What is DCP and DPP (or
            log-log convex, with ``gp``) becomes a cone program, anything else a nonlinear program,
            for which a local solution is found; ``repr(layer)`` says which and why.
        parameters: every parameter of the problem, in the order of the layer's inputs.
        variables: variables, or dual variables of constraints, in the order of its outputs.
        solver: None chooses; "INTERIOR" (batched, on the inputs' device), "CLARABEL",
            "SCS", "DIFFCP", "MOREAU", or a cvxpylayers
            ``SolverInterface`` for cone programs; "TORCH" (batched), "UNO" or "IPOPT" (through
            cvxpy, one element at a time) for nonlinear programs; "DEDICATED" for a declaration that
            brings its own algorithm, which is what None chooses where the problem is not convex.
        gp: the problem is a geometric program.
        verbose: let cvxpy and the solver print.
        canon_backend: cvxpy's canonicalisation backend.
        solver_args: the solver's settings, as for cvxpylayers; a call's own override them.
            ``mode`` names diffcp's adjoint, ``solve_method`` the solver behind diffcp. For
            nonlinear programs see :class:`ddn_cvx.solvers.nonlinear.settings.Settings`.
        adjoint: None chooses; "kkt" (exact, batched, differentiable again), diffcp's "lsqr",
            "lsmr" or "dense", or "native", the backward pass that comes with the solver; for
            nonlinear programs "implicit", or "unrolled", backpropagation through the iterations,
            for comparison, or a dedicated solver's "native".
        on_failure: what elements without a solution do: "raise" one
            :class:`~ddn_cvx.SolveError` that lists them and carries the others; "nan" gives NaN
            with zero gradient; "warn" does so and warns.
        starts: number of starts for each element of a nonlinear program; the solution with the
            lowest objective is kept.
        fallback: "UNO" or "IPOPT" retries the elements of a nonlinear program that the batched
            solver could not solve, one at a time.

    Shapes:
        Inputs ``(*batch, *parameter.shape)`` with any number of leading dimensions, which broadcast
        against one another; outputs ``(*batch, *variable.shape)`` in the inputs' dtype, on their
        device. Computed in float64 whatever the dtype.

    Raises:
        DeclarationError: the problem cannot become a layer; the message says why and what to write.

    Example:
        >>> import cvxpy as cp, torch, ddn_cvx as ddn
        >>> u, x = cp.Variable(3), cp.Parameter(3)
        >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [u >= 0])
        >>> layer = ddn.DeclarativeLayer(problem, parameters=[x], variables=[u])
        >>> inputs = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
        >>> (projection,) = layer(inputs)
        >>> projection.sum().backward()
        >>> inputs.grad
        tensor([1., 0., 1.])
    """

    def __init__(
        self,
        problem: cp.Problem | Declaration | TorchProblem,
        parameters: Sequence[cp.Parameter] | None = None,
        variables: Sequence[cp.Variable] | None = None,
        solver: Any = None,
        gp: bool = False,
        verbose: bool = False,
        canon_backend: str | None = None,
        solver_args: dict[str, Any] | None = None,
        *,
        adjoint: str | None = None,
        on_failure: str = "raise",
        starts: int = 1,
        fallback: str | None = None,
    ) -> None:
        super().__init__()
        if on_failure not in POLICIES:
            raise ValueError(
                f"on_failure must be one of {', '.join(map(repr, POLICIES))}; got {on_failure!r}."
            )
        self.declaration = _as_declaration(problem, parameters, variables, gp)
        self.on_failure = on_failure
        from ddn_cvx.engine.classify import create_engine

        self._engine: Engine | PeerEngine = create_engine(
            self.declaration,
            solver=solver,
            adjoint=adjoint,
            verbose=verbose,
            canon_backend=canon_backend,
            solver_args=dict(solver_args or {}),
            starts=starts,
            fallback=fallback,
        )
        if isinstance(self.declaration, TorchProblem):
            # Registered, so that optimizers, .to() and state_dict see their parameters.
            self.functions = torch.nn.ModuleDict(self.declaration.modules())

    def forward(
        self,
        *params: torch.Tensor,
        solver_args: dict[str, Any] | None = None,
        warm_start: bool = False,
        initial: Any = None,
    ) -> tuple[torch.Tensor, ...]:
        """Solve, and return the requested variables.

        Args:
            *params: one tensor for each parameter, see the class's shapes.
            solver_args: settings for this call, over those of the layer.
            warm_start: start from the previous call's solution; with solver="MOREAU" or
                "INTERIOR" only.
            initial: where a nonlinear program's solver starts: one tensor ``(*batch,
                *variable.shape)`` for each of the layer's variables, or a dictionary from
                variables to tensors. By default the declaration's start, else ``variable.value``,
                else zero, moved inside the bounds.

        Raises:
            TypeError, ValueError: wrong inputs, see :func:`ddn_cvx.batch.inputs.batch_inputs`.
            SolveError: elements failed and ``on_failure="raise"``.
        """
        if warm_start and not self._engine.path.warm_starts:
            raise ValueError(
                "warm_start=True is only supported with solver='MOREAU' or 'INTERIOR'. "
                f"Current solver is {self._engine.solver_name!r}."
            )
        inputs = self._batch(params)
        run = self._engine.forward
        if "torch._dynamo" in sys.modules:
            # torch.compile breaks its graph here: the solvers are not torch code.
            run = torch.compiler.disable(run)
        with torch.autocast(inputs.device.type, enabled=False):
            options = self._options(initial)
            values = run(
                inputs, solver_args or {}, self.on_failure, warm_start=warm_start, **options
            )
        return tuple(inputs.restore(value).to(inputs.dtype) for value in values)

    def solve(
        self,
        *params: torch.Tensor,
        solver_args: dict[str, Any] | None = None,
        initial: Any = None,
    ) -> Solution:
        """Solve without differentiating: values, multipliers, status, residuals, iterations.

        Arguments as for :meth:`forward`. Failing elements are reported in the solution's status,
        whatever ``on_failure`` says.
        """
        inputs = self._batch(tuple(torch.as_tensor(value).detach() for value in params))
        with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
            return self._engine.solve(inputs, solver_args or {}, **self._options(initial))

    def _options(self, initial: Any) -> dict[str, Any]:
        if initial is None:
            return {}
        reason = self._engine.path.why_no_start
        if reason is not None:
            raise ValueError(reason)
        return {"initial": initial}

    def check(self, *params: torch.Tensor) -> Audit:
        """Audit the layer on the user's own data; print the result for advice in plain words.

        Residuals, active sets, conditioning of the KKT system, gradient against central differences
        and against another solver. Arguments as for :meth:`forward`.
        """
        from ddn_cvx.audit import audit

        tensors = [torch.as_tensor(value).detach() for value in params]

        def twin(solver: str) -> DeclarativeLayer:
            return DeclarativeLayer(self.declaration, solver=solver, on_failure="nan")

        return audit(self, tensors, self._batch(tensors).tensors, self._engine.path, twin)

    def _batch(self, params: Sequence[torch.Tensor]) -> BatchedInputs:
        return batch_inputs(params, self.declaration.parameters, gp=self.declaration.gp)

    def extra_repr(self) -> str:
        """Inputs, outputs, and the chosen solver and adjoint, for ``repr``."""
        declaration = self.declaration

        def listed(leaves: Any) -> str:
            return ", ".join(f"{leaf.name()} {tuple(leaf.shape)}" for leaf in leaves) or "nothing"

        lines = [
            *([f"name={declaration.name!r}"] if declaration.name else []),
            f"{listed(declaration.parameters)} -> {listed(declaration.variables)}",
            *self._engine.path.describe(),
            f"on_failure={self.on_failure!r}",
        ]
        return "\n".join(lines)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # CvxpyLayer keeps its constant maps as buffers; its checkpoints load here.
        for name in ("P", "q", "A"):
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _as_declaration(
    problem: cp.Problem | Declaration | TorchProblem,
    parameters: Sequence[cp.Parameter] | None,
    variables: Sequence[cp.Variable] | None,
    gp: bool,
) -> Declaration | TorchProblem:
    if isinstance(problem, Declaration | TorchProblem):
        if parameters is not None or variables is not None or gp:
            raise DeclarationError(
                f"A {type(problem).__name__} brings its own parameters and variables; pass it "
                "alone."
            )
        return problem
    if parameters is None or variables is None:
        raise DeclarationError(
            "Pass parameters=[...] and variables=[...] with a cvxpy problem; parameters=[] is "
            "allowed for a problem without any."
        )
    return Declaration(problem, parameters, variables, gp=gp)
