"""Three-dimensional cones that no scaling makes the same as their dual.

A cone is ``{g <= 0}``, with a boundary that is smooth away from its flat faces: the projection and
its derivative follow from the implicit function theorem on the projection's own KKT system.

With the barrier ``F`` of the cone, a slack has the shadow ``z^ = -F'(s)`` among multipliers and a
multiplier the shadow ``s^ = -F*'(z)`` among slacks, and on the central path ``s = mu s^`` and ``z =
mu z^``. The scaling ``H = W' W`` maps ``z`` to ``s`` and ``z^`` to ``s^``, and is otherwise near
``mu F*''(z)``: Tuncel, "Generalization of primal-dual interior-point methods to convex optimization
problems in conic form" (2001); Dahl and Andersen, "A primal-dual interior-point algorithm for
nonsymmetric exponential-cone optimization" (2022).

A barrier here is ``F = -log h - <c, log p>`` for points ``p`` with constants ``c >= 0``; a cone
says what its ``h`` and ``c`` are.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ddn_cvx.cones.base import STIFF, Cone, Spectrum, Tensors

# A point is on a face of a cone when its distance, relative to its size, is below this: rounding.
_FACE = 1e-9
# A slack is on a cone's smooth boundary when its distance, relative to its size, is below this: far
# above a solver's error, far below the distance of the boundary from a flat face.
_NEAR = 1e-6
# Newton steps of a local projection, which starts within a solver's accuracy of the answer.
_PROJECTION_STEPS = 6
# Step lengths tried at once for membership in the cones: 0.8^0, ..., 0.8^31 (the last is 1e-3).
_SHORTER, _TRIES = 0.8, 32
# And, from the longest of those, for the distance from the central path: 0.5^0, ..., 0.5^5.
_NEARER, _TRIES_NEARER = 0.5, 6
# A point is near the central path when mu mu^ < 1e6; on the path that product is one.
_NEIGHBOURHOOD = 1e-6
# Where <s - mu s^, z - mu z^> is below this share of mu (the point is on the path), the scaling is
# the dual barrier's, because the general formula divides by that product.
_CENTRAL = 1e-7


class Boundary(NamedTuple):
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


class Barrier(NamedTuple):
    """``F = -log h - <c, log p>`` at points inside of a cone.

    Attributes:
        point: ``p``, shape ``(..., 3)``.
        inverse: ``1 / p``, zero where ``c`` is zero.
        h: shape ``(...)``.
        slope: gradient of ``h``, shape ``(..., 3)``.
    """

    point: torch.Tensor
    inverse: torch.Tensor
    h: torch.Tensor
    slope: torch.Tensor


class NonsymmetricCone(Cone):
    """See :class:`~ddn_cvx.cones.base.Cone`.

    ``W`` is the Cholesky factor ``L = W'`` by its entries, ``s``, ``z``, the shadow of ``z``, and
    the barrier there.
    """

    def __init__(self, index: np.ndarray, behind: int = 0) -> None:
        super().__init__(index, behind)
        self.degree = 3 * self.number

    # -- asked of a cone ------------------------------------------------------------------------

    @abc.abstractmethod
    def boundary(self, point: torch.Tensor) -> Boundary:
        """``g`` and its derivatives, and at which points they exist."""

    @abc.abstractmethod
    def face(self, point: torch.Tensor) -> torch.Tensor:
        """The diagonal of ``DPi_K`` where ``Pi_K`` of ``point`` is on a flat face."""

    @abc.abstractmethod
    def logarithms(self, like: torch.Tensor) -> torch.Tensor | float:
        """``c``, which broadcasts against ``(..., k, 3)``."""

    @abc.abstractmethod
    def barrier(self, slack: torch.Tensor) -> Barrier:
        """``F`` at slacks ``(..., k, 3)``."""

    @abc.abstractmethod
    def hessian(self, barrier: Barrier) -> Triangle:
        """The Cholesky factor of ``F''``, without cancellation near the boundary."""

    @abc.abstractmethod
    def curvature(self, barrier: Barrier, p: torch.Tensor) -> torch.Tensor:
        """``h'' p``."""

    @abc.abstractmethod
    def third(self, barrier: Barrier, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        """``h'''[p, q]``."""

    @abc.abstractmethod
    def is_inside(self, slack: torch.Tensor) -> torch.Tensor:
        """Strictly inside the cone, shape ``(..., k)``, bool."""

    @abc.abstractmethod
    def depth_of_multiplier(self, multiplier: torch.Tensor) -> torch.Tensor:
        """A number that is positive strictly inside the dual cone, shape ``(..., k)``."""

    @abc.abstractmethod
    def shadow(self, multiplier: torch.Tensor) -> tuple[torch.Tensor, Barrier]:
        """``s`` with ``-F'(s) = z``, and the barrier there."""

    # -- projection -----------------------------------------------------------------------------

    @staticmethod
    def lengths(members: Any) -> list[int]:
        """Three rows each; ``members`` is the cones' number or something for each of them."""
        return [3] * (members if isinstance(members, int) else len(members))

    def project(self, point: torch.Tensor, slack: torch.Tensor) -> torch.Tensor:
        """See :class:`~ddn_cvx.cones.base.Cone`; right only near ``point + slack``."""
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
            boundary = self.boundary(current)
        on_face = self.face(target) * target
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
        on_face = torch.diag_embed(self.face(slack - dual))
        projection = torch.where(boundary.smooth[..., None, None], on_boundary, on_face)
        projection = torch.where(no_slack.unsqueeze(-1), torch.zeros_like(projection), projection)
        projection = torch.where(no_dual.unsqueeze(-1), identity, projection)
        return identity - projection

    def _place(
        self, dual: torch.Tensor, slack: torch.Tensor
    ) -> tuple[Boundary, torch.Tensor, torch.Tensor]:
        """The boundary at ``slack``, and where the dual or the slack vanishes, ``(B, k, 1)``."""
        scale = 1 + torch.maximum(dual.abs().amax(-1), slack.abs().amax(-1))
        no_dual = (dual.abs().amax(-1) <= _FACE * scale).unsqueeze(-1)
        no_slack = (slack.abs().amax(-1) <= _FACE * scale).unsqueeze(-1)
        boundary = self.boundary(slack)
        # On a flat face g is far below zero: only near g = 0 is the boundary the smooth one.
        near = boundary.value.abs() <= _NEAR * scale * boundary.gradient.norm(dim=-1)
        return boundary._replace(smooth=boundary.smooth & near), no_dual, no_slack

    def spectrum(self, z: torch.Tensor, s: torch.Tensor) -> Spectrum:
        """See :class:`~ddn_cvx.cones.base.Cone`; ``axes`` are the eigenvectors ``(B, k, 3, 3)``."""
        derivative = self.derivative(z, s)
        finite = derivative.isfinite().flatten(-2).all(-1)
        values, vectors = torch.linalg.eigh(torch.where(finite[..., None, None], derivative, 0.0))
        weights = values.clamp(0.0, 1.0) / (1 - values).clamp_min(1e-300)
        equations = weights > STIFF
        weights = torch.where(equations | (weights < 1 / STIFF), 0.0, weights)
        # Without a derivative the system has no solution either.
        weights = torch.where(finite.unsqueeze(-1), weights, torch.nan)
        return Spectrum(equations, weights, vectors, torch.ones_like(equations[..., :1]))

    def to_eigenbasis(self, spectrum: Spectrum, rows: torch.Tensor, out: torch.Tensor) -> None:
        columns = rows if rows.ndim == 4 else rows.unsqueeze(-1)
        out[:] = (spectrum.axes.mT @ columns).view_as(rows)

    def from_eigenbasis(self, spectrum: Spectrum, v: torch.Tensor, out: torch.Tensor) -> None:
        out[:] = (spectrum.axes @ v.unsqueeze(-1)).squeeze(-1)

    # -- scaling --------------------------------------------------------------------------------

    def scaling(self, s: torch.Tensor, z: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        """See :class:`~ddn_cvx.cones.base.Cone`.

        Near the boundary ``H`` is about ``1 / mu`` along ``s`` and ``mu`` across the boundary: the
        sum of its parts has lost the latter where ``mu^2`` is below rounding. Its root has not.
        """
        shadow, barrier = self.shadow(z)
        hessian, of_slack = self.hessian(barrier), -self.gradient(self.barrier(s))
        mu = (s * z).sum(-1, keepdim=True) / 3
        gap_s, gap_z = s - mu * shadow, z - mu * of_slack
        apart = (gap_s * gap_z).sum(-1, keepdim=True)
        along, nothing = s / (3 * mu).sqrt(), torch.zeros_like(s)
        # H is determined but for one direction, in which z and its shadow have no part.
        free = torch.linalg.cross(z, of_slack, dim=-1)
        size = hessian.transposed_times(free).norm(dim=-1, keepdim=True) / mu.sqrt()
        far = torch.stack([along, gap_s / apart.sqrt(), free / size, nothing], -1)
        # The root of mu F*''(z), in which s takes the place of the image of z.
        identity = torch.eye(3, dtype=s.dtype, device=s.device).expand(*s.shape, 3)
        root = mu.sqrt().unsqueeze(-1) * hessian.for_rows().over(identity)
        image = hessian.over(z).unsqueeze(-2)
        image = image / image.norm(dim=-1, keepdim=True)
        root = root - (root * image).sum(-1, keepdim=True) * image
        near = torch.cat([along.unsqueeze(-1), root], -1)
        # Below the rounding of <s, z> the product is unknown, too.
        rounding = torch.finfo(s.dtype).eps * (s * z).abs().sum(-1, keepdim=True)
        is_far = apart > torch.maximum(_CENTRAL * mu, rounding)
        factor = Triangle.of(torch.where(is_far.unsqueeze(-1), far, near))
        return (*factor, s, z, shadow, *barrier), factor.transposed_times(z)

    def scale(
        self, W: Tensors, v: torch.Tensor, out: torch.Tensor, *, inverse: bool, transposed: bool
    ) -> None:
        """See :class:`~ddn_cvx.cones.base.Cone`; ``W'`` is the factor."""
        factor = Triangle(*W[:6])
        if inverse:
            out[:] = factor.over(v) if transposed else factor.transposed_over(v)
        else:
            out[:] = factor.times(v) if transposed else factor.transposed_times(v)

    def scale_rows(self, W: Tensors, rows: torch.Tensor, out: torch.Tensor) -> None:
        out[:] = Triangle(*W[:6]).for_rows().over(rows.mT).mT

    def correction(
        self, W: Tensors, point: torch.Tensor, directions: tuple[torch.Tensor, torch.Tensor],
        weight: torch.Tensor, target: torch.Tensor, out: torch.Tensor,
    ) -> None:  # fmt: skip
        """See :class:`~ddn_cvx.cones.base.Cone`.

        The second order is half of the third derivative of ``F*``: Dahl and Andersen, section 5.
        """
        factor, (s, _, shadow), barrier = Triangle(*W[:6]), W[6:9], Barrier(*W[9:])
        ds, dz = factor.times(directions[0]), factor.transposed_over(directions[1])
        hessian = self.hessian(barrier)
        inner = self.third_derivative(barrier, hessian.inverse_times(dz), ds)
        second = hessian.inverse_times(inner) / 2
        out[:] = factor.over(s - target.unsqueeze(-1) * shadow - weight.unsqueeze(-1) * second)

    def step_rates(
        self, W: Tensors, point: torch.Tensor, directions: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """See :class:`~ddn_cvx.cones.base.Cone`; the longest step of a list."""
        factor, (s, z) = Triangle(*W[:6]), W[6:8]
        ds, dz = factor.times(directions[0]), factor.transposed_over(directions[1])
        steps = _SHORTER ** torch.arange(_TRIES, dtype=s.dtype, device=s.device).view(-1, 1, 1, 1)
        inside = self.is_inside(s + steps * ds) & (self.depth_of_multiplier(z + steps * dz) > 0)
        length = (inside.all(-1) * steps[..., 0, 0]).amax(0)  # (B,)
        shares = _NEARER ** torch.arange(_TRIES_NEARER, dtype=s.dtype, device=s.device)
        steps = length.view(-1, 1, 1) * shares.view(-1, 1, 1, 1)
        new_s, new_z = s + steps * ds, z + steps * dz
        mu = (new_s * new_z).sum(-1) / 3
        shadows = -self.gradient(self.barrier(new_s)) * self.shadow(new_z)[0]
        near = (mu * shadows.sum(-1) / 3 < 1 / _NEIGHBOURHOOD).all(-1)
        length = (near * steps[..., 0, 0]).amax(0)
        # The caller never steps further than one.
        return [torch.where(length == 1, 0.0, 1 / length)]

    # -- barrier --------------------------------------------------------------------------------

    def gradient(self, barrier: Barrier) -> torch.Tensor:
        """``F'``."""
        _, inverse, h, slope = barrier
        return -slope / h.unsqueeze(-1) - self.logarithms(inverse) * inverse

    def third_derivative(self, barrier: Barrier, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        """``F'''[p, q]``."""
        _, inverse, h, slope = barrier
        h = h.unsqueeze(-1)
        curved_p, curved_q = self.curvature(barrier, p), self.curvature(barrier, q)
        along_p = (slope * p).sum(-1, keepdim=True)
        along_q = (slope * q).sum(-1, keepdim=True)
        mixed = (curved_p * q).sum(-1, keepdim=True)
        found = (curved_p * along_q + curved_q * along_p + mixed * slope) / h.square()
        found = found - self.third(barrier, p, q) / h - 2 * along_p * along_q * slope / h**3
        return found - 2 * self.logarithms(inverse) * p * q * inverse**3


class Triangle(NamedTuple):
    """Lower triangular matrices ``[[a, 0, 0], [b, d, 0], [c, e, f]]``, each entry ``(...)``.

    Written out, they take a fraction of the time of a library's loop over small matrices.
    """

    a: torch.Tensor
    b: torch.Tensor
    c: torch.Tensor
    d: torch.Tensor
    e: torch.Tensor
    f: torch.Tensor

    @classmethod
    def of(cls, B: torch.Tensor) -> Triangle:
        """Cholesky factors of ``B B'`` for ``(..., 3, k)``: Gram and Schmidt's method on the rows.

        Their error is rounding times the condition of ``B``; of the product's, times its square.
        """
        x, y, z = B.unbind(-2)
        a = x.norm(dim=-1)
        x = x / a.unsqueeze(-1)
        b, c = (x * y).sum(-1), (x * z).sum(-1)
        y, z = y - b.unsqueeze(-1) * x, z - c.unsqueeze(-1) * x
        d = y.norm(dim=-1)
        y = y / d.unsqueeze(-1)
        e = (y * z).sum(-1)
        return cls(a, b, c, d, e, (z - e.unsqueeze(-1) * y).norm(dim=-1))

    def for_rows(self) -> Triangle:
        """The same for the rows of matrices ``(..., k, 3)``."""
        return Triangle(*(entry.unsqueeze(-1) for entry in self))

    def times(self, v: torch.Tensor) -> torch.Tensor:
        """``L v``."""
        x, y, z = v.unbind(-1)
        return torch.stack(
            [self.a * x, self.b * x + self.d * y, self.c * x + self.e * y + self.f * z], -1
        )

    def transposed_times(self, v: torch.Tensor) -> torch.Tensor:
        """``L' v``."""
        x, y, z = v.unbind(-1)
        return torch.stack(
            [self.a * x + self.b * y + self.c * z, self.d * y + self.e * z, self.f * z], -1
        )

    def over(self, v: torch.Tensor) -> torch.Tensor:
        """``L^-1 v``."""
        x, y, z = v.unbind(-1)
        x = x / self.a
        y = (y - self.b * x) / self.d
        return torch.stack([x, y, (z - self.c * x - self.e * y) / self.f], -1)

    def transposed_over(self, v: torch.Tensor) -> torch.Tensor:
        """``L'^-1 v``."""
        x, y, z = v.unbind(-1)
        z = z / self.f
        y = (y - self.e * z) / self.d
        return torch.stack([(x - self.b * y - self.c * z) / self.a, y, z], -1)

    def inverse_times(self, v: torch.Tensor) -> torch.Tensor:
        """``(L L')^-1 v``."""
        return self.transposed_over(self.over(v))


def _square(vector: torch.Tensor) -> torch.Tensor:
    return (vector * vector).sum(-1)


def _bordered(boundary: Boundary, multiplier: torch.Tensor) -> torch.Tensor:
    """``[[I + mu H, grad g], [grad g', 0]]``, shape ``(B, k, 4, 4)``."""
    identity = torch.eye(3, dtype=multiplier.dtype, device=multiplier.device)
    gradient = boundary.gradient
    leading = identity + multiplier[..., None, None] * boundary.hessian
    top = torch.cat([leading, gradient.unsqueeze(-1)], -1)
    bottom = torch.cat([gradient, torch.zeros_like(gradient[..., :1])], -1).unsqueeze(-2)
    return torch.cat([top, bottom], -2)
