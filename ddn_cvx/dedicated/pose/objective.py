"""The objective of a pose: residuals in the image or between bearings, under a robust cost.

    f(R, t) = sum_i w_i rho(|r_i|^2),    y_i = A (R X_i + t),

with ``A`` the camera's lens matrix. Residuals are ``r_i = y_i / z_i - x_i`` in the image, or, for
the cost "cosine", ``r_i = y_i / |y_i| - b_i`` with the bearing ``b_i`` of the image point, where
``rho(s) = s / 2`` is one minus the cosine of the angle. A step ``(omega, tau)`` changes the pose to
``exp([omega]) R``, ``t + tau``; gradients and Hessians are in ``(omega, tau)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddn_cvx.dedicated.pose.rotations import axial_vector

COSTS = ("squared", "huber", "cauchy", "geman_mcclure", "cosine")
ROBUST = ("huber", "cauchy", "geman_mcclure")


def collapse_broadcast(tensor: Tensor) -> Tensor:
    """A view of batch size 1 if the batch dimension is broadcast (stride 0), else the tensor."""
    return tensor[:1] if tensor.stride(0) == 0 else tensor


class Pose(NamedTuple):
    """Rotations ``(B, 3, 3)`` and translations ``(B, 3)``: ``y = R X + t``."""

    R: Tensor
    t: Tensor

    def rows(self, elements: Any) -> Pose:
        """Some poses, by an index as a tensor takes."""
        return Pose(self.R[elements], self.t[elements])


class Objective(NamedTuple):
    """The data of a batch of pose problems; points lie along the last dimension.

    Attributes:
        image: image points minus the camera's principal point, shape ``(B, 2, n)``; in normalised
            coordinates for the cost "cosine".
        scene: scene points, shape ``(B, 3, n)``.
        weights: nonnegative, shape ``(B, n)``. Points of weight zero should be copies of others, as
            every point must lie in front of the camera.
        lens: the camera matrix without the principal point, shape ``(B, 3, 3)``; the identity for
            the cost "cosine".
        scale: scale of the robust costs, shape ``(B, 1)``.
        cost: one of :data:`COSTS`.
    """

    image: Tensor
    scene: Tensor
    weights: Tensor
    lens: Tensor
    scale: Tensor
    cost: str

    def rows(self, elements: Tensor | slice) -> Objective:
        """The objective of some elements of the batch, by index or slice; an index may repeat."""
        return self._mapped(lambda field: field[elements])

    def for_many_poses(self) -> Objective:
        """Data ``(B, 1, ...)``, which broadcast with poses ``(B, k, ...)``."""
        return self._mapped(lambda field: field[:, None])

    def with_points(self, index: Tensor) -> Objective:
        """The objective of the points ``index`` ``(B, k)`` of each element."""
        wide = index.unsqueeze(1)
        return self._replace(
            image=self.image.gather(2, wide.expand(-1, 2, -1)),
            scene=self.scene.gather(2, wide.expand(-1, 3, -1)),
            weights=self.weights.gather(1, index),
        )

    def single(self) -> Objective:
        """The objective in single precision; data that all elements share stay one in memory."""
        form = torch.contiguous_format
        return self._mapped(
            lambda field: (
                collapse_broadcast(field).to(torch.float32, memory_format=form).expand_as(field)
            )
        )

    def masked(self, counts: Tensor, valid: Tensor) -> Objective:
        """The objective of the points that count, ``(B, n)``, in the valid elements ``(B,)``.

        A point that does not count is replaced by the element's first one that does, so that it is
        finite and in front of the camera, with weight zero. Invalid elements are zero.
        """
        counts = counts & valid.unsqueeze(-1)
        first, wide = counts.to(torch.uint8).argmax(-1)[:, None, None], counts.unsqueeze(-2)

        def replaced(points: Tensor) -> Tensor:
            stand_in = points.gather(-1, first.expand(-1, points.shape[-2], 1))
            return torch.where(wide, points, torch.where(valid[:, None, None], stand_in, 0.0))

        image, scene = replaced(self.image), replaced(self.scene)
        return self._replace(
            image=image, scene=scene, weights=torch.where(counts, self.weights, 0.0)
        )

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Objective:
        image, scene, weights, lens, scale = [change(field) for field in self[:5]]
        return Objective(image, scene, weights, lens, scale, self.cost)

    def normalised(self) -> Tensor:
        """The image points in normalised coordinates, ``(B, 2, n)``."""
        inverse: Tensor = torch.linalg.inv_ex(collapse_broadcast(self.lens)[..., :2, :2]).inverse
        return inverse @ self.image

    def bearings(self) -> Tensor:
        """Unit vectors towards the image points, ``(B, 3, n)``."""
        plane = self.image if self.cost == "cosine" else self.normalised()
        size = (1 + plane.square().sum(-2, keepdim=True)).sqrt()
        return torch.cat([plane / size, 1 / size], -2)

    def rho(self, s: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
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

    def squares(self, pose: Pose) -> Tensor:
        """Squared residuals, shape ``(B, n)``; infinite for points behind the camera.

        Shape ``(B, k, n)`` for poses ``(B, k, ...)`` and data of :meth:`for_many_poses`.
        """
        place = self.lens @ torch.cat([pose.R, pose.t.unsqueeze(-1)], -1)
        # One matrix product for all poses of an element.
        batch, count, n = len(place), place.shape[1:-1].numel(), self.scene.shape[-1]
        flat, scene = place.reshape(batch, count, 4), self.scene.reshape(batch, 3, n)
        y = torch.baddbmm(flat[..., 3:], flat[..., :3], scene).view(*place.shape[:-1], n)
        z = y[..., 2, :]
        if self.cost == "cosine":
            ray = y / y.square().sum(-2, keepdim=True).sqrt()
            s = (ray - self.bearings()).square().sum(-2)
        else:
            e = y[..., :2, :] / z.unsqueeze(-2) - self.image
            s = e[..., 0, :].square() + e[..., 1, :].square()
        return torch.where((z > 0) & ~s.isnan(), s, torch.inf)

    def value(self, pose: Pose) -> Tensor:
        """``f``, shape ``(B,)`` or ``(B, k)``; infinite where a point is behind the camera."""
        s = self.squares(pose)
        total = (self.weights * self.rho(s)[0]).sum(-1)
        return torch.where(s.isinf().any(-1) | total.isnan(), torch.inf, total)

    def gradient(self, pose: Pose) -> Tensor:
        """The gradient in ``(omega, tau)``, shape ``(B, 6)``; differentiable."""
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
        torque = axial_vector(torch.bmm(pulled, turned.mT))
        return torch.cat([torque, pulled.sum(-1)], -1)
