"""Starts for a pose from moments of the points: the minima of an algebraic error.

    sum_i w_i |(u_i z_i - x_i, v_i z_i - y_i)|^2 / (1 + u_i^2 + v_i^2)

for scene points at ``(x_i, y_i, z_i)`` in the camera's frame, with images ``(u_i, v_i)``, is
quadratic in ``(R, t)``: a 12 x 12 matrix of moments holds its n terms, and with ``t`` eliminated a
9 x 9 matrix (Terzakis and Lourakis, "A consistently fast and globally optimal solution to the
perspective-n-point problem", 2020, equation 9). Its minima over the rotations are searched on a
grid and refined by Gauss-Newton steps, at a cost that does not depend on n; as they are starts
only, in single precision.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.dedicated.common import cached_table
from ddn_cvx.dedicated.pose.expansion import PRODUCTS, products, scene_chunks
from ddn_cvx.dedicated.pose.objective import Objective, Pose
from ddn_cvx.dedicated.pose.rotations import cayley, cross_matrix, from_quaternion

# Rotations of the grid.
_GRID_ROTATIONS = 512
# A second start is dropped if its error is more than this multiple of the least one, or if its
# angle to the first start is less than this, in radians.
_LARGEST_ERROR_RATIO = 30.0
_DISTINCT_ANGLE = 0.02
# Least variance of the scene along a direction, as a share of the total, below which it is flat.
_FLAT_VARIANCE = 0.1
# Rows of the table of sums that hold the entries of the error's symmetric 3 x 3 matrix; the fifth
# row is zero.
_ERROR_ROWS = [[0, 4, 1], [4, 0, 2], [1, 2, 3]]
# [R, t] as nine entries of R, row by row, and three of t.
_ENTRIES = [(a, p) for a in range(3) for p in range(3)] + [(a, 3) for a in range(3)]


class Starts(NamedTuple):
    """Poses ``(B, k, ...)`` from which to start, and which of them to use, ``(B, k)``."""

    pose: Pose
    usable: Tensor


def moment_starts(objective: Objective) -> Starts:
    """At most two starts for each element; the scene's weighted mean must be zero."""
    omega, onto, spread = _eliminated(objective)
    R = _best_of_grid(omega)
    # A scene behind the camera has nearly the same image as its mirror image in front of it.
    t = _translation(R, onto)
    R = torch.where((t[:, 2] > 0)[:, None, None], R, -_mirrored(R, t))
    R, t, error = _descended(R, omega, onto)
    thick = spread - _FLAT_VARIANCE * torch.eye(3, dtype=R.dtype, device=R.device)
    flat = torch.linalg.cholesky_ex(thick).info.nonzero().squeeze(1)
    if len(flat) == 0:
        one = torch.ones_like(error, dtype=torch.bool).unsqueeze(1)
        return Starts(Pose(R.double().unsqueeze(1), t.double().unsqueeze(1)), one)
    # A flat scene has nearly the same image as its mirror image along the line of sight, which is a
    # rotation of the scene as the scene is its own mirror image along the normal.
    some = spread[flat]  # not finite where single precision overflows, which eigh refuses
    some = torch.where(some.isfinite().all(-1).all(-1)[:, None, None], some, 0.0)
    normal = torch.linalg.eigh(some).eigenvectors[..., :1]
    turned = _mirrored(R[flat], t[flat])
    turned = torch.baddbmm(turned, turned @ normal, normal.mT, alpha=-2)
    R, t, error = (torch.stack([field, field], 1) for field in (R, t, error))
    R[flat, 1], t[flat, 1], error[flat, 1] = _descended(turned, omega[flat], onto[flat])
    keep = error <= _LARGEST_ERROR_RATIO * error.amin(1, keepdim=True) + 1e-7
    cosine = ((R[:, 0] * R[:, 1]).sum((-1, -2)) - 1) / 2
    keep[:, 1] &= ~(keep[:, 0] & (cosine > math.cos(_DISTINCT_ANGLE)))
    return Starts(Pose(R.double(), t.double()), keep)


