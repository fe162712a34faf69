"""Pose without correspondences as a module."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ddn_cvx.dedicated.pose.inputs import normalised
from ddn_cvx.dedicated.pose.pairs import COLLAPSED, collapse_pairs
from ddn_cvx.dedicated.pose.perspective import PoseSolution, solve_pose
from ddn_cvx.dedicated.pose.ransac import RansacSolution, ransac_pose
from ddn_cvx.nn.transport import Sinkhorn


class BlindSolution(NamedTuple):
    """What :meth:`BlindPnP.solve` finds.

    Attributes:
        plan: probability that points belong together, shape ``(*batch, n, m)``; differentiable.
        pose: of least cost over all pairs, weighted by the plan; differentiable.
        matches: the pairs of most probability, points of the image and of the scene, shape
            ``(*batch, k, 2)``; constant.
        ransac: the pose among those matches, which is one of the starts; constant.
    """

    plan: torch.Tensor
    pose: PoseSolution
    matches: torch.Tensor
    ransac: RansacSolution


class BlindPnP(torch.nn.Module):
    """Pose and correspondences from features, through two declarative nodes.

    Distances between features are the costs of an optimal transport plan; its most probable pairs
    give a start, by RANSAC, for the pose of least cost over all pairs, each weighted by the plan.
    Campbell, Liu and Gould, "Solving the blind perspective-n-point problem end-to-end with robust
    differentiable geometric optimization" (2020).

    Args:
        gamma: sharpness of the plan, as in :class:`ddn_cvx.nn.Sinkhorn`.
        threshold: of inliers, in the units of the image; in those of the normalised image where
            there is no camera.
        cost: "cosine" or "squared", over all pairs; see
            :func:`ddn_cvx.dedicated.pose.pairs.collapse_pairs`.
        matches: so many pairs go to RANSAC; None for the smaller number of points.
        learnable: make ``gamma`` a parameter.
        seed: of RANSAC.

    Shapes:
        Features of the image's points ``(..., n, d)`` and of the scene's ``(..., m, d)``, points
        ``(..., n, 2)`` and ``(..., m, 3)``, camera ``(..., 4)``, ``(..., 3, 3)`` or None; outputs
        the rotation ``(..., 3, 3)``, the translation ``(..., 3)`` and the plan ``(..., n, m)``.

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
        if not threshold > 0:
            raise ValueError(f"threshold must be positive; got {threshold!r}.")
        self.sinkhorn = Sinkhorn(gamma, learnable=learnable)
        self.threshold, self.cost, self.matches, self.seed = threshold, cost, matches, seed

    def solve(
        self,
        f2d: torch.Tensor,
        f3d: torch.Tensor,
        p2d: torch.Tensor,
        p3d: torch.Tensor,
        K: torch.Tensor | None = None,
    ) -> BlindSolution:
        """Plan, pose, matches and the pose that RANSAC finds among these."""
        if f2d.shape[:-1] != p2d.shape[:-1] or f3d.shape[:-1] != p3d.shape[:-1]:
            raise ValueError(
                "Features must have the shapes of their points but for the last dimension; got "
                f"{tuple(f2d.shape)} for {tuple(p2d.shape)} and {tuple(f3d.shape)} for "
                f"{tuple(p3d.shape)}."
            )
        with torch.autocast(p2d.device.type, enabled=False):
            distances = torch.cdist(f2d.double(), f3d.double())
            plan = self.sinkhorn(distances)
            image, places = p2d.double(), p3d.double()
            matches = self._most_probable(plan.detach())
            first, second = (
                matches[..., k : k + 1].expand(*matches.shape[:-1], size)
                for k, size in ((0, 2), (1, 3))
            )
            with torch.no_grad():
                start = ransac_pose(
                    image.gather(-2, first), places.gather(-2, second), None, K,
                    threshold=self.threshold, seed=self.seed,
                )  # fmt: skip
            if self.cost == "cosine":
                image, K = normalised(image, K), None
            points, weights, _ = collapse_pairs(plan, image, self.cost)
            pose = solve_pose(
                points, places, weights, K, cost=self.cost, initial=(start.pose.R, start.pose.t)
            )
        kind = p2d.dtype
        return BlindSolution(plan.to(f2d.dtype), pose.shaped(pose.cost.shape, kind), matches, start)

    def forward(
        self,
        f2d: torch.Tensor,
        f3d: torch.Tensor,
        p2d: torch.Tensor,
        p3d: torch.Tensor,
        K: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotation, translation and plan; see the class's shapes."""
        found = self.solve(f2d, f3d, p2d, p3d, K)
        return found.pose.R, found.pose.t, found.plan

    def _most_probable(self, plan: torch.Tensor) -> torch.Tensor:
        n, m = plan.shape[-2:]
        count = min(n, m) if self.matches is None else min(self.matches, n * m)
        flat = plan.flatten(-2).topk(count, dim=-1).indices
        return torch.stack([flat // m, flat % m], -1)

    def extra_repr(self) -> str:
        """For ``repr``."""
        return f"threshold={self.threshold!r}, cost={self.cost!r}, seed={self.seed!r}"
