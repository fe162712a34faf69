"""Value, gradient and Hessian of a pose's cost from moments of the scene.

A term's derivatives in ``y = A (R X + t)`` are a vector and a symmetric matrix; as the changes of
``y`` along ``(omega, tau)`` are linear in ``(R X, 1)``, their sums with ``(R X, 1)`` and its
products are all that the gradient and the Hessian need of the points. That makes one product of
small matrices for each pose of what would be a sum of outer products, over rows written once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ddn_cvx.dedicated.constants import table
from ddn_cvx.dedicated.pose.objective import Objective, Pose, once

# Symmetric matrices as rows: (xx, xy, xz, yy, yz, zz); then the coordinates and one.
_FIRST, _SECOND = [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]
SYMMETRIC = [[0, 1, 2], [1, 3, 4], [2, 4, 5]]
PRODUCTS = [[0, 1, 2, 6], [1, 3, 4, 7], [2, 4, 5, 8], [6, 7, 8, 9]]

# Points that are worked on together: more take more memory than the processor's cache holds.
_TOGETHER = 100000


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
    """Expansions of one objective, pose after pose; constant, in the precision of its data.

    Args:
        objective: with data ``(B, ...)``.
        lift: of another one whose part this is.
    """

    def __init__(self, objective: Objective, lift: torch.Tensor | None = None) -> None:
        self.objective = objective
        self._lift = self._lifted() if lift is None else lift

    def part(self, index: torch.Tensor | slice) -> Expander:
        """For some elements of the batch."""
        lift = self._lift[index] if self._lift.ndim == 3 else self._lift
        return Expander(self.objective.rows(index), lift)

    def single(self) -> Expander:
        """In single precision."""
        return Expander(self.objective.single(), self._lift.float())

    def __call__(self, pose: Pose) -> Expansion:
        """At poses ``(B, ...)``."""
        value, sums = self._sums(pose, "hessian")
        found = sums.flatten(1) @ _tables(sums.device, sums.dtype).expansion
        return Expansion(value, found[:, :6], found[:, 6:].view(-1, 6, 6))

    def normal(self, pose: Pose) -> torch.Tensor:
        """The Hessian without second derivatives of residuals and cost, positive semidefinite."""
        sums = self._sums(pose, "normal")[1][..., 3:]
        table = _tables(sums.device, sums.dtype).expansion.view(10, 9, 42)[:, 3:, 6:]
        found: torch.Tensor = sums.flatten(1) @ table.flatten(0, 1)
        return found.view(-1, 6, 6)

    def _sums(self, pose: Pose, order: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Values, and sums in the camera's frame: of ten products with nine rows."""
        o = self.objective
        batch, _, n = o.scene.shape
        place = pose.R.new_zeros(batch, 6, 4)
        place[:, :3] = torch.bmm(o.lens, torch.cat([pose.R, pose.t.unsqueeze(2)], 2))
        place[:, 3:, :3] = pose.R
        known = self._lift.shape[-2]
        value, sums = place.new_empty(batch), place.new_empty(batch, 10, known)
        parts = together(batch, n, place.device)
        # Memory that is allocated once is faulted in once.
        most = min(batch, parts[0].stop) * n if parts else 0
        work = place.new_empty((known + 16) * most)
        for part in parts:
            _fill(o.rows(part), place[part], order, work, value[part], sums[part])
        return value, sums @ self._lift

    def _lifted(self) -> torch.Tensor:
        """From rows in ``y``'s frame to the camera's, ``(B, rows, 9)``: vectors, then matrices.

        Without the batch dimension for a lens that all share.
        """
        cost, lens = self.objective.cost, once(self.objective.lens)
        tables = _tables(lens.device, lens.dtype)
        basis = tables.basis.flatten(1)
        if cost == "squared":
            # Of a squared residual in the image xx is yy, and xy is zero.
            basis = torch.stack([basis[0] + basis[3], -basis[2], -basis[4], basis[5]])
        rows = lens.new_zeros(len(lens), 9, 3 + len(basis))
        rows[:, :3, :3] = lens.mT
        if cost != "cosine":
            rows[:, :3, 2].neg_()
        flat = lens.flatten(1)
        pairs = flat.index_select(1, tables.first) * flat.index_select(1, tables.second)
        rows[:, 3:, 3:] = pairs.view(-1, 6, 9) @ basis.mT
        rows = rows.mT if cost == "cosine" else rows.mT * 2
        return rows[0] if len(rows) < len(self.objective.lens) else rows


def _fill(
    o: Objective,
    place: torch.Tensor,
    order: str,
    work: torch.Tensor,
    value: torch.Tensor,
    sums: torch.Tensor,
) -> None:
    """Values, and sums of rows with products, of some elements of the batch."""
    batch, _, n = o.scene.shape
    known = sums.shape[2]
    seen, rows, product = (
        field.view(batch, -1, n)
        for field in work[: (known + 16) * batch * n].split(
            [6 * batch * n, known * batch * n, 10 * batch * n]
        )
    )
    # Of each point what the camera's lens makes of it, and the point turned, but not shifted.
    torch.baddbmm(place[..., 3:], place[..., :3], o.scene, out=seen)
    fill = _fill_bearings if o.cost == "cosine" else _fill_image
    terms = fill(o, seen[:, :3], rows, order)
    total = (o.weights * terms).sum(-1)
    total = torch.where(seen[:, 2].amin(-1) > 0, total, torch.inf)
    torch.nan_to_num(total, nan=torch.inf, posinf=torch.inf, out=value)
    torch.bmm(products(seen[:, 3:], out=product), rows.mT, out=sums)


