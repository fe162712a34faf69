"""Entries of the catalogue as modules that return one tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddn_cvx.layer import DeclarativeLayer


class QuadraticProgram(torch.nn.Module):
    """``argmin 1/2 u' P u + q' u`` subject to ``A u = b``, ``G u <= h``, all data inputs.

    Args:
        n, m, p: numbers of variables, of inequalities, and of equalities, see
            :func:`ddn_cvx.problems.quadratic_program`.
        **options: of :class:`ddn_cvx.DeclarativeLayer`: ``solver``, ``adjoint``, ``on_failure``,
            ``solver_args``.

    Shapes:
        Inputs ``P (*batch, n, n)``, ``q (*batch, n)``, ``A (*batch, p, n)``, ``b (*batch, p)``,
        ``G (*batch, m, n)``, ``h (*batch, m)``, whose leading dimensions broadcast; output ``u
        (*batch, n)``.

    Raises:
        DeclarationError: a size is out of its range.

    Example:
        >>> import torch
        >>> from ddn_cvx.nn import QuadraticProgram
        >>> program = QuadraticProgram(n=2, m=1, p=1)
        >>> ones = torch.ones(1, 2)
        >>> zero = torch.zeros(2)
        >>> u = program(torch.eye(2), zero, ones, torch.ones(1), ones, 2 * torch.ones(1))
        >>> [round(float(value), 6) for value in u]
        [0.5, 0.5]
    """

    def __init__(self, n: int, m: int, p: int, **options: Any) -> None:
        super().__init__()
        from ddn_cvx.problems import quadratic_program

        self.layer = DeclarativeLayer(quadratic_program(n, m, p), **options)

    def forward(self, P: Tensor, q: Tensor, A: Tensor, b: Tensor, G: Tensor, h: Tensor) -> Tensor:
        """The solutions; see the class's shapes."""
        u: Tensor = self.layer(P, q, A, b, G, h)[0]
        return u
