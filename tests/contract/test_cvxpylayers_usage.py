"""Whatever cvxpylayers computes, the layer computes: a table of problems, each solved by both.

Each row is one way in which cvxpylayers' README, guide or tests declare a problem. Its values must
be those of ``CvxpyLayer`` to 1e-6, its gradients to 1e-5; and the gradients must be those of
four-point central differences of cvxpy's own solution, which knows neither layer. Where
``CvxpyLayer`` cannot differentiate a problem the row says so, and the other statements remain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from cvxpylayers.torch import CvxpyLayer
from helpers import central_difference

import ddn_cvx

# cvxpylayers' own, from its diffcp interface.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

VALUE = 1e-6
GRADIENT = 1e-5

# The accuracy at which cvxpylayers is a reference: its default is four digits.
SCS_TIGHT = {"eps": 1e-11, "max_iters": 200_000, "mode": "dense"}
# diffcp's adjoint, and hence its ``mode``, does not take power cones; its forward pass does.
SCS_FORWARD = {"eps": 1e-11, "max_iters": 200_000}


@dataclass
class Case:
    """A problem, what a layer takes and returns, and values to solve it at.

    Attributes:
        inputs: one array for each parameter, unbatched.
        gp: geometric program.
        peer_args: cvxpylayers' settings for this problem.
        scs_accuracy: what SCS reaches on this problem, for cvxpylayers and for cvxpy.
        peer_gradient_is_right: whether cvxpylayers' gradient can be asked for at all.
    """

    problem: cp.Problem
    parameters: list[cp.Parameter]
    variables: list[cp.Variable]
    inputs: list[Any]
    gp: bool = False
    peer_args: dict[str, Any] | None = None
    scs_accuracy: float = 1e-11
    peer_gradient_is_right: bool = True

    def layer(self, **options: Any) -> ddn_cvx.DeclarativeLayer:
        """Ours."""
        return ddn_cvx.DeclarativeLayer(
            self.problem, self.parameters, self.variables, gp=self.gp, **options
        )

    def peer(self, **options: Any) -> CvxpyLayer:
        """cvxpylayers', accurate."""
        settings = self.peer_args or {**SCS_TIGHT, "eps": self.scs_accuracy}
        options.setdefault("solver_args", settings)
        return CvxpyLayer(self.problem, self.parameters, self.variables, gp=self.gp, **options)

    def tensors(self) -> list[torch.Tensor]:
        """The inputs, asking for gradients."""
        arrays = [np.asarray(value, dtype=np.float64) for value in self.inputs]
        return [torch.tensor(array, requires_grad=True) for array in arrays]


BUILDERS: dict[str, Callable[[np.random.Generator], Case]] = {}


def case(build: Callable[[np.random.Generator], Case]) -> Callable[[np.random.Generator], Case]:
    """Add a row to the table, under the function's name."""
    BUILDERS[build.__name__] = build
    return build


# -- objectives and cones -------------------------------------------------------------------------


@case
def absolute_deviation_with_signs(rng: np.random.Generator) -> Case:
    x, A, b = cp.Variable(2), cp.Parameter((3, 2)), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(0.5 * cp.pnorm(A @ x - b, p=1)), [x >= 0])
    return Case(problem, [A, b], [x], [rng.standard_normal((3, 2)), rng.standard_normal(3)])


@case
def ridge_regression(rng: np.random.Generator) -> Case:
    x, A, b = cp.Variable(4), cp.Parameter((9, 4)), cp.Parameter(9)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + cp.sum_squares(x)))
    return Case(problem, [A, b], [x], [rng.standard_normal((9, 4)), rng.standard_normal(9)])


@case
def logistic_regression(rng: np.random.Generator) -> Case:
    theta, X = cp.Variable((3, 1)), cp.Parameter((6, 3))
    labels = (rng.standard_normal((6, 1)) > 0).astype(float)
    likelihood = cp.sum(cp.multiply(labels, X @ theta) - cp.logistic(X @ theta))
    problem = cp.Problem(cp.Maximize(likelihood / 6 - 0.1 * cp.sum_squares(theta)))
    return Case(problem, [X], [theta], [rng.standard_normal((6, 3))])


