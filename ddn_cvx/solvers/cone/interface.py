"""Solvers that bring their own derivative: ``adjoint="native"``.

A foreign pair of solve and derivative is called on the elements with good input; its solution is
checked here like any other, so that an element it gets wrong is reported and costs nobody else.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ddn_cvx.kkt.residuals import relative_residual
from ddn_cvx.programs.cone.instance import ConeInstance
from ddn_cvx.programs.cone.program import ConeData, ConeProgram
from ddn_cvx.programs.cone.units import natural_units
from ddn_cvx.solvers.answer import Answer, status_of
from ddn_cvx.solvers.cone.base import ConeSolver, Settings
from ddn_cvx.status import Status

# Relative KKT residual below which a foreign solver's point counts as solved: its stopping rule is
# not ours to tighten.
_SOLVED_BY_FOREIGN = 1e-4

# A mistake in the solver's code, not a problem that it cannot solve.
_MISTAKES = (TypeError, AttributeError, NameError, AssertionError, NotImplementedError)


class NativePair(Protocol):
    """A solve and the derivative that belongs to it.

    Attributes:
        name: for messages; a solver's own pair has the solver's.
        form: the program that it takes: "quadratic", "linear" (no ``P``) or the "interface"'s own.
    """

    name: str
    form: str

    def supports(self, program: ConeProgram) -> str | None:
        """See :class:`~ddn_cvx.solvers.cone.base.ConeSolver`."""
        return None

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


class InterfacePair(NativePair):
    """A cvxpylayers ``SolverInterface``; whether it takes a program shows when it is called."""

    form = "interface"

    def __init__(self, interface: Any) -> None:
        self.interface = interface
        self.name = type(interface).__name__

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


class InterfaceSolver(ConeSolver):
    """The solve half of a ``SolverInterface``, for use with another adjoint."""

    def __init__(self, interface: Any) -> None:
        self._pair = InterfacePair(interface)
        self.name = self._pair.name

    def solve(self, program: ConeProgram, data: ConeData, settings: Settings) -> Answer:
        """See :class:`~ddn_cvx.solvers.cone.base.ConeSolver`."""
        primal, dual, *_ = _solve_groups(self._pair, program, data, settings, False)
        status = torch.full((data.batch,), int(Status.SOLVED))
        status[primal.isnan().any(1).cpu()] = int(Status.FAILED)
        return Answer(primal, dual, status, torch.zeros_like(status))


def _solve_groups(
    pair: NativePair,
    program: ConeProgram,
    data: ConeData,
    settings: Settings,
    needs_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor, list[tuple[torch.Tensor, Any]], Exception | None]:
    """Solve all elements together or, where that raises, one by one.

    Returns ``x`` and ``y``, NaN where there is none, each group of elements with its state, and the
    first exception.

    Raises:
        Exception: the solver's own, where it is a mistake in its code that spared no element.
    """
    x = data.q.new_full((data.batch, program.variables), torch.nan)
    y = data.q.new_full((data.batch, program.rows), torch.nan)
    runs: list[tuple[torch.Tensor, Any]] = []
    groups = [torch.arange(data.batch, device=data.q.device)] if data.batch else []
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


class DiffcpPair(NativePair):
    """diffcp's solve and derivative of a batch, with all of diffcp's modes.

    Args:
        method: diffcp's name for the solver.
    """

    name = "DIFFCP"
    form = "linear"

    def __init__(self, method: str) -> None:
        self._method = method

    def supports(self, program: ConeProgram) -> str | None:
        """All but power cones."""
        return "diffcp takes no power cones" if program.cones.power else None

    def solve(
        self, program: ConeProgram, data: ConeData, settings: Settings, needs_gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """See :class:`NativePair`."""
        import diffcp

        cones = program.cones.scs()
        cones.pop("p")
        host = data.detach_to_host()
        A = [program.A_pattern.sparse(values.copy()) for values in host.A.numpy()]
        x, y, _, _, pull = diffcp.solve_and_derivative_batch(
            A,
            list(host.b.numpy()),
            list(host.q.numpy()),
            [cones] * data.batch,
            **{"solve_method": self._method, **settings},
        )
        return _stacked(x, data.q), _stacked(y, data.q), pull

    def pull(
        self, program: ConeProgram, state: Any, primal: torch.Tensor, dual: torch.Tensor
    ) -> ConeData:
        """See :class:`NativePair`."""
        dx, dy = (list(gradient.cpu().numpy()) for gradient in (primal, dual))
        dA, db, dq = state(dx, dy, [np.zeros(program.rows)] * len(dx))
        # diffcp drops stored zeros of A: read its gradient at the pattern's places.
        places = program.A_pattern.rows, program.A_pattern.columns
        A = [np.asarray(matrix.tocsr()[places]).reshape(-1) for matrix in dA]
        P = primal.new_zeros(len(dx), program.P_pattern.stored)
        return ConeData(P, *(_stacked(part, primal) for part in (dq, A, db)))


def _stacked(rows: list[np.ndarray], like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.stack(rows)).to(like)


@dataclass(frozen=True, eq=False)
class NativeSolver:
    """A pair as a solver of instances; the derivative travels in ``Answer.pull``.

    Attributes:
        limited: the user limited the work: what stops short is INACCURATE, not FAILED.
    """

    pair: NativePair
    settings: Settings
    needs_gradient: bool
    limited: bool

    def __call__(self, instance: ConeInstance, start: torch.Tensor | None = None) -> Answer:
        """Solve all elements and check their residuals; see :func:`_solve_groups`."""
        program, data = instance.program, instance.data
        x, y, runs, reason = _solve_groups(
            self.pair, program, data, self.settings, self.needs_gradient
        )
        finite = x.isfinite().all(1) & y.isfinite().all(1)
        x, y = (torch.where(finite.unsqueeze(1), value, 0.0) for value in (x, y))
        units = natural_units(program, data)
        residual = relative_residual(program, units.scale(data), x / units.rho, y / units.sigma)
        # Rows in an order that is not ours cannot be checked: the solver's word is taken, and the
        # residual reported as unknown.
        checked = program.is_checked
        residual = torch.where(finite, residual if checked else 0.0, torch.inf)
        status = status_of(residual, _SOLVED_BY_FOREIGN, self.limited)
        status = torch.where(finite, status, int(Status.FAILED))
        if not checked:
            residual = torch.full_like(residual, torch.nan)
        zero = torch.zeros_like(status)
        pull = functools.partial(_pulled, self.pair, program, runs)
        return Answer(x, y, status, zero, residual=residual, rung=zero, pull=pull, reason=reason)


def _pulled(
    pair: NativePair,
    program: ConeProgram,
    runs: list[tuple[torch.Tensor, Any]],
    primal: torch.Tensor,
    dual: torch.Tensor,
) -> list[torch.Tensor]:
    """Gradients of ``P``, ``q``, ``A`` and ``b`` by the pair's own derivative."""
    sizes = program.P_pattern.stored, program.variables, program.A_pattern.stored, program.rows
    total = [primal.new_zeros(len(primal), size) for size in sizes]
    for group, state in runs:
        pulled = pair.pull(program, state, primal[group], dual[group])
        for whole, part in zip(total, (pulled.P, pulled.q, pulled.A, pulled.b), strict=True):
            whole[group] = part
    return total
