"""The factors of a solution, kept for its derivatives: the systems are the same."""

from __future__ import annotations

import torch

from ddn_cvx.conic.interior_point.active_set import ActiveRows
from ddn_cvx.conic.interior_point.prepared import Frame


class KeptFactors:
    """See :class:`~ddn_cvx.conic.adjoints.base.Factors`.

    Args:
        frame: from the program's units to the factors'.
        active: the system of the active rows.
    """

    def __init__(self, frame: Frame, active: ActiveRows) -> None:
        self._frame, self._active = frame, active

    def adjoint(
        self, primal_gradient: torch.Tensor, dual_gradient: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``(a, c)`` as of :func:`~ddn_cvx.conic.adjoints.reduced.reduced_adjoint`, and residual.

        The program's system has the negative gradients in the places of ``q`` and ``b``.
        """
        q, b = self._frame.vectors(-primal_gradient, dual_gradient)
        a, c, residual = self._active.solve(q, b)
        return torch.cat(self._frame.outside(a, c, -primal_gradient, dual_gradient), 1), residual