@case
def maximum_entropy(rng: np.random.Generator) -> Case:
    x, A, b = cp.Variable(5), cp.Parameter((2, 5)), cp.Parameter(2)
    F = rng.standard_normal((2, 5))
    g = F @ rng.uniform(0.5, 1.5, 5)
    constraints = [A @ x == b, F @ x <= g + 0.1]
    problem = cp.Problem(cp.Maximize(cp.sum(cp.entr(x))), constraints)
    A_value = rng.standard_normal((2, 5))
    return Case(problem, [A, b], [x], [A_value, A_value @ rng.uniform(0.5, 1.5, 5)])


@case
def limited_multilabel_projection(rng: np.random.Generator) -> Case:
    x, y = cp.Parameter(4), cp.Variable(4)
    objective = -x @ y - cp.sum(cp.entr(y)) - cp.sum(cp.entr(1.0 - y))
    problem = cp.Problem(cp.Minimize(objective), [cp.sum(y) == 2])
    return Case(problem, [x], [y], [rng.standard_normal(4)])


@case
def semidefinite_with_symmetric_parameter(rng: np.random.Generator) -> Case:
    X, C = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True)
    penalty = cp.sum_squares(X)
    problem = cp.Problem(cp.Minimize(cp.trace(C @ X) + penalty), [X >> 0, cp.trace(X) == 1])
    M = rng.standard_normal((3, 3))
    return Case(problem, [C], [X], [M + M.T])


@case
def projection_onto_a_hyperplane(rng: np.random.Generator) -> Case:
    x, b = cp.Variable(5), cp.Parameter(5)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [cp.sum(x) == 1])
    return Case(problem, [b], [x], [rng.standard_normal(5)])


@case
def portfolio_with_nonnegative_parameter(rng: np.random.Generator) -> Case:
    w, returns, risk = cp.Variable(6), cp.Parameter(6), cp.Parameter(nonneg=True)
    utility = returns @ w - risk * cp.sum_squares(w)
    problem = cp.Problem(cp.Maximize(utility), [cp.sum(w) == 1, w >= 0])
    return Case(problem, [returns, risk], [w], [rng.standard_normal(6), 0.5])


@case
def matrix_variable(rng: np.random.Generator) -> Case:
    X, A, B = cp.Variable((3, 2)), cp.Parameter((5, 3)), cp.Parameter((5, 2))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ X - B) + 0.01 * cp.sum_squares(X)))
    return Case(problem, [A, B], [X], [rng.standard_normal((5, 3)), rng.standard_normal((5, 2))])


@case
def second_order_cone_program(rng: np.random.Generator) -> Case:
    x = cp.Variable((4, 1))
    F, q = cp.Parameter((4, 4)), cp.Parameter((4, 1))
    A, b = cp.Parameter((1, 4)), cp.Parameter((1, 1))
    objective = 0.5 * cp.sum_squares(F @ x) + q.T @ x
    problem = cp.Problem(cp.Minimize(objective), [A @ x == b, cp.norm(x) <= 1])
    shapes = [(4, 4), (4, 1), (1, 4)]
    inputs = [rng.standard_normal(shape) for shape in shapes]
    return Case(problem, [F, q, A, b], [x], [*inputs, rng.uniform(-0.3, 0.3, (1, 1))])


@case
def lasso(rng: np.random.Generator) -> Case:
    x, A, lam = cp.Variable(4), cp.Parameter((7, 4)), cp.Parameter(1, nonneg=True)
    b = rng.standard_normal(7)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(A @ x - b) + lam * cp.norm(x, 1)))
    return Case(problem, [A, lam], [x], [rng.standard_normal((7, 4)), [0.7]])


@case
def norm_of_third_power(rng: np.random.Generator) -> Case:
    x, c = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [cp.pnorm(x, 3) <= 1])
    return Case(problem, [c], [x], [rng.uniform(0.8, 1.6, 3)])


@case
def quadratic_form_with_constant_matrix(rng: np.random.Generator) -> Case:
    x, q, upper = cp.Variable(4), cp.Parameter(4), cp.Parameter()
    M = rng.standard_normal((4, 4))
    objective = cp.quad_form(x, M @ M.T + np.eye(4)) / 2 + q @ x
    problem = cp.Problem(cp.Minimize(objective), [x <= upper, x >= -1])
    return Case(problem, [q, upper], [x], [3 * rng.standard_normal(4), 0.3])


