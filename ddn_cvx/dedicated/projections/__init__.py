"""Euclidean projections: closed forms and special algorithms, differentiable to second order.

Points lie along one dimension of a tensor of any shape; sets of matrices take the last two. The
derivative at a kink, and the point where several are nearest, are stated with each function.
"""

from ddn_cvx.dedicated.projections.affine import box, halfspace, hyperplane
from ddn_cvx.dedicated.projections.balls import (
    l1_ball,
    l1_sphere,
    l2_ball,
    l2_sphere,
    linf_ball,
    linf_sphere,
)
from ddn_cvx.dedicated.projections.birkhoff import birkhoff_polytope
from ddn_cvx.dedicated.projections.cones import (
    exponential_cone,
    positive_semidefinite_cone,
    second_order_cone,
)
from ddn_cvx.dedicated.projections.monotone import monotone_cone
from ddn_cvx.dedicated.projections.probability_simplex import simplex
from ddn_cvx.dedicated.projections.taut_string import total_variation

__all__ = [
    "birkhoff_polytope",
    "box",
    "exponential_cone",
    "halfspace",
    "hyperplane",
    "l1_ball",
    "l1_sphere",
    "l2_ball",
    "l2_sphere",
    "linf_ball",
    "linf_sphere",
    "monotone_cone",
    "positive_semidefinite_cone",
    "second_order_cone",
    "simplex",
    "total_variation",
]
