"""Second-order expansion of a pose's cost: value, gradient and Hessian from moments of the scene.

The first two derivatives of a term in ``y = A (R X + t)`` are a vector and a symmetric matrix,
nine numbers. The derivative of ``y`` along ``(omega, tau)`` is linear in ``q = (R X, 1)``, so that
gradient and Hessian are linear in the sums over the points of these nine numbers times the ten
distinct products of ``q q'``. For each pose one matrix product ``(10, n) (n, 9)`` computes these
sums; a constant table maps them to gradient and Hessian.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.dedicated.common import cached_chunks, cached_table
from ddn_cvx.dedicated.pose.objective import Objective, Pose, collapse_broadcast
from ddn_cvx.dedicated.pose.rotations import cross_matrix

# Row and column of the entries xx, xy, xz, yy, yz, zz of a symmetric matrix.
_FIRST, _SECOND = [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]
# Places of the products of (x, y, z, 1) among these six followed by x, y, z and one.
PRODUCTS = [[0, 1, 2, 6], [1, 3, 4, 7], [2, 4, 5, 8], [6, 7, 8, 9]]

# Points of one chunk of the batch, each with up to 25 numbers of work space: more are slower, as
# they leave the processor's cache.
_CHUNK_POINTS = 100_000


class Expansion(NamedTuple):
    """The cost near a pose, to second order.

    Attributes:
        value: shape ``(B,)``; infinite where a point is behind the camera.
        gradient: in ``(omega, tau)``, shape ``(B, 6)``.
        hessian: the full Hessian in ``(omega, tau)``, shape ``(B, 6, 6)``.
    """

    value: Tensor
    gradient: Tensor
    hessian: Tensor


class Expander:
    """Computes expansions of one objective at many poses; not differentiable.

    Args:
        objective: with data ``(B, ...)``, whose precision is that of the expansions.
        lift: the matrix of :meth:`_lifted`, if it is known.
    """

    def __init__(self, objective: Objective, lift: Tensor | None = None) -> None:
        self.objective = objective
        self._lift = self._lifted() if lift is None else lift

    def rows(self, elements: Tensor | slice) -> Expander:
        """The expander of some elements of the batch."""
        lift = self._lift[elements] if self._lift.ndim == 3 else self._lift
        return Expander(self.objective.rows(elements), lift)

    def single(self) -> Expander:
        """The expander in single precision."""
        return Expander(self.objective.single(), self._lift.float())

    def __call__(self, pose: Pose) -> Expansion:
        """The expansions at poses ``(B, ...)``."""
        value, sums = self._sums(pose)
        both = sums.flatten(1) @ _tables(sums.device, sums.dtype)[2]
        return Expansion(value, both[:, :6], both[:, 6:].view(-1, 6, 6))

    def normal(self, pose: Pose) -> Tensor:
        """The Gauss-Newton approximation of the Hessian, positive semidefinite, ``(B, 6, 6)``."""
        sums = self._sums(pose, normal=True)[1][..., 3:]
        table = _tables(sums.device, sums.dtype)[2].view(10, 9, 42)[:, 3:, 6:]
        normal: Tensor = sums.flatten(1) @ table.flatten(0, 1)
        return normal.view(-1, 6, 6)

    def _sums(self, pose: Pose, normal: bool = False) -> tuple[Tensor, Tensor]:
        """Costs ``(B,)``, and sums ``(B, 10, 9)`` in the camera's frame.

        Args:
            normal: second derivatives of the Gauss-Newton approximation.
        """
        o = self.objective
        batch, _, n = o.scene.shape
        place = pose.R.new_zeros(batch, 6, 4)  # [A R, A t; R, 0]
        place[:, :3] = torch.bmm(o.lens, torch.cat([pose.R, pose.t.unsqueeze(2)], 2))
        place[:, 3:, :3] = pose.R
        width = self._lift.shape[-2]
        value, sums = place.new_empty(batch), place.new_empty(batch, 10, width)
        fill = _fill_bearings if o.cost == "cosine" else _fill_image
        parts = scene_chunks(batch, n, place.device)
        # One work space for all chunks: memory is allocated, and its pages faulted in, once.
        work = place.new_empty((width + 16) * (parts[0].stop if parts else 0) * n)
        for part in parts:
            some = o.rows(part)
            count = len(some.image)
            sizes = [6 * count * n, width * count * n, 10 * count * n]
            spaces = work[: sum(sizes)].split(sizes)
            seen, rows, product = [space.view(count, -1, n) for space in spaces]
            # y = A (R X + t), and R X.
            torch.baddbmm(place[part, :, 3:], place[part, :, :3], some.scene, out=seen)
            total = (some.weights * fill(some, seen[:, :3], rows, normal)).sum(-1)
            total = torch.where(seen[:, 2].amin(-1) > 0, total, torch.inf)
            torch.nan_to_num(total, nan=torch.inf, posinf=torch.inf, out=value[part])
            torch.bmm(products(seen[:, 3:], product), rows.mT, out=sums[part])
        return value, sums @ self._lift

    def _lifted(self) -> Tensor:
        """The linear map from derivatives in ``y`` to those in ``R X + t``, ``(B, rows, 9)``.

        Rows are the numbers that :func:`_fill_image` or :func:`_fill_bearings` writes for each
        point. Without the batch dimension for a lens that all elements share.
        """
        cost, lens = self.objective.cost, collapse_broadcast(self.objective.lens)
        basis, upper, _ = _tables(lens.device, lens.dtype)
        if cost == "squared":
            # The second derivative of a squared residual in the image has xx = yy and xy = 0.
            basis = torch.stack([basis[0] + basis[3], basis[2], basis[4], basis[5]])
        rows = lens.new_zeros(len(lens), 3 + len(basis), 9)
        rows[:, :3, :3] = lens
        second = (lens.mT.unsqueeze(1) @ basis @ lens.unsqueeze(1)).flatten(2)
        rows[:, 3:, 3:] = second.index_select(2, upper)
        if cost != "cosine":
            # Image costs write half of their derivatives, those in z, xz and yz negated.
            rows *= 2
            rows[:, 2].neg_()
            rows[:, slice(4, 6) if cost == "squared" else slice(5, 8, 2)].neg_()
        return rows[0] if len(rows) < len(self.objective.lens) else rows


def _fill_image(o: Objective, y: Tensor, rows: Tensor, normal: bool) -> Tensor:
    """Write half the first and second derivatives in ``y`` of an image cost; return its terms.

    Those in z, xz and yz are negated. For the cost "squared", xx stands for yy, too, and xy, which
    is zero, is left out. :meth:`Expander._lifted` undoes all this.
    """
    inverse = y[:, 2:].reciprocal()
    p = y[:, :2] * inverse
    e = p - o.image
    s = torch.addcmul(e[:, 0] * e[:, 0], e[:, 1], e[:, 1])
    terms, first, curved = o.rho(s)
    pull = inverse * o.weights.unsqueeze(1)
    if isinstance(first, Tensor):
        pull *= first.unsqueeze(1)
    across = torch.addcmul(e[:, 0] * p[:, 0], e[:, 1], p[:, 1]).unsqueeze(1)
    torch.mul(pull, e, out=rows[:, :2])
    torch.mul(pull, across, out=rows[:, 2:3])
    edge = p if normal else p + e
    corner = torch.addcmul(edge[:, 0] * edge[:, 0], edge[:, 1], edge[:, 1])
    if not normal:
        corner -= s
    level = rows[:, 3:]
    d = torch.mul(pull, inverse, out=level[:, :1])
    if o.cost == "squared":
        xz_yz = level[:, 1:3]
    else:
        level[:, 1], level[:, 3] = 0.0, level[:, 0]
        xz_yz = level[:, 2:5:2]
    torch.mul(d, edge, out=xz_yz)
    torch.mul(d.squeeze(1), corner, out=level[:, -1])
    if not normal and isinstance(curved, Tensor):
        c = 2 * o.weights * curved * inverse.squeeze(1).square()
        along = torch.cat([e, across], 1)
        level += c.unsqueeze(1) * along[:, _FIRST] * along[:, _SECOND]
    return terms


def _fill_bearings(o: Objective, y: Tensor, rows: Tensor, normal: bool) -> Tensor:
    """Write the first and second derivatives in ``y`` of the cost "cosine"; return its terms."""
    size = y.square().sum(1, keepdim=True).sqrt()
    ray, b = y / size, o.bearings()
    terms = (ray - b).square().sum(1) / 2
    cosine = 1 - terms.unsqueeze(1)
    pull = o.weights.unsqueeze(1) / size
    rows[:, :3] = pull * (cosine * ray - b)
    # The second derivative of -b' ray is w / |y|^2 (c I - 3 c ray ray' + b ray' + ray b') with the
    # cosine c; without the residual b - ray it is that with I - ray ray' in the bracket.
    if normal:
        level = -ray[:, _FIRST] * ray[:, _SECOND]
        level[:, [0, 3, 5]] += 1
    else:
        level = (b - 3 * cosine * ray)[:, _FIRST] * ray[:, _SECOND]
        level += ray[:, _FIRST] * b[:, _SECOND]
        level[:, [0, 3, 5]] += cosine
    rows[:, 3:] = pull / size * level
    return terms


def scene_chunks(batch: int, n: int, device: torch.device) -> list[slice]:
    """A batch of scenes of ``n`` points in equal chunks whose work space the cache holds."""
    count = max(1, math.ceil(batch * n / _CHUNK_POINTS))
    return cached_chunks(batch, 1, device, math.ceil(batch / count))


def products(scene: Tensor, out: Tensor) -> Tensor:
    """The distinct products of ``(x, y, z, 1)`` for coordinates ``(B, 3, n)``, ``(B, 10, n)``.

    In the order of :data:`PRODUCTS`: xx, xy, xz, yy, yz, zz, x, y, z, 1.
    """
    torch.mul(scene[:, :1], scene, out=out[:, :3])
    torch.mul(scene[:, 1:2], scene[:, 1:], out=out[:, 3:5])
    torch.mul(scene[:, 2], scene[:, 2], out=out[:, 5])
    out[:, 6:9] = scene
    out[:, 9] = 1.0
    return out


@cached_table
def _tables(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A basis of the symmetric matrices, their six entries' places, the map of an expansion.

    Shapes ``(6, 3, 3)``, ``(6,)`` and ``(90, 42)``. The map is linear, from the sums of the ten
    products times first (3) and second (6) derivatives to gradient (6) and Hessian (36).
    """
    product = (torch.tensor(PRODUCTS) == torch.arange(10)[:, None, None]).to(dtype)
    basis = product[:6, :3, :3].clone()
    identity = torch.eye(3, dtype=dtype)
    # The derivative of R X + t along (omega, tau) is linear in (R X, 1).
    change = torch.zeros(4, 3, 6, dtype=dtype)
    change[:3, :, :3] = cross_matrix(identity).permute(2, 1, 0)
    change[3, :, 3:] = identity
    # The second derivative of exp([omega]) q along a vector.
    pairs = torch.einsum("ac,bd->abcd", identity, identity)
    turning = (pairs + pairs.transpose(2, 3)) / 2 - pairs.transpose(1, 2)
    gradient = torch.zeros(3, 10, 42, dtype=dtype)
    gradient[:, 6:, :6] = change.transpose(0, 1)
    gradient[:, 6:9, 6:].view(3, 3, 6, 6)[..., :3, :3] = turning
    second = torch.einsum("pax,qby,sab,kpq->skxy", change, change, basis, product).flatten(2)
    hessian = torch.nn.functional.pad(second, (6, 0))
    expansion = torch.cat([gradient, hessian]).transpose(0, 1).flatten(0, 1)
    upper = torch.tensor([0, 1, 2, 4, 5, 8])
    return basis.to(device), upper.to(device), expansion.to(device)
