"""Exponential cones, which no scaling makes the same as their dual.

With the barrier ``F`` of the cone, a slack has the shadow ``z^ = -F'(s)`` among multipliers and a
multiplier the one ``s^ = -F*'(z)`` among slacks, and on the central path ``s = mu s^`` and ``z = mu
z^``. The scaling ``H = W' W`` maps ``z`` to ``s`` and ``z^`` to ``s^``, and is otherwise near ``mu
F*''(z)``: Tuncel, "Generalization of primal-dual interior-point methods to convex optimization
problems in conic form" (2001); Dahl and Andersen, "A primal-dual interior-point algorithm for
nonsymmetric exponential-cone optimization" (2022).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ddn_cvx.conic.interior_point.group import Group, Tensors

# A point that is its own shadow.
_CENTRE = (-0.8278383990656786, 0.8051020015847954, 1.290927709856958)
# Newton's steps for a shadow, from where they converge for every multiplier.
_SHADOW_STEPS = 8
# Steps that are tried, one after the other so much shorter, are this many.
_SHORTER, _TRIES = 0.85, 64
# How far from the central path a point may be: of 1 / (mu mu^), which is one on it.
_NEIGHBOURHOOD = 1e-6
# Nearer to it than this the scaling is the one of the dual barrier.
_CENTRAL = 1e-10


class Exponential(Group):
    """``{(x, y, z): y > 0, y exp(x / y) <= z}``, closed; see :class:`Group`.

    ``W`` is the Cholesky factor ``L = W'``, ``s``, ``z`` and the shadow of ``z``.
    """

    is_symmetric = False

    def __init__(self, start: int, number: int) -> None:
        super().__init__(start, number, 3)
        self.degree = 3 * number

    def set_identity(self, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.conic.interior_point.group.Group`."""
        for place, value in enumerate(_CENTRE):
            out[..., place] = value

    def scaling(self, s: torch.Tensor, z: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        """See :class:`~ddn_cvx.conic.interior_point.group.Group`."""
        barrier, shadow = _Barrier.at(s), _shadow(z)
        of_slack = -barrier.gradient()
        mu = (s * z).sum(-1, keepdim=True) / 3
        gap_s, gap_z = s - mu * shadow, z - mu * of_slack
        apart = (gap_s * gap_z).sum(-1, keepdim=True)
        # What is left of H: one direction, in which z and its shadow have no part.
        hessian = _Barrier.at(shadow).hessian()
        free = torch.linalg.cross(z, of_slack, dim=-1)
        size = (free * (hessian @ free.unsqueeze(-1)).squeeze(-1)).sum(-1, keepdim=True) / mu
        H = _outer(s) / (3 * mu).unsqueeze(-1)
        far = H + _outer(gap_s) / apart.unsqueeze(-1) + _outer(free) / size.unsqueeze(-1)
        inverse = torch.linalg.inv_ex(hessian).inverse
        near = H + mu.unsqueeze(-1) * (inverse - _outer(shadow) / 3)
        central = ~(apart > _CENTRAL * mu).unsqueeze(-1)
        H = torch.where(central, near, far)
        factor, info = torch.linalg.cholesky_ex((H + H.mT) / 2)
        factor = torch.where((info == 0)[..., None, None], factor, torch.nan)
        point = (factor.mT @ z.unsqueeze(-1)).squeeze(-1)
        return (factor, s, z, shadow), point

    def times(self, W: Tensors, v: torch.Tensor, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.conic.interior_point.group.Group`."""
        out[:] = (W[0] @ v.unsqueeze(-1)).squeeze(-1)

    def over(self, W: Tensors, v: torch.Tensor, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.conic.interior_point.group.Group`."""
        out[:] = torch.linalg.solve_triangular(W[0], v.unsqueeze(-1), upper=False).squeeze(-1)

    def multiplier(self, W: Tensors, v: torch.Tensor, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.conic.interior_point.group.Group`."""
        out[:] = torch.linalg.solve_triangular(W[0].mT, v.unsqueeze(-1), upper=True).squeeze(-1)

    def rows_over(self, W: Tensors, rows: torch.Tensor, out: torch.Tensor) -> None:
        """See :class:`~ddn_cvx.conic.interior_point.group.Group`."""
        out[:] = torch.linalg.solve_triangular(W[0], rows, upper=False)

    def pull(
        self, W: Tensors, point: torch.Tensor, directions: tuple[torch.Tensor, torch.Tensor],
        weight: torch.Tensor, target: torch.Tensor, out: torch.Tensor,
    ) -> None:  # fmt: skip
        """See :class:`~ddn_cvx.conic.interior_point.group.Group`.

        The second order is half of the third derivative of ``F*``: Dahl and Andersen, section 5.
        """
        _, s, _, shadow = W
        ds, dz = torch.empty_like(s), torch.empty_like(s)
        self.times(W, directions[0], ds)
        self.multiplier(W, directions[1], dz)
        barrier = _Barrier.at(shadow)
        inverse = torch.linalg.inv_ex(barrier.hessian()).inverse
        across = (inverse @ dz.unsqueeze(-1)).squeeze(-1)
        third = (inverse @ barrier.third(across, ds).unsqueeze(-1)).squeeze(-1) / 2
        whole = s - target.unsqueeze(-1) * shadow - weight.unsqueeze(-1) * third
        self.over(W, whole, out)

    def shrinking(
        self, W: Tensors, point: torch.Tensor, directions: tuple[torch.Tensor, torch.Tensor]
    ) -> list[torch.Tensor]:
        """See :class:`~ddn_cvx.conic.interior_point.group.Group`; from a list of steps."""
        _, s, z, _ = W
        ds, dz = torch.empty_like(s), torch.empty_like(s)
        self.times(W, directions[0], ds)
        self.multiplier(W, directions[1], dz)
        steps = _SHORTER ** torch.arange(_TRIES, dtype=s.dtype, device=s.device)
        wide = steps.view(-1, 1, 1, 1)
        new_s, new_z = s + wide * ds, z + wide * dz  # (t, B, k, 3)
        inside = _is_inside(new_s) & _depth_of_multiplier(new_z).gt(0)
        mu = (new_s * new_z).sum(-1) / 3
        shadows = -_Barrier.at(new_s).gradient() * _shadow(new_z)
        inside = inside & (mu * shadows.sum(-1) / 3 < 1 / _NEIGHBOURHOOD)
        length = (inside.all(-1) * steps.unsqueeze(1)).amax(0)
        # All of the way is as far as anyone asks for.
        return [torch.where(length == 1, 0.0, 1 / length)]


class _Barrier(NamedTuple):
    """``F = -log h - log y - log z`` with ``h = y log(z / y) - x``, for points ``(..., 3)``."""

    y: torch.Tensor
    z: torch.Tensor
    h: torch.Tensor
    slope: torch.Tensor

    @classmethod
    def at(cls, point: torch.Tensor) -> _Barrier:
        x, y, z = point.unbind(-1)
        logarithm = torch.log(z / y)
        slope = torch.stack([-torch.ones_like(x), logarithm - 1, y / z], -1)
        return cls(y, z, y * logarithm - x, slope)

    def gradient(self) -> torch.Tensor:
        others = torch.stack([torch.zeros_like(self.y), 1 / self.y, 1 / self.z], -1)
        return -self.slope / self.h.unsqueeze(-1) - others

    def _curvature(self, p: torch.Tensor) -> torch.Tensor:
        """``h'' p``."""
        _, p_y, p_z = p.unbind(-1)
        of_y = p_z / self.z - p_y / self.y
        return torch.stack([torch.zeros_like(of_y), of_y, -of_y * self.y / self.z], -1)

    def hessian(self) -> torch.Tensor:
        identity = torch.eye(3, dtype=self.y.dtype, device=self.y.device)
        columns = [self._curvature(unit.expand_as(self.slope)) for unit in identity]
        h = self.h[..., None, None]
        squares = torch.stack([torch.zeros_like(self.y), self.y, self.z], -1).square()
        others = torch.where(squares > 0, 1 / squares, 0.0)
        return (
            _outer(self.slope) / h.square()
            - torch.stack(columns, -1) / h
            + torch.diag_embed(others)
        )

    def third(self, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        """``F'''[p, q]``."""
        y, z, h = self.y, self.z, self.h.unsqueeze(-1)
        (_, p_y, p_z), (_, q_y, q_z) = p.unbind(-1), q.unbind(-1)
        curved_p, curved_q = self._curvature(p), self._curvature(q)
        along_p = (self.slope * p).sum(-1, keepdim=True)
        along_q = (self.slope * q).sum(-1, keepdim=True)
        mixed = (curved_p * q).sum(-1, keepdim=True)
        zero, of_z = torch.zeros_like(y), p_z * q_z
        of_h = torch.stack(
            [
                zero,
                p_y * q_y / y.square() - of_z / z.square(),
                2 * y * of_z / z**3 - (p_y * q_z + p_z * q_y) / z.square(),
            ],
            -1,
        )
        found = (curved_p * along_q + curved_q * along_p + mixed * self.slope) / h.square()
        found = found - of_h / h - 2 * along_p * along_q * self.slope / h**3
        return found - 2 * torch.stack([zero, p_y * q_y / y**3, of_z / z**3], -1)


def _is_inside(slack: torch.Tensor) -> torch.Tensor:
    x, y, z = slack.unbind(-1)
    positive = (y > 0) & (z > 0)
    ratio = torch.where(positive, z, 1.0) / torch.where(positive, y, 1.0)
    return positive & (y * ratio.log() > x)


def _depth_of_multiplier(multiplier: torch.Tensor) -> torch.Tensor:
    """``1 + log(-w / u) + v / -u``, positive inside the dual cone; minus one far outside."""
    u, v, w = multiplier.unbind(-1)
    usable = (u < 0) & (w > 0)
    a, w = torch.where(usable, -u, 1.0), torch.where(usable, w, 1.0)
    return torch.where(usable, 1 + (w / a).log() + v / a, -1.0)


def _shadow(multiplier: torch.Tensor) -> torch.Tensor:
    """``s`` with ``-F'(s) = z``.

    With ``a = -u`` and ``p = 1 / (a y)`` that is ``p + log(1 + p) = 1 + log(w / a) + v / a``.
    """
    u, _, w = multiplier.unbind(-1)
    a, depth = -u, _depth_of_multiplier(multiplier)
    p = depth / 2
    for _ in range(_SHADOW_STEPS):
        p = p - (p + torch.log1p(p) - depth) * (1 + p) / (2 + p)
    y = 1 / (a * p)
    z = (1 + 1 / p) / w
    return torch.stack([y * torch.log(z / y) - 1 / a, y, z], -1)


def _outer(v: torch.Tensor) -> torch.Tensor:
    return v.unsqueeze(-1) * v.unsqueeze(-2)
