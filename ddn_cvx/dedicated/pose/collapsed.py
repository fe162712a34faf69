"""Starts for a pose from moments alone: an algebraic error over a grid of rotations.

    sum_i w_i |(u_i z_i - x_i, v_i z_i - y_i)|^2 / (1 + u_i^2 + v_i^2)

for the scene's points ``(x_i, y_i, z_i)`` in the camera's frame that are seen at ``(u_i, v_i)`` is
quadratic in ``(R, t)``, so that its n terms collapse to a matrix of 12 x 12, and with ``t``
eliminated of 9 x 9: Terzakis and Lourakis, "A consistently fast and globally optimal solution to
the perspective-n-point problem" (2020), equation 9. Its minima among the rotations are looked for
on a grid, and by Gauss-Newton steps from there, without the points and, as these are starts only,
in single precision.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ddn_cvx.dedicated.constants import table
from ddn_cvx.dedicated.pose.expansion import PRODUCTS, SYMMETRIC, products, together
from ddn_cvx.dedicated.pose.objective import Objective, Pose, once
from ddn_cvx.dedicated.pose.rotations import cayley, from_quaternion

# Rotations of the grid.
_GRID = 512
_BLOCK = 16
_STEPS = 1
# Starts with more than this multiple of the least error, and nearer to another than that angle,
# in radians, are dropped.
_WORSE = 30.0
_SAME = 0.02
# Scenes are flat whose least variance is below this share of all.
_FLAT = 0.1
# [R, t] as nine entries of R, row by row, and three of t.
_ENTRIES = [(a, p) for a in range(3) for p in range(3)] + [(a, 3) for a in range(3)]


class Starts(NamedTuple):
    """Poses of each element, ``(B, k, ...)``, and which of them are worth a look, ``(B, k)``."""

    pose: Pose
    usable: torch.Tensor


def collapsed_starts(objective: Objective) -> Starts:
    """At most two poses for each element; the scene must be centred."""
    omega, onto, spread = _eliminated(objective)
    R = _best_of_grid(omega)
    # Seen from afar, what is behind the camera and turned by half a turn about the line of sight
    # looks the same.
    t = _translation(R, onto)
    R = torch.where((t[:, 2] > 0)[:, None, None], R, -_mirrored(R, t))
    R, error = _descended(R, omega)
    t = _translation(R, onto)
    error = torch.where(t[:, 2] > 0, error, torch.inf)
    thick = spread - _FLAT * torch.eye(3, dtype=R.dtype, device=R.device)
    flat = torch.linalg.cholesky_ex(thick).info.nonzero().squeeze(1)
    if len(flat) == 0:
        one = torch.ones_like(error, dtype=torch.bool).unsqueeze(1)
        return Starts(Pose(R.double().unsqueeze(1), t.double().unsqueeze(1)), one)
    # So does a flat scene mirrored along that line.
    normal, turned = _thinnest(spread[flat]).unsqueeze(-1), _mirrored(R[flat], t[flat])
    turned = torch.baddbmm(turned, turned @ normal, normal.mT, alpha=-2)
    R, t, error = (torch.stack([field, field], 1) for field in (R, t, error))
    R[flat, 1], error[flat, 1] = _descended(turned, omega[flat])
    t[flat, 1] = _translation(R[flat, 1], onto[flat])
    error = torch.where(t[..., 2] > 0, error, torch.inf)
    keep = error <= _WORSE * error.amin(1, keepdim=True) + 1e-7
    cosine = ((R[:, 0] * R[:, 1]).sum((-1, -2)) - 1) / 2
    keep[:, 1] &= ~(keep[:, 0] & (cosine > math.cos(_SAME)))
    return Starts(Pose(R.double(), t.double()), keep)


def _eliminated(objective: Objective) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The matrix, the 3 x 9 matrix that takes ``R`` to ``t``, and the scene's covariance.

    The first is 9 x 12, with three columns of zeros: products of smaller matrices are slow.
    """
    sums = _sums(objective)
    whole = sums.new_zeros(len(sums), 6, 10)
    whole[:, ::3] = sums[:, :1]
    whole[:, 2::2] = sums[:, 1:3]
    whole[:, 5] = sums[:, 3]
    M = _moments(whole)
    spread = sums[:, 0, [0, 1, 2, 1, 3, 4, 2, 4, 5]].unflatten(-1, (3, 3))
    size = spread.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(1e-30)[:, None, None]
    at = M[:, 9:, 9:]
    trace = at.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    at = at + 1e-6 * trace * torch.eye(3, dtype=M.dtype, device=M.device)
    onto = -torch.bmm(torch.linalg.inv_ex(at).inverse, M[:, 9:])
    omega = torch.baddbmm(M, M[..., 9:], onto)[:, :9] / size
    return omega, onto[..., :9], spread / size


