"""Pose without correspondences as a module."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.dedicated.common import batch_shape, check_positive
from ddn_cvx.dedicated.pose import (
    PoseSolution,
    RansacSolution,
    collapse_pairs,
    ransac_pose,
    solve_pose,
)
from ddn_cvx.dedicated.pose.inputs import normalised
from ddn_cvx.dedicated.pose.pairs import COLLAPSED, distances
from ddn_cvx.nn.transport import Sinkhorn


class BlindSolution(NamedTuple):
    """The result of :meth:`BlindPnP.solve`.

    Attributes:
        plan: probabilities of the pairs of points, shape ``(*batch, n, m)``; differentiable.
        pose: the pose of least cost over all pairs, weighted by the plan; differentiable.
        matches: indices of the most probable pairs, image point and scene point, shape ``(*batch,
            k, 2)``; constant.
        ransac: the pose from these matches, which is one of the starts; constant.
    """

    plan: Tensor
    pose: PoseSolution
    matches: Tensor
    ransac: RansacSolution


class BlindPnP(torch.nn.Module):
    """Pose and correspondences from features, through two declarative nodes.

    Distances between features are the costs of an optimal transport plan. RANSAC on its most
    probable pairs gives a start for the pose of least cost over all pairs, weighted by the plan.
    Campbell, Liu and Gould, "Solving the blind perspective-n-point problem end-to-end with robust
    differentiable geometric optimization" (2020).

    Args:
        gamma: sharpness of the plan, as in :class:`ddn_cvx.nn.Sinkhorn`.
        threshold: largest residual of an inlier, in the units of the image, which are those of
            normalised coordinates without a camera.
        cost: "cosine" or "squared", over all pairs; see
            :func:`ddn_cvx.dedicated.pose.collapse_pairs`.
        matches: number of pairs for RANSAC; None for the smaller number of points.
        learnable: make ``gamma`` a parameter.
        seed: seed of RANSAC's draws.

    Shapes:
        Features of the image points ``(..., n, d)`` and of the scene points ``(..., m, d)``, points
        ``(..., n, 2)`` and ``(..., m, 3)``, camera ``(..., 4)``, ``(..., 3, 3)`` or None; outputs
        are the rotation ``(..., 3, 3)``, the translation ``(..., 3)`` and the plan ``(..., n, m)``.
        Batch dimensions broadcast. Elements with input that is not finite are NaN, with gradient
        zero.

    Raises:
        ValueError: a cost that does not collapse; ``gamma`` or ``threshold`` is not positive; a
            shape that does not fit.

    Example:
        >>> import torch
        >>> from ddn_cvx.nn import BlindPnP
        >>> scene = torch.rand(30, 3, generator=torch.Generator().manual_seed(0))
        >>> placed = scene + torch.tensor([0.1, -0.2, 5.0])
        >>> image = placed[:, :2] / placed[:, 2:]
        >>> R, t, plan = BlindPnP(gamma=1e4, threshold=1e-3)(scene, scene, image, scene)
        >>> t
        tensor([ 0.1000, -0.2000,  5.0000])
    """

    def __init__(
        self,
        gamma: float = 10.0,
        threshold: float = 0.01,
        *,
        cost: str = "cosine",
        matches: int | None = None,
        learnable: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if cost not in COLLAPSED:
            raise ValueError(f"cost must be one of {', '.join(COLLAPSED)}; got {cost!r}.")
        check_positive("threshold", threshold)
        self.sinkhorn = Sinkhorn(gamma, learnable=learnable)
        self.threshold, self.cost, self.matches, self.seed = threshold, cost, matches, seed

    def solve(
        self, f2d: Tensor, f3d: Tensor, p2d: Tensor, p3d: Tensor, K: Tensor | None = None
    ) -> BlindSolution:
        """Plan, pose, matches, and RANSAC's pose from these; see the class's shapes."""
        features, others, image, places = _broadcast(f2d, f3d, p2d, p3d)
        plan = self.sinkhorn(distances(features, others))
        matches = self._most_probable(plan.detach().nan_to_num())
        seen, scene = (
            points.take_along_dim(matches[..., k : k + 1], -2)
            for k, points in enumerate((image, places))
        )
        seen = torch.where(_finite(plan), seen, torch.nan)
        with torch.no_grad():
            start = ransac_pose(seen, scene, None, K, threshold=self.threshold, seed=self.seed)
        pose = self._over_all_pairs(plan, image, places, K, start.pose)
        return BlindSolution(plan.to(f2d.dtype), pose.to(p2d.dtype), matches, start)

    def forward(
        self, f2d: Tensor, f3d: Tensor, p2d: Tensor, p3d: Tensor, K: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotation, translation and plan; see the class's shapes."""
        solution = self.solve(f2d, f3d, p2d, p3d, K)
        return solution.pose.R, solution.pose.t, solution.plan

    def _over_all_pairs(
        self, plan: Tensor, image: Tensor, places: Tensor, K: Tensor | None, start: PoseSolution
    ) -> PoseSolution:
        # Elements that are not finite would bring NaN into the gradients of shared tensors.
        seen = torch.where(_finite(image), image, 0.0)
        if self.cost == "cosine":
            seen, K = normalised(seen, K), None
        good = _finite(plan) & _finite(image) & _finite(seen)
        # An element whose pairs all have weight zero is bad input.
        plan, seen = torch.where(good, plan, 0.0), torch.where(good, seen, 0.0)
        points, weights, _ = collapse_pairs(plan, seen, self.cost)
        initial = (start.R, start.t)
        return solve_pose(points, places, weights, K, cost=self.cost, initial=initial)

    def _most_probable(self, plan: Tensor) -> Tensor:
        """Indices of the pairs of largest probability, shape ``(*batch, k, 2)``."""
        n, m = plan.shape[-2:]
        count = min(n, m) if self.matches is None else min(self.matches, n * m)
        flat = plan.flatten(-2).topk(count, dim=-1).indices
        return torch.stack([flat // m, flat % m], -1)

    def extra_repr(self) -> str:
        """For ``repr``."""
        return f"threshold={self.threshold!r}, cost={self.cost!r}, seed={self.seed!r}"


def _finite(tensor: Tensor) -> Tensor:
    """Mask ``(*batch, 1, 1)`` of the matrices ``(*batch, n, m)`` that are finite."""
    return tensor.detach().isfinite().all(-1, keepdim=True).all(-2, keepdim=True)


def _broadcast(f2d: Tensor, f3d: Tensor, p2d: Tensor, p3d: Tensor) -> tuple[Tensor, ...]:
    """The arguments in double precision, with their common batch shape."""
    given = [tuple(tensor.shape) for tensor in (f2d, f3d, p2d, p3d)]
    if f2d.shape[-2:-1] != p2d.shape[-2:-1] or f3d.shape[-2:-1] != p3d.shape[-2:-1]:
        raise ValueError(
            "Features must have the shapes of their points but for the last dimension; got "
            f"{given[0]} for {given[2]} and {given[1]} for {given[3]}."
        )
    if f2d.shape[-1] != f3d.shape[-1]:
        raise ValueError(f"Features must be of one length; got shapes {given[0]} and {given[1]}.")
    tensors = {"f2d": f2d, "f3d": f3d, "p2d": p2d, "p3d": p3d}
    batch = batch_shape(*((name, tensor, 2) for name, tensor in tensors.items()))
    return tuple(tensor.double().expand(*batch, *tensor.shape[-2:]) for tensor in tensors.values())
