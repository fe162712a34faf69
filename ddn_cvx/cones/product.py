"""Products of cones: layout, membership, projection onto the dual cone and its derivative.

Rows are ordered as SCS orders them: zero, nonnegative, second-order, positive semidefinite
(lower triangle, column by column, off-diagonal entries scaled by sqrt(2)), exponential, power.

Throughout, a solution has ``s in K``, ``y in K*``, ``<s, y> = 0``, which is the same as
``y = Pi_{K*}(y - s)`` (Moreau). ``derivative`` returns the derivative ``D`` of ``Pi_{K*}`` at
``y - s``; it is what the adjoint and the Newton refinement need. Formulas: zero, nonnegative and
second-order cones from Busseti, Moursi and Boyd, "Solution refinement at regular points of conic
problems" (2019), section 3; positive semidefinite from Malick and Sendov (2006), theorem 2.7;
exponential and power cones by the implicit function theorem on the projection's own KKT system.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.autograd import forward_ad

from ddn_cvx.batch.device import OnDevice
from ddn_cvx.linalg.matrix_absolute import absolute, sylvester_weights

Blocks = list[tuple[torch.Tensor, torch.Tensor]]

# A point counts as lying on a face of a cone when its distance is below this, relative to its size.
_FACE = 1e-9

# A slack counts as lying on a cone's smooth boundary when its distance is below this, relative to
# its size: far above a solver's error, far below what separates the boundary from a flat face.
_NEAR = 1e-6

# Newton steps of a local projection; it starts within a solver's accuracy of the answer.
_PROJECTION_STEPS = 6


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
        return cls(
            int(dims.zero),
            int(dims.nonneg),
            tuple(int(size) for size in dims.soc),
            tuple(int(side) for side in dims.psd),
            int(dims.exp),
            tuple(float(alpha) for alpha in dims.p3d),
        )

    def scs(self) -> dict[str, Any]:
        """The dictionary that ``scs`` and ``diffcp`` take."""
        return {
            "z": self.zero,
            "l": self.nonnegative,
            "q": list(self.second_order),
            "s": list(self.semidefinite),
            "ep": self.exponential,
            "p": list(self.power),
        }

    @cached_property
    def rows(self) -> int:
        """Number of rows ``m``."""
        return (
            self.zero
            + self.nonnegative
            + sum(self.second_order)
            + sum(triangle(side) for side in self.semidefinite)
            + 3 * (self.exponential + len(self.power))
        )

    @property
    def linear(self) -> int:
        """Number of rows of the zero and nonnegative cones, which come first."""
        return self.zero + self.nonnegative

    @property
    def is_polyhedral(self) -> bool:
        """Only zero and nonnegative cones: the program is an LP or a QP."""
        return self.rows == self.linear

    @property
    def is_quadratic(self) -> bool:
        """Only zero, nonnegative and second-order cones."""
        return not (self.semidefinite or self.exponential or self.power)

    @property
    def is_symmetric(self) -> bool:
        """Only zero, nonnegative, second-order and semidefinite cones, which are self-dual."""
        return not (self.exponential or self.power)

    @cached_property
    def groups(self) -> tuple[_Group, ...]:
        """The cones beyond the linear ones, those of equal kind and size together."""
        return tuple(_collect(self))

    # -- membership -----------------------------------------------------------------------------

    def violation(self, slack: torch.Tensor, dual: torch.Tensor) -> torch.Tensor:
        """How far ``s`` is outside ``K`` and ``y`` outside ``K*``: the larger, shape ``(B,)``.

        Args:
            slack, dual: ``s`` and ``y``, shape ``(B, m)``.
        """
        batch = slack.shape[0]
        worst = slack.new_zeros(batch)
        if self.zero:
            worst = torch.maximum(worst, slack[:, : self.zero].abs().amax(1))
        if self.nonnegative:
            part = slice(self.zero, self.linear)
            low = torch.minimum(slack[:, part].amin(1), dual[:, part].amin(1))
            worst = torch.maximum(worst, -low)
        for group in self.groups:
            index = group.index_on(slack.device)
            for point, dual_cone in ((slack, False), (dual, True)):
                outside = group.violation(point[:, index], dual_cone)  # (B, k)
                worst = torch.maximum(worst, outside.amax(1))
        return worst

    def overlap(self, slack: torch.Tensor, dual: torch.Tensor) -> torch.Tensor:
        """How far slack and multiplier of an inequality row are both from zero, shape ``(B,)``.

        At a weakly active row an interior point leaves the square root of its duality gap here.
        """
        part = slice(self.zero, self.linear)
        if not self.nonnegative:
            return slack.new_zeros(slack.shape[0])
        return torch.minimum(slack[:, part].abs(), dual[:, part].abs()).amax(1)

    # -- projection -----------------------------------------------------------------------------

    def project_dual(self, point: torch.Tensor, slack: torch.Tensor) -> torch.Tensor:
        """``Pi_{K*}`` of ``point``, near a known ``slack``; both of shape ``(B, m)``.

        Exact for zero, nonnegative, second-order and semidefinite cones, whatever ``slack`` is. For
        exponential and power cones a local Newton iteration starts at ``slack``, an approximation
        of ``Pi_K(-point)``; it is right only near it.
        """
        parts = [point[:, : self.zero], point[:, self.zero : self.linear].clamp_min(0.0)]
        result = torch.cat(parts, 1)
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
        point = dual - slack
        ones = torch.ones_like(point[:, : self.zero])
        active = (point[:, self.zero : self.linear] > 0).to(point.dtype)
        blocks: Blocks = []
        for group in self.groups:
            index = group.index_on(point.device)
            blocks.append((index, group.derivative(dual[:, index], slack[:, index])))
        return Derivative(torch.cat([ones, active], 1), blocks, self.rows)


@dataclass(frozen=True)
class Derivative:
    """A symmetric block-diagonal matrix ``D`` for each batch element.

    Attributes:
        diagonal: the linear rows, shape ``(B, zero + nonnegative)``.
        blocks: for each group of ``k`` cones of ``d`` rows, the row numbers, shape ``(k, d)``, and
            the blocks, shape ``(B, k, d, d)``.
        rows: ``m``.
    """

    diagonal: torch.Tensor
    blocks: Blocks
    rows: int

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

    def dense(self) -> torch.Tensor:
        """``D`` as a matrix of shape ``(B, m, m)``."""
        batch = self.diagonal.shape[0]
        identity = torch.eye(self.rows, dtype=self.diagonal.dtype, device=self.diagonal.device)
        return self.times_matrix(identity.expand(batch, -1, -1))


class _Group:
    """``k`` cones of one kind and size; their rows as an index of shape ``(k, d)``."""

    def __init__(self, index: np.ndarray) -> None:
        self.index = index
        self._index = OnDevice(index)

    def index_on(self, device: torch.device) -> torch.Tensor:
        """The rows, shape ``(k, d)``."""
        return self._index(device)[0]

    def violation(self, point: torch.Tensor, dual_cone: bool) -> torch.Tensor:
        """How far ``point``, shape ``(B, k, d)``, is outside the cone; shape ``(B, k)``."""
        raise NotImplementedError

    def project(self, point: torch.Tensor, slack: torch.Tensor) -> torch.Tensor:
        """Projection onto the dual cone, shape ``(B, k, d)``, near ``slack``."""
        raise NotImplementedError

    def derivative(self, dual: torch.Tensor, slack: torch.Tensor) -> torch.Tensor:
        """Derivative of the projection onto the dual cone, shape ``(B, k, d, d)``."""
        raise NotImplementedError


class _SecondOrder(_Group):
    """``{(t, z): |z| <= t}``, self-dual."""

    def violation(self, point: torch.Tensor, dual_cone: bool) -> torch.Tensor:
        return (point[..., 1:].norm(dim=-1) - point[..., 0]).clamp_min(0.0)  # type: ignore[no-any-return]

    def project(self, point: torch.Tensor, slack: torch.Tensor) -> torch.Tensor:
        height, rest = point[..., :1], point[..., 1:]
        square = (rest * rest).sum(-1, keepdim=True)  # norm() fails in nested forward mode
        positive = square > 0
        safe = torch.where(positive, square, torch.ones_like(square)).sqrt()
        length = torch.where(positive, safe, torch.zeros_like(safe))
        scale = 0.5 * (1 + height / safe)
        outside = torch.cat([scale * length, scale * rest], -1)
        inside = torch.where(length <= height, point, outside)
        return torch.where(length <= -height, torch.zeros_like(point), inside)

    def derivative(self, dual: torch.Tensor, slack: torch.Tensor) -> torch.Tensor:
        point = dual - slack
        height, rest = point[..., :1], point[..., 1:]  # (B, k, 1), (B, k, d - 1)
        square = (rest * rest).sum(-1, keepdim=True)
        positive = square > 0
        length = torch.where(positive, square, torch.ones_like(square)).sqrt()
        direction = torch.where(positive, rest / length, torch.zeros_like(rest))
        length = torch.where(positive, length, torch.zeros_like(length))
        ratio = torch.where(positive, height / length.clamp_min(1e-300), torch.zeros_like(height))
        identity = torch.eye(rest.shape[-1], dtype=point.dtype, device=point.device)
        outer = direction.unsqueeze(-1) * direction.unsqueeze(-2)
        corner = torch.ones_like(height).unsqueeze(-1)
        lower = (1 + ratio).unsqueeze(-1) * identity - ratio.unsqueeze(-1) * outer
        top = torch.cat([corner, direction.unsqueeze(-2)], -1)
        bottom = torch.cat([direction.unsqueeze(-1), lower], -1)
        boundary = 0.5 * torch.cat([top, bottom], -2)
        full = torch.eye(point.shape[-1], dtype=point.dtype, device=point.device)
        inside = (length <= height).unsqueeze(-1)
        polar = (length <= -height).unsqueeze(-1) & ~inside
        result = torch.where(inside, full.expand_as(boundary), boundary)
        return torch.where(polar, torch.zeros_like(boundary), result)


class _Semidefinite(_Group):
    """Positive semidefinite matrices as scaled lower triangles, self-dual."""

    def __init__(self, index: np.ndarray, side: int) -> None:
        super().__init__(index)
        self.side = side
        columns, rows = np.triu_indices(side)  # lower triangle, column by column
        self._lower = (rows, columns)
        self._scale = np.where(rows == columns, 1.0, math.sqrt(0.5))

    def _basis(self, like: torch.Tensor) -> torch.Tensor:
        """``E[i]``, the symmetric matrix of the i-th unit vector; shape ``(d, side, side)``."""
        rows, columns = self._lower
        size = len(rows)
        basis = np.zeros((size, self.side, self.side))
        basis[np.arange(size), rows, columns] = self._scale
        basis[np.arange(size), columns, rows] = self._scale
        return torch.from_numpy(basis).to(like)

    def _matrix(self, point: torch.Tensor) -> torch.Tensor:
        return torch.einsum("...d,dij->...ij", point, self._basis(point))

    def _vector(self, matrix: torch.Tensor) -> torch.Tensor:
        return torch.einsum("...ij,dij->...d", matrix, self._basis(matrix))

    def violation(self, point: torch.Tensor, dual_cone: bool) -> torch.Tensor:
        X = self._matrix(point)
        # One element's overflow must not be an error of all.
        finite = X.isfinite().flatten(-2).all(-1)
        least = torch.linalg.eigvalsh(torch.where(finite[..., None, None], X, 0.0))[..., 0]
        return torch.where(finite, (-least).clamp_min(0.0), torch.inf)

    def project(self, point: torch.Tensor, slack: torch.Tensor) -> torch.Tensor:
        X = self._matrix(point)
        values, vectors = torch.linalg.eigh(X.detach())
        projected = self._vector((vectors * values.clamp_min(0.0).unsqueeze(-2)) @ vectors.mT)
        moved = (point + self._vector(absolute(X, values, vectors))) / 2
        return projected + (moved - moved.detach())

    def derivative(self, dual: torch.Tensor, slack: torch.Tensor) -> torch.Tensor:
        X = self._matrix(dual - slack)
        values, vectors = torch.linalg.eigh(X.detach())
        plus, minus = values.clamp_min(0.0), (-values).clamp_min(0.0)
        above, below = plus.unsqueeze(-1), minus.unsqueeze(-2)
        total = above + below
        mixed = torch.where(total > 0, above / total.clamp_min(1e-300), torch.zeros_like(total))
        is_positive = values > 0
        both = is_positive.unsqueeze(-1) & is_positive.unsqueeze(-2)
        weight = torch.where(is_positive.unsqueeze(-1), mixed, mixed.mT)
        weight = torch.where(both, torch.ones_like(weight), weight)
        basis = self._basis(dual)
        rotated = torch.einsum("...ia,dij,...jb->...dab", vectors, basis, vectors)
        found = torch.einsum("...dab,...ab,...eab->...de", rotated, weight, rotated)
        transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
        if not (X.requires_grad or transformed):
            return found
        # With L_X H = X H + H X it is (I + L_|X|^-1 L_X) / 2, of which the inverse is expanded
        # about its value: derivatives through the eigendecomposition would divide by zero where
        # eigenvalues repeat.
        inverse, present = sylvester_weights(values)
        inverse = torch.where(present, inverse, 1.0)
        K = torch.einsum("...dab,...ab,...eab->...de", rotated, inverse, rotated)
        L = self._sylvester(absolute(X, values, vectors), basis)
        change = L - L.detach()
        # (L + c)^-1 to second order in the change c
        first = -K @ change @ K
        K = K + first - first @ change @ K
        moved = K @ self._sylvester(X, basis) / 2
        return found + (moved - moved.detach())

    def _sylvester(self, X: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
        """``H -> X H + H X`` for scaled lower triangles, shape ``(..., d, d)``."""
        product = X.unsqueeze(-3) @ basis
        return self._vector(product + product.mT)


class _Smooth3(_Group):
    """A three-dimensional cone ``{g <= 0}`` whose boundary is smooth away from its faces."""

    def _function(self, point: torch.Tensor) -> _Boundary:
        """``g`` and its derivatives, and which points lie where ``g`` is smooth."""
        raise NotImplementedError

    def _face(self, point: torch.Tensor) -> torch.Tensor:
        """The diagonal of ``DPi_K`` where ``Pi_K`` of ``point`` is on a flat face."""
        raise NotImplementedError

    def project(self, point: torch.Tensor, slack: torch.Tensor) -> torch.Tensor:
        # Newton on the projection's KKT system p - u + mu grad g = 0, g = 0 for u = -point.
        target = -point
        dual = point + slack
        shape, no_dual, no_slack = self._place(dual, slack)
        current, boundary = slack, shape
        multiplier = -(dual * boundary.gradient).sum(-1) / _square(boundary.gradient)
        for _ in range(_PROJECTION_STEPS):
            gap = current - target + multiplier.unsqueeze(-1) * boundary.gradient
            right = torch.cat([gap, boundary.value.unsqueeze(-1)], -1).unsqueeze(-1)
            # An inverse, because reverse over forward mode is wrong for torch.linalg.solve.
            inverse = torch.linalg.inv_ex(_bordered(boundary, multiplier)).inverse
            step = (inverse @ right).squeeze(-1)
            current = current - step[..., :3]
            multiplier = multiplier - step[..., 3]
            boundary = self._function(current)
        on_face = self._face(target) * target
        result = torch.where(shape.smooth.unsqueeze(-1), current, on_face)
        in_polar = no_slack | (self.violation(point, True) <= 0).unsqueeze(-1)
        in_cone = no_dual | (self.violation(target, False) <= 0).unsqueeze(-1)
        result = torch.where(in_polar, torch.zeros_like(result), result)
        result = torch.where(in_cone, target, result)
        return point + result

    def derivative(self, dual: torch.Tensor, slack: torch.Tensor) -> torch.Tensor:
        # Pi_{K*}(v) = v + Pi_K(-v), hence D = I - DPi_K(s - y). With s = Pi_K(s - y) on the
        # boundary g = 0, s solves min |s - u|^2 / 2 s.t. g(s) <= 0, whose KKT system gives
        # s - u = y = -mu grad g; differentiating it gives DPi_K as the leading block of
        # the inverse of [[I + mu H, grad g], [grad g', 0]].
        identity = torch.eye(3, dtype=dual.dtype, device=dual.device).expand(*dual.shape[:-1], 3, 3)
        boundary, no_dual, no_slack = self._place(dual, slack)
        multiplier = -(dual * boundary.gradient).sum(-1) / _square(boundary.gradient)
        system = _bordered(boundary, multiplier)
        on_boundary = torch.linalg.inv_ex(system).inverse[..., :3, :3]
        on_face = torch.diag_embed(self._face(slack - dual))
        projection = torch.where(boundary.smooth[..., None, None], on_boundary, on_face)
        projection = torch.where(no_slack.unsqueeze(-1), torch.zeros_like(projection), projection)
        projection = torch.where(no_dual.unsqueeze(-1), identity, projection)
        return identity - projection

    def _place(
        self, dual: torch.Tensor, slack: torch.Tensor
    ) -> tuple[_Boundary, torch.Tensor, torch.Tensor]:
        """The boundary at ``slack``, and where the dual or the slack vanishes, ``(B, k, 1)``."""
        scale = 1 + torch.maximum(dual.abs().amax(-1), slack.abs().amax(-1))
        no_dual = (dual.abs().amax(-1) <= _FACE * scale).unsqueeze(-1)
        no_slack = (slack.abs().amax(-1) <= _FACE * scale).unsqueeze(-1)
        boundary = self._function(slack)
        # On a flat face g is far below zero: only near g = 0 is the boundary the smooth one.
        near = boundary.value.abs() <= _NEAR * scale * boundary.gradient.norm(dim=-1)
        return boundary._replace(smooth=boundary.smooth & near), no_dual, no_slack


class _Boundary(NamedTuple):
    """``g`` at points of shape ``(B, k, 3)``.

    Attributes:
        value: ``g``, shape ``(B, k)``.
        gradient: shape ``(B, k, 3)``.
        hessian: shape ``(B, k, 3, 3)``.
        smooth: where these hold; elsewhere the point is on a flat face, bool, ``(B, k)``.
    """

    value: torch.Tensor
    gradient: torch.Tensor
    hessian: torch.Tensor
    smooth: torch.Tensor


def _square(vector: torch.Tensor) -> torch.Tensor:
    return (vector * vector).sum(-1)


def _bordered(boundary: _Boundary, multiplier: torch.Tensor) -> torch.Tensor:
    """``[[I + mu H, grad g], [grad g', 0]]``, shape ``(B, k, 4, 4)``."""
    identity = torch.eye(3, dtype=multiplier.dtype, device=multiplier.device)
    gradient = boundary.gradient
    leading = identity + multiplier[..., None, None] * boundary.hessian
    top = torch.cat([leading, gradient.unsqueeze(-1)], -1)
    bottom = torch.cat([gradient, torch.zeros_like(gradient[..., :1])], -1).unsqueeze(-2)
    return torch.cat([top, bottom], -2)


class _Exponential(_Smooth3):
    """``cl {(x, y, z): y > 0, y exp(x / y) <= z}``; ``g = x - y log(z / y)``."""

    def violation(self, point: torch.Tensor, dual_cone: bool) -> torch.Tensor:
        x, y, z = point.unbind(-1)
        # The exponential is taken in logarithms: next to a face it outgrows every z, and a bound
        # on its exponent alone would let points far outside count as inside.
        if dual_cone:  # cl {(u, v, w): u < 0, -u exp(v / u) <= e w}
            safe = (-x).clamp_min(1e-300)
            outside = torch.exp((safe.log() - y / safe - 1).clamp_max(700.0)) - z
            flat = torch.maximum((-y).clamp_min(0.0), (-z).clamp_min(0.0))
            on_face = torch.maximum(flat, x.abs())
            return torch.minimum(torch.maximum(outside.clamp_min(0.0), x), on_face).clamp_min(0.0)
        safe = y.clamp_min(1e-300)
        outside = torch.exp((safe.log() + x / safe).clamp_max(700.0)) - z
        inside = torch.maximum(outside.clamp_min(0.0), (-y).clamp_min(0.0))
        face = torch.maximum(torch.maximum(y.abs(), x.clamp_min(0.0)), (-z).clamp_min(0.0))
        return torch.minimum(inside, face)

    def _function(self, point: torch.Tensor) -> _Boundary:
        x, y, z = point.unbind(-1)
        smooth = (y > 1e-14 * (1 + point.abs().amax(-1))) & (z > 0)
        y = torch.where(smooth, y, torch.ones_like(y))
        z = torch.where(smooth, z, torch.ones_like(z))
        one, zero = torch.ones_like(x), torch.zeros_like(x)
        logarithm = torch.log(z / y)
        gradient = torch.stack([one, 1 - logarithm, -y / z], -1)
        hessian = torch.stack(
            [
                torch.stack([zero, zero, zero], -1),
                torch.stack([zero, 1 / y, -1 / z], -1),
                torch.stack([zero, -1 / z, y / z**2], -1),
            ],
            -2,
        )
        return _Boundary(x - y * logarithm, gradient, hessian, smooth)

    def _face(self, point: torch.Tensor) -> torch.Tensor:
        # s = (x <= 0, 0, z >= 0): x and z move freely where they are nonzero, y stays at zero.
        x, _, z = point.unbind(-1)
        return torch.stack([(x < 0).to(x), torch.zeros_like(x), (z > 0).to(x)], -1)


class _Power(_Smooth3):
    """``{(x, y, z): x^a y^(1-a) >= |z|, x, y >= 0}``; ``g = |z| - x^a y^(1-a)``."""

    def __init__(self, index: np.ndarray, exponents: np.ndarray) -> None:
        super().__init__(index)
        self._exponents = exponents

    def violation(self, point: torch.Tensor, dual_cone: bool) -> torch.Tensor:
        alpha = torch.from_numpy(self._exponents).to(point)
        x, y, z = point.unbind(-1)
        low = torch.maximum(-x, -y).clamp_min(0.0)
        x, y = x.clamp_min(0.0), y.clamp_min(0.0)
        if dual_cone:
            x, y = x / alpha, y / (1 - alpha)
        return torch.maximum(low, z.abs() - x**alpha * y ** (1 - alpha)).clamp_min(0.0)

    def _function(self, point: torch.Tensor) -> _Boundary:
        alpha = torch.from_numpy(self._exponents).to(point)
        x, y, z = point.unbind(-1)
        size = 1e-14 * (1 + point.abs().amax(-1))
        smooth = (x > size) & (y > size) & (z.abs() > 0)
        x = torch.where(smooth, x, torch.ones_like(x))
        y = torch.where(smooth, y, torch.ones_like(y))
        mean = x**alpha * y ** (1 - alpha)
        gradient = torch.stack([-alpha * mean / x, -(1 - alpha) * mean / y, torch.sign(z)], -1)
        curvature = alpha * (1 - alpha) * mean
        zero = torch.zeros_like(x)
        hessian = torch.stack(
            [
                torch.stack([curvature / x**2, -curvature / (x * y), zero], -1),
                torch.stack([-curvature / (x * y), curvature / y**2, zero], -1),
                torch.stack([zero, zero, zero], -1),
            ],
            -2,
        )
        return _Boundary(z.abs() - mean, gradient, hessian, smooth)

    def _face(self, point: torch.Tensor) -> torch.Tensor:
        # s = (x, 0, 0), y = (0, v, 0): x moves freely, y stays at zero. Along z, the projection of
        # (x, -v, h) minimises (z - h)^2 / 2 + v y for the smallest y, (|z| / x^a)^(1 / (1 - a)):
        # a power of |z| below 2 if a < 1/2, which holds z at zero, above 2 if a > 1/2, which
        # leaves it free, and z^2 / x if a = 1/2. On the other ray x, v and a become y, u and 1 - a.
        alpha = torch.from_numpy(self._exponents).to(point)
        x, y, _ = point.unbind(-1)
        first = x >= y
        length, beside = torch.maximum(x, y), (-torch.minimum(x, y)).clamp_min(0.0)
        safe = torch.where(length > 0, length, torch.ones_like(length))
        exponent = torch.where(first, alpha, 1 - alpha).expand_as(x)
        along = torch.where(exponent > 0.5, torch.ones_like(x), torch.zeros_like(x))
        along = torch.where(exponent == 0.5, 1 / (1 + 2 * beside / safe), along)
        along = torch.where(length > 0, along, torch.zeros_like(along))
        return torch.stack([(x > 0).to(x), (y > 0).to(x), along], -1)


def exponential_cones(start: int, number: int) -> _Group:
    """So many exponential cones, behind one another from a row on."""
    return _Exponential(start + np.arange(3 * number).reshape(-1, 3))


def triangle(side: int) -> int:
    """Rows of a semidefinite cone of matrices of a side."""
    return side * (side + 1) // 2


def _collect(cones: Cones) -> Iterator[_Group]:
    start = cones.linear
    for sizes, kind in ((cones.second_order, "soc"), (cones.semidefinite, "psd")):
        lengths = [triangle(size) if kind == "psd" else size for size in sizes]
        starts = start + np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        for size in sorted(set(sizes)):
            members = [i for i, other in enumerate(sizes) if other == size]
            length = lengths[members[0]]
            index = starts[members][:, None] + np.arange(length)
            yield _Semidefinite(index, size) if kind == "psd" else _SecondOrder(index)
        start = int(starts[-1])
    if cones.exponential:
        yield exponential_cones(start, cones.exponential)
        start += 3 * cones.exponential
    if cones.power:
        index = start + np.arange(3 * len(cones.power)).reshape(-1, 3)
        yield _Power(index, np.array(cones.power))
