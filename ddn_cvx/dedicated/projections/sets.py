"""The sets by name, with the data of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ddn_cvx.dedicated import projections as onto


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


_RADIAL = ("l1_ball", "l2_ball", "linf_ball", "l1_sphere", "l2_sphere", "linf_sphere", "simplex")

SETS: dict[str, ProjectionSet] = {
    name: ProjectionSet(getattr(onto, name), {"radius": 1.0}, ("radius",)) for name in _RADIAL
} | {
    "box": ProjectionSet(onto.box, {"lower": None, "upper": None}),
    "hyperplane": ProjectionSet(onto.hyperplane, {"normal": None, "offset": 0.0}),
    "halfspace": ProjectionSet(onto.halfspace, {"normal": None, "offset": 0.0}),
    "second_order_cone": ProjectionSet(onto.second_order_cone, {}),
    "exponential_cone": ProjectionSet(onto.exponential_cone, {}),
    "monotone_cone": ProjectionSet(onto.monotone_cone, {"weights": 1.0}, ("weights",)),
    "total_variation": ProjectionSet(onto.total_variation, {"weight": 1.0}, ("weight",)),
    "positive_semidefinite_cone": ProjectionSet(onto.positive_semidefinite_cone, {}, matrix=True),
    "birkhoff_polytope": ProjectionSet(onto.birkhoff_polytope, {}, matrix=True),
}
