"""The exact adjoint for large programs: a sparse factorisation for each element, on the host.

The rows ``D A a + (D - I) c`` of the KKT system would fill in ``A``; the extra unknown
``w = A a + c`` keeps every block as sparse as the data:

    [P  A'  0] [a]   [g_x  ]
    [A  I  -I] [c] = [0    ]
    [0 -I   D] [w]   [D g_y]
"""

from __future__ import annotations

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
    found = sparse_solve(*_system(instance, derivative, right, transposed), on_failure)
    return torch.cat([found[:, :n], found[:, n + m :]], 1) if transposed else found[:, : n + m]


def sparse_kkt_checked(
    instance: ConeInstance, derivative: Derivative, right: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``M'^-1 right`` outside autograd, with the relative residual, shape ``(B,)``."""
    found, residual = solve_sparse_checked(*_system(instance, derivative, right, False))
    return found[:, : right.shape[1]], residual


def _system(
    instance: ConeInstance, derivative: Derivative, right: torch.Tensor, transposed: bool
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray, np.ndarray]:
    """Values, right side, rows and columns of the symmetric system."""
    program, data = instance.program, instance.data
    P, A, n, m = program.P_pattern, program.A_pattern, program.variables, program.rows
    first, last = right[:, :n], right[:, n:]
    none = torch.zeros_like(last)
    whole = torch.cat([first, last, none] if transposed else [first, none, last], 1)
    c = n + np.arange(m)
    w, ones, linear = c + m, torch.ones_like(data.b), derivative.diagonal
    entries: list[tuple[np.ndarray, np.ndarray, torch.Tensor]] = [
        (P.rows, P.columns, data.P),
        (A.columns, n + A.rows, data.A),
        (n + A.rows, A.columns, data.A),
        (c, c, ones),
        (c, w, -ones),
        (w, c, -ones),
        (w[: linear.shape[1]], w[: linear.shape[1]], linear),
    ]
    for group, (_, block) in zip(program.cones.groups, derivative.blocks, strict=True):
        rows, columns = np.broadcast_arrays(group.index[:, :, None], group.index[:, None, :])
        entries.append((n + m + rows.ravel(), n + m + columns.ravel(), block.flatten(1)))
    values = torch.cat([value.expand(len(right), -1) for _, _, value in entries], 1)
    rows, columns = (np.concatenate([entry[k] for entry in entries]) for k in (0, 1))
    return values, whole, rows, columns
