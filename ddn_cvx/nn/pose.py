"""Camera pose as a module."""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.dedicated.common import check_positive
from ddn_cvx.dedicated.pose import (
    PoseSolution,
    RansacSolution,
    logarithm,
    quaternion,
    ransac_pose,
    solve_pose,
)
from ddn_cvx.dedicated.pose.objective import COSTS
from ddn_cvx.nn.positive import keep_logarithm, shown

_OUTPUTS = ("matrix", "axis_angle", "quaternion")


class PerspectiveNPoint(torch.nn.Module):
    """The pose of a camera from image points of a known scene: ``argmin sum_i w_i rho(|r_i|^2)``.

    See :func:`ddn_cvx.dedicated.pose.solve_pose`, which :meth:`solve` calls, and which also returns
    the status. Elements without a pose are NaN, with gradient zero.

    Args:
        cost: "squared", "huber", "cauchy", "geman_mcclure" of the distance in the image, or
            "cosine", one minus the cosine between bearings.
        scale: positive scale of the robust costs, in the image's units.
        learnable: make ``scale`` a parameter (its logarithm).
        ransac: search for the inliers first, and fit these alone; see
            :func:`ddn_cvx.dedicated.pose.ransac_pose`. Derivatives are those of a constant set of
            inliers.
        threshold: largest residual of an inlier, in the image's units; only with ``ransac``.
        seed: seed of RANSAC's draws.
        rotation: "matrix" ``(..., 3, 3)``, "axis_angle" ``(..., 3)`` or "quaternion" ``(..., 4)``,
            ``(w, x, y, z)`` with ``w >= 0``.

    Shapes:
        Image points ``(..., n, 2)``, scene points ``(..., n, 3)``, weights ``(..., n)`` or None,
        camera ``(..., 4)`` as ``(fx, fy, cx, cy)``, ``(..., 3, 3)``, or None for normalised
        coordinates; outputs are the rotation and the translation ``(..., 3)``. A weight of zero is
        a mask: its point may be anything, and both have gradient zero.

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

    log_scale: Tensor

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
        check_positive("scale", scale)
        if ransac and (threshold is None or not threshold > 0):
            raise ValueError(f"With ransac, threshold must be positive; got {threshold!r}.")
        if threshold is not None and not ransac:
            raise ValueError("threshold is RANSAC's: pass ransac=True, too.")
        self.cost, self.rotation, self.threshold, self.seed = cost, rotation, threshold, seed
        keep_logarithm(self, "scale", torch.tensor(float(scale)), learnable)

    @property
    def scale(self) -> Tensor:
        """The scale of the robust cost, a scalar."""
        return self.log_scale.exp()

    def solve(
        self, p2d: Tensor, p3d: Tensor, w: Tensor | None = None, K: Tensor | None = None
    ) -> PoseSolution:
        """The pose with its cost, status, Hessian and covariance."""
        if self.threshold is not None:
            return self.search(p2d, p3d, w, K).pose
        return solve_pose(p2d, p3d, w, K, cost=self.cost, scale=self.scale)

    def search(
        self, p2d: Tensor, p3d: Tensor, w: Tensor | None = None, K: Tensor | None = None
    ) -> RansacSolution:
        """The pose by RANSAC, with its inliers, score and number of trials."""
        if self.threshold is None:
            raise ValueError("Pass ransac=True and a threshold to search for inliers.")
        return ransac_pose(
            p2d, p3d, w, K,
            threshold=self.threshold, cost=self.cost, scale=self.scale, seed=self.seed,
        )  # fmt: skip

    def forward(
        self, p2d: Tensor, p3d: Tensor, w: Tensor | None = None, K: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rotation and translation; see the class's shapes."""
        R, t, *_ = self.solve(p2d, p3d, w, K)
        if self.rotation == "axis_angle":
            return logarithm(R), t
        return (quaternion(R) if self.rotation == "quaternion" else R), t

    def extra_repr(self) -> str:
        """For ``repr``."""
        parts = [repr(self.cost), shown(self, "scale")]
        if self.threshold is not None:
            parts.append(f"ransac=True, threshold={self.threshold!r}, seed={self.seed!r}")
        if self.rotation != "matrix":
            parts.append(f"rotation={self.rotation!r}")
        return ", ".join(parts)
