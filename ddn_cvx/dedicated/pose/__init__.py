"""Camera pose from matched points, rigid motions, and matrices of two views.

All are batched, weighted, and differentiable to second order. Rotations are matrices.
"""

from ddn_cvx.dedicated.pose.alignment import procrustes
from ddn_cvx.dedicated.pose.pairs import collapse_pairs
from ddn_cvx.dedicated.pose.perspective import PoseSolution, solve_pose
from ddn_cvx.dedicated.pose.ransac import RansacSolution, ransac_pose
from ddn_cvx.dedicated.pose.rotations import exponential, from_quaternion, logarithm, quaternion
from ddn_cvx.dedicated.pose.two_views import fundamental_matrix, homography

__all__ = [
    "PoseSolution",
    "RansacSolution",
    "collapse_pairs",
    "exponential",
    "from_quaternion",
    "fundamental_matrix",
    "homography",
    "logarithm",
    "procrustes",
    "quaternion",
    "ransac_pose",
    "solve_pose",
]
