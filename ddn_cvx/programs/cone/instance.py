"""A cone program at a batch of parameters: products with its data, and their derivatives."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ddn_cvx.batch.columns import added, picked
from ddn_cvx.programs.cone.program import ConeData, ConeProgram
from ddn_cvx.programs.cone.units import Units, natural_units

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True, eq=False)
class ConeInstance:
    """See :class:`~ddn_cvx.programs.instance.Instance`; ``c`` is ``A x - b``.

    Attributes:
        program: the patterns.
        data: the values.
    """

    program: ConeProgram
    data: ConeData

    @property
    def batch(self) -> int:
        """Number of elements ``B``."""
        return self.data.q.shape[0]

    @property
    def tensors(self) -> Tensors:
        """``P``, ``q``, ``A`` and ``b``."""
        return self.data.P, self.data.q, self.data.A, self.data.b

    def select(self, elements: torch.Tensor | slice) -> ConeInstance:
        """The instance of some elements."""
        return ConeInstance(self.program, self.data.select(elements))

    def detach(self) -> ConeInstance:
        """The same numbers without derivatives."""
        return ConeInstance(self.program, self.data.detach())

    def harmless(self, failed: torch.Tensor) -> ConeInstance:
        """The same: no element's data enter another's products."""
        return self

    def in_units(self, units: Units) -> ConeInstance:
        """The instance in each element's units."""
        return ConeInstance(self.program, units.scale(self.data))

    def in_natural_units(self) -> tuple[ConeInstance, Units]:
        """The instance in the units in which its data are of ordinary size, and these."""
        units = natural_units(self.program, self.data)
        return self.in_units(units), units

    def value(self, u: torch.Tensor) -> torch.Tensor:
        """``x' P x / 2 + q' x``, shape ``(B,)``."""
        Px, _, _ = products(self.program, self.data, u, torch.zeros_like(self.data.b))
        return ((0.5 * Px + self.data.q) * u).sum(1)

    def slack(self, u: torch.Tensor) -> torch.Tensor:
        """``b - A x``, shape ``(B, m)``."""
        return slack_at(self.program, self.data, u)

    def stationarity(self, u: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``P x + q + A' y``, shape ``(B, n)``, and ``A x - b``, shape ``(B, m)``."""
        Px, Ax, Aty = products(self.program, self.data, u, y)
        return Px + self.data.q + Aty, Ax - self.data.b

    def system(self, u: torch.Tensor, y: torch.Tensor) -> Tensors:
        """``A`` and ``P`` as dense matrices."""
        program, data = self.program, self.data
        A = program.A_pattern.dense(data.A)
        P = program.P_pattern.dense(data.P)
        if P.shape[0] != A.shape[0]:
            P = P.expand(A.shape[0], -1, -1)
        return A, P

    def pull_back(
        self, u: torch.Tensor, y: torch.Tensor, a: torch.Tensor, b: torch.Tensor
    ) -> Tensors:
        """Of ``<a, P x + q + A' y> + <b, A x - b>``; ``P`` is symmetric, and so is its gradient."""
        program = self.program
        A = program.A_pattern.outer_products((y, a), (b, u))
        if not program.is_quadratic:
            return self.data.P.new_zeros(a.shape[0], 0), a, A, -b
        half = 0.5 * a
        return program.P_pattern.outer_products((half, u), (u, half)), a, A, -b

    def push_forward(
        self, u: torch.Tensor, y: torch.Tensor, tangents: Tensors
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``dP x + dq + dA' y`` and ``dA x - db``."""
        changed = ConeInstance(self.program, ConeData(*tangents))
        return changed.stationarity(u, y)


def products(
    program: ConeProgram,
    data: ConeData,
    primal: torch.Tensor,
    dual: torch.Tensor,
    known: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``P x``, ``A x`` and ``A' y``, shapes ``(B, n)``, ``(B, m)``, ``(B, n)``.

    Args:
        known: the last two, where a solver has made them.
    """
    device = primal.device
    Px = torch.zeros_like(primal)
    if program.is_quadratic:
        rows, columns, _ = program.P_pattern.places(device)
        Px = added(Px, rows, data.P * picked(primal, columns))
    if known is not None:
        return Px, *known
    rows, columns, _ = program.A_pattern.places(device)
    Ax = added(torch.zeros_like(dual), rows, data.A * picked(primal, columns))
    Aty = added(torch.zeros_like(primal), columns, data.A * picked(dual, rows))
    return Px, Ax, Aty


def slack_at(program: ConeProgram, data: ConeData, primal: torch.Tensor) -> torch.Tensor:
    """``b - A x``, shape ``(B, m)``."""
    rows, columns, _ = program.A_pattern.places(primal.device)
    batch = max(len(data.b), len(primal))
    terms = data.A * primal.gather(1, columns.expand(len(primal), -1))
    return data.b.expand(batch, -1).scatter_add(1, rows.expand(batch, -1), -terms)
