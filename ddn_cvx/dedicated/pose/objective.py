"""What a pose is measured by: residuals in the image or between bearings, under a robust cost.

    f(R, t) = sum_i w_i rho(|r_i|^2),    y_i = A (R X_i + t),

with ``r_i = y_i / z_i - x_i`` in the image, ``A`` the camera's lens, or, for the cost "cosine",
``r_i = y_i / |y_i| - b_i`` with the bearing ``b_i`` of the image's point, where ``rho(s) = s / 2``
is one minus the cosine of the angle. A pose moves to ``exp([omega]) R``, ``t + tau``; gradients are
in ``(omega, tau)``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

COSTS = ("squared", "huber", "cauchy", "geman_mcclure", "cosine")
ROBUST = ("huber", "cauchy", "geman_mcclure")


def once(tensor: torch.Tensor) -> torch.Tensor:
    """The first of elements that are all the same one in memory, and otherwise all of them."""
    return tensor[:1] if tensor.stride(0) == 0 else tensor


class Pose(NamedTuple):
    """Rotations ``(B, 3, 3)`` and translations ``(B, 3)``: ``y = R X + t``."""

    R: torch.Tensor
    t: torch.Tensor


class Objective(NamedTuple):
    """The data of a batch of poses; points lie along the last dimension.

    Attributes:
        image: points of the image less the camera's principal point, shape ``(B, 2, n)``; in
            normalised coordinates for the cost "cosine".
        scene: points of the scene, shape ``(B, 3, n)``.
        weights: nonnegative, shape ``(B, n)``. Points without weight should be copies of others, so
            that all of them are in front of the camera together.
        lens: the camera's matrix without the principal point, shape ``(B, 3, 3)``; the identity for
            the cost "cosine".
        scale: of the robust costs, shape ``(B, 1)``.
        cost: one of :data:`COSTS`.
    """

    image: torch.Tensor
    scene: torch.Tensor
    weights: torch.Tensor
    lens: torch.Tensor
    scale: torch.Tensor
    cost: str

    def rows(self, index: torch.Tensor | slice | None) -> Objective:
        """Some elements of the batch, or some repeatedly; with None, a dimension after it."""
        place = (slice(None), None) if index is None else index
        image, scene, weights, lens, scale = (field[place] for field in self[:5])
        return Objective(image, scene, weights, lens, scale, self.cost)

    def picked(self, index: torch.Tensor) -> Objective:
        """Of each element the points ``(B, k)``."""
        wide = index.unsqueeze(1)
        return self._replace(
            image=self.image.gather(2, wide.expand(-1, 2, -1)),
            scene=self.scene.gather(2, wide.expand(-1, 3, -1)),
            weights=self.weights.gather(1, index),
        )

    def single(self) -> Objective:
        """In single precision, and contiguous but for what all elements share."""
        image, scene, weights, lens, scale = (
            once(field).to(torch.float32, memory_format=torch.contiguous_format).expand_as(field)
            for field in self[:5]
        )
        return Objective(image, scene, weights, lens, scale, self.cost)

    def bearings(self) -> torch.Tensor:
        """Directions of the points of the image, unit vectors ``(B, 3, n)``."""
        plane = self.image
        if self.cost != "cosine":
            plane = torch.linalg.inv_ex(self.lens[..., :2, :2]).inverse @ plane
        size = (1 + plane.square().sum(-2, keepdim=True)).sqrt()
        return torch.cat([plane / size, 1 / size], -2)

    def rho(
        self, s: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | float, torch.Tensor | float]:
        """The cost of squared residuals and its first two derivatives, shape ``(B, n)``."""
        if self.cost == "squared":
            return s, 1.0, 0.0
        if self.cost == "cosine":
            return s / 2, 0.5, 0.0
        square = self.scale.square()
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

    def squares(self, pose: Pose) -> torch.Tensor:
        """Squared residuals, shape ``(B, n)``; infinite for points behind the camera.

        With a dimension of poses after the batch's, as of ``rows(None)``: ``(B, k, n)``.
        """
        place = self.lens @ torch.cat([pose.R, pose.t.unsqueeze(-1)], -1)
        # One product for all poses of an element.
        batch, count, n = len(place), place.shape[1:-1].numel(), self.scene.shape[-1]
        turn, shift = (
            place[..., :3].reshape(batch, count, 3),
            place[..., 3].reshape(batch, count, 1),
        )
        scene = self.scene.reshape(batch, 3, n)
        y = torch.baddbmm(shift, turn, scene).view(*place.shape[:-1], n)
        z = y[..., 2, :]
        if self.cost == "cosine":
            ray = y / y.square().sum(-2, keepdim=True).sqrt()
            s = (ray - self.bearings()).square().sum(-2)
        else:
            e = y[..., :2, :] / z.unsqueeze(-2) - self.image
            s = e[..., 0, :].square() + e[..., 1, :].square()
        return torch.where((z > 0) & ~s.isnan(), s, torch.inf)

    def value(self, pose: Pose) -> torch.Tensor:
        """``f``, shape ``(B,)`` or ``(B, k)``; infinite where a point is behind the camera."""
        s = self.squares(pose)
        total = (self.weights * self.rho(s)[0]).sum(-1)
        return torch.where(s.isinf().any(-1) | total.isnan(), torch.inf, total)

    def gradient(self, pose: Pose) -> torch.Tensor:
        """In ``(omega, tau)``, shape ``(B, 6)``; differentiable."""
        turned = torch.bmm(pose.R, self.scene)
        y = torch.bmm(self.lens, turned + pose.t.unsqueeze(-1))
        if self.cost == "cosine":
            size = y.square().sum(-2, keepdim=True).sqrt()
            ray, b = y / size, self.bearings()
            cosine = 1 - (ray - b).square().sum(-2, keepdim=True) / 2
            pulled = self.weights.unsqueeze(-2) / size * (cosine * ray - b)
        else:
            inverse = 1 / y[..., 2:, :]
            p = y[..., :2, :] * inverse
            e = p - self.image
            first = self.rho(e.square().sum(-2))[1]
            pull = (2 * self.weights * first).unsqueeze(-2) * inverse
            pulled = torch.cat([pull * e, -pull * (e * p).sum(-2, keepdim=True)], -2)
        pulled = torch.bmm(self.lens.mT, pulled)
        turn = torch.bmm(pulled, turned.mT)
        axes = [turn[..., 2, 1] - turn[..., 1, 2], turn[..., 0, 2] - turn[..., 2, 0]]
        axes.append(turn[..., 1, 0] - turn[..., 0, 1])
        return torch.cat([torch.stack(axes, -1), pulled.sum(-1)], -1)
