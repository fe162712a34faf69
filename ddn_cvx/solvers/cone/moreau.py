"""Moreau (PyPI ``moreau``, an optional extra): the whole batch in one call.

Zero, nonnegative, second-order, exponential and power cones.
"""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from typing import Any

import numpy as np
import torch

from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.programs.cone.program import ConeData, ConeProgram
from ddn_cvx.solvers.answer import Answer
from ddn_cvx.solvers.cone.base import ConeSolver, Settings, under_own_names
from ddn_cvx.solvers.cone.interface import NativePair
from ddn_cvx.status import translated


class Moreau(ConeSolver):
    """Adapter to ``moreau.CompiledSolver``; settings are those that cvxpylayers hands to it."""

    name = "MOREAU"
    defaults: Settings = {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}
    warm_starts = True
    install = 'pip install "ddn-cvx[moreau]"'

    @staticmethod
    def is_installed() -> bool:
        """The package ``moreau`` can be imported."""
        return importlib.util.find_spec("moreau") is not None

    @staticmethod
    def supports(program: ConeProgram) -> str | None:
        """All but semidefinite cones."""
        return "Moreau takes no semidefinite cones here" if program.cones.semidefinite else None

    def solve(self, program: ConeProgram, data: ConeData, settings: Settings) -> Answer:
        """See :class:`~ddn_cvx.solvers.cone.base.ConeSolver`."""
        import moreau

        options = dict(settings)
        previous = options.pop("warm_start", None)
        start = None
        usable = previous is not None and previous[0].shape[0] == data.batch
        if usable and all(bool(tensor.isfinite().all()) for tensor in previous):
            x, z, slack = (tensor.cpu().numpy() for tensor in previous)
            start = moreau.BatchedWarmStart(x=x, z=z, s=slack)
        arguments, P_order, A_order = _arguments(program, data.batch, "cpu", options)
        solver = moreau.CompiledSolver(**arguments)
        solver.setup(data.P.numpy()[:, P_order], data.A.numpy()[:, A_order])
        solution = solver.solve(data.q.numpy(), data.b.numpy(), warm_start=start)
        names = [getattr(status, "name", str(status)) for status in solver.info.status]
        status = [int(translated(self.name, name)) for name in names]
        return Answer(
            torch.as_tensor(np.array(solution.x), dtype=torch.float64),
            torch.as_tensor(np.array(solution.z), dtype=torch.float64),
            torch.tensor(status),
            torch.as_tensor(np.array(solver.info.iterations), dtype=torch.int64).expand(data.batch),
        )


class MoreauPair(NativePair):
    """Moreau's solver with Moreau's own autograd."""

    name = Moreau.name
    form = "quadratic"
    supports = staticmethod(Moreau.supports)

    def solve(
        self, program: ConeProgram, data: ConeData, settings: Settings, needs_gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """See :class:`~ddn_cvx.solvers.cone.interface.NativePair`."""
        import moreau
        import moreau.torch

        device = data.q.device.type
        arguments, *orders = _arguments(
            program, data.batch, device, {**settings, "enable_grad": True}
        )
        for key, value in arguments.items():
            if key.endswith(("offsets", "indices")):
                arguments[key] = torch.as_tensor(value, dtype=torch.int64)
        with warnings.catch_warnings():
            # Moreau advises on its choice of algorithm; `solver="ipm"` in solver_args chooses.
            warnings.filterwarnings("ignore", message="solver='auto' resolved")
            solver = moreau.torch.Solver(**arguments)
        with torch.set_grad_enabled(needs_gradient):
            leaves = [
                tensor.detach().requires_grad_(needs_gradient)
                for tensor in (data.P, data.A, data.q, data.b)
            ]
            by_row = (
                values[:, torch.as_tensor(order)]
                for values, order in zip(leaves, orders, strict=False)
            )
            solution = solver.solve(*by_row, *leaves[2:])
        return solution.x.detach(), solution.z.detach(), (leaves, solution.x, solution.z)

    def pull(
        self, program: ConeProgram, state: Any, primal: torch.Tensor, dual: torch.Tensor
    ) -> ConeData:
        """See :class:`~ddn_cvx.solvers.cone.interface.NativePair`."""
        leaves, x, z = state
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        P, A, q, b = torch.autograd.grad((x, z), leaves, (primal, dual), **options)
        return ConeData(P, q, A, b)


def _arguments(
    program: ConeProgram, batch: int, device: str, settings: Settings
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Arguments of Moreau's constructors, and the orders of the stored values row by row."""
    import moreau

    options = under_own_names(settings, "tol")
    known = inspect.signature(moreau.IPMSettings).parameters
    inner = {key: options.pop(key) for key in list(options) if key in known}
    options.setdefault("device", device)
    cones = program.cones
    P_order, P_offsets, P_columns = _by_row(program.P_pattern)
    A_order, A_offsets, A_columns = _by_row(program.A_pattern)
    arguments = {
        "n": program.variables,
        "m": program.rows,
        "P_row_offsets": P_offsets,
        "P_col_indices": P_columns,
        "A_row_offsets": A_offsets,
        "A_col_indices": A_columns,
        "cones": moreau.Cones(
            num_zero_cones=cones.zero,
            num_nonneg_cones=cones.nonnegative,
            so_cone_dims=list(cones.second_order),
            num_exp_cones=cones.exponential,
            power_alphas=list(cones.power),
        ),
        "settings": moreau.Settings(
            batch_size=batch, ipm_settings=moreau.IPMSettings(**inner), **options
        ),
    }
    return arguments, P_order, A_order


def _by_row(pattern: Pattern) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order of the stored values row by row, and scipy's CSR structure."""
    across = pattern.shape[::-1]
    transposed, places = Pattern.of_entries(pattern.columns, pattern.rows, across)
    return np.argsort(places), transposed.indptr, transposed.indices
