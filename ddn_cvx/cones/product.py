"""Products of cones: their rows, membership, projection onto the dual cone and its derivative.

Rows are ordered as SCS orders them: zero, nonnegative, second-order, positive semidefinite
(lower triangle, column by column, off-diagonal entries scaled by sqrt(2)), exponential, power.

Throughout, a solution has ``s in K``, ``y in K*``, ``<s, y> = 0``, which is the same as
``y = Pi_{K*}(y - s)`` (Moreau). ``derivative`` returns the derivative ``D`` of ``Pi_{K*}`` at
``y - s``; it is what the adjoint and the Newton refinement need.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ddn_cvx.batch.device import OnDevice
from ddn_cvx.cones.base import Cone
from ddn_cvx.cones.exponential import Exponential
from ddn_cvx.cones.linear import Linear
from ddn_cvx.cones.power import Power
from ddn_cvx.cones.second_order import SecondOrder
from ddn_cvx.cones.semidefinite import Semidefinite

Blocks = list[tuple[torch.Tensor, torch.Tensor]]

# The cones of several rows, in the order of their rows. A new one is named here and has a field.
KINDS: tuple[type[Cone], ...] = (SecondOrder, Semidefinite, Exponential, Power)


@dataclass(frozen=True)
class Cones:
    """A product of cones in SCS's order.

    Attributes:
        zero: rows of the zero cone (equality constraints).
        nonnegative: rows of the nonnegative cone.
        second_order: dimension of each second-order cone.
        semidefinite: side length of each positive semidefinite cone.
        exponential: number of exponential cones (three rows each).
        power: exponent of each power cone (three rows each).
    """

    zero: int = 0
    nonnegative: int = 0
    second_order: tuple[int, ...] = ()
    semidefinite: tuple[int, ...] = ()
    exponential: int = 0
    power: tuple[float, ...] = ()

    @classmethod
    def from_cvxpy(cls, dims: Any) -> Cones:
        """Translate cvxpy's ``ConeDims``."""
        # cvxpy's numbers may be numpy's
        plain = {kind.field: np.array(getattr(dims, kind.cvxpy)).tolist() for kind in KINDS}
        members: dict[str, Any] = {
            field: tuple(v) if isinstance(v, list) else v for field, v in plain.items()
        }
        return cls(int(dims.zero), int(dims.nonneg), **members)

    def scs(self) -> dict[str, Any]:
        """The dictionary that ``scs`` and ``diffcp`` take."""
        members = {kind.scs: getattr(self, kind.field) for kind in KINDS}
        lists = {key: list(v) if isinstance(v, tuple) else v for key, v in members.items()}
        return {"z": self.zero, "l": self.nonnegative, **lists}

    def counts(self) -> dict[str, int]:
        """How many cones of each kind there are, by its name."""
        kinds = {kind.name: len(self._lengths(kind)) for kind in KINDS}
        return {"zero": self.zero, "nonnegative": self.nonnegative, **kinds}

    def _lengths(self, kind: type[Cone]) -> list[int]:
        return kind.lengths(getattr(self, kind.field))

    @cached_property
    def rows(self) -> int:
        """Number of rows ``m``."""
        return self.linear + sum(sum(self._lengths(kind)) for kind in KINDS)

    @cached_property
    def linear(self) -> int:
        """Number of rows of the zero and nonnegative cones, which come first."""
        return self.zero + self.nonnegative

    @cached_property
    def is_polyhedral(self) -> bool:
        """Only zero and nonnegative cones: the program is an LP or a QP."""
        return self.rows == self.linear

    @cached_property
    def is_quadratic(self) -> bool:
        """Only zero, nonnegative and second-order cones."""
        return not any(getattr(self, kind.field) for kind in KINDS if kind is not SecondOrder)

    @cached_property
    def is_symmetric(self) -> bool:
        """Only cones that are their own duals: zero, nonnegative, second-order, semidefinite."""
        return all(group.is_symmetric for group in self.groups)

    @cached_property
    def linear_rows(self) -> Linear:
        """The zero and nonnegative cones."""
        return Linear(self.zero, self.nonnegative)

    @cached_property
    def groups(self) -> tuple[Cone, ...]:
        """The other cones, those of equal kind and size together."""
        groups: list[Cone] = []
        start = self.linear
        for kind in KINDS:
            members = getattr(self, kind.field)
            groups += kind.grouped(members, start)
            start += sum(kind.lengths(members))
        behind = 0
        for group in reversed(groups):
            group.behind = behind
            behind += group.number * group.size
        return tuple(groups)

    @cached_property
    def order(self) -> np.ndarray:
        """Numbers of the grouped rows: linear ones, then each group's."""
        groups = [group.index.reshape(-1) for group in self.groups]
        return np.concatenate([np.arange(self.linear), *groups])

    @cached_property
    def regrouping(self) -> OnDevice | None:
        """The :attr:`order` and its inverse; None where the rows are in that order."""
        if (np.diff(self.order) > 0).all():
            return None
        return OnDevice(self.order, np.argsort(self.order))

    def in_groups(self) -> Cones:
        """The product whose rows are in the groups' :attr:`order`."""
        if self.regrouping is None:
            return self
        second_order, semidefinite = sorted(self.second_order), sorted(self.semidefinite)
        return replace(self, second_order=tuple(second_order), semidefinite=tuple(semidefinite))

    # -- membership -----------------------------------------------------------------------------

    def violation(self, slack: torch.Tensor, dual: torch.Tensor) -> torch.Tensor:
        """How far ``s`` is outside ``K`` and ``y`` outside ``K*``: the larger, shape ``(B,)``.

        Args:
            slack, dual: ``s`` and ``y``, shape ``(B, m)``.
        """
        worst = self.linear_rows.violation(slack, dual)
        for group in self.groups:
            index = group.index_on(slack.device)
            for point, dual_cone in ((slack, False), (dual, True)):
                outside = group.violation(point[:, index], dual_cone)  # (B, k)
                worst = torch.maximum(worst, outside.amax(1))
        return worst

    # -- projection -----------------------------------------------------------------------------

    def project_dual(self, point: torch.Tensor, slack: torch.Tensor) -> torch.Tensor:
        """``Pi_{K*}`` of ``point``, near a known ``slack``; both of shape ``(B, m)``.

        Exact for zero, nonnegative, second-order and semidefinite cones, whatever ``slack`` is. For
        exponential and power cones a local Newton iteration starts at ``slack``, an approximation
        of ``Pi_K(-point)``; it is right only near it.
        """
        result = self.linear_rows.project(point)
        if not self.groups:
            return result
        result = torch.cat([result, point[:, self.linear :]], 1)
        for group in self.groups:
            index = group.index_on(point.device)
            projected = group.project(point[:, index], slack[:, index])
            result = result.index_copy(1, index.reshape(-1), projected.flatten(1))
        return result

    # -- derivative -----------------------------------------------------------------------------

    def derivative(self, dual: torch.Tensor, slack: torch.Tensor) -> Derivative:
        """``D``, the derivative of ``Pi_{K*}`` at ``y - s``.

        On a face that belongs to two pieces (weak activity) one piece is taken: the one-sided
        derivative. No Python control flow depends on the values, so that this runs in ``vmap``.

        Args:
            dual, slack: a complementary pair ``y``, ``s``, shape ``(B, m)``.
        """
        blocks: Blocks = []
        for group in self.groups:
            index = group.index_on(dual.device)
            blocks.append((index, group.derivative(dual[:, index], slack[:, index])))
        return Derivative(self.linear_rows.derivative(dual - slack), blocks)


@dataclass(frozen=True)
class Derivative:
    """A symmetric block-diagonal matrix ``D`` for each batch element.

    Attributes:
        diagonal: the linear rows, shape ``(B, zero + nonnegative)``.
        blocks: for each group of ``k`` cones of ``d`` rows, the row numbers, shape ``(k, d)``, and
            the blocks, shape ``(B, k, d, d)``.
    """

    diagonal: torch.Tensor
    blocks: Blocks

    def times_matrix(self, matrix: torch.Tensor) -> torch.Tensor:
        """``D @ matrix`` for a ``matrix`` of shape ``(B, m, n)``."""
        linear = self.diagonal.shape[1]
        result = self.diagonal.unsqueeze(2) * matrix[:, :linear]
        if self.blocks:
            result = torch.cat([result, torch.zeros_like(matrix[:, linear:])], 1)
        for index, block in self.blocks:
            product = block @ matrix[:, index]  # (B, k, d, n)
            result = result.index_copy(1, index.reshape(-1), product.flatten(1, 2))
        return result

    def times(self, vector: torch.Tensor) -> torch.Tensor:
        """``D @ vector`` for a ``vector`` of shape ``(B, m)``."""
        return self.times_matrix(vector.unsqueeze(2)).squeeze(2)