def _fill_image(o: Objective, y: torch.Tensor, rows: torch.Tensor, order: str) -> torch.Tensor:
    """Half the rows of the gradient in ``y`` and of second derivatives; returns the terms.

    The gradient along ``z`` is negated, and of a squared residual so are xz and yz.
    """
    inverse = y[:, 2:].reciprocal()
    p = y[:, :2] * inverse
    e = p - o.image
    s = torch.addcmul(e[:, 0] * e[:, 0], e[:, 1], e[:, 1])
    terms, first, curved = o.rho(s)
    pull = inverse * o.weights.unsqueeze(1)
    if isinstance(first, torch.Tensor):
        pull *= first.unsqueeze(1)
    across = torch.addcmul(e[:, 0] * p[:, 0], e[:, 1], p[:, 1]).unsqueeze(1)
    torch.mul(pull, e, out=rows[:, :2])
    torch.mul(pull, across, out=rows[:, 2:3])
    level = rows[:, 3:]
    d = torch.mul(pull, inverse, out=level[:, :1])
    edge = p + e if order == "hessian" else p
    corner = torch.addcmul(edge[:, 0] * edge[:, 0], edge[:, 1], edge[:, 1])
    if order == "hessian":
        corner -= s
    if level.shape[1] == 4:
        torch.mul(d, edge, out=level[:, 1:3])
        torch.mul(d.squeeze(1), corner, out=level[:, 3])
        return terms
    inverse, d = inverse.squeeze(1), d.squeeze(1)
    level[:, 3] = d
    level[:, 1] = 0.0
    level[:, [2, 4]] = -d.unsqueeze(1) * edge
    level[:, 5] = d * corner
    if order == "hessian" and isinstance(curved, torch.Tensor):
        c = 2 * o.weights * curved * inverse.square()
        along = torch.cat([e, -across], 1)
        level += c.unsqueeze(1) * along[:, _FIRST] * along[:, _SECOND]
    return terms


def _fill_bearings(o: Objective, y: torch.Tensor, rows: torch.Tensor, order: str) -> torch.Tensor:
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


def together(batch: int, n: int, device: torch.device) -> list[slice]:
    """The batch in parts whose points the processor's cache holds."""
    count = max(1, math.ceil(batch * n / _TOGETHER)) if device.type == "cpu" else 1
    size = max(1, math.ceil(batch / count))
    return [slice(begin, begin + size) for begin in range(0, batch, size)]


def products(scene: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Products of the scene's coordinates ``(B, 3, n)``: ``(B, 10, n)``; constant.

    In the order of a symmetric matrix's rows, then the coordinates, then one.
    """
    torch.mul(scene[:, :1], scene, out=out[:, :3])
    torch.mul(scene[:, 1:2], scene[:, 1:], out=out[:, 3:5])
    torch.mul(scene[:, 2], scene[:, 2], out=out[:, 5])
    out[:, 6:9] = scene
    out[:, 9] = 1.0
    return out


class _Tables(NamedTuple):
    """What does not depend on data.

    Attributes:
        basis: symmetric matrices, ``(6, 3, 3)``.
        first, second: the entries of ``A``, row by row, whose products take the nine of ``S`` to
            each of the six of ``A' S A``.
        expansion: from the sums, in the camera's frame, of the ten products with vectors ``(3)``
            and symmetric matrices ``(6)`` to the gradient and the Hessian, ``(90, 42)``.
    """

    basis: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    expansion: torch.Tensor


@table
def _tables(device: torch.device, dtype: torch.dtype) -> _Tables:
    basis, product = torch.zeros(6, 3, 3, dtype=dtype), torch.zeros(10, 4, 4, dtype=dtype)
    for a in range(4):
        for b in range(4):
            product[PRODUCTS[a][b], a, b] = 1
            if a < 3 and b < 3:
                basis[SYMMETRIC[a][b], a, b] = 1
    # Of a point the change along (omega, tau) is linear in the turned point and one.
    change = torch.zeros(4, 3, 6, dtype=dtype)
    change[3, :, 3:] = torch.eye(3, dtype=dtype)
    # The second derivative of exp([omega]) q along a vector.
    turning = torch.zeros(3, 3, 3, 3, dtype=dtype)
    for j in range(3):
        k, m = (j + 1) % 3, (j + 2) % 3
        change[k, m, j], change[m, k, j] = 1, -1  # e_j x e_k = e_m
        for i in range(3):
            turning[i, j, i, j] += 0.5
            turning[i, j, j, i] += 0.5
            turning[i, i, j, j] -= 1
    gradient = torch.zeros(3, 10, 42, dtype=dtype)
    gradient[:, 6:, :6] = change.transpose(0, 1)
    gradient[:, 6:9, 6:].view(3, 3, 6, 6)[..., :3, :3] = turning
    second = torch.einsum("pax,qby,sab,kpq->skxy", change, change, basis, product).flatten(2)
    hessian = torch.nn.functional.pad(second, (6, 0))
    expansion = torch.cat([gradient, hessian]).transpose(0, 1).flatten(0, 1)
    pairs = zip(_FIRST, _SECOND, strict=True)
    entries = [(3 * k + i, 3 * m + j) for i, j in pairs for k in range(3) for m in range(3)]
    left, right = torch.tensor(entries).to(device).T.contiguous()
    return _Tables(basis.to(device), left, right, expansion.to(device))
