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

from ddn_cvx.conic.cones import Derivative
from ddn_cvx.conic.program import ConeData, ConeProgram
from ddn_cvx.implicit.sparse_solve import sparse_solve


def sparse_adjoint(
    program: ConeProgram,
    data: ConeData,
    derivative: Derivative,
    right: torch.Tensor,
    on_failure: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(a, c)`` with ``J' (a, c) = right``; ``right`` has shape ``(B, n + m)``."""
    n = program.variables
    first, last = right[:, :n], right[:, n:]
    return _solve(program, data, derivative, (first, torch.zeros_like(last), last), on_failure)


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
    return _solve(program, data, derivative, (first, second, torch.zeros_like(second)), on_failure)


def _solve(
    program: ConeProgram,
    data: ConeData,
    derivative: Derivative,
    right: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    on_failure: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    n, m = program.variables, program.rows
    rows, columns, values = _assemble(program, data, derivative)
    solution = sparse_solve(values, torch.cat(right, 1), rows, columns, on_failure)
    return solution[:, :n], solution[:, n : n + m]


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
