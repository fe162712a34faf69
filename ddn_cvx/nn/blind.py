"""Pose without correspondences as a module."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ddn_cvx.dedicated.pose.inputs import normalised
from ddn_cvx.dedicated.pose.pairs import COLLAPSED, collapse_pairs, distances
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
        features, others, image, places = _together(f2d, f3d, p2d, p3d)
        plan = self.sinkhorn(distances(features, others))
        matches = self._most_probable(plan.detach().nan_to_num())
        first, second = (
            matches[..., k : k + 1].expand(*matches.shape[:-1], size)
            for k, size in ((0, 2), (1, 3))
        )
        good = _finite(plan)
        with torch.no_grad():
            start = ransac_pose(
                torch.where(good, image.gather(-2, first), torch.nan),
                places.gather(-2, second), None, K, threshold=self.threshold, seed=self.seed,
            )  # fmt: skip
        kind = p2d.dtype
        pose = self._over_all_pairs(plan, image, places, K, start.pose).converted(kind)
        return BlindSolution(plan.to(f2d.dtype), pose, matches, start)

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

    def _over_all_pairs(
        self,
        plan: torch.Tensor,
        image: torch.Tensor,
        places: torch.Tensor,
        K: torch.Tensor | None,
        start: PoseSolution,
    ) -> PoseSolution:
        # What is not finite would bring NaN, times zero, into gradients of what elements share.
        seen = torch.where(_finite(image), image, 0.0)
        if self.cost == "cosine":
            seen, K = normalised(seen, K), None
        good = _finite(plan) & _finite(image) & _finite(seen)
        # Pairs without weight are bad input.
        plan, seen = torch.where(good, plan, 0.0), torch.where(good, seen, 0.0)
        points, weights, _ = collapse_pairs(plan, seen, self.cost)
        initial = (start.R, start.t)
        return solve_pose(points, places, weights, K, cost=self.cost, initial=initial)

    def _most_probable(self, plan: torch.Tensor) -> torch.Tensor:
        n, m = plan.shape[-2:]
        count = min(n, m) if self.matches is None else min(self.matches, n * m)
        flat = plan.flatten(-2).topk(count, dim=-1).indices
        return torch.stack([flat // m, flat % m], -1)

    def extra_repr(self) -> str:
        """For ``repr``."""
        return f"threshold={self.threshold!r}, cost={self.cost!r}, seed={self.seed!r}"


def _finite(tensor: torch.Tensor) -> torch.Tensor:
    """Which elements ``(*batch, ., .)`` are finite throughout, ``(*batch, 1, 1)``."""
    return tensor.detach().isfinite().all(-1, keepdim=True).all(-2, keepdim=True)


def _together(
    f2d: torch.Tensor, f3d: torch.Tensor, p2d: torch.Tensor, p3d: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """All in double precision, with the batch shape that they broadcast to."""
    given = [tuple(tensor.shape) for tensor in (f2d, f3d, p2d, p3d)]
    if f2d.shape[-2:-1] != p2d.shape[-2:-1] or f3d.shape[-2:-1] != p3d.shape[-2:-1]:
        raise ValueError(
            "Features must have the shapes of their points but for the last dimension; got "
            f"{given[0]} for {given[2]} and {given[1]} for {given[3]}."
        )
    if f2d.shape[-1] != f3d.shape[-1]:
        raise ValueError(f"Features must be of one length; got shapes {given[0]} and {given[1]}.")
    try:
        batch = torch.broadcast_shapes(*(shape[:-2] for shape in given))
    except RuntimeError:
        raise ValueError(f"Batch shapes do not broadcast: {given}.") from None
    return tuple(
        tensor.double().expand(*batch, *tensor.shape[-2:]) for tensor in (f2d, f3d, p2d, p3d)
    )
