"""Value, gradient and Hessian of a pose's cost from moments of the scene.

A term's derivatives in ``y = A (R X + t)`` are a vector and a symmetric matrix; as ``y`` is linear
in ``(X, 1)``, their sums with ``(X, 1)`` and with its products are all that the gradient and the
Hessian need of the points. That makes one product of small matrices for each pose of what would be
a sum of outer products, over rows that are written once.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from ddn_cvx.dedicated.pose.objective import Objective, Pose

# Symmetric matrices as rows: (xx, xy, xz, yy, yz, zz); then the coordinates and one.
_FIRST, _SECOND = [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]
_SYMMETRIC = [[0, 1, 2], [1, 3, 4], [2, 4, 5]]
_PRODUCTS = [[0, 1, 2, 6], [1, 3, 4, 7], [2, 4, 5, 8], [6, 7, 8, 9]]
# [R, t] as nine entries of R, row by row, and three of t.
_ENTRIES = [(a, p) for a in range(3) for p in range(3)] + [(a, 3) for a in range(3)]


class Expansion(NamedTuple):
    """The cost near a pose.

    Attributes:
        value: shape ``(B,)``; infinite where a point is behind the camera.
        gradient: in ``(omega, tau)``, shape ``(B, 6)``.
        hessian: with the second derivatives of residuals and cost, shape ``(B, 6, 6)``.
    """

    value: torch.Tensor
    gradient: torch.Tensor
    hessian: torch.Tensor


class Expander:
    """Expansions of one objective, pose after pose; constant.

    Args:
        objective: with data ``(B, ...)``.
        lift: of another one whose part this is.
    """

    def __init__(self, objective: Objective, lift: torch.Tensor | None = None) -> None:
        self.objective = objective
        # Of a squared residual in the image xx is yy, and xy is zero.
        self._count = 4 if objective.cost == "squared" else 6
        self._lift = self._lifted() if lift is None else lift
        self._products: torch.Tensor | None = None
        self._rows = torch.empty(0)

    def part(self, index: torch.Tensor | slice) -> Expander:
        """For some elements of the batch."""
        return Expander(self.objective.rows(index), self._lift[index])

    def __call__(self, pose: Pose) -> Expansion:
        """At poses ``(B, ...)``."""
        value, sums = self._sums(pose, "hessian")
        pulled = torch.bmm(self.objective.lens.mT, sums[:, :3, 6:])
        turn = torch.bmm(pulled[..., :3], pose.R.mT).view(-1, 9)
        by_turn = turn @ _tables(turn.device).turns
        gradient = torch.cat([by_turn[:, :3], pulled[..., 3]], 1)
        hessian = self._second(pose, sums)
        # The second derivative of exp([omega]) R X along the gradient in y.
        hessian[:, :3, :3] += by_turn[:, 3:].view(-1, 3, 3)
        return Expansion(value, gradient, hessian)

    def normal(self, pose: Pose) -> torch.Tensor:
        """The Hessian without second derivatives of residuals and cost, positive semidefinite."""
        return self._second(pose, self._sums(pose, "normal")[1])

    def _second(self, pose: Pose, sums: torch.Tensor) -> torch.Tensor:
        tables = _tables(sums.device)
        flat = torch.addmm(tables.constant, pose.R.reshape(-1, 9), tables.directions)
        D = flat.view(-1, 6, 12)
        M = moments(torch.bmm(self._lift, sums[:, 3:]))
        second: torch.Tensor = torch.bmm(torch.bmm(D, M), D.mT)
        return second

    def _sums(self, pose: Pose, order: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Values, and the rows' sums with the products, ``(B, 3 + rows, 10)``."""
        o = self.objective
        if self._products is None:
            batch, _, n = o.scene.shape
            self._products = products(o.scene)
            self._rows = o.scene.new_empty(batch, 3 + self._count, n)
        place = torch.cat([pose.R, pose.t.unsqueeze(2)], 2)
        y = torch.bmm(torch.bmm(o.lens, place), self._products[:, 6:])
        fill = self._fill_bearings if o.cost == "cosine" else self._fill_image
        value = (o.weights * fill(y, order)).sum(-1)
        value = torch.where(y[:, 2].amin(-1) > 0, value, torch.inf).nan_to_num(nan=torch.inf)
        return value, torch.bmm(self._rows, self._products.mT)

    def _lifted(self) -> torch.Tensor:
        """How second derivatives in ``y``'s frame, by rows, are those in the camera's."""
        basis = _tables(self.objective.lens.device).basis
        if self._count == 4:
            basis = torch.stack([basis[0] + basis[3], basis[2], basis[4], basis[5]])
        lens = self.objective.lens.unsqueeze(1)
        lifted = (lens.mT @ basis @ lens).flatten(2)  # (B, rows, 9)
        rows: torch.Tensor = lifted[..., [0, 1, 2, 4, 5, 8]].mT.contiguous()
        return rows

    def _fill_image(self, y: torch.Tensor, order: str) -> torch.Tensor:
        """Rows of the gradient in ``y`` and of second derivatives; returns the terms."""
        o, rows = self.objective, self._rows
        inverse = y[:, 2:].reciprocal()
        p = y[:, :2] * inverse
        e = p - o.image
        terms, first, curved = o.rho((e * e).sum(1))
        pull = inverse.squeeze(1) * o.weights
        pull = (2 * pull * first).unsqueeze(1)
        across = (e * p).sum(1, keepdim=True)
        torch.mul(pull, e, out=rows[:, :2])
        torch.mul(pull, across, out=rows[:, 2:3]).neg_()
        d = pull * inverse
        corner, edge = (p * p).sum(1, keepdim=True), p
        if order == "hessian":
            corner, edge = corner.add_(across, alpha=2), p + e
        level = rows[:, 3:]
        if self._count == 4:
            level[:, :1] = d
            torch.mul(d, edge, out=level[:, 1:3]).neg_()
            torch.mul(d, corner, out=level[:, 3:])
            return terms
        inverse, across = inverse.squeeze(1), across.squeeze(1)
        d, corner = d.squeeze(1), corner.squeeze(1)
        level[:, [0, 3]] = d.unsqueeze(1)
        level[:, 1] = 0.0
        level[:, [2, 4]] = -d.unsqueeze(1) * edge
        level[:, 5] = d * corner
        if order == "hessian" and isinstance(curved, torch.Tensor):
            c = 4 * o.weights * curved * inverse.square()
            along = torch.cat([e, -across.unsqueeze(1)], 1)
            level += c.unsqueeze(1) * along[:, _FIRST] * along[:, _SECOND]
        return terms

    def _fill_bearings(self, y: torch.Tensor, order: str) -> torch.Tensor:
        o, rows = self.objective, self._rows
        size = y.square().sum(1, keepdim=True).sqrt()
        ray, b = y / size, o.bearings()
        terms = (ray - b).square().sum(1) / 2
        cosine = 1 - terms.unsqueeze(1)
        pull = o.weights.unsqueeze(1) / size
        rows[:, :3] = pull * (cosine * ray - b)
        # -b' (d2 ray) is w / |y|^2 (c I - 3 c ray ray' + b ray' + ray b'), which without the
        # residual is I - ray ray'.
        if order == "normal":
            level = -ray[:, _FIRST] * ray[:, _SECOND]
            level[:, [0, 3, 5]] += 1
        else:
            level = (b - 3 * cosine * ray)[:, _FIRST] * ray[:, _SECOND]
            level += ray[:, _FIRST] * b[:, _SECOND]
            level[:, [0, 3, 5]] += cosine
        rows[:, 3:] = pull / size * level
        return terms


