"""The exact adjoint as users ask for it: "kkt" for cone programs, "implicit" for nonlinear ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ddn_cvx.kkt.adjoint import pull_back, push_forward


@dataclass(frozen=True)
class Implicit:
    """Solves the KKT system of the solution; see :mod:`ddn_cvx.kkt.adjoint`.

    Attributes:
        name: under which the user asked for it.
    """

    name: str = "kkt"
    is_differentiable = True
    form = "quadratic"
    described = "exact"

    def supports(self, program: Any) -> None:
        """Every program."""
        return

    pull_back = staticmethod(pull_back)
    push_forward = staticmethod(push_forward)
