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
from ddn_cvx.programs.cone.instance import ConeInstance


def sparse_kkt(
    instance: ConeInstance,
    derivative: Derivative,
    right: torch.Tensor,
    on_failure: str,
    *,
    transposed: bool,
) -> torch.Tensor:
    """``M'^-1 right``, or ``M^-1 right`` where ``transposed``; differentiable, ``(B, n + m)``.

    The symmetric system above is that of both: with ``(0, r)`` in the place of its last two right
    sides the answer is ``(a, c)``, with ``(r, 0)`` it is ``(dx, w)``, and ``w`` is ``dv``.
    """
    n, m = instance.program.variables, instance.program.rows
    rows, columns, values = _assemble(instance, derivative)
    whole = _padded(n, right, transposed)
    found = sparse_solve(values, whole, rows, columns, on_failure)
    return torch.cat([found[:, :n], found[:, n + m :]], 1) if transposed else found[:, : n + m]


def sparse_kkt_checked(
    instance: ConeInstance, derivative: Derivative, right: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``M'^-1 right`` outside autograd, with the relative residual, shape ``(B,)``."""
    rows, columns, values = _assemble(instance, derivative)
    whole = _padded(instance.program.variables, right, False)
    found, residual = solve_sparse_checked(values, whole, rows, columns)
    return found[:, : right.shape[1]], residual


def _padded(n: int, right: torch.Tensor, transposed: bool) -> torch.Tensor:
    first, last = right[:, :n], right[:, n:]
    none = torch.zeros_like(last)
    return torch.cat([first, last, none] if transposed else [first, none, last], 1)


def _assemble(
    instance: ConeInstance, derivative: Derivative
) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    program, data = instance.program, instance.data
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
