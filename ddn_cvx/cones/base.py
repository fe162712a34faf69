"""The trait of a cone: all that the layout, the projections and the interior points ask of it.

A :class:`Cone` stands for several cones of one kind and size. Its vectors are ``(B, k, d)`` for
``k`` cones of ``d`` rows. A new cone is one file with a subclass, named in
:mod:`ddn_cvx.cones.product`.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch

from ddn_cvx.batch.device import OnDevice

# A determinant or eigenvalue below this counts as zero: the point is on the cone's boundary. It is
# representable, with its reciprocal, in single precision.
TINY = 1e-35
# Rows whose weight l / (1 - l) exceeds this (an eigenvalue l within 1e-9 of one) are equations.
STIFF = 1e9

Tensors = tuple[torch.Tensor, ...]


class Spectrum(NamedTuple):
    """Eigenvalues ``l`` of the derivative of a projection onto dual cones, and eigenvectors.

    Attributes:
        equations: rows whose eigenvalue is one, shape ``(B, k, d)``, bool.
        weights: ``l / (1 - l)`` of the other rows, shape ``(B, k, d)``.
        axes: the eigenvectors, in the cone's own form.
        curved: True for cones with an eigenvalue strictly between zero and one; may be True for
            others. Shape ``(B, k, 1)``, bool.
    """

    equations: torch.Tensor
    weights: torch.Tensor
    axes: torch.Tensor
    curved: torch.Tensor


class Cone(abc.ABC):
    """``number`` cones of one kind, with ``size`` rows each.

    A scaling is a tuple of the cone's own tensors that stands for the matrix ``W`` with
    ``W z = W'^-1 s = lambda``. Methods with an argument ``out`` write their result there; it is a
    view of the cones' rows.

    Args:
        index: numbers of the cones' rows in the program, shape ``(k, d)``.

    Attributes:
        name: shown in ``repr(layer)``.
        field: of :class:`~ddn_cvx.cones.product.Cones`.
        scs, cvxpy: names in SCS's dictionary and in cvxpy's ``ConeDims``.
        is_symmetric: self-dual and homogeneous, a :class:`SymmetricCone`.
        degree: parameter of the cones' barrier.
        behind: rows of the grouped program (see :meth:`of`) that follow these cones.
    """

    name: ClassVar[str]
    field: ClassVar[str]
    scs: ClassVar[str]
    cvxpy: ClassVar[str]
    is_symmetric: ClassVar[bool] = False
    degree: int

    def __init__(self, index: np.ndarray, behind: int = 0) -> None:
        self.number, self.size = index.shape
        self.index, self.behind = index, behind
        self._index = OnDevice(index)

    # -- layout ---------------------------------------------------------------------------------

    @staticmethod
    @abc.abstractmethod
    def lengths(members: Any) -> list[int]:
        """Number of rows of each cone, for the value of the field of ``Cones``."""

    @classmethod
    def at(cls, index: np.ndarray, members: Any) -> Self:
        """The cones with these rows; ``members`` is the value of the field of ``Cones``."""
        return cls(index)

    @classmethod
    def grouped(cls, members: Any, start: int) -> Iterator[Self]:
        """Cones whose rows follow one another from ``start`` on, those of equal size together."""
        lengths = np.array(cls.lengths(members), dtype=np.int64)
        starts = start + np.cumsum(lengths) - lengths
        for length in np.unique(lengths):
            yield cls.at(starts[lengths == length][:, None] + np.arange(length), members)

    def index_on(self, device: torch.device) -> torch.Tensor:
        """The rows' numbers in the program, shape ``(k, d)``."""
        return self._index(device)[0]

    def of(self, v: torch.Tensor) -> torch.Tensor:
        """The cones' part of ``(B, m, ...)``, a view of shape ``(B, k, d, ...)``.

        The rows of ``v`` are grouped: linear rows come first, then each kind and size of cone.
        """
        last = v.shape[1] - self.behind
        part = v[:, last - self.number * self.size : last]
        cones: torch.Tensor = part.unflatten(1, (self.number, self.size))
        return cones

    # -- membership and projection --------------------------------------------------------------

    @abc.abstractmethod
    def violation(self, point: torch.Tensor, dual_cone: bool) -> torch.Tensor:
        """How far a point is outside the cone or its dual, shape ``(B, k)``."""

    @abc.abstractmethod
    def project(self, point: torch.Tensor, slack: torch.Tensor) -> torch.Tensor:
        """Projection onto the dual cone, near ``point + slack``; differentiable to second order."""

    @abc.abstractmethod
    def derivative(self, dual: torch.Tensor, slack: torch.Tensor) -> torch.Tensor:
        """``D``, the derivative of the projection onto the dual cone at ``dual - slack``.

        Args:
            dual, slack: a complementary pair.

        Returns:
            Shape ``(B, k, d, d)``, differentiable to second order.
        """

    @abc.abstractmethod
    def spectrum(self, z: torch.Tensor, s: torch.Tensor) -> Spectrum:
        """Eigenvalues and eigenvectors of ``D`` at ``z - s``, outside autograd."""

    @abc.abstractmethod
    def to_eigenbasis(self, spectrum: Spectrum, rows: torch.Tensor, out: torch.Tensor) -> None:
        """``(B, k, d)`` or ``(B, k, d, n)`` in the eigenvectors' coordinates.

        ``out`` holds a copy of ``rows`` at the start.
        """

    @abc.abstractmethod
    def from_eigenbasis(self, spectrum: Spectrum, v: torch.Tensor, out: torch.Tensor) -> None:
        """From the eigenvectors' coordinates, without those of eigenvalue zero.

        ``out`` holds a copy of ``v`` at the start.
        """

    # -- interior point -------------------------------------------------------------------------

    @abc.abstractmethod
    def set_identity(self, out: torch.Tensor) -> None:
        """Write the point of the central path with ``mu = 1`` over zeros."""

    @abc.abstractmethod
    def scaling(self, s: torch.Tensor, z: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        """``W`` at ``s, z`` inside the cones, and ``lambda``."""

    @abc.abstractmethod
    def scale(
        self, W: Tensors, v: torch.Tensor, out: torch.Tensor, *, inverse: bool, transposed: bool
    ) -> None:
        """``W v``, or that of the inverse of ``W``, its transpose, or both."""

    @abc.abstractmethod
    def scale_rows(self, W: Tensors, rows: torch.Tensor, out: torch.Tensor) -> None:
        """``W'^-1 A`` for ``A`` of shape ``(B, k, d, n)``."""

    @abc.abstractmethod
    def correction(
        self, W: Tensors, point: torch.Tensor, directions: tuple[torch.Tensor, torch.Tensor],
        weight: torch.Tensor, target: torch.Tensor, out: torch.Tensor,
    ) -> None:  # fmt: skip
        """The scaled residual of complementarity: a step's ``-(ds + dz)`` in scaled coordinates.

        Args:
            W, point: the scaling and ``lambda``.
            directions: the predictor's, of slacks and multipliers, scaled.
            weight: factor of the predictor's second-order term, shape ``(B, 1)``.
            target: the ``mu`` aimed at, shape ``(B, 1)``.
            out: the result.
        """

    @abc.abstractmethod
    def step_rates(
        self, W: Tensors, point: torch.Tensor, directions: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """One over the longest steps along scaled directions of slacks and multipliers, ``(B,)``.

        Values below one may be inexact: the caller never steps further than one.
        """


class SymmetricCone(Cone):
    """A self-dual cone with a Jordan product: its barrier is ``-log det``.

    The vectors ``s`` and ``z`` are in the cone, ``s^-1`` is the gradient of ``log det``.
    """

    is_symmetric = True

    def correction(
        self, W: Tensors, point: torch.Tensor, directions: tuple[torch.Tensor, torch.Tensor],
        weight: torch.Tensor, target: torch.Tensor, out: torch.Tensor,
    ) -> None:  # fmt: skip
        """See :class:`Cone`."""
        unit = torch.zeros_like(point[:1])
        self.set_identity(unit)
        second = self.product(*directions).mul_(weight.unsqueeze(-1))
        second.addcmul_(target.unsqueeze(-1), unit, value=-1)
        torch.add(point, self.quotient(point, second), out=out)

    @abc.abstractmethod
    def margin(self, v: torch.Tensor) -> torch.Tensor:
        """The least eigenvalue of each cone, shape ``(B, k)``."""

    @abc.abstractmethod
    def largest(self, v: torch.Tensor) -> torch.Tensor:
        """A norm that no choice of coordinates within the cone changes much, shape ``(B, k)``."""

    @abc.abstractmethod
    def log_det(self, s: torch.Tensor) -> torch.Tensor:
        """``log det s``, shape ``(B, k)``; NaN or minus infinity outside the cone."""

    @abc.abstractmethod
    def inverse(self, s: torch.Tensor) -> torch.Tensor:
        """``s^-1``."""

    @abc.abstractmethod
    def product(self, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Jordan's product."""

    @abc.abstractmethod
    def quotient(self, point: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """The ``x`` with ``lambda o x = v``."""