def products(scene: torch.Tensor) -> torch.Tensor:
    """Products of the scene's coordinates ``(B, 3, n)``: ``(B, 10, n)``; constant.

    In the order of a symmetric matrix's rows, then the coordinates, then one.
    """
    batch, _, n = scene.shape
    found = scene.new_empty(batch, 10, n)
    torch.mul(scene[:, :1], scene, out=found[:, :3])
    torch.mul(scene[:, 1:2], scene[:, 1:], out=found[:, 3:5])
    torch.mul(scene[:, 2], scene[:, 2], out=found[:, 5])
    found[:, 6:9] = scene
    found[:, 9] = 1.0
    return found


def moments(sums: torch.Tensor) -> torch.Tensor:
    """``sum_i S_i kron (X_i, 1) (X_i, 1)'``, for ``R`` row by row and then ``t``: ``(B, 12, 12)``.

    Args:
        sums: of each row of the symmetric matrices ``S_i`` with each product, ``(B, 6, 10)``.
    """
    found: torch.Tensor = sums.view(-1, 60).index_select(1, _moments(sums.device))
    return found.view(-1, 12, 12)


@functools.cache
def _moments(device: torch.device) -> torch.Tensor:
    places = [10 * _SYMMETRIC[a][b] + _PRODUCTS[p][q] for a, p in _ENTRIES for b, q in _ENTRIES]
    return torch.tensor(places, device=device)


class _Tables(NamedTuple):
    """What does not depend on data.

    Attributes:
        basis: symmetric matrices, ``(6, 3, 3)``.
        directions: from ``R`` to the changes of ``(R, t)`` along ``(omega, tau)``, ``(9, 72)``.
        constant: those that do not depend on ``R``, ``(72,)``.
        turns: from ``sum h (R X)'`` to the gradient in ``omega``, and to the second derivative of
            ``exp([omega]) R X`` along it, ``(9, 12)``.
    """

    basis: torch.Tensor
    directions: torch.Tensor
    constant: torch.Tensor
    turns: torch.Tensor


@functools.cache
def _tables(device: torch.device) -> _Tables:
    double = torch.float64
    basis = torch.zeros(6, 3, 3, dtype=double)
    for k, (i, j) in enumerate(zip(_FIRST, _SECOND, strict=True)):
        basis[k, i, j] = basis[k, j, i] = 1.0
    directions = torch.zeros(10, 6, 12, dtype=double)
    turns = torch.zeros(9, 12, dtype=double)
    for j in range(3):
        k, m = (j + 1) % 3, (j + 2) % 3
        for p in range(3):  # e_j x (row k, row m) is (-row m, row k)
            directions[3 * k + p, j, 3 * m + p] = 1
            directions[3 * m + p, j, 3 * k + p] = -1
        directions[9, 3 + j, 9 + j] = 1
        turns[3 * m + k, j], turns[3 * k + m, j] = 1, -1
        for i in range(3):
            turns[3 * i + j, 3 + 3 * i + j] += 0.5
            turns[3 * j + i, 3 + 3 * i + j] += 0.5
            turns[3 * i + i, 3 + 3 * j + j] -= 1
    flat = directions.flatten(1).to(device)
    return _Tables(basis.to(device), flat[:9].contiguous(), flat[9], turns.to(device))
