"""What the method asks of cones of one kind and size."""

from __future__ import annotations

import abc
from typing import NamedTuple

import torch

# Below this a cone's determinant counts as zero: the point is on the boundary.
TINY = 1e-35
# Rows with a weight above this are equations.
STIFF = 1e9

Tensors = tuple[torch.Tensor, ...]


class Part(NamedTuple):
    """A group's share of :class:`~ddn_cvx.kkt.reduced.active.Pieces`.

    Attributes:
        equations, weights: of its rows, shape ``(B, k, d)``.
        axes: what the eigenvectors are made of; for the group itself.
        curved: cones that have more than zeros and ones, ``(B, k, 1)``, bool; or any others.
    """

    equations: torch.Tensor
    weights: torch.Tensor
    axes: torch.Tensor
    curved: torch.Tensor


class Group(abc.ABC):
    """``number`` cones of ``size`` rows each, behind one another from ``start``.

    Vectors of the group are ``(B, k, d)`` for ``k`` cones of ``d`` rows. A scaling ``W``, with
    ``W z = W'^-1 s = lambda``, is a tuple of the group's own tensors; where it is given a place to
    put the result, as ``out``, that is a view of the group's rows.

    Attributes:
        degree: parameter of their barrier, which is the number of their eigenvalues.
    """

    degree: int

    def __init__(self, start: int, number: int, size: int) -> None:
        self.start, self.number, self.size = start, number, size

    def of(self, v: torch.Tensor) -> torch.Tensor:
        """Their part of ``(B, m, ...)``, a view: ``(B, number, size, ...)``."""
        rows = v[:, self.start : self.start + self.number * self.size]
        part: torch.Tensor = rows.unflatten(1, (self.number, self.size))
        return part

    @abc.abstractmethod
    def set_identity(self, out: torch.Tensor) -> None:
        """The point on the central path for ``mu`` of one, in the place of zeros."""

    @abc.abstractmethod
    def scaling(self, s: torch.Tensor, z: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        """``W`` at ``s, z`` inside the cones, and ``lambda``."""

    @abc.abstractmethod
    def times(self, W: Tensors, v: torch.Tensor, out: torch.Tensor) -> None:
        """``W' v``: a slack from scaled coordinates."""

    @abc.abstractmethod
    def over(self, W: Tensors, v: torch.Tensor, out: torch.Tensor) -> None:
        """``W'^-1 v``: a slack in scaled coordinates."""

    @abc.abstractmethod
    def multiplier(self, W: Tensors, v: torch.Tensor, out: torch.Tensor) -> None:
        """``W^-1 v``: a multiplier from scaled coordinates."""

    @abc.abstractmethod
    def rows_over(self, W: Tensors, rows: torch.Tensor, out: torch.Tensor) -> None:
        """``W'^-1 A`` for ``(B, k, d, n)``."""

    @abc.abstractmethod
    def pull(
        self, W: Tensors, point: torch.Tensor, directions: tuple[torch.Tensor, torch.Tensor],
        weight: torch.Tensor, target: torch.Tensor, out: torch.Tensor,
    ) -> None:  # fmt: skip
        """What a step takes from the slacks, scaled, for a point with ``mu`` of ``target``.

        Args:
            W, point: the scaling and ``lambda``.
            directions: the predictor's, of slacks and multipliers, scaled.
            weight, target: how much its second order counts, and ``mu``, shapes ``(B, 1)``.
            out: where it goes.
        """

    @abc.abstractmethod
    def shrinking(
        self, W: Tensors, point: torch.Tensor, directions: tuple[torch.Tensor, torch.Tensor]
    ) -> list[torch.Tensor]:
        """One over the longest steps along scaled directions of slacks and multipliers, ``(B,)``.

        A number below one may stand for any other.
        """

    @abc.abstractmethod
    def projected(self, v: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """The nearest point of the dual cones, of which ``v`` is about ``s`` away."""

    @abc.abstractmethod
    def part(self, z: torch.Tensor, s: torch.Tensor) -> Part:
        """Of the derivative of the dual cones' projection at ``z - s``, where that is ``z``."""

    @abc.abstractmethod
    def turned(self, part: Part, rows: torch.Tensor, out: torch.Tensor) -> None:
        """``(B, k, d)`` or ``(B, k, d, n)`` in the eigenvectors' coordinates; ``out`` holds it."""

    @abc.abstractmethod
    def turned_back(self, part: Part, v: torch.Tensor, out: torch.Tensor) -> None:
        """And back, without those of eigenvalue zero; ``out`` holds ``v``."""


class SymmetricGroup(Group):
    """Cones with a Jordan product, which are their own duals."""

    def pull(
        self, W: Tensors, point: torch.Tensor, directions: tuple[torch.Tensor, torch.Tensor],
        weight: torch.Tensor, target: torch.Tensor, out: torch.Tensor,
    ) -> None:  # fmt: skip
        """See :class:`Group`."""
        unit = torch.zeros_like(point[:1])
        self.set_identity(unit)
        second = self.product(*directions).mul_(weight.unsqueeze(-1))
        second.addcmul_(target.unsqueeze(-1), unit, value=-1)
        torch.add(point, self.quotient(point, second), out=out)

    @abc.abstractmethod
    def margin(self, v: torch.Tensor) -> torch.Tensor:
        """The least eigenvalue, shape ``(B,)``."""

    @abc.abstractmethod
    def product(self, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Jordan's product."""

    @abc.abstractmethod
    def quotient(self, point: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """The ``x`` with ``lambda o x = v``."""
