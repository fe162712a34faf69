"""The catalogue: named problems, each with example inputs, a citation and, where there is one, a
closed form.

A catalogue entry says *what* is to be solved, never how. To add one:

1. Write a function that builds the ``cvxpy.Problem`` and returns a
   :class:`~ddn_cvx.Declaration`, named as the function; every size has a default and is checked
   with ``check_size``. ``orthant_projection`` in ``projections.py`` is a short one to start from.
   Convex or not: what is not DCP and DPP becomes a nonlinear program; give that a ``start`` if
   zero is a bad one.
2. Give it ``example(batch, generator)``: regular inputs, drawn with the helpers of
   ``_sampling.py``. Bind sizes with ``functools.partial``, so that the declaration can be pickled.
3. Name it in ``_CONSTRUCTORS`` and ``__all__`` below; ``tests/problems/test_catalogue.py`` then
   checks it.
"""

if __name__ != "ddn_cvx.problems":
    raise ImportError(
        f"this package is imported as `ddn_cvx.problems`, not as `{__name__}`; write `from "
        "ddn_cvx.problems import ...`, and take the checkout's root off sys.path if it is there "
        "only for this"
    )

from collections.abc import Callable

from ddn_cvx.declaration import Declaration
from ddn_cvx.problems.classification import ridge_logistic_regression
from ddn_cvx.problems.cone_projections import (
    exponential_cone_projection,
    second_order_cone_projection,
    semidefinite_cone_projection,
)
from ddn_cvx.problems.conic import cone_program
from ddn_cvx.problems.control import linear_mpc
from ddn_cvx.problems.denoising import total_variation_denoising
from ddn_cvx.problems.eigen import smallest_eigenvectors
from ddn_cvx.problems.entropy import analytic_center, entropic_linear_program, softmax
from ddn_cvx.problems.games import stackelberg_follower
from ddn_cvx.problems.least_squares import (
    bounded_least_squares,
    constrained_least_squares,
    lasso,
    ridge_regression,
    sphere_least_squares,
    weighted_least_squares,
)
from ddn_cvx.problems.linear_set_projections import (
    birkhoff_projection,
    halfspace_projection,
    hyperplane_projection,
    isotonic_regression,
)
from ddn_cvx.problems.pooling import (
    average_pooling,
    huber_pooling,
    pseudo_huber_pooling,
    truncated_quadratic_pooling,
    welsch_pooling,
)
from ddn_cvx.problems.portfolio import markowitz_portfolio
from ddn_cvx.problems.pose import perspective_n_point
from ddn_cvx.problems.projections import (
    box_projection,
    l1_ball_projection,
    l2_ball_projection,
    linf_ball_projection,
    orthant_projection,
    polyhedron_projection,
    simplex_projection,
    sphere_projection,
)
from ddn_cvx.problems.quadratic import quadratic_program

__all__ = [
    "analytic_center",
    "average_pooling",
    "birkhoff_projection",
    "bounded_least_squares",
    "box_projection",
    "catalogue",
    "cone_program",
    "constrained_least_squares",
    "entropic_linear_program",
    "exponential_cone_projection",
    "halfspace_projection",
    "huber_pooling",
    "hyperplane_projection",
    "isotonic_regression",
    "l1_ball_projection",
    "l2_ball_projection",
    "lasso",
    "linear_mpc",
    "linf_ball_projection",
    "markowitz_portfolio",
    "orthant_projection",
    "perspective_n_point",
    "polyhedron_projection",
    "pseudo_huber_pooling",
    "quadratic_program",
    "ridge_logistic_regression",
    "ridge_regression",
    "second_order_cone_projection",
    "semidefinite_cone_projection",
    "simplex_projection",
    "smallest_eigenvectors",
    "softmax",
    "sphere_least_squares",
    "sphere_projection",
    "stackelberg_follower",
    "total_variation_denoising",
    "truncated_quadratic_pooling",
    "weighted_least_squares",
    "welsch_pooling",
]

_CONSTRUCTORS: tuple[Callable[..., Declaration], ...] = (
    quadratic_program,
    cone_program,
    orthant_projection,
    box_projection,
    polyhedron_projection,
    simplex_projection,
    l1_ball_projection,
    l2_ball_projection,
    linf_ball_projection,
    hyperplane_projection,
    halfspace_projection,
    second_order_cone_projection,
    semidefinite_cone_projection,
    exponential_cone_projection,
    isotonic_regression,
    total_variation_denoising,
    birkhoff_projection,
    average_pooling,
    huber_pooling,
    pseudo_huber_pooling,
    constrained_least_squares,
    bounded_least_squares,
    lasso,
    weighted_least_squares,
    ridge_regression,
    softmax,
    entropic_linear_program,
    analytic_center,
    linear_mpc,
    markowitz_portfolio,
    ridge_logistic_regression,
    welsch_pooling,
    truncated_quadratic_pooling,
    sphere_projection,
    sphere_least_squares,
    smallest_eigenvectors,
    stackelberg_follower,
    perspective_n_point,
)


def catalogue() -> dict[str, Callable[..., Declaration]]:
    """Every entry's name and constructor; called without arguments, it takes its default size.

    Example:
        >>> from ddn_cvx.problems import catalogue
        >>> catalogue()["lasso"]().parameters[0].shape
        (12, 8)
    """
    return {constructor.__name__: constructor for constructor in _CONSTRUCTORS}
