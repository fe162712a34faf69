"""The sets by name, with the data of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ddn_cvx.dedicated.projections.affine import box, halfspace, hyperplane
from ddn_cvx.dedicated.projections.balls import l1_ball, l2_ball, linf_ball
from ddn_cvx.dedicated.projections.birkhoff import birkhoff_polytope
from ddn_cvx.dedicated.projections.cones import (
    exponential_cone,
    positive_semidefinite_cone,
    second_order_cone,
)
from ddn_cvx.dedicated.projections.monotone import monotone_cone
from ddn_cvx.dedicated.projections.probability_simplex import simplex
from ddn_cvx.dedicated.projections.spheres import l1_sphere, l2_sphere, linf_sphere
from ddn_cvx.dedicated.projections.taut_string import total_variation


class ProjectionSet(NamedTuple):
    """The projection onto a set, and the set's data.

    Attributes:
        project: ``project(x, *data, dim=dim)``, without ``dim`` for a set of matrices.
        data: names and defaults of the data; a datum whose default is None is required.
        positive: names of the data that stay positive when they are learned.
        matrix: the elements of the set are matrices, the last two dimensions.
    """

    project: Callable[..., Tensor]
    data: dict[str, float | None]
    positive: tuple[str, ...] = ()
    matrix: bool = False


_RADIUS: dict[str, float | None] = {"radius": 1.0}

SETS: dict[str, ProjectionSet] = {
    "l1_ball": ProjectionSet(l1_ball, _RADIUS, ("radius",)),
    "l2_ball": ProjectionSet(l2_ball, _RADIUS, ("radius",)),
    "linf_ball": ProjectionSet(linf_ball, _RADIUS, ("radius",)),
    "l1_sphere": ProjectionSet(l1_sphere, _RADIUS, ("radius",)),
    "l2_sphere": ProjectionSet(l2_sphere, _RADIUS, ("radius",)),
    "linf_sphere": ProjectionSet(linf_sphere, _RADIUS, ("radius",)),
    "simplex": ProjectionSet(simplex, _RADIUS, ("radius",)),
    "box": ProjectionSet(box, {"lower": None, "upper": None}),
    "hyperplane": ProjectionSet(hyperplane, {"normal": None, "offset": 0.0}),
    "halfspace": ProjectionSet(halfspace, {"normal": None, "offset": 0.0}),
    "second_order_cone": ProjectionSet(second_order_cone, {}),
    "exponential_cone": ProjectionSet(exponential_cone, {}),
    "monotone_cone": ProjectionSet(monotone_cone, {"weights": 1.0}, ("weights",)),
    "total_variation": ProjectionSet(total_variation, {"weight": 1.0}, ("weight",)),
    "positive_semidefinite_cone": ProjectionSet(positive_semidefinite_cone, {}, matrix=True),
    "birkhoff_polytope": ProjectionSet(birkhoff_polytope, {}, matrix=True),
}
