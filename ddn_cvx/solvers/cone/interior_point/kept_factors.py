"""The factors of a solution, kept for its derivatives: the systems are the same."""

from __future__ import annotations

import functools
from typing import Any

import torch

from ddn_cvx.kkt.point import Factors
from ddn_cvx.kkt.reduced.substitution import Permutation, Reduction, Substitution
from ddn_cvx.linalg.saddle_point import SaddlePoint
from ddn_cvx.solvers.cone.interior_point.active_set import ActiveRows


def kept(frame: Permutation | Substitution, active: ActiveRows) -> Factors:
    """See :class:`~ddn_cvx.kkt.point.Factors`.

    Args:
        frame: from a dense program to the one that was solved.
        active: the system of the active rows.
    """
    assert isinstance(frame, Substitution)
    tensors = (*frame[1:], *active.system.parts, active.order, active.weight)
    return Factors(tensors, functools.partial(_adjoint, frame.reduction))


def _adjoint(
    reduction: Reduction,
    tensors: tuple[Any, ...],
    primal_gradient: torch.Tensor,
    dual_gradient: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The program's system has the negative gradients in the places of ``q`` and ``b``."""
    T, across, inner, below, P, A, factor, side, schur, order, weight = tensors
    frame = Substitution(reduction, T, across, inner, below)
    system = SaddlePoint(P, A, A.shape[1], given=(factor, side, schur))
    q, b = frame.vectors(-primal_gradient, dual_gradient)
    a, c, residual = ActiveRows(system, order, weight).solve(q, b)
    return torch.cat(frame.outside(a, c, -primal_gradient, dual_gradient), 1), residual