@case
def linear_program(rng: np.random.Generator) -> Case:
    x, c, b = cp.Variable(3), cp.Parameter(3), cp.Parameter(2)
    A = rng.uniform(0.5, 1.5, (2, 3))
    problem = cp.Problem(cp.Maximize(c @ x), [A @ x <= b, x >= 0])
    return Case(problem, [c, b], [x], [rng.uniform(0.5, 1.5, 3), rng.uniform(1.0, 2.0, 2)])


# -- the problems of cvxpylayers' example notebooks, small ---------------------------------------


@case
def rectified_linear_unit(rng: np.random.Generator) -> Case:
    z, inner, b = cp.Variable(3), cp.Parameter(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - inner - b)), [z >= 0])
    return Case(problem, [inner, b], [z], [rng.standard_normal(3), rng.standard_normal(3)])


@case
def one_step_control_policy(rng: np.random.Generator) -> Case:
    u, x, F, q = cp.Variable(2), cp.Parameter(3), cp.Parameter((3, 3)), cp.Parameter(3)
    A, B = rng.standard_normal((3, 3)), rng.standard_normal((3, 2))
    following = A @ x + B @ u
    state = cp.Variable(3)
    objective = cp.sum_squares(F @ state) + q @ state + cp.sum_squares(u)
    problem = cp.Problem(cp.Minimize(objective), [state == following, cp.norm(u) <= 0.5])
    inputs = [rng.standard_normal(shape) for shape in (3, (3, 3), 3)]
    return Case(problem, [x, F, q], [u], inputs)


@case
def model_predictive_control(rng: np.random.Generator) -> Case:
    horizon = 4
    states = [cp.Variable(2) for _ in range(horizon + 1)]
    controls = [cp.Variable(1) for _ in range(horizon)]
    start, weights = cp.Parameter(2), cp.Parameter(2, nonneg=True)
    A, B = np.array([[1.0, 0.2], [0.0, 1.0]]), np.array([[0.0], [0.2]])
    cost: Any = 0.0
    constraints = [states[0] == start]
    for step in range(horizon):
        cost += weights @ cp.square(states[step + 1]) + 0.1 * cp.sum_squares(controls[step])
        constraints.append(states[step + 1] == A @ states[step] + B @ controls[step])
        constraints.append(cp.norm(controls[step], "inf") <= 0.8)
    problem = cp.Problem(cp.Minimize(cost), constraints)
    return Case(problem, [start, weights], [controls[0]], [[1.0, 0.5], [1.0, 0.3]])


@case
def entropic_optimal_transport(rng: np.random.Generator) -> Case:
    P, C = cp.Variable((3, 3)), cp.Parameter((3, 3))
    a, b, strength = cp.Parameter((3, 1)), cp.Parameter((1, 3)), cp.Parameter(nonneg=True)
    objective = cp.sum(cp.multiply(P, C)) - strength * cp.sum(cp.entr(P))
    row_sums, column_sums = cp.sum(P, axis=1, keepdims=True), cp.sum(P, axis=0, keepdims=True)
    # One of the six sums follows from the others: the last is left out.
    constraints = [row_sums == a, column_sums[:, :2] == b[:, :2]]
    problem = cp.Problem(cp.Minimize(objective), constraints)
    inputs = [rng.uniform(0.0, 1.0, (3, 3)), np.full((3, 1), 1 / 3), np.full((1, 3), 1 / 3), 0.5]
    return Case(problem, [C, a, b, strength], [P], inputs, scs_accuracy=1e-9)


@case
def resource_allocation_by_utility(rng: np.random.Generator) -> Case:
    y, B = cp.Variable(4), cp.Parameter((2, 4), nonneg=True)
    inverse_price, alpha = cp.Parameter(2, nonneg=True), cp.Parameter(4, nonneg=True)
    utility = cp.sum(cp.multiply(alpha, cp.log(y)))
    problem = cp.Problem(cp.Maximize(utility), [B @ y <= inverse_price])
    inputs = [rng.uniform(0.5, 1.5, shape) for shape in ((2, 4), 2, 4)]
    return Case(problem, [B, inverse_price, alpha], [y], inputs)


@case
def total_variation_denoising(rng: np.random.Generator) -> Case:
    y, signal, weight = cp.Variable(6), cp.Parameter(6), cp.Parameter(nonneg=True)
    roughness = cp.norm1(cp.diff(y))
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(y - signal) + weight * roughness))
    return Case(problem, [signal, weight], [y], [rng.standard_normal(6), 0.3])