def _sums(objective: Objective) -> torch.Tensor:
    """Of the terms' symmetric matrices xx, xz, yz, zz with the scene's products: ``(B, 4, 10)``."""
    o = objective
    total = o.weights.sum(-1, keepdim=True).clamp_min(1e-30)
    inverse = None
    if o.cost != "cosine":
        inverse = torch.linalg.inv_ex(once(o.lens)[:, :2, :2]).inverse.float()
        inverse = inverse.expand(len(o.lens), 2, 2)
    batch, _, n = o.scene.shape
    sums = torch.empty(batch, 4, 10, dtype=torch.float32, device=o.scene.device)
    parts = together(batch, n, sums.device)
    most = min(batch, parts[0].stop) if parts else 0
    work = sums.new_empty(2, most, 10, n)
    for part in parts:
        plane = o.image[part].float()
        if inverse is not None:
            plane = torch.bmm(inverse[part], plane)
        rows, product = work[0, : len(plane), :4], work[1, : len(plane)]
        far = torch.addcmul(plane[:, 0] * plane[:, 0], plane[:, 1], plane[:, 1])
        # (u z - x)^2 + (v z - y)^2, by the square of the bearing's length.
        torch.div((o.weights[part] / total[part]).float(), 1 + far, out=rows[:, 0])
        torch.mul(plane, -rows[:, :1], out=rows[:, 1:3])
        torch.mul(rows[:, 0], far, out=rows[:, 3])
        torch.bmm(rows, products(o.scene[part].float(), product).mT, out=sums[part])
    return sums


def _moments(sums: torch.Tensor) -> torch.Tensor:
    """``sum_i S_i kron (X_i, 1) (X_i, 1)'``, for ``R`` row by row and then ``t``: ``(B, 12, 12)``.

    Args:
        sums: of each row of the symmetric matrices ``S_i`` with each product, ``(B, 6, 10)``.
    """
    found: torch.Tensor = sums.view(-1, 60).index_select(1, _places(sums.device))
    return found.view(-1, 12, 12)


@table
def _places(device: torch.device) -> torch.Tensor:
    places = [10 * SYMMETRIC[a][b] + PRODUCTS[p][q] for a, p in _ENTRIES for b, q in _ENTRIES]
    return torch.tensor(places).to(device)


def _translation(R: torch.Tensor, onto: torch.Tensor) -> torch.Tensor:
    t: torch.Tensor = (onto @ R.flatten(-2).unsqueeze(-1)).squeeze(-1)
    return t


