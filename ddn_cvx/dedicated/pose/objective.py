"""What a pose is measured by: residuals in the image or between bearings, under a robust cost.

    f(R, t) = sum_i w_i rho(|r_i|^2),    y_i = R X_i + t,

with ``r_i = A y_i / z_i - x_i`` in the image (``A`` the first two rows of the camera's matrix), or,
for the cost "cosine", ``r_i = y_i / |y_i| - b_i`` with the bearing ``b_i`` of the image's point,
where ``rho(s) = s / 2`` is one minus the cosine of the angle. A pose moves to
``exp([omega]) R``, ``t + tau``; gradients are in ``(omega, tau)``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ddn_cvx.dedicated.pose.rotations import cross_matrix

COSTS = ("squared", "huber", "cauchy", "geman_mcclure", "cosine")
# Depths below this share of the distance are behind the camera.
_BEHIND = 1e-6


class Pose(NamedTuple):
    """Rotations ``(B, 3, 3)`` and translations ``(B, 3)``: ``y = R X + t``."""

    R: torch.Tensor
    t: torch.Tensor


class Objective(NamedTuple):
    """The data of a batch of poses.

    Attributes:
        image: points of the image, shape ``(B, n, 2)``.
        scene: points of the scene, shape ``(B, n, 3)``.
        weights: nonnegative, shape ``(B, n)``.
        camera: the first two rows of the camera's matrix, shape ``(B, 2, 3)``.
        scale: of the robust costs, in the image's units, shape ``(B, 1)``.
        cost: one of :data:`COSTS`.
    """

    image: torch.Tensor
    scene: torch.Tensor
    weights: torch.Tensor
    camera: torch.Tensor
    scale: torch.Tensor
    cost: str

    def rows(self, index: torch.Tensor | None) -> Objective:
        """Some elements of the batch, or some repeatedly; with None, a dimension after it."""
        place = (slice(None), None) if index is None else index
        image, scene, weights, camera, scale = (field[place] for field in self[:5])
        return Objective(image, scene, weights, camera, scale, self.cost)

    def bearings(self) -> torch.Tensor:
        """Directions of the points of the image, unit vectors ``(B, n, 3)``."""
        inverse = torch.linalg.inv_ex(self.camera[..., :2]).inverse
        centred = self.image - self.camera[..., 2].unsqueeze(-2)
        plane = centred @ inverse.mT
        ray = torch.cat([plane, torch.ones_like(plane[..., :1])], -1)
        return ray / ray.square().sum(-1, keepdim=True).sqrt()

    def placed(self, pose: Pose) -> torch.Tensor:
        """The scene in the camera's frame, shape ``(B, n, 3)``."""
        return self.scene @ pose.R.mT + pose.t.unsqueeze(-2)

    def residuals(self, y: torch.Tensor) -> torch.Tensor:
        """Shape ``(B, n, 2)``, or ``(B, n, 3)`` of bearings."""
        if self.cost == "cosine":
            return y / y.square().sum(-1, keepdim=True).sqrt() - self.bearings()
        return (y / y[..., 2:]) @ self.camera.mT - self.image

    def slopes(self, y: torch.Tensor) -> torch.Tensor:
        """Derivatives of the residuals in ``y``, shape ``(B, n, 2 or 3, 3)``."""
        identity = torch.eye(3, dtype=y.dtype, device=y.device)
        if self.cost == "cosine":
            size = y.square().sum(-1, keepdim=True).sqrt()
            ray = (y / size).unsqueeze(-1)
            return (identity - ray * ray.mT) / size.unsqueeze(-1)
        z = y[..., 2:].unsqueeze(-1)
        ratio = y.unsqueeze(-1) / z
        return self.camera.unsqueeze(-3) @ (identity - ratio * identity[2]) / z

    def rho(self, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The cost of squared residuals and its first two derivatives, shape ``(B, n)``."""
        square = self.scale.square()
        if self.cost == "squared":
            return s, torch.ones_like(s), torch.zeros_like(s)
        if self.cost == "cosine":
            return s / 2, torch.full_like(s, 0.5), torch.zeros_like(s)
        if self.cost == "huber":
            inside = s <= square
            far = torch.where(inside, 1.0, s).sqrt()
            pull = torch.where(inside, 1.0, self.scale / far)
            value = torch.where(inside, s, 2 * self.scale * far - square)
            return value, pull, torch.where(inside, 0.0, -pull / (2 * far.square()))
        ratio = 1 / (1 + s / square)
        if self.cost == "cauchy":
            return square * torch.log1p(s / square), ratio, -ratio.square() / square
        return s * ratio, ratio.square(), -2 * ratio**3 / square

    def value(self, pose: Pose) -> torch.Tensor:
        """``f``, shape ``(B,)``; infinite where a point with weight is behind the camera."""
        y = self.placed(pose)
        s = self.residuals(y).square().sum(-1)
        total = torch.where(self.weights > 0, self.weights * self.rho(s)[0], 0.0).sum(-1)
        return torch.where(self.behind(y) | total.isnan(), torch.inf, total)

    def behind(self, y: torch.Tensor) -> torch.Tensor:
        """Whether a point that counts is behind the camera, shape ``(B,)``."""
        back = y[..., 2] <= _BEHIND * y.square().sum(-1).sqrt()
        return (back & (self.weights > 0)).any(-1)

    def gradient(self, pose: Pose) -> torch.Tensor:
        """In ``(omega, tau)``, shape ``(B, 6)``; differentiable."""
        return self._parts(pose)[0]

    def gauss_newton(self, pose: Pose) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient, and the Hessian without second derivatives, shape ``(B, 6, 6)``."""
        gradient, J, pull = self._parts(pose)
        weighted = (pull[..., None, None] * J).flatten(1, 2)
        return gradient, 2 * weighted.mT @ J.flatten(1, 2)

    def hessian(self, pose: Pose) -> torch.Tensor:
        """In ``(omega, tau)``, with the second derivatives of residuals and cost, ``(B, 6, 6)``."""
        turned, y = self._placed_where_used(pose)
        r, slopes = self.residuals(y), self.slopes(y)
        _, first, second = self.rho(r.square().sum(-1))
        first, second = self.weights * first, self.weights * second
        # In y: 2 rho' (S' S + sum_k r_k D_k) + 4 rho'' (S' r) (S' r)', D_k of the k-th residual.
        along = (r.unsqueeze(-2) @ slopes).squeeze(-2)
        curved = slopes.mT @ slopes + self._bend(y, r)
        inner = (2 * first)[..., None, None] * curved
        inner = inner + (4 * second)[..., None, None] * along.unsqueeze(-1) * along.unsqueeze(-2)
        identity = torch.eye(3, dtype=y.dtype, device=y.device)
        G = torch.cat([-cross_matrix(turned), identity.expand(*y.shape, 3)], -1)  # dy
        H = (G.mT @ inner @ G).sum(-3)
        # The second derivative of exp([omega]) R X along the gradient h in y.
        h = (2 * first).unsqueeze(-1) * along
        outer = (h.unsqueeze(-1) * turned.unsqueeze(-2)).sum(-3)
        turn = (outer + outer.mT) / 2 - (h * turned).sum((-1, -2))[..., None, None] * identity
        return H + torch.nn.functional.pad(turn, (0, 3, 0, 3))

    def _bend(self, y: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        """``sum_k r_k D_k``, the residuals' second derivatives in ``y``, ``(B, n, 3, 3)``."""
        if self.cost == "cosine":
            # r = ray - b, of which b alone counts: that of |y| cancels with S' S along the ray.
            square = y.square().sum(-1)[..., None, None]
            ray = (y / y.square().sum(-1, keepdim=True).sqrt()).unsqueeze(-1)
            q = r.unsqueeze(-1)
            level = (q * ray).sum((-1, -2), keepdim=True)
            identity = torch.eye(3, dtype=y.dtype, device=y.device)
            cross = q * ray.mT
            bend: torch.Tensor = (
                -(cross + cross.mT) - level * (identity - 3 * ray * ray.mT)
            ) / square
            return bend
        z = y[..., 2, None, None]
        q = (r.unsqueeze(-2) @ self.camera.unsqueeze(-3)).squeeze(-2)  # (B, n, 3)
        ahead = torch.tensor([0.0, 0.0, 1.0], dtype=y.dtype, device=y.device)
        cross = q.unsqueeze(-1) * ahead
        level = (q * y).sum(-1)[..., None, None] / z
        found: torch.Tensor = (2 * level * ahead * ahead.unsqueeze(-1) - cross - cross.mT) / z**2
        return found

    def _placed_where_used(self, pose: Pose) -> tuple[torch.Tensor, torch.Tensor]:
        """``R X`` and ``y``; a point without weight, which may be anywhere, is put ahead."""
        turned = self.scene @ pose.R.mT
        ahead = torch.tensor([0.0, 0.0, 1.0], dtype=turned.dtype, device=turned.device)
        used = (self.weights > 0).unsqueeze(-1)
        return turned, torch.where(used, turned + pose.t.unsqueeze(-2), ahead)

    def _parts(self, pose: Pose) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The gradient, the residuals' Jacobian ``(B, n, 2 or 3, 6)``, and ``w rho'``."""
        turned, y = self._placed_where_used(pose)
        r = self.residuals(y)
        pull = self.weights * self.rho(r.square().sum(-1))[1]
        slopes = self.slopes(y)
        # d(exp([omega]) R X) = omega x R X, so that the rows of the Jacobian are crossed with R X.
        turning = torch.linalg.cross(turned.unsqueeze(-2).expand_as(slopes), slopes, dim=-1)
        J = torch.cat([turning, slopes], -1)
        gradient = 2 * ((pull.unsqueeze(-1) * r).unsqueeze(-2) @ J).squeeze(-2).sum(-2)
        return gradient, J, pull