@case
def monotonic_regression(rng: np.random.Generator) -> Case:
    y, given = cp.Variable(5), cp.Parameter(5)
    constraints = [y[1:] >= y[:-1], y <= 1]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(y - given)), constraints)
    return Case(problem, [given], [y], [rng.standard_normal(5)])


@case
def support_vector_machine(rng: np.random.Generator) -> Case:
    w, offset, X = cp.Variable(2), cp.Variable(), cp.Parameter((6, 2))
    labels = np.array([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    margins = cp.multiply(labels, X @ w - offset)
    hinge = cp.sum(cp.pos(1 - margins)) / 6
    objective = hinge + 0.1 * cp.sum_squares(w) + 0.01 * cp.square(offset)
    points = rng.standard_normal((6, 2)) + labels[:, None]
    return Case(cp.Problem(cp.Minimize(objective)), [X], [w, offset], [points])


@case
def group_lasso_with_huber_loss(rng: np.random.Generator) -> Case:
    x, A, weight = cp.Variable(4), cp.Parameter((8, 4)), cp.Parameter(nonneg=True)
    b = 2 * rng.standard_normal(8)
    groups = cp.norm(x[:2]) + cp.norm(x[2:])
    problem = cp.Problem(cp.Minimize(cp.sum(cp.huber(A @ x - b)) + weight * groups))
    return Case(problem, [A, weight], [x], [rng.standard_normal((8, 4)), 0.5])


@case
def largest_eigenvalue(rng: np.random.Generator) -> Case:
    t, C = cp.Variable(3), cp.Parameter((3, 3), symmetric=True)
    objective = cp.lambda_max(C + cp.diag(t)) + cp.sum_squares(t)
    M = rng.standard_normal((3, 3))
    return Case(cp.Problem(cp.Minimize(objective)), [C], [t], [M + M.T])


# -- parameters and variables with attributes -----------------------------------------------------


@case
def positive_semidefinite_parameter(rng: np.random.Generator) -> Case:
    x, C = cp.Variable((2, 2), symmetric=True), cp.Parameter((2, 2), PSD=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - C)), [cp.trace(x) == 1, x >> 0])
    M = rng.standard_normal((2, 2))
    return Case(problem, [C], [x], [M @ M.T + np.eye(2)])


@case
def negative_semidefinite_parameter(rng: np.random.Generator) -> Case:
    x, C, p = cp.Variable(3), cp.Parameter((3, 3), NSD=True), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [C @ x <= 0.2])
    M = rng.standard_normal((3, 3))
    return Case(problem, [C, p], [x], [-M @ M.T - np.eye(3), rng.standard_normal(3) - 1])


@case
def nonpositive_and_positive_parameters(rng: np.random.Generator) -> Case:
    x, low, weight = cp.Variable(3), cp.Parameter(3, nonpos=True), cp.Parameter(pos=True)
    c = rng.standard_normal(3)
    problem = cp.Problem(cp.Minimize(weight * cp.sum_squares(x) + c @ x), [x >= low])
    return Case(problem, [low, weight], [x], [-rng.uniform(0.1, 0.4, 3), 1.3])


@case
def nonnegative_variable(rng: np.random.Generator) -> Case:
    x, c = cp.Variable(4, nonneg=True), cp.Parameter(4)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)))
    return Case(problem, [c], [x], [rng.standard_normal(4)])


@case
def semidefinite_variable(rng: np.random.Generator) -> Case:
    X, C = cp.Variable((3, 3), PSD=True), cp.Parameter((3, 3), symmetric=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - C)))
    M = rng.standard_normal((3, 3))
    return Case(problem, [C], [X], [M + M.T])


@case
def several_variables_and_scalars(rng: np.random.Generator) -> Case:
    x, y, z = cp.Variable(), cp.Variable(3), cp.Variable((2, 2))
    a, b = cp.Parameter(), cp.Parameter((2, 2))
    objective = cp.square(x - a) + cp.sum_squares(y - x) + cp.sum_squares(z - b)
    problem = cp.Problem(cp.Minimize(objective), [cp.sum(z) == x, y <= 0.5])
    return Case(problem, [a, b], [z, x, y], [1.7, rng.standard_normal((2, 2))])