@table
def _grid(device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotations ``(S, 3, 3)``; their ``r r'`` as ``(45, S)``, off the diagonal doubled; its places.

    Alexa, "Super-Fibonacci spirals: fast, low-discrepancy sampling of SO(3)" (2022), algorithm 1.
    """
    s = torch.arange(_GRID, dtype=torch.float64) + 0.5
    short, long = (s / _GRID).sqrt(), (1 - s / _GRID).sqrt()
    # The root of two, and the real root of x^4 = x + 4 above one.
    first, second = 2 * math.pi * s / math.sqrt(2), 2 * math.pi * s / 1.533751168755204
    parts = [short * first.sin(), short * first.cos(), long * second.sin(), long * second.cos()]
    R = from_quaternion(torch.stack(parts, -1))
    r = R.flatten(1)
    double = 2 - torch.eye(9, dtype=torch.float64)
    upper = torch.tensor([12 * a + b for a in range(9) for b in range(a, 9)])
    squares = (r.unsqueeze(2) * r.unsqueeze(1) * double)[:, upper // 12, upper % 12]
    return R.float().to(device), squares.T.float().contiguous().to(device), upper.to(device)


def _best_of_grid(omega: torch.Tensor) -> torch.Tensor:
    """The rotation of the grid with the least error, ``(B, 3, 3)``."""
    grid, squares, upper = _grid(omega.device)
    error = (omega.flatten(1).index_select(1, upper) @ squares).view(-1, _BLOCK, _GRID // _BLOCK)
    # By the best of each column, for a search through all is slow.
    column = error.amin(1).argmin(1)
    row = error.gather(2, column[:, None, None].expand(-1, _BLOCK, 1)).squeeze(2).argmin(1)
    return grid[row * error.shape[2] + column]


def _mirrored(R: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The rotations ``(B, 3, 3)`` mirrored along the line of sight ``(B, 3)``."""
    sight = (t / t.norm(dim=-1, keepdim=True).clamp_min(1e-30)).unsqueeze(-1)
    return torch.baddbmm(R, sight, torch.bmm(sight.mT, R), alpha=-2)


def _descended(R: torch.Tensor, omega: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gauss-Newton steps that lower the error: rotations ``(B, 3, 3)`` and errors ``(B,)``."""
    squares = _squares(R, omega)
    for _ in range(_STEPS):
        trial = _stepped(R, squares)
        new = _squares(trial, omega)
        better = (new[:, 0, 0] < squares[:, 0, 0])[:, None, None]
        R, squares = torch.where(better, trial, R), torch.where(better, new, squares)
    # One more, for starts that lead to the same pose to be the same.
    return _stepped(R, squares), squares[:, 0, 0]


def _stepped(R: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """Gauss and Newton's step from the products of the rotations' vectors."""
    identity = 1e-7 * torch.eye(3, dtype=R.dtype, device=R.device)
    step = -torch.linalg.solve_ex(squares[:, 1:, 1:] + identity, squares[:, 1:, 0]).result
    # Beyond a radian the model says nothing.
    step = step * step.square().sum(-1, keepdim=True).clamp_min(1.0).rsqrt()
    return torch.bmm(cayley(step), R)


def _squares(R: torch.Tensor, omega: torch.Tensor) -> torch.Tensor:
    """``V omega V'`` of a rotation, row by row, and its changes along ``omega``: ``(B, 4, 4)``."""
    vectors = (R.flatten(1) @ _changes(R.device)).view(-1, 4, 9)
    return torch.bmm(torch.bmm(vectors, omega)[..., :9], vectors.mT)


@table
def _changes(device: torch.device) -> torch.Tensor:
    """From a rotation to itself and its changes, ``(9, 36)``."""
    changes = torch.zeros(3, 3, 4, 3, 3, dtype=torch.float32)
    for p in range(3):
        for a in range(3):
            changes[a, p, 0, a, p] = 1
            b, c = (a + 1) % 3, (a + 2) % 3
            # e_a x (row b, row c) is (-row c, row b)
            changes[c, p, 1 + a, b, p], changes[b, p, 1 + a, c, p] = -1, 1
    return changes.reshape(9, 36).to(device)


def _thinnest(spread: torch.Tensor) -> torch.Tensor:
    """Nearly the direction of least spread: a column of a high power of the inverse."""
    identity = torch.eye(3, dtype=spread.dtype, device=spread.device)
    power = torch.linalg.inv_ex(spread + 1e-4 * identity).inverse
    power = power / power.abs().amax((-1, -2), keepdim=True).clamp_min(1e-30)
    for _ in range(3):
        power = power @ power
    best = power.square().sum(-2).argmax(-1)
    column = power.gather(2, best[:, None, None].expand(-1, 3, 1)).squeeze(2)
    direction: torch.Tensor = column / column.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    return direction
