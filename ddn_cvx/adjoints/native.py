"""Solvers that bring their own derivative: ``adjoint="native"``.

A foreign pair of solve and derivative is called on the elements with good input; its solution is
checked here like any other, so that an element it gets wrong is reported and costs nobody else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ddn_cvx.engine.policy import warn_of_failures
from ddn_cvx.engine.solution_map import ElementsFailed
from ddn_cvx.kkt.residuals import relative_residual
from ddn_cvx.programs.cone.program import ConeData, ConeProgram
from ddn_cvx.programs.cone.units import natural_units
from ddn_cvx.solvers.cone.base import LIMITS, RawSolution, Settings
from ddn_cvx.solvers.cone.ladder import INACCURATE, SOLVED, Outcome
from ddn_cvx.solvers.cone.moreau import Moreau, torch_solver
from ddn_cvx.status import Status

# A foreign solver's own stopping rule is not ours to tighten: this much counts as solved.
_SOLVED = 1e-4


# A mistake in the solver's code, not a problem that it cannot solve.
_MISTAKES = (TypeError, AttributeError, NameError, AssertionError, NotImplementedError)


class NativePair(Protocol):
    """A solve and the derivative that belongs to it."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    def supports(self, program: ConeProgram) -> str | None:
        """See :class:`~ddn_cvx.solvers.cone.base.ConeSolver`."""
        ...

    def solve(
        self, program: ConeProgram, data: ConeData, settings: Settings, needs_gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """``x``, ``y`` and whatever :meth:`pull` needs."""
        ...

    def pull(
        self, program: ConeProgram, state: Any, primal: torch.Tensor, dual: torch.Tensor
    ) -> ConeData:
        """Gradients of the data for incoming gradients ``(B, n)`` and ``(B, m)``."""
        ...


class InterfacePair:
    """A cvxpylayers ``SolverInterface`` that takes the canonical matrices."""

    def __init__(self, interface: Any) -> None:
        self.interface = interface
        self.name = type(interface).__name__

    def supports(self, program: ConeProgram) -> str | None:
        """Whether an interface can take a program shows when it is called."""
        return None

    def solve(
        self, program: ConeProgram, data: ConeData, settings: Settings, needs_gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """See :class:`NativePair`."""
        # cvxpylayers' convention: [A | b] with s = A x + b, and the objective's constant behind q
        # (zero here: no solution depends on it).
        raw_A = torch.cat([-data.A, data.b[:, self._b_rows(program, data.b.device)]], 1)
        raw_q = torch.cat([data.q, torch.zeros_like(data.q[:, :1])], 1)
        raw_P = data.P if program.is_quadratic else None
        primal, dual, state = self.interface.solve_torch_batch(
            raw_P, raw_q, raw_A, program.context.cone_dims, dict(settings), needs_gradient
        )
        return primal.to(data.q), dual.to(data.q), state

    def pull(
        self, program: ConeProgram, state: Any, primal: torch.Tensor, dual: torch.Tensor
    ) -> ConeData:
        """See :class:`NativePair`."""
        dP, dq, dA = self.interface.derivative_torch_batch(primal, dual, state)
        batch, stored = primal.shape[0], program.A_pattern.stored
        b = primal.new_zeros(batch, program.rows)
        b[:, self._b_rows(program, primal.device)] = dA[:, stored:].to(b)
        P = primal.new_zeros(batch, program.P_pattern.stored) if dP is None else dP.to(primal)
        return ConeData(P, dq[:, : program.variables].to(b), -dA[:, :stored].to(b), b)

    @staticmethod
    def _b_rows(program: ConeProgram, device: torch.device) -> torch.Tensor:
        structure = program.context.reduced_A.problem_data_index
        if structure is None:
            return torch.zeros(0, dtype=torch.int64, device=device)
        indices, indptr, _ = structure
        return torch.as_tensor(indices[indptr[-2] :], dtype=torch.int64, device=device)


class InterfaceSolver:
    """The solve half of a ``SolverInterface``, for use with another adjoint."""

    on_device = False
    defaults: Settings = {}

    def __init__(self, interface: Any) -> None:
        self._pair = InterfacePair(interface)
        self.name = self._pair.name

    def supports(self, program: ConeProgram) -> str | None:
        """See :class:`InterfacePair`."""
        return self._pair.supports(program)

    def solve(self, program: ConeProgram, data: ConeData, settings: Settings) -> RawSolution:
        """See :class:`~ddn_cvx.solvers.cone.base.ConeSolver`."""
        every = torch.arange(data.batch, device=data.q.device)
        primal, dual, *_ = _solve_groups(self._pair, program, data, settings, every, False)
        status = torch.full((data.batch,), int(Status.SOLVED))
        status[primal.isnan().any(1).cpu()] = int(Status.FAILED)
        return RawSolution(primal, dual, status, torch.zeros_like(status))


def _solve_groups(
    pair: NativePair,
    program: ConeProgram,
    data: ConeData,
    settings: Settings,
    kept: torch.Tensor,
    needs_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor, list[tuple[torch.Tensor, Any]], Exception | None]:
    """Solve some elements together or, where that raises, one by one.

    Returns ``x`` and ``y``, NaN where there is none, each group of elements with its state, and the
    first exception.

    Raises:
        Exception: the solver's own, where it is a mistake in its code that spared no element.
    """
    x = data.q.new_full((data.batch, program.variables), torch.nan)
    y = data.q.new_full((data.batch, program.rows), torch.nan)
    runs: list[tuple[torch.Tensor, Any]] = []
    groups = [kept] if len(kept) else []
    reason: Exception | None = None
    while groups:
        group = groups.pop()
        try:
            found = pair.solve(program, data.select(group), settings, needs_gradient)
        except Exception as error:
            reason = reason or error
            if len(group) > 1:  # one bad element must not cost the others
                groups += list(group.split(1))
            continue
        x[group], y[group] = found[0], found[1]
        runs.append((group, found[2]))
    if not runs and isinstance(reason, _MISTAKES):
        raise reason
    return x, y, runs, reason


class MoreauPair:
    """Moreau's solver with Moreau's own autograd."""

    name = "MOREAU"

    def supports(self, program: ConeProgram) -> str | None:
        """As the solver without its derivative."""
        return Moreau().supports(program)

    def solve(
        self, program: ConeProgram, data: ConeData, settings: Settings, needs_gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """See :class:`NativePair`."""
        solver, arrange = torch_solver(program, data, settings)
        with torch.set_grad_enabled(needs_gradient):
            leaves = [
                tensor.detach().requires_grad_(needs_gradient)
                for tensor in (data.P, data.A, data.q, data.b)
            ]
            solution = solver.solve(*arrange(*leaves))
        return solution.x.detach(), solution.z.detach(), (leaves, solution.x, solution.z)

    def pull(
        self, program: ConeProgram, state: Any, primal: torch.Tensor, dual: torch.Tensor
    ) -> ConeData:
        """See :class:`NativePair`."""
        leaves, x, z = state
        P, A, q, b = torch.autograd.grad(
            (x, z),
            leaves,
            (primal, dual),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return ConeData(P, q, A, b)


class DiffcpPair:
    """diffcp's solve and derivative, element by element, with all of diffcp's modes."""

    name = "DIFFCP"

    def supports(self, program: ConeProgram) -> str | None:
        """All but power cones."""
        return "diffcp takes no power cones" if program.cones.power else None

    def solve(
        self, program: ConeProgram, data: ConeData, settings: Settings, needs_gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """See :class:`NativePair`; an element that diffcp cannot solve is NaN."""
        import diffcp

        options = dict(settings)
        for key in ("n_jobs_forward", "n_jobs_backward"):
            options.pop(key, None)
        cones = program.cones.scs()
        cones.pop("p")
        host = data.detach_to_host()
        x = torch.full((data.batch, program.variables), torch.nan, dtype=torch.float64)
        y = torch.full((data.batch, program.rows), torch.nan, dtype=torch.float64)
        pulls: list[Callable[..., Any] | None] = [None] * data.batch
        for element in range(data.batch):
            A = program.A_pattern.sparse(host.A[element].numpy().copy())
            try:
                result = diffcp.solve_and_derivative(
                    A, host.b[element].numpy(), host.q[element].numpy(), cones, **options
                )
            except (diffcp.SolverError, ValueError, RuntimeError):
                continue
            x[element], y[element] = torch.from_numpy(result[0]), torch.from_numpy(result[1])
            pulls[element] = result[4]
        return x.to(data.q), y.to(data.q), pulls

    def pull(
        self, program: ConeProgram, state: Any, primal: torch.Tensor, dual: torch.Tensor
    ) -> ConeData:
        """See :class:`NativePair`."""
        batch = primal.shape[0]
        A = np.zeros((batch, program.A_pattern.stored))
        q, b = np.zeros((batch, program.variables)), np.zeros((batch, program.rows))
        for element, pull in enumerate(state):
            if pull is None:
                continue
            dx, dy = primal[element].cpu().numpy(), dual[element].cpu().numpy()
            dA, b[element], q[element] = pull(dx, dy, np.zeros_like(dy))
            # diffcp drops stored zeros of A: read its gradient at the pattern's places.
            A[element] = np.asarray(
                dA.tocsr()[program.A_pattern.rows, program.A_pattern.columns]
            ).reshape(-1)
        P = primal.new_zeros(batch, program.P_pattern.stored)
        tensors = (torch.from_numpy(array).to(primal) for array in (q, A, b))
        return ConeData(P, *tensors)


@dataclass(frozen=True, eq=False)
class NativeEngine:
    """A program with a foreign pair; the counterpart of :class:`~.solution_map.Engine`."""

    program: ConeProgram
    pair: NativePair
    settings: Settings
    on_failure: str
    needs_gradient: bool

    @property
    def limited(self) -> bool:
        """The user limited the work."""
        return bool(LIMITS & self.settings.keys())

    def has_failed(self, status: torch.Tensor) -> torch.Tensor:
        """Which elements the failure policy applies to."""
        failed = status != Status.SOLVED
        return failed & (status != Status.INACCURATE) if self.limited else failed

    def run(
        self, data: ConeData, excluded: torch.Tensor
    ) -> tuple[Outcome, list[tuple[torch.Tensor, Any]], Exception | None]:
        """Solve the good elements and check what came; see :func:`_solve_groups`."""
        kept = (~excluded).nonzero().squeeze(1)
        batch, device = data.batch, data.q.device
        x, y, runs, reason = _solve_groups(
            self.pair, self.program, data, self.settings, kept, self.needs_gradient
        )
        finite = x.isfinite().all(1) & y.isfinite().all(1)
        x, y = (torch.where(finite.unsqueeze(1), value, 0.0) for value in (x, y))
        units = natural_units(self.program, data)
        here = units.scale(data)
        residual = relative_residual(self.program, here, x / units.rho, y / units.sigma)
        checked = self.program.is_checked
        # Rows in an order that is not ours cannot be checked: the solver's word is taken, and the
        # residual reported as unknown.
        residual = torch.where(finite, residual if checked else 0.0, torch.inf)
        status = torch.full((batch,), int(Status.FAILED), device=device)
        status[residual <= INACCURATE] = int(Status.INACCURATE)
        status[residual <= max(SOLVED, _SOLVED)] = int(Status.SOLVED)
        if self.limited:
            status[finite & (status == Status.FAILED)] = int(Status.INACCURATE)
        status[excluded] = int(Status.BAD_INPUT)
        if not checked:
            residual = torch.full_like(residual, torch.nan)
        zero = torch.zeros_like(status)
        return Outcome(x, y, status, residual, zero, zero), runs, reason


class NativeMap(torch.autograd.Function):
    """As :class:`~ddn_cvx.engine.solution_map.SolutionMap`, with a foreign pair; once only."""

    @staticmethod
    def forward(
        P: torch.Tensor,
        q: torch.Tensor,
        A: torch.Tensor,
        b: torch.Tensor,
        excluded: torch.Tensor,
        engine: NativeEngine,
    ) -> tuple[Any, ...]:
        outcome, runs, reason = engine.run(ConeData(P, q, A, b), excluded)
        failed = engine.has_failed(outcome.status)
        if bool(failed.any()) and engine.on_failure == "raise":
            raise ElementsFailed(outcome, reason)
        if engine.on_failure == "warn" or engine.limited:
            warn_of_failures(outcome.status)
        mask = failed.unsqueeze(1)
        primal = torch.where(mask, torch.nan, outcome.primal)
        dual = torch.where(mask, torch.nan, outcome.dual)
        return primal, dual, outcome.status, outcome.residual, runs

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.engine = inputs[-1]
        ctx.shapes = [tensor.shape for tensor in inputs[:4]]
        _, _, status, residual, ctx.runs = output
        ctx.mark_non_differentiable(status, residual)
        ctx.save_for_backward(status)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *incoming: Any) -> Any:
        (status,) = ctx.saved_tensors
        failed = ctx.engine.has_failed(status).unsqueeze(1)
        primal, dual = (torch.where(failed, 0.0, value) for value in incoming[:2])
        total = [primal.new_zeros(shape) for shape in ctx.shapes]
        for group, state in ctx.runs:
            pulled = ctx.engine.pair.pull(ctx.engine.program, state, primal[group], dual[group])
            parts = (pulled.P, pulled.q, pulled.A, pulled.b)
            for whole, part in zip(total, parts, strict=True):
                whole[group] = torch.where(failed[group], 0.0, part)
        return (*total, None, None)