@case
def matrices_read_by_rows_and_columns(rng: np.random.Generator) -> Case:
    """Flattening orders differ between cvxpy and torch: no entry may be transposed."""
    X, B, c = cp.Variable((2, 3)), cp.Parameter((2, 3)), cp.Parameter((3, 2))
    weights = np.arange(1.0, 7.0).reshape(2, 3)
    objective = cp.sum_squares(cp.multiply(weights, X - B)) + cp.trace(c @ X)
    problem = cp.Problem(cp.Minimize(objective), [cp.sum(X, axis=0) <= 1])
    return Case(problem, [B, c], [X], [rng.standard_normal((2, 3)), rng.standard_normal((3, 2))])


@case
def parameters_in_reverse_order(rng: np.random.Generator) -> Case:
    forward = matrices_read_by_rows_and_columns(rng)
    return Case(forward.problem, forward.parameters[::-1], forward.variables, forward.inputs[::-1])


# -- geometric programs ---------------------------------------------------------------------------


def box_problem() -> tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]:
    """The geometric program of the README."""
    x, y, z = (cp.Variable(pos=True) for _ in range(3))
    a, b, c = cp.Parameter(pos=True), cp.Parameter(pos=True), cp.Parameter()
    constraints = [a * (x * y + x * z + y * z) <= b, x >= cp.power(y, c)]
    return cp.Problem(cp.Minimize(1 / (x * y * z)), constraints), [a, b, c], [x, y, z]


@case
def geometric_program(_: np.random.Generator) -> Case:
    problem, parameters, variables = box_problem()
    return Case(problem, parameters, variables, [2.0, 1.0, 0.5], gp=True)


@case
def geometric_program_with_parameters_reversed(_: np.random.Generator) -> Case:
    problem, parameters, variables = box_problem()
    return Case(problem, parameters[::-1], variables, [0.5, 1.0, 2.0], gp=True)


@case
def geometric_program_of_a_box(_: np.random.Generator) -> Case:
    w, h, d = (cp.Variable(pos=True) for _ in range(3))
    volume, aspect = cp.Parameter(pos=True), cp.Parameter(pos=True)
    constraints = [w * h * d >= volume, w <= aspect * h, 3 * h <= aspect * d]
    problem = cp.Problem(cp.Minimize(2 * (w * h + h * d + d * w)), constraints)
    return Case(problem, [volume, aspect], [w, h, d], [5.0, 2.0], gp=True)


@case
def geometric_program_with_multiplier(_: np.random.Generator) -> Case:
    x, y = cp.Variable(pos=True), cp.Variable(pos=True)
    a, b = cp.Parameter(pos=True), cp.Parameter(pos=True)
    constraint = a * (x * y + x + 2 * y) <= b
    problem = cp.Problem(cp.Minimize(1 / (x * y)), [constraint])
    return Case(problem, [a, b], [x, y, constraint.dual_variables[0]], [2.0, 1.0], gp=True)


# -- multipliers ----------------------------------------------------------------------------------


@case
def multiplier_of_an_equality(rng: np.random.Generator) -> Case:
    x, A, b = cp.Variable(3), cp.Parameter((2, 3)), cp.Parameter(2)
    constraint = A @ x == b
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x)), [constraint])
    inputs = [rng.standard_normal((2, 3)), rng.standard_normal(2)]
    return Case(problem, [A, b], [x, constraint.dual_variables[0]], inputs)


@case
def multipliers_of_equality_and_inequality(rng: np.random.Generator) -> Case:
    x, c, b = cp.Variable(3), cp.Parameter(3), cp.Parameter()
    equality, inequality = cp.sum(x) == b, x >= 0
    problem = cp.Problem(cp.Minimize(c @ x + cp.sum_squares(x)), [equality, inequality])
    multipliers = [equality.dual_variables[0], inequality.dual_variables[0]]
    return Case(problem, [c, b], [x, *multipliers], [[1.0, 4.0, -0.5], 1.0])


@case
def multiplier_alone(rng: np.random.Generator) -> Case:
    x, c, b = cp.Variable(2), cp.Parameter(2), cp.Parameter()
    equality = cp.sum(x) == b
    problem = cp.Problem(cp.Minimize(c @ x), [equality, x >= 0])
    return Case(problem, [c, b], [equality.dual_variables[0]], [[1.0, 2.0], 1.0])


@case
def multiplier_of_a_norm(rng: np.random.Generator) -> Case:
    x, c, t = cp.Variable(3), cp.Parameter(3), cp.Parameter(nonneg=True)
    constraint = cp.norm(x) <= t
    problem = cp.Problem(cp.Minimize(c @ x), [constraint])
    return Case(problem, [c, t], [x, constraint.dual_variables[0]], [rng.standard_normal(3), 2.0])


