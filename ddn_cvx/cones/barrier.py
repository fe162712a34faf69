"""The logarithmic barrier of symmetric cones: what an interior-point method asks of a cone.

Nonnegative, second-order and semidefinite rows, in the order and scaling of
:class:`~ddn_cvx.cones.product.Cones`, without the zero cone. ``s`` and ``z`` are strictly inside
their cones. The scaling is Nesterov and Todd's ("Self-scaled barriers and interior-point methods
for convex programming", 1997), in the form of Vandenberghe, "The CVXOPT linear and quadratic cone
program solvers" (2010).
"""

from __future__ import annotations

import math

import numpy as np
import torch

from ddn_cvx.batch.device import OnDevice
from ddn_cvx.cones.product import Cones, Derivative


class Barrier:
    """``-log det`` of each cone, added up.

    Args:
        cones: without exponential and power cones, which are not symmetric.
    """

    def __init__(self, cones: Cones) -> None:
        self.nonnegative = cones.nonnegative
        self.rows = cones.rows - cones.zero
        self._blocks: list[_SecondOrder | _Semidefinite] = []
        start = self.nonnegative
        for size in cones.second_order:
            self._blocks.append(_SecondOrder(start, size))
            start += size
        for side in cones.semidefinite:
            self._blocks.append(_Semidefinite(start, side))
            start += side * (side + 1) // 2
        self.degree = self.nonnegative + sum(block.degree for block in self._blocks)
        scale = np.ones(self.rows)
        for block in self._blocks:
            scale[block.rows] = 0.0
        self._linear = OnDevice(scale)

    def identity(self, like: torch.Tensor) -> torch.Tensor:
        """The cones' identity element ``e``, shape ``(k,)``."""
        result = torch.ones(self.rows, dtype=like.dtype, device=like.device)
        for block in self._blocks:
            result[block.rows] = block.identity(like)
        return result

    def log_det(self, s: torch.Tensor) -> torch.Tensor:
        """``log det s``, shape ``(B,)``; NaN or minus infinity outside."""
        total = s[:, : self.nonnegative].log().sum(1)
        for block in self._blocks:
            total = total + block.log_det(s[:, block.rows])
        return total

    def inverse(self, s: torch.Tensor) -> torch.Tensor:
        """``s^-1``, the gradient of ``log det``; shape ``(B, k)``."""
        parts = [1.0 / s[:, : self.nonnegative]]
        parts += [block.inverse(s[:, block.rows]) for block in self._blocks]
        return torch.cat(parts, 1)

    def scaling(self, s: torch.Tensor, z: torch.Tensor) -> Derivative:
        """``W^-2``, which maps ``s`` to ``z``."""
        linear = slice(0, self.nonnegative)
        blocks = []
        for block in self._blocks:
            index = torch.arange(block.rows.start, block.rows.stop, device=s.device).unsqueeze(0)
            matrix = block.scaling(s[:, block.rows], z[:, block.rows])
            blocks.append((index, matrix.unsqueeze(1)))
        return Derivative(z[:, linear] / s[:, linear], blocks, self.rows)

    def step(self, s: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """The largest ``t`` with ``s + t change`` in the cones, shape ``(B,)``; may be infinite."""
        linear = slice(0, self.nonnegative)
        rate = -change[:, linear] / s[:, linear]
        steepest = rate.new_zeros(len(s))
        if self.nonnegative:
            steepest = rate.amax(1).clamp_min(0.0)
        for block in self._blocks:
            steepest = torch.maximum(steepest, block.rate(s[:, block.rows], change[:, block.rows]))
        return 1.0 / steepest

    def smallest(self, s: torch.Tensor) -> torch.Tensor:
        """Smallest eigenvalue of each row's cone, shape ``(B, k)``."""
        parts = [s[:, : self.nonnegative]]
        for block in self._blocks:
            part = s[:, block.rows]
            parts.append(block.smallest(part).unsqueeze(1).expand_as(part))
        return torch.cat(parts, 1)

    def complementarity(self, s: torch.Tensor, z: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
        """Largest entry of ``s o z - mu e``, distance from the central path; shape ``(B,)``."""
        worst = s.new_zeros(len(s))
        if self.nonnegative:
            product = s[:, : self.nonnegative] * z[:, : self.nonnegative]
            worst = (product - mu.unsqueeze(1)).abs().amax(1)
        for block in self._blocks:
            distance = block.distance(s[:, block.rows], z[:, block.rows], mu)
            worst = torch.maximum(worst, distance)
        return worst


class _SecondOrder:
    """``{(t, v): |v| <= t}``."""

    degree = 1

    def __init__(self, start: int, size: int) -> None:
        self.rows = slice(start, start + size)

    def identity(self, like: torch.Tensor) -> torch.Tensor:
        result = torch.zeros(self.rows.stop - self.rows.start, dtype=like.dtype, device=like.device)
        result[:1] = 1.0
        return result

    @staticmethod
    def _determinant(s: torch.Tensor) -> torch.Tensor:
        length = s[:, 1:].norm(dim=1)
        return (s[:, 0] - length) * (s[:, 0] + length)  # type: ignore[no-any-return]

    @staticmethod
    def _mirror(s: torch.Tensor) -> torch.Tensor:
        return torch.cat([s[:, :1], -s[:, 1:]], 1)

    def log_det(self, s: torch.Tensor) -> torch.Tensor:
        inside = torch.where(s[:, 0] > 0, self._determinant(s), -1.0)
        # Half of the usual barrier, of degree one: <s, s^-1> = 1 as in the other cones.
        return 0.5 * inside.log()

    def inverse(self, s: torch.Tensor) -> torch.Tensor:
        inverse: torch.Tensor = self._mirror(s) / self._determinant(s).unsqueeze(1)
        return inverse

    def scaling(self, s: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        root_s = self._determinant(s).clamp_min(1e-300).sqrt().unsqueeze(1)
        root_z = self._determinant(z).clamp_min(1e-300).sqrt().unsqueeze(1)
        unit_s, unit_z = s / root_s, z / root_z
        gamma = (0.5 * (1 + (unit_s * unit_z).sum(1, keepdim=True))).sqrt()
        w = self._mirror((unit_s + self._mirror(unit_z)) / (2 * gamma))
        reflection = torch.diag_embed(self._mirror(torch.ones_like(s)))
        outer = w.unsqueeze(2) * w.unsqueeze(1)
        return (root_z / root_s).unsqueeze(2) * (2 * outer - reflection)

    def rate(self, s: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        # Eigenvalues of Q(s)^-1/2 change are -(rates): with unit = s / sqrt(det s) they are
        # rho_0 -+ |rho_1| for rho = Q(unit)^-1/2 change / sqrt(det s).
        root = self._determinant(s).clamp_min(1e-300).sqrt().unsqueeze(1)
        unit = s / root
        along = unit[:, :1] * change[:, :1] - (unit[:, 1:] * change[:, 1:]).sum(1, keepdim=True)
        factor = (along + change[:, :1]) / (unit[:, :1] + 1)
        rest = change[:, 1:] - factor * unit[:, 1:]
        steepest: torch.Tensor = (rest.norm(dim=1, keepdim=True) - along) / root
        return steepest.squeeze(1).clamp_min(0.0)

    def smallest(self, s: torch.Tensor) -> torch.Tensor:
        smallest: torch.Tensor = s[:, 0] - s[:, 1:].norm(dim=1)
        return smallest

    def distance(self, s: torch.Tensor, z: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
        head = (s * z).sum(1) - mu
        rest = s[:, :1] * z[:, 1:] + z[:, :1] * s[:, 1:]
        distance: torch.Tensor = torch.maximum(head.abs(), rest.norm(dim=1))
        return distance


class _Semidefinite:
    """Positive semidefinite matrices as scaled lower triangles, column by column."""

    def __init__(self, start: int, side: int) -> None:
        self.degree = side
        self.rows = slice(start, start + side * (side + 1) // 2)
        columns, rows = np.triu_indices(side)
        scale = np.where(rows == columns, 1.0, math.sqrt(0.5))
        basis = np.zeros((len(rows), side, side))
        basis[np.arange(len(rows)), rows, columns] = scale
        basis[np.arange(len(rows)), columns, rows] = scale
        self._basis = OnDevice(basis)

    def _matrix(self, s: torch.Tensor) -> torch.Tensor:
        basis = self._basis(s.device)[0].to(s.dtype)
        return torch.einsum("bd,dij->bij", s, basis)

    def _vector(self, matrix: torch.Tensor) -> torch.Tensor:
        basis = self._basis(matrix.device)[0].to(matrix.dtype)
        return torch.einsum("bij,dij->bd", matrix, basis)

    def identity(self, like: torch.Tensor) -> torch.Tensor:
        eye = torch.eye(self.degree, dtype=like.dtype, device=like.device)
        return self._vector(eye.unsqueeze(0))[0]

    def log_det(self, s: torch.Tensor) -> torch.Tensor:
        factor, info = torch.linalg.cholesky_ex(self._matrix(s))
        diagonal = torch.diagonal(factor, dim1=1, dim2=2)
        return torch.where(info == 0, 2 * diagonal.log().sum(1), -torch.inf)

    def inverse(self, s: torch.Tensor) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(self._matrix(s))
        return self._vector((vectors / values.unsqueeze(1)) @ vectors.mT)

    def scaling(self, s: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        left = torch.linalg.cholesky_ex(self._matrix(s))[0]
        right = torch.linalg.cholesky_ex(self._matrix(z))[0]
        # With R' L = U D V', G^-1 = D^-1/2 U' R' and W^-1 = G^-T G^-1.
        product = torch.nan_to_num(right.mT @ left)
        u, d, _ = torch.linalg.svd(product)
        inverse = (u.mT @ right.mT) / d.clamp_min(1e-300).sqrt().unsqueeze(2)
        w = inverse.mT @ inverse
        basis = self._basis(s.device)[0].to(s.dtype)
        return torch.einsum("bij,djk,bkl,eil->bde", w, basis, w, basis)

    def rate(self, s: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        factor, info = torch.linalg.cholesky_ex(self._matrix(s))
        identity = torch.eye(self.degree, dtype=s.dtype, device=s.device)
        factor = torch.where((info == 0)[:, None, None], factor, identity)
        half = torch.linalg.solve_triangular(factor, self._matrix(change), upper=False)
        scaled = torch.linalg.solve_triangular(factor, half.mT, upper=False)
        values = torch.linalg.eigvalsh(torch.nan_to_num(0.5 * (scaled + scaled.mT)))
        return (-values[:, 0]).clamp_min(0.0)  # type: ignore[no-any-return]

    def smallest(self, s: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvalsh(torch.nan_to_num(self._matrix(s)))[:, 0]  # type: ignore[no-any-return]

    def distance(self, s: torch.Tensor, z: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
        product = self._matrix(s) @ self._matrix(z)
        identity = torch.eye(self.degree, dtype=s.dtype, device=s.device)
        symmetric = 0.5 * (product + product.mT)
        return (symmetric - mu[:, None, None] * identity).abs().amax((1, 2))
