"""Inverses, determinants and quadratic forms of inverses.

Through inverses without torch's check: a singular matrix gives NaN or infinity for its own element
of the batch, and does not raise for all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ddn_cvx.programs.translation.registry import register
from ddn_cvx.programs.translation.shapes import trace
from ddn_cvx.programs.translation.tape import Tape, Value


def _identity(X: torch.Tensor) -> torch.Tensor:
    return torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)


def _inverse(X: torch.Tensor) -> torch.Tensor:
    inverse: torch.Tensor = torch.linalg.inv_ex(X).inverse
    return inverse


@register("eye_minus_inv.eye_minus_inv")
def _build_resolvent(tape: Tape, atom: Any, args: list[Value]) -> Value:
    return tape.call(_resolvent, args[0], shape=atom.shape)


def _resolvent(X: torch.Tensor) -> torch.Tensor:
    return _inverse(_identity(X) - X)


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


def _guarded(X: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """The identity in place of matrices outside the domain, so that no derivative is NaN."""
    return torch.where(inside[..., None, None], X, _identity(X))


@register("log_det.log_det")
def _build_log_det(tape: Tape, atom: Any, args: list[Value]) -> Value:
    return tape.call(_log_det, args[0], shape=())


def _log_det(X: torch.Tensor) -> torch.Tensor:
    """Of the symmetric part; -inf where it is not positive definite."""
    X = 0.5 * (X + X.mT)
    inside = torch.linalg.cholesky_ex(X.detach()).info == 0
    factor = torch.linalg.cholesky_ex(_guarded(X, inside)).L
    value = 2.0 * torch.diagonal(factor, dim1=-2, dim2=-1).log().sum(-1)
    return value.masked_fill(~inside, -torch.inf)


@register("tr_inv.tr_inv")
def _build_trace_of_inverse(tape: Tape, atom: Any, args: list[Value]) -> Value:
    return tape.call(_trace_of_inverse, args[0], shape=())


def _trace_of_inverse(X: torch.Tensor) -> torch.Tensor:
    """Of the symmetric part; infinity where it is not positive definite."""
    X = 0.5 * (X + X.mT)
    inside = torch.linalg.cholesky_ex(X.detach()).info == 0
    return trace(_inverse(_guarded(X, inside))).masked_fill(~inside, torch.inf)
