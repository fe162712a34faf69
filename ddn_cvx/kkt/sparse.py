"""The exact adjoint for large programs: a sparse factorisation for each element, on the host.

The rows ``D A a + (D - I) c`` of the KKT system would fill in ``A``; the extra unknown
``w = A a + c`` keeps every block as sparse as the data:

    [P  A'  0] [a]   [g_x  ]
    [A  I  -I] [c] = [0    ]
    [0 -I   D] [w]   [D g_y]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ddn_cvx.cones.product import Derivative
from ddn_cvx.linalg.sparse_host import solve_sparse_checked, sparse_solve
from ddn_cvx.programs.cone.program import ConeData, ConeProgram


def sparse_adjoint(
    program: ConeProgram,
    data: ConeData,
    derivative: Derivative,
    right: torch.Tensor,
    on_failure: str,
) -> torch.Tensor:
    """``(a, c)`` with ``J' (a, c) = right``, both of shape ``(B, n + m)``; differentiable."""
    rows, columns, values = _assemble(program, data, derivative)
    found = sparse_solve(values, _padded(program, right), rows, columns, on_failure)
    return found[:, : right.shape[1]]


def sparse_adjoint_checked(
    program: ConeProgram, data: ConeData, derivative: Derivative, right: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same outside autograd, with the relative residual, shape ``(B,)``."""
    rows, columns, values = _assemble(program, data, derivative)
    found, residual = solve_sparse_checked(values, _padded(program, right), rows, columns)
    return found[:, : right.shape[1]], residual


def _padded(program: ConeProgram, right: torch.Tensor) -> torch.Tensor:
    first, last = right[:, : program.variables], right[:, program.variables :]
    return torch.cat([first, torch.zeros_like(last), last], 1)


def sparse_tangent(
    program: ConeProgram,
    data: ConeData,
    derivative: Derivative,
    right: torch.Tensor,
    on_failure: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(dx, dy)`` with ``J (dx, dv) = right`` and ``dy = D dv``: the same symmetric system."""
    n = program.variables
    first, second = right[:, :n], right[:, n:]
    rows, columns, values = _assemble(program, data, derivative)
    parts = torch.cat([first, second, torch.zeros_like(second)], 1)
    solution = sparse_solve(values, parts, rows, columns, on_failure)
    return solution[:, :n], solution[:, n : n + program.rows]


def _assemble(
    program: ConeProgram, data: ConeData, derivative: Derivative
) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    n, m = program.variables, program.rows
    batch = data.A.shape[0]
    ones = data.b.new_ones(1).expand(batch, m)
    entries: list[tuple[Any, Any, torch.Tensor]] = []
    P, A = program.P_pattern, program.A_pattern
    entries.append((P.rows, P.columns, data.P))
    entries.append((A.columns, n + A.rows, data.A))
    entries.append((n + A.rows, A.columns, data.A))
    everything = np.arange(m)
    entries.append((n + everything, n + everything, ones))
    entries.append((n + everything, n + m + everything, -ones))
    entries.append((n + m + everything, n + everything, -ones))
    linear = np.arange(derivative.diagonal.shape[1])
    entries.append((n + m + linear, n + m + linear, derivative.diagonal))
    for group, (_, block) in zip(program.cones.groups, derivative.blocks, strict=True):
        places = group.index
        k, d = places.shape
        row = np.broadcast_to(places[:, :, None], (k, d, d)).reshape(-1)
        column = np.broadcast_to(places[:, None, :], (k, d, d)).reshape(-1)
        entries.append((n + m + row, n + m + column, block.flatten(1)))
    rows = np.concatenate([entry[0] for entry in entries])
    columns = np.concatenate([entry[1] for entry in entries])
    values = torch.cat([entry[2].expand(batch, -1) for entry in entries], 1)
    return rows, columns, values
