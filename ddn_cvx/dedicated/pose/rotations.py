"""Rotations: exponential, logarithm and quaternions, accurate at angle zero and near pi.

Differentiable to any order wherever the map is: the exponential everywhere, the logarithm at angles
below pi. Sola, Deray and Atchuthan, "A micro Lie theory for state estimation in
robotics" (2018).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.dedicated.common import cached_table

# Squared angle, in square radians, below which the truncated series are exact to double precision.
_SERIES_SQUARED_ANGLE = 1e-3


def cross_matrix(v: Tensor) -> Tensor:
    """``[v]``, with ``[v] x`` the cross product; ``(..., 3)`` to ``(..., 3, 3)``."""
    matrix: Tensor = (v @ _crosses(v.device, v.dtype)).unflatten(-1, (3, 3))
    return matrix


@cached_table
def _crosses(device: torch.device, dtype: torch.dtype) -> Tensor:
    """The matrices ``[e_j]`` of the axes, flattened: ``(3, 9)``."""
    rows = [[0, 0, 0, 0, 0, -1, 0, 1, 0], [0, 0, 1, 0, 0, 0, -1, 0, 0]]
    rows.append([0, -1, 0, 1, 0, 0, 0, 0, 0])
    return torch.tensor(rows, dtype=dtype).to(device)


def axial_vector(A: Tensor) -> Tensor:
    """``sum_i x_i x y_i`` for ``A = sum_i y_i x_i'``: twice the axial vector of its skew part.

    ``(..., 3, 3)`` to ``(..., 3)``.
    """
    x, y, z = (A[..., i, j] - A[..., j, i] for i, j in ((2, 1), (0, 2), (1, 0)))
    return torch.stack([x, y, z], -1)


def cayley(v: Tensor) -> Tensor:
    """Cayley's map, a retraction: a rotation that agrees with ``exp([v])`` to second order.

    ``I + ([v] + [v]^2 / 2) / (1 + |v|^2 / 4)``, the rotation of the quaternion ``(2, v)``; ``(...,
    3)`` to ``(..., 3, 3)``. It takes fewer operations than the exponential.
    """
    return from_quaternion(torch.nn.functional.pad(v, (1, 0), value=2.0))


@cached_table
def _outer_products(device: torch.device, dtype: torch.dtype) -> Tensor:
    """The linear map from ``q q'`` to ``|q|^2`` and ``|q|^2`` times the rotation: ``(16, 10)``.

    Its columns are orthogonal, of length two, and span the symmetric matrices: times ``(1, R)`` it
    is ``4 q q'`` for a unit quaternion.
    """
    squares = torch.zeros(4, 4, 10, dtype=dtype)
    squares[..., 0] = torch.eye(4, dtype=dtype)
    R = squares[..., 1:].view(4, 4, 3, 3)
    for a in range(3):
        b, c = (a + 1) % 3, (a + 2) % 3
        for i in range(4):
            R[i, i, a, a] = 1 if i in (0, a + 1) else -1
        for i, j in ((a, b), (b, a)):
            R[a + 1, b + 1, i, j] = R[b + 1, a + 1, i, j] = 1
        R[0, c + 1, a, b] = R[c + 1, 0, a, b] = -1
        R[0, c + 1, b, a] = R[c + 1, 0, b, a] = 1
    return squares.flatten(0, 1).to(device)


def orthonormal(R: Tensor) -> Tensor:
    """The rotations nearest to nearly orthonormal matrices, by two Newton-Schulz steps."""
    flat = R.reshape(-1, 3, 3)
    for _ in range(2):
        flat = torch.baddbmm(flat, flat, torch.bmm(flat.mT, flat), beta=1.5, alpha=-0.5)
    return flat.view_as(R)


def exponential(v: Tensor) -> Tensor:
    """The rotation by ``|v|`` radians about ``v``; ``(..., 3)`` to ``(..., 3, 3)``.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.pose import exponential
        >>> exponential(torch.tensor([0.0, 0.0, 1.0])) @ torch.tensor([0.0, 0.0, 2.0])  # the axis
        tensor([0., 0., 2.])
    """
    square = v.square().sum(-1)[..., None, None]
    small = square.detach() < _SERIES_SQUARED_ANGLE
    # Root and quotient of a small angle are replaced: their derivatives at zero are not finite.
    safe = torch.where(small, 1.0, square)
    angle = safe.sqrt()
    large_first, large_second = angle.sin() / angle, (1 - angle.cos()) / safe
    s = torch.where(small, square, 0.0)
    first = 1 - s / 6 * (1 - s / 20 * (1 - s / 42 * (1 - s / 72)))
    second = 0.5 - s / 24 * (1 - s / 30 * (1 - s / 56 * (1 - s / 90)))
    V = cross_matrix(v)
    identity = torch.eye(3, dtype=v.dtype, device=v.device)
    a, b = torch.where(small, first, large_first), torch.where(small, second, large_second)
    R: Tensor = identity + a * V + b * (V @ V)
    return R


def quaternion(R: Tensor) -> Tensor:
    """The unit quaternion ``(w, x, y, z)`` of a rotation, ``w >= 0``, of ``(..., 3, 3)``.

    Shepperd, "Quaternion from rotation matrix" (1978): of four formulas the one that divides by the
    largest number.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.pose import quaternion
        >>> quaternion(torch.eye(3))
        tensor([1., 0., 0., 0.])
    """
    table = _outer_products(R.device, R.dtype)
    # Not a matrix product, which autocast would round.
    products = table[:, 0] + (table[:, 1:] * R.flatten(-2).unsqueeze(-2)).sum(-1)
    products = products.unflatten(-1, (4, 4))  # 4 q q'
    best = products.detach().diagonal(dim1=-2, dim2=-1).argmax(-1, keepdim=True)
    row = products.gather(-2, best.unsqueeze(-1).expand(*best.shape[:-1], 1, 4)).squeeze(-2)
    q = row / row.square().sum(-1, keepdim=True).sqrt()
    return torch.where(q[..., :1].detach() < 0, -q, q)


def from_quaternion(q: Tensor) -> Tensor:
    """The rotation of a quaternion of any nonzero length; ``(..., 4)`` to ``(..., 3, 3)``.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.pose import from_quaternion
        >>> from_quaternion(torch.tensor([0.0, 0.0, 0.0, 2.0])).diagonal()  # half a turn about z
        tensor([-1., -1.,  1.])
    """
    products = (q.unsqueeze(-1) * q.unsqueeze(-2)).flatten(-2)
    # Not a matrix product, which autocast would round.
    squares = (products.unsqueeze(-1) * _outer_products(q.device, q.dtype)).sum(-2)
    R: Tensor = (squares[..., 1:] / squares[..., :1]).unflatten(-1, (3, 3))
    return R


def logarithm(R: Tensor) -> Tensor:
    """Axis times angle, of length at most pi; ``(..., 3, 3)`` to ``(..., 3)``.

    At the angle pi both signs are logarithms; the derivative is that of the one returned.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.pose import exponential, logarithm
        >>> logarithm(exponential(torch.tensor([0.5, 0.0, -1.0])))
        tensor([ 0.5000,  0.0000, -1.0000])
    """
    q = quaternion(R)
    w, v = q[..., :1], q[..., 1:]
    square = v.square().sum(-1, keepdim=True)
    small = square.detach() < _SERIES_SQUARED_ANGLE
    sine = torch.where(small, 1.0, square).sqrt()
    far = 2 * torch.atan2(sine, torch.where(small, 1.0, w)) / sine
    # atan(t) / t with t = tan(angle / 2)
    t = torch.where(small, square, 0.0) / w.square().clamp_min(0.5)
    near = 1 - t * (1 / 3 - t * (1 / 5 - t * (1 / 7 - t * (1 / 9 - t / 11))))
    near = 2 / torch.where(small, w, 1.0) * near
    return v * torch.where(small, near, far)