def _eliminated(objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
    """The error's matrix for ``R``, the matrix from ``R`` to the best ``t``, and the covariance.

    Shapes ``(B, 9, 12)``, with three columns of zeros, as products with 9 columns are slower;
    ``(B, 3, 9)``; and ``(B, 3, 3)``, that of the scene, of trace one.
    """
    sums = _sums(objective)
    # The moments sum_i S_i kron (X_i, 1) (X_i, 1)', with the error's matrices S_i.
    padded = torch.nn.functional.pad(sums, (0, 0, 0, 1)).flatten(1)
    M = padded.index_select(1, _places(sums.device)).view(-1, 12, 12)
    spread = sums[:, 0, [0, 1, 2, 1, 3, 4, 2, 4, 5]].unflatten(-1, (3, 3))
    size = spread.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(1e-30)[:, None, None]
    at = M[:, 9:, 9:]
    trace = at.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    at = at + 1e-6 * trace * torch.eye(3, dtype=M.dtype, device=M.device)
    onto = -torch.bmm(torch.linalg.inv_ex(at).inverse, M[:, 9:])
    omega = torch.baddbmm(M, M[..., 9:], onto)[:, :9] / size
    return omega, onto[..., :9], spread / size


def _sums(objective: Objective) -> Tensor:
    """Sums of the error's entries xx, xz, yz, zz times products of the scene: ``(B, 4, 10)``."""
    o = objective
    total = o.weights.sum(-1, keepdim=True).clamp_min(1e-30)
    batch, _, n = o.scene.shape
    sums = torch.empty(batch, 4, 10, dtype=torch.float32, device=o.scene.device)
    parts = scene_chunks(batch, n, sums.device)
    work = sums.new_empty(2, parts[0].stop if parts else 0, 10, n)
    for part in parts:
        some = o.rows(part)
        plane = some.normalised().float()
        rows, product = work[0, : len(plane), :4], work[1, : len(plane)]
        far = torch.addcmul(plane[:, 0] * plane[:, 0], plane[:, 1], plane[:, 1])
        # The entries of (u z - x)^2 + (v z - y)^2, divided by 1 + u^2 + v^2.
        torch.div((some.weights / total[part]).float(), 1 + far, out=rows[:, 0])
        torch.mul(plane, -rows[:, :1], out=rows[:, 1:3])
        torch.mul(rows[:, 0], far, out=rows[:, 3])
        torch.bmm(rows, products(some.scene.float(), product).mT, out=sums[part])
    return sums


@cached_table
def _places(device: torch.device) -> Tensor:
    places = [10 * _ERROR_ROWS[a][b] + PRODUCTS[p][q] for a, p in _ENTRIES for b, q in _ENTRIES]
    return torch.tensor(places).to(device)


def _translation(R: Tensor, onto: Tensor) -> Tensor:
    t: Tensor = (onto @ R.flatten(-2).unsqueeze(-1)).squeeze(-1)
    return t


@cached_table
def _grid(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Rotations ``(S, 3, 3)``, the products of their entries ``(45, S)``, and these' places.

    Products of different entries are doubled, as each stands for two entries of ``r r'``.

    Alexa, "Super-Fibonacci spirals: fast, low-discrepancy sampling of SO(3)" (2022), algorithm 1.
    """
    s = torch.arange(_GRID_ROTATIONS, dtype=torch.float64) + 0.5
    short, long = (s / _GRID_ROTATIONS).sqrt(), (1 - s / _GRID_ROTATIONS).sqrt()
    # The irrational numbers of the spirals: the root of two, and the root of x^4 = x + 4 above one.
    first, second = 2 * math.pi * s / math.sqrt(2), 2 * math.pi * s / 1.533751168755204
    parts = [short * first.sin(), short * first.cos(), long * second.sin(), long * second.cos()]
    R = from_quaternion(torch.stack(parts, -1))
    r = R.flatten(1)
    double = 2 - torch.eye(9, dtype=torch.float64)
    upper = torch.tensor([12 * a + b for a in range(9) for b in range(a, 9)])
    squares = (r.unsqueeze(2) * r.unsqueeze(1) * double)[:, upper // 12, upper % 12]
    return R.float().to(device), squares.T.float().contiguous().to(device), upper.to(device)


def _best_of_grid(omega: Tensor) -> Tensor:
    """The rotation of the grid with the least error, ``(B, 3, 3)``."""
    grid, squares, upper = _grid(omega.device)
    best: Tensor = grid[(omega.flatten(1).index_select(1, upper) @ squares).argmin(1)]
    return best


def _mirrored(R: Tensor, t: Tensor) -> Tensor:
    """The rotations ``(B, 3, 3)`` mirrored along the line of sight ``(B, 3)``."""
    sight = (t / t.norm(dim=-1, keepdim=True).clamp_min(1e-30)).unsqueeze(-1)
    return torch.baddbmm(R, sight, torch.bmm(sight.mT, R), alpha=-2)


def _descended(R: Tensor, omega: Tensor, onto: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotations after two Gauss-Newton steps, translations, and errors before the second step.

    The first step is taken where it lowers the error; the second brings starts of the same minimum
    together. The error is infinite for a scene behind the camera.
    """
    squares = _squares(R, omega)
    trial = _stepped(R, squares)
    new = _squares(trial, omega)
    better = (new[:, 0, 0] < squares[:, 0, 0])[:, None, None]
    squares = torch.where(better, new, squares)
    R = _stepped(torch.where(better, trial, R), squares)
    t = _translation(R, onto)
    return R, t, torch.where(t[:, 2] > 0, squares[:, 0, 0], torch.inf)


def _stepped(R: Tensor, squares: Tensor) -> Tensor:
    """The rotations after a Gauss-Newton step, from the products of :func:`_squares`."""
    identity = 1e-7 * torch.eye(3, dtype=R.dtype, device=R.device)
    step = -torch.linalg.solve_ex(squares[:, 1:, 1:] + identity, squares[:, 1:, 0]).result
    # Steps are at most one radian long.
    step = step * step.square().sum(-1, keepdim=True).clamp_min(1.0).rsqrt()
    return torch.bmm(cayley(step), R)


def _squares(R: Tensor, omega: Tensor) -> Tensor:
    """``V omega V'``, with a rotation and its three derivatives as rows of ``V``: ``(B, 4, 4)``.

    The first entry is the error, the rest of the first column half its gradient, and the other
    rows and columns half its Gauss-Newton matrix.
    """
    vectors = (R.flatten(1) @ _changes(R.device)).view(-1, 4, 9)
    return torch.bmm(torch.bmm(vectors, omega)[..., :9], vectors.mT)


@cached_table
def _changes(device: torch.device) -> Tensor:
    """The linear map from a rotation to itself and its derivatives about the axes, ``(9, 36)``."""
    identity = torch.eye(3, dtype=torch.float32)
    factors = torch.cat([identity[None], cross_matrix(identity)])
    return torch.cat([torch.kron(factor, identity).T for factor in factors], 1).to(device)
