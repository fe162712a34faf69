"""SCS: an operator-splitting method that scales to large programs, elements in parallel threads.

O'Donoghue, "Operator splitting for a homogeneous embedding of the linear complementarity problem"
(2021).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from ddn_cvx.programs.cone.program import ConeData, ConeProgram
from ddn_cvx.solvers.answer import Answer
from ddn_cvx.solvers.cone.base import DIFFCP_SETTINGS, ConeSolver, Settings, upper_triangle
from ddn_cvx.status import translated

_IGNORED = DIFFCP_SETTINGS | {"raise_on_error"}

# Settings that only SCS (or diffcp in front of it) understands: they choose it.
OWN_SETTINGS = frozenset(
    {
        "acceleration_interval", "acceleration_lookback", "adaptive_scale", "alpha", "eps",
        "eps_abs", "eps_infeas", "eps_rel", "log_csv_filename", "max_iters", "normalize", "rho_x",
        "scale", "time_limit_secs", "warm_starts", "write_data_filename",
    }
)  # fmt: skip


class SCS(ConeSolver):
    """Adapter to the ``scs`` package; settings are SCS's, with diffcp's ``eps`` for both eps."""

    name = "SCS"
    defaults: Settings = {"eps_abs": 1e-9, "eps_rel": 1e-9, "max_iters": 20_000}
    ignored = DIFFCP_SETTINGS
    patient: Settings = {
        "eps_abs": 1e-10,
        "eps_rel": 1e-10,
        "max_iters": 100_000,
        "acceleration_lookback": 0,
        "time_limit_secs": 60.0,
    }

    def solve(self, program: ConeProgram, data: ConeData, settings: Settings) -> Answer:
        """See :class:`~ddn_cvx.solvers.cone.base.ConeSolver`."""
        import scipy.sparse
        import scs

        options = {key: value for key, value in settings.items() if key not in _IGNORED}
        options.setdefault("verbose", False)
        workers = int(options.pop("n_jobs_forward", -1))
        warm_starts = options.pop("warm_starts", None)
        if "eps" in options:
            options["eps_abs"] = options["eps_rel"] = options.pop("eps")
        cone = program.cones.scs()
        order, upper = upper_triangle(program)
        P_values, A_values = data.P.numpy()[:, order], data.A.numpy()
        q, b = data.q.numpy(), data.b.numpy()
        n, m = program.variables, program.rows
        padding: dict[str, Any] = {}
        if m == 0:  # SCS wants at least one row: 0 x <= 1
            padding = {"A": scipy.sparse.csc_matrix((1, n)), "b": np.ones(1)}
            cone, warm_starts = {"l": 1}, None

        def run(element: int) -> dict[str, Any]:
            problem = {"A": program.A_pattern.sparse(A_values[element]), "b": b[element]}
            problem |= {"c": q[element], **padding}
            if program.is_quadratic:
                problem["P"] = upper.sparse(P_values[element])
            warm = None if warm_starts is None else warm_starts[element]
            start = {} if warm is None else dict(zip("xys", warm, strict=True))
            solver = scs.SCS(problem, cone, **options)
            return dict(solver.solve(warm_start=warm is not None, **start))

        workers = (os.cpu_count() or 1) if workers == -1 else max(1, workers)
        if min(workers, data.batch) <= 1:
            results = [run(element) for element in range(data.batch)]
        else:
            with ThreadPoolExecutor(workers) as pool:
                results = list(pool.map(run, range(data.batch)))

        def stack(key: str, size: int) -> torch.Tensor:
            rows = [np.asarray(result[key], dtype=np.float64)[:size] for result in results]
            return torch.from_numpy(np.stack(rows))

        info = [result["info"] for result in results]
        status = [int(translated(self.name, int(entry["status_val"]))) for entry in info]
        return Answer(
            stack("x", n),
            stack("y", m),
            torch.tensor(status, dtype=torch.int64),
            torch.tensor([int(entry["iter"]) for entry in info], dtype=torch.int64),
        )
