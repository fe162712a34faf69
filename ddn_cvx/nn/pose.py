"""Camera pose as a module."""

from __future__ import annotations

import torch

from ddn_cvx.dedicated.pose.objective import COSTS
from ddn_cvx.dedicated.pose.perspective import PoseSolution, solve_pose
from ddn_cvx.dedicated.pose.ransac import RansacSolution, ransac_pose
from ddn_cvx.dedicated.pose.rotations import logarithm, quaternion
from ddn_cvx.nn.positive import keep_logarithm, shown_learnable

_OUTPUTS = ("matrix", "axis_angle", "quaternion")


class PerspectiveNPoint(torch.nn.Module):
    """The pose of a camera that sees points of a known scene: ``argmin sum_i w_i rho(residual_i)``.

    See :func:`ddn_cvx.dedicated.pose.perspective.solve_pose`, which also tells each element's
    status; elements without a pose are NaN here, with gradient zero.

    Args:
        cost: "squared", "huber", "cauchy", "geman_mcclure" of the distance in the image, or
            "cosine", one minus the cosine between bearings.
        scale: positive, of the robust costs, in the image's units.
        learnable: make ``scale`` a parameter (its logarithm).
        ransac: fit the inliers only of the pose that most points agree with; see
            :func:`ddn_cvx.dedicated.pose.ransac.ransac_pose`. Their derivatives are those with the
            inliers given.
        threshold: of inliers, in the image's units.
        seed: of RANSAC's draws.
        rotation: "matrix" ``(..., 3, 3)``, "axis_angle" ``(..., 3)`` or "quaternion" ``(..., 4)``,
            ``(w, x, y, z)`` with ``w >= 0``.

    Shapes:
        Points of the image ``(..., n, 2)``, of the scene ``(..., n, 3)``, weights ``(..., n)`` or
        None, camera ``(..., 4)`` as ``(fx, fy, cx, cy)``, ``(..., 3, 3)``, or None for normalised
        coordinates; outputs the rotation and the translation ``(..., 3)``. A weight of zero is a
        mask: its point may be anything, and both have gradient zero.

    Raises:
        ValueError: an unknown cost or rotation, a scale that is not positive, a wrong shape.

    Example:
        >>> import torch
        >>> from ddn_cvx.nn import PerspectiveNPoint
        >>> corners = [[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 2], [2, 1, 0]]
        >>> scene = torch.tensor(corners)
        >>> placed = scene + torch.tensor([0.1, -0.2, 5.0])
        >>> R, t = PerspectiveNPoint("huber", scale=0.01)(placed[:, :2] / placed[:, 2:], scene)
        >>> t
        tensor([ 0.1000, -0.2000,  5.0000])
    """

    log_scale: torch.Tensor

    def __init__(
        self,
        cost: str = "squared",
        scale: float = 1.0,
        *,
        learnable: bool = False,
        ransac: bool = False,
        threshold: float | None = None,
        seed: int = 0,
        rotation: str = "matrix",
    ) -> None:
        super().__init__()
        if cost not in COSTS:
            raise ValueError(f"Unknown cost {cost!r}; known are {', '.join(COSTS)}.")
        if rotation not in _OUTPUTS:
            raise ValueError(f"Unknown rotation {rotation!r}; known are {', '.join(_OUTPUTS)}.")
        if not scale > 0:
            raise ValueError(f"scale must be positive; got {scale!r}.")
        if ransac and (threshold is None or not threshold > 0):
            raise ValueError(f"With ransac, threshold must be positive; got {threshold!r}.")
        if threshold is not None and not ransac:
            raise ValueError("threshold is RANSAC's: pass ransac=True, too.")
        self.cost, self.rotation, self.threshold, self.seed = cost, rotation, threshold, seed
        keep_logarithm(self, "scale", torch.tensor(float(scale)), learnable)

    @property
    def scale(self) -> torch.Tensor:
        """Of the robust cost, a scalar."""
        return self.log_scale.exp()

    def solve(
        self,
        p2d: torch.Tensor,
        p3d: torch.Tensor,
        w: torch.Tensor | None = None,
        K: torch.Tensor | None = None,
    ) -> PoseSolution:
        """The pose with its cost, status, Hessian and covariance."""
        if self.threshold is not None:
            return self.search(p2d, p3d, w, K).pose
        return solve_pose(p2d, p3d, w, K, cost=self.cost, scale=self.scale)

    def search(
        self,
        p2d: torch.Tensor,
        p3d: torch.Tensor,
        w: torch.Tensor | None = None,
        K: torch.Tensor | None = None,
    ) -> RansacSolution:
        """By RANSAC: the pose, the inliers, the score and the number of trials."""
        if self.threshold is None:
            raise ValueError("Pass ransac=True and a threshold to search for inliers.")
        return ransac_pose(
            p2d, p3d, w, K,
            threshold=self.threshold, cost=self.cost, scale=self.scale, seed=self.seed,
        )  # fmt: skip

    def forward(
        self,
        p2d: torch.Tensor,
        p3d: torch.Tensor,
        w: torch.Tensor | None = None,
        K: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotation and translation; see the class's shapes."""
        R, t, *_ = self.solve(p2d, p3d, w, K)
        if self.rotation == "axis_angle":
            return logarithm(R), t
        return (quaternion(R) if self.rotation == "quaternion" else R), t

    def extra_repr(self) -> str:
        """For ``repr``."""
        shown = f"{self.cost!r}, scale={float(self.scale.detach()):.4g}"
        shown += shown_learnable(self, "scale")
        if self.threshold is not None:
            shown += f", ransac=True, threshold={self.threshold!r}, seed={self.seed!r}"
        return shown if self.rotation == "matrix" else f"{shown}, rotation={self.rotation!r}"