@case
def multipliers_of_a_second_order_cone(rng: np.random.Generator) -> Case:
    x, t = cp.Variable(3), cp.Variable()
    c, bound = cp.Parameter(3), cp.Parameter(nonneg=True)
    cone = cp.SOC(t, x)
    objective = c @ x - t + 0.1 * cp.sum_squares(x)
    problem = cp.Problem(cp.Minimize(objective), [cone, t <= bound])
    return Case(problem, [c, bound], [x, t, *cone.dual_variables], [[2.0, 0.3, -0.2], 1.0])


@case
def multipliers_of_an_exponential_cone(_: np.random.Generator) -> Case:
    x, y, z, t = cp.Variable(), cp.Variable(), cp.Variable(), cp.Parameter(nonneg=True)
    cone = cp.constraints.ExpCone(x, y, z)
    objective = -x + 0.1 * (x**2 + y**2 + z**2)
    problem = cp.Problem(cp.Minimize(objective), [cone, y >= 0.1, z <= t])
    return Case(problem, [t], [x, y, z, *cone.dual_variables], [2.0])


@case
def multipliers_of_a_power_cone(_: np.random.Generator) -> Case:
    x, y, z, t = cp.Variable(), cp.Variable(), cp.Variable(), cp.Parameter(nonneg=True)
    cone = cp.PowCone3D(x, y, z, 0.3)
    objective = -z + 0.1 * (cp.square(x) + cp.square(y))
    problem = cp.Problem(cp.Minimize(objective), [cone, x <= t])
    return Case(
        problem,
        [t],
        [x, y, z, *cone.dual_variables],
        [2.0],
        peer_args=SCS_FORWARD,
        peer_gradient_is_right=False,
    )


@case
def multiplier_of_a_semidefinite_cone(_: np.random.Generator) -> Case:
    X, C = cp.Variable((2, 2), symmetric=True), cp.Parameter((2, 2), symmetric=True)
    cone = X >> 0
    problem = cp.Problem(cp.Minimize(cp.trace(C @ X)), [cone, cp.trace(X) == 1])
    return Case(problem, [C], [X, cone.dual_variables[0]], [[[1.0, 0.5], [0.5, 2.0]]])


@case
def all_kinds_of_cones(_: np.random.Generator) -> Case:
    """Rows of the canonical program come cone by cone: each multiplier must find its own."""
    u, v, s, t = cp.Variable(2), cp.Variable(2), cp.Variable(2), cp.Variable()
    e, X = cp.Variable(3), cp.Variable((2, 2), symmetric=True)
    b, upper, bound = cp.Parameter(2), cp.Parameter(2), cp.Parameter(nonneg=True)
    cones = [
        X >> 0,
        cp.constraints.ExpCone(e[0], e[1], e[2]),
        cp.SOC(t, s),
        v <= upper,
        u + v == b,
    ]
    target = np.array([[1.0, 2.0], [2.0, -0.5]])
    objective = (
        cp.sum_squares(u - 1)
        + cp.sum_squares(v - 2)
        + cp.sum_squares(s - [3.0, 1.0])
        + cp.sum_squares(e - [1.0, 1.0, 0.5])
        + cp.sum_squares(X - target)
        + t
    )
    problem = cp.Problem(cp.Minimize(objective), [*cones, t <= bound])
    multipliers = [dual for cone in cones for dual in cone.dual_variables]
    return Case(
        problem,
        [b, upper, bound],
        [u, v, s, t, e, X, *multipliers],
        [[1.0, 0.5], [0.4, 0.2], 1.5],
    )


# -- the three statements -------------------------------------------------------------------------


def build(name: str) -> Case:
    """A row of the table, with its own seed."""
    return BUILDERS[name](np.random.default_rng(list(name.encode())))


