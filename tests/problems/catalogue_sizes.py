"""Sizes of the catalogue's entries in tests: a small one, and the smallest that is allowed."""

from typing import Any

from ddn_cvx import Declaration
from ddn_cvx.problems import catalogue

Sizes = dict[str, Any]

# Those of every entry that has other sizes than ``n``.
SMALL: dict[str, Sizes] = {
    "quadratic_program": {"n": 4, "m": 3, "p": 1},
    "cone_program": {"n": 5, "equality": 1, "nonnegative": 3, "second_order": (3, 3)},
    "polyhedron_projection": {"n": 3, "m": 4},
    "constrained_least_squares": {"rows": 5, "columns": 4, "equalities": 2},
    "bounded_least_squares": {"rows": 5, "columns": 4},
    "lasso": {"rows": 5, "columns": 4},
    "markowitz_portfolio": {"assets": 4, "factors": 3},
    "ridge_logistic_regression": {"n": 6, "m": 3},
    "perspective_n_point": {"n": 7},
    "weighted_least_squares": {"rows": 5, "columns": 4},
    "ridge_regression": {"rows": 5, "columns": 4},
    "sphere_least_squares": {"rows": 5, "columns": 4},
    "entropic_linear_program": {"n": 5, "m": 2},
    "analytic_center": {"n": 2, "m": 5},
    "linear_mpc": {"horizon": 3, "states": 2, "inputs": 1},
}
SMALLEST: dict[str, Sizes] = {
    "quadratic_program": {"n": 1, "m": 1, "p": 1},
    "cone_program": {"n": 1, "equality": 0, "nonnegative": 1, "second_order": ()},
    "polyhedron_projection": {"n": 1, "m": 1},
    "constrained_least_squares": {"rows": 1, "columns": 1, "equalities": 1},
    "bounded_least_squares": {"rows": 2, "columns": 1},
    "lasso": {"rows": 1, "columns": 1},
    "markowitz_portfolio": {"assets": 1, "factors": 1},
    "perspective_n_point": {"n": 6},
    "second_order_cone_projection": {"n": 2},
    "total_variation_denoising": {"n": 2},
    "weighted_least_squares": {"columns": 1, "rows": 1},
    "ridge_regression": {"rows": 1, "columns": 1},
    "sphere_least_squares": {"rows": 1, "columns": 2},
    "entropic_linear_program": {"n": 1, "m": 1},
    "analytic_center": {"n": 1, "m": 2},
    "linear_mpc": {"horizon": 1, "states": 1, "inputs": 1},
}


def small(name: str) -> Declaration:
    """The entry at a size at which finite differences are cheap."""
    return catalogue()[name](**SMALL.get(name, {"n": 5}))


def smallest(name: str) -> Declaration:
    """The entry at the smallest size that it allows."""
    return catalogue()[name](**SMALLEST.get(name, {"n": 1}))
