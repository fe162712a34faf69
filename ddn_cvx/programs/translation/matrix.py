"""Inverses, determinants and quadratic forms of inverses.

Through inverses without torch's check: a singular matrix gives NaN or infinity for its own element
of the batch, and does not raise for all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ddn_cvx.programs.translation.registry import register, register_functions
from ddn_cvx.programs.translation.shapes import trace
from ddn_cvx.programs.translation.tape import Tape, Value


def identity_like(X: torch.Tensor) -> torch.Tensor:
    """The identity matrix of the size of ``(..., n, n)``."""
    return torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)


def _inverse(X: torch.Tensor) -> torch.Tensor:
    inverse: torch.Tensor = torch.linalg.inv_ex(X).inverse
    return inverse


def _resolvent(X: torch.Tensor) -> torch.Tensor:
    return _inverse(identity_like(X) - X)


@register("matrix_frac.MatrixFrac")
def _build_matrix_frac(tape: Tape, atom: Any, args: list[Value]) -> Value:
    X, P = args
    X = X if len(X.shape) == 2 else tape.view(X, (*X.shape, 1))
    if P.array is not None:
        return tape.call(_inverse_form, X, tape.constant(np.linalg.inv(P.array)), shape=())
    return tape.call(_matrix_frac, X, P, shape=())


def _inverse_form(X: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    return (X * torch.matmul(inverse, X)).sum((-2, -1))


def _matrix_frac(X: torch.Tensor, P: torch.Tensor) -> torch.Tensor:
    return _inverse_form(X, _inverse(P))


def positive_definite(X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The symmetric part, and where it is positive definite.

    Elsewhere it is replaced by the identity, so that no derivative is NaN.
    """
    X = 0.5 * (X + X.mT)
    inside = torch.linalg.cholesky_ex(X.detach()).info == 0
    return torch.where(inside[..., None, None], X, identity_like(X)), inside


def _log_det(X: torch.Tensor) -> torch.Tensor:
    """Of the symmetric part; -inf where it is not positive definite."""
    X, inside = positive_definite(X)
    factor = torch.linalg.cholesky_ex(X).L
    value = 2.0 * torch.diagonal(factor, dim1=-2, dim2=-1).log().sum(-1)
    return value.masked_fill(~inside, -torch.inf)


def _trace_of_inverse(X: torch.Tensor) -> torch.Tensor:
    """Of the symmetric part; infinity where it is not positive definite."""
    X, inside = positive_definite(X)
    return trace(_inverse(X)).masked_fill(~inside, torch.inf)


register_functions(
    {
        "eye_minus_inv.eye_minus_inv": _resolvent,
        "log_det.log_det": _log_det,
        "tr_inv.tr_inv": _trace_of_inverse,
    }
)