def weights_for(values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Fixed weights that make a scalar of a layer's output."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(value.shape, dtype=torch.float64, generator=generator) for value in values]


def loss_and_gradients(
    layer: Callable[..., tuple[torch.Tensor, ...]], inputs: Sequence[torch.Tensor]
) -> tuple[tuple[torch.Tensor, ...], list[torch.Tensor]]:
    """Outputs, and the gradient of their weighted sum with respect to each input."""
    values = layer(*inputs)
    weights = weights_for(values)
    terms = [(value * weight).sum() for value, weight in zip(values, weights, strict=True)]
    loss = torch.stack(terms).sum()
    return values, list(torch.autograd.grad(loss, list(inputs)))


def assert_close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    """Equal to ``tolerance``, relative to the larger of one and the largest entry."""
    assert found.shape == wanted.shape
    found, wanted = found.detach(), wanted.detach()
    assert float((found - wanted).abs().max()) <= tolerance * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("name", BUILDERS)
def test_values_and_gradients_are_those_of_cvxpylayers(name: str) -> None:
    row = build(name)
    inputs = row.tensors()
    values, gradients = loss_and_gradients(row.layer(), inputs)
    if row.peer_gradient_is_right:
        peer_values, peer_gradients = loss_and_gradients(row.peer(), inputs)
    else:
        peer_values, peer_gradients = row.peer()(*[tensor.detach() for tensor in inputs]), gradients
    assert len(values) == len(row.variables)
    for found, wanted in zip(values, peer_values, strict=True):
        assert_close(found, wanted, VALUE)
    for found, wanted in zip(gradients, peer_gradients, strict=True):
        assert_close(found, wanted, GRADIENT)


@pytest.mark.parametrize("name", BUILDERS)
def test_gradients_are_those_of_central_differences(name: str) -> None:
    row = build(name)
    inputs = row.tensors()
    _, gradients = loss_and_gradients(row.layer(), inputs)
    generator = np.random.default_rng(11)
    directions = [admissible_direction(p, generator) for p in row.parameters]
    derivative = sum(
        float((gradient * torch.as_tensor(direction)).sum())
        for gradient, direction in zip(gradients, directions, strict=True)
    )

    def loss(step: float) -> float:
        return loss_by_cvxpy(
            row, [np.asarray(v) + step * d for v, d in zip(row.inputs, directions, strict=True)]
        )

    # Truncation, step^4, and the solver's 1e-11 / step are both below the tolerance.
    differences = central_difference(loss, 1e-3, order=4)
    assert derivative == pytest.approx(differences, rel=GRADIENT, abs=GRADIENT)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_batch_is_its_elements(name: str) -> None:
    row = build(name)
    generator = np.random.default_rng(12)
    elements = [
        [
            torch.tensor(
                np.asarray(value) + 0.01 * admissible_direction(parameter, generator),
                requires_grad=True,
            )
            for value, parameter in zip(row.inputs, row.parameters, strict=True)
        ]
        for _ in range(3)
    ]
    layer = row.layer()
    stacked = [torch.stack(parts) for parts in zip(*elements, strict=True)]
    together = layer(*stacked)
    weights = weights_for([value[0] for value in together])
    terms = [(value * weight).sum() for value, weight in zip(together, weights, strict=True)]
    gradients = torch.autograd.grad(torch.stack(terms).sum(), stacked)
    for position, inputs in enumerate(elements):
        alone, alone_gradients = loss_and_gradients(layer, inputs)
        for found, wanted in zip(together, alone, strict=True):
            assert_close(found[position], wanted, 1e-9)
        for found, wanted in zip(gradients, alone_gradients, strict=True):
            assert_close(found[position], wanted, 1e-7)


def admissible_direction(parameter: cp.Parameter, generator: np.random.Generator) -> np.ndarray:
    """A direction of length one in which the parameter may move and keep what it declares."""
    direction = generator.standard_normal(parameter.shape)
    attributes = parameter.attributes
    if any(attributes[name] for name in ("symmetric", "PSD", "NSD")):
        direction = direction + direction.T
    if attributes["diag"]:
        direction = np.diag(np.diag(direction))
    return np.asarray(direction / np.linalg.norm(direction))


def loss_by_cvxpy(row: Case, values: Sequence[np.ndarray]) -> float:
    """The weighted sum of the outputs, from cvxpy's own solution."""
    for parameter, value in zip(row.parameters, values, strict=True):
        parameter.value = value
    if row.problem.is_qp():
        tight = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-12)
        row.problem.solve(solver=cp.CLARABEL, **tight)
    else:  # on curved cones an interior point is less accurate than SCS
        row.problem.solve(solver=cp.SCS, gp=row.gp, eps=row.scs_accuracy, max_iters=200_000)
    outputs = [torch.as_tensor(np.asarray(variable.value)) for variable in row.variables]
    weights = weights_for(outputs)
    return sum(float((o * w).sum()) for o, w in zip(outputs, weights, strict=True))
