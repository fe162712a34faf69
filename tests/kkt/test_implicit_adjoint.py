"""Gradients of nonlinear programs where care is needed: degenerate points, bad input."""

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from helpers import assert_derivatives, draw, tensor

import ddn_cvx as ddn
from ddn_cvx import Degeneracy, Status

DOUBLE = torch.float64


def layer_of(
    objective: cp.Expression,
    constraints: list[Any],
    parameters: list[cp.Parameter],
    variables: list[cp.Variable],
    **options: Any,
) -> ddn.DeclarativeLayer:
    problem = cp.Problem(cp.Minimize(objective), constraints)
    return ddn.DeclarativeLayer(problem, parameters, variables, solver="TORCH", **options)


def jacobian(layer: ddn.DeclarativeLayer, *point: torch.Tensor) -> torch.Tensor:
    """Of the first output with respect to the first input, ``(outputs, inputs)``."""
    found: torch.Tensor = torch.func.jacrev(lambda *p: layer(*p)[0])(*point)
    return found.reshape(-1, point[0].numel())


def differences(layer: ddn.DeclarativeLayer, *point: torch.Tensor, step: float = 1e-6) -> Any:
    """Differences ahead of and behind a point, both as :func:`jacobian`."""
    first, *others = point
    middle = layer(first, *others)[0]
    sides = []
    for sign in (1, -1):
        columns = []
        for entry in range(first.numel()):
            moved = first.clone()
            moved.view(-1)[entry] += sign * step
            columns.append(sign * (layer(moved, *others)[0] - middle).reshape(-1) / step)
        sides.append(torch.stack(columns, 1))
    return sides


def central(layer: ddn.DeclarativeLayer, *point: torch.Tensor) -> torch.Tensor:
    ahead, behind = differences(layer, *point)
    return (ahead + behind) / 2  # type: ignore[no-any-return]


# -- what the peer gets wrong -------------------------------------------------------------------


def test_linear_equality_constraints_take_part() -> None:
    u, x = cp.Variable(4), cp.Parameter(4)
    A = np.array([[1.0, 1, 1, 1], [1.0, 0, 2, 0]])
    layer = layer_of(cp.sum_squares(u - x), [A @ u == np.ones(2)], [x], [u])
    found = jacobian(layer, draw(4))
    projector = np.eye(4) - np.linalg.pinv(A) @ A
    torch.testing.assert_close(found, torch.from_numpy(projector), rtol=0, atol=1e-12)


def test_redundant_equations_change_nothing() -> None:
    u, x = cp.Variable(4), cp.Parameter(4)
    weight = np.array([1.0, 2, 3, 4])
    once = [cp.sum(u) == 1]
    thrice = [cp.sum(u) == 1, 2 * cp.sum(u) == 2, cp.sum(u) == 1]
    objective = cp.sum(cp.multiply(weight, cp.power(u - x, 4))) + cp.sum_squares(u)
    x0 = draw(3, 4)
    single, triple = (layer_of(objective, part, [x], [u]) for part in (once, thrice))
    solution = triple.solve(x0)
    assert bool(solution.solved.all())
    assert solution.degeneracy is not None
    assert bool((solution.degeneracy == int(Degeneracy.DEPENDENT_CONSTRAINTS)).all())
    assert not bool(solution.degenerate.any())  # the derivative of u is two-sided
    for element in x0:
        torch.testing.assert_close(
            jacobian(triple, element), jacobian(single, element), rtol=0, atol=1e-9
        )


def test_redundant_inequalities_have_valid_multipliers() -> None:
    u, x = cp.Variable(2), cp.Parameter(2)
    constraints = [u[0] <= 0, 3 * u[0] <= 0, u[0] + 0 * u[1] <= 0, u <= 5]
    layer = layer_of(cp.sum_squares(u - x), constraints, [x], [u])
    solution = layer.solve(tensor(1.0, 0.3))
    multipliers = [
        torch.as_tensor(part).reshape(-1) for part in solution.dual[:3] if part is not None
    ]
    flat = torch.cat(multipliers)
    assert bool((flat >= 0).all())
    assert float(flat @ tensor(1.0, 3.0, 1.0)) == pytest.approx(2.0, abs=1e-9)
    torch.testing.assert_close(
        jacobian(layer, tensor(1.0, 0.3)), tensor(0.0, 1.0).diag(), rtol=0, atol=1e-9
    )


def test_rotations_with_nine_equations_of_which_six_are_independent() -> None:
    R, M = cp.Variable((3, 3)), cp.Parameter((3, 3))
    R.value = np.eye(3)
    layer = layer_of(cp.sum_squares(R - M), [np.eye(3) == R.T @ R], [M], [R])
    matrices = torch.eye(3, dtype=DOUBLE) + 0.3 * draw(4, 3, 3)

    def nearest(M: torch.Tensor) -> Any:
        U, _, Vh = torch.linalg.svd(M)
        return U @ Vh

    (found,) = layer(matrices)
    torch.testing.assert_close(found, nearest(matrices), rtol=0, atol=1e-9)
    for matrix in matrices:
        exact = torch.func.jacrev(nearest)(matrix).reshape(9, 9)
        torch.testing.assert_close(jacobian(layer, matrix), exact, rtol=0, atol=1e-7)
        forward = torch.func.jacfwd(lambda M: layer(M)[0])(matrix).reshape(9, 9)
        torch.testing.assert_close(forward, exact, rtol=0, atol=1e-7)
    flags = layer.solve(matrices).degeneracy
    assert flags is not None
    assert bool((flags & int(Degeneracy.DEPENDENT_CONSTRAINTS) != 0).all())


def test_a_singular_hessian_with_a_nonsingular_kkt_matrix() -> None:
    # The objective is linear: its Hessian is zero. Only the sphere curves.
    u, x = cp.Variable(3), cp.Parameter(3)
    layer = layer_of(x @ u, [u[0] == 1, u[1] == x[0], u[2] == x[1] * x[2]], [x], [u])
    expected = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 3, 2]], dtype=DOUBLE)
    torch.testing.assert_close(jacobian(layer, tensor(1.0, 2.0, 3.0)), expected)
    partly = layer_of(cp.square(u[0] - x[0]), [u[0] + u[1] == x[1], u[1] - u[2] == x[2]], [x], [u])
    expected = torch.tensor([[1.0, 0, 0], [-1, 1, 0], [-1, 1, -1]], dtype=DOUBLE)
    torch.testing.assert_close(jacobian(partly, tensor(1.0, 2.0, 3.0)), expected)


def test_active_sets_differ_within_a_batch() -> None:
    u, x = cp.Variable(5), cp.Parameter(5)
    layer = layer_of(cp.sum(cp.power(u - x, 4) + cp.square(u - x)), [u >= 0, u <= 1], [x], [u])
    batch = torch.tensor(
        [[0.5] * 5, [-1.0, 0.5, 2.0, 0.1, 0.9], [-1.0] * 5, [2.0] * 5], dtype=DOUBLE
    ).requires_grad_()
    (found,) = layer(batch)
    torch.testing.assert_close(found, batch.clamp(0, 1), rtol=0, atol=1e-9)
    (gradient,) = torch.autograd.grad(found.sum(), batch)
    inside = ((batch > 0) & (batch < 1)).to(DOUBLE)
    torch.testing.assert_close(gradient, inside, rtol=0, atol=1e-9)


# -- points that are not regular (ddn's tutorial 07) -----------------------------------------------


def test_more_active_constraints_than_variables() -> None:
    u, x = cp.Variable(2), cp.Parameter()
    objective = cp.sum_squares(u - 5)
    consistent = layer_of(objective, [u <= x, cp.sum(u) <= 2 * x], [x], [u])
    found = jacobian(consistent, torch.tensor(1.0, dtype=DOUBLE))
    torch.testing.assert_close(found, torch.ones(2, 1, dtype=DOUBLE), rtol=0, atol=1e-9)
    flags = consistent.solve(torch.tensor(1.0, dtype=DOUBLE)).degeneracy
    assert flags is not None
    assert int(flags) & int(Degeneracy.DEPENDENT_CONSTRAINTS)
    # Here the solution is (x, x) for x > 1 and (x^2, x^2) for x < 1.
    kink = layer_of(objective, [u <= x, cp.sum(u) <= 2 * x**2], [x], [u], on_failure="nan")
    point = torch.tensor(1.0, dtype=DOUBLE)
    ahead, behind = differences(kink, point, step=1e-4)
    torch.testing.assert_close(ahead, torch.full((2, 1), 1.0, dtype=DOUBLE), rtol=0, atol=1e-3)
    torch.testing.assert_close(behind, torch.full((2, 1), 2.0, dtype=DOUBLE), rtol=0, atol=1e-3)
    found = jacobian(kink, point)  # a minimum-norm compromise
    assert bool(((found > ahead) & (found < behind)).all())


def test_dependent_constraint_gradients() -> None:
    # Two circles that touch: one feasible point, where both gradients are parallel. It moves with
    # both of them.
    u, x = cp.Variable(2), cp.Parameter()
    circles = [
        cp.sum_squares(u - cp.hstack([x - 1, 0])) == 1,
        cp.sum_squares(u - cp.hstack([x + 1, 0])) == 1,
    ]
    layer = layer_of(cp.sum_squares(u), circles, [x], [u], on_failure="nan")
    point = torch.tensor(0.5, dtype=DOUBLE)
    start = [tensor(0.4, 0.1)]
    (found,) = layer(point, initial=start)
    # Two circles determine where they touch to the square root of the tolerance only.
    torch.testing.assert_close(found, tensor(0.5, 0.0), rtol=0, atol=1e-5)
    slope = torch.func.jacrev(lambda x: layer(x, initial=start)[0])(point)
    torch.testing.assert_close(slope, tensor(1.0, 0.0), rtol=0, atol=1e-5)


def test_a_nonconvex_set() -> None:
    # The nearest point outside of the unit ball, from inside it.
    u, x = cp.Variable(2), cp.Parameter(2)
    layer = layer_of(cp.sum_squares(u - x), [cp.sum_squares(u) >= 1], [x], [u], on_failure="nan")
    point = tensor(0.3, 0.2)
    (found,) = layer(point, initial=[tensor(1.0, 1.0)])
    torch.testing.assert_close(found, point / point.norm(), rtol=0, atol=1e-9)
    exact = torch.func.jacrev(lambda x: x / x.norm())(point)
    torch.testing.assert_close(jacobian(layer, point), exact, rtol=0, atol=1e-8)
    # In the middle every point of the circle is nearest: no isolated solution, and it is flagged.
    flags = layer.solve(tensor(0.0, 0.0), initial=[tensor(1.0, 0.5)]).degeneracy
    assert flags is not None
    assert int(flags) & int(Degeneracy.NO_CURVATURE)


def test_a_weakly_active_inequality_gives_a_one_sided_derivative() -> None:
    u, x = cp.Variable(3), cp.Parameter(3)
    layer = layer_of(cp.sum_squares(u - x), [u >= 0], [x], [u])
    point = tensor(1.0, 0.0, -1.0)
    ahead, behind = differences(layer, point)
    found = jacobian(layer, point)
    sides = [side.diagonal()[1] for side in (ahead, behind)]
    assert min(abs(float(found[1, 1] - side)) for side in sides) < 1e-6
    solution = layer.solve(point)
    assert bool(solution.degenerate)
    assert solution.degeneracy is not None
    assert int(solution.degeneracy) & int(Degeneracy.WEAKLY_ACTIVE)


# -- second-order sufficiency ----------------------------------------------------------------------


def test_a_saddle_is_left_and_a_maximum_never_returned() -> None:
    u, x = cp.Variable(2), cp.Parameter()
    # Stationary at zero (a saddle) and at u = (+-1, 0).
    objective = cp.power(cp.square(u[0]) - x, 2) + cp.square(u[1])
    layer = layer_of(objective, [], [x], [u])
    for start in ([0.0, 0.0], [0.0, 1.0], [1e-12, 0.5]):
        solution = layer.solve(torch.tensor(1.0, dtype=DOUBLE), initial=[tensor(*start)])
        assert int(solution.status) == Status.SOLVED
        assert float(solution.primal[0][0].abs()) == pytest.approx(1.0, abs=1e-7)


def test_a_constrained_saddle_is_left() -> None:
    u, x = cp.Variable(3), cp.Parameter(3)
    layer = layer_of(x @ cp.square(u), [cp.sum_squares(u) == 1], [x], [u])
    values = tensor(3.0, 1.0, 2.0)
    for axis in range(3):  # every eigenvector is stationary
        start = torch.zeros(3, dtype=DOUBLE)
        start[axis] = 1.0
        solution = layer.solve(values, initial=[start])
        assert int(solution.status) == Status.SOLVED
        assert float(solution.objective()) == pytest.approx(1.0, abs=1e-9)


# -- conditioning ----------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("solver", [None, "TORCH"])
def test_gradients_at_large_condition_numbers(condition: float, solver: str | None) -> None:
    n = 6
    U = np.linalg.qr(draw(n, n, seed=1).numpy())[0]
    Q = U @ np.diag(np.logspace(0, np.log10(condition), n)) @ U.T
    Q = (Q + Q.T) / 2
    A = draw(2, n, seed=2).numpy()
    u, x = cp.Variable(n), cp.Parameter(n)
    objective = cp.quad_form(u, cp.psd_wrap(Q)) / 2 + x @ u
    problem = cp.Problem(cp.Minimize(objective), [A @ u == np.ones(2)])
    layer = ddn.DeclarativeLayer(problem, [x], [u], solver=solver)
    point = draw(n, seed=3)
    matrix = np.block([[Q, A.T], [A, np.zeros((2, 2))]])
    right = np.vstack([-np.eye(n), np.zeros((2, n))])
    scale = 1 / np.sqrt(np.abs(matrix).max(1))
    exact = scale[:, None] * np.linalg.solve(
        scale[:, None] * matrix * scale, scale[:, None] * right
    )
    expected = torch.from_numpy(exact[:n])
    found = jacobian(layer, point)
    assert float((found - expected).norm() / expected.norm()) < 1e-6


# -- multipliers -----------------------------------------------------------------------------------


def test_gradients_of_multipliers() -> None:
    u, x = cp.Variable(3), cp.Parameter(3)
    equality, bound = cp.sum(u) == 1, u >= 0
    objective = cp.sum(cp.exp(u)) - x @ u
    duals = [equality.dual_variables[0], bound.dual_variables[0]]
    layer = layer_of(objective, [equality, bound], [x], [u, *duals])
    points = torch.stack([tensor(1.0, 0.5, -2.0), tensor(0.2, 0.1, 0.3)]).requires_grad_()
    assert_derivatives(layer, points, first=(1e-6, 1e-3))


def test_a_learnable_constraint() -> None:
    u, A, b = cp.Variable(3), cp.Parameter((2, 3)), cp.Parameter(2)
    layer = layer_of(cp.sum(cp.power(u, 4) + cp.square(u)), [A @ u <= b], [A, b], [u])
    inputs = (draw(2, 2, 3).requires_grad_(), -draw(2, 2, seed=1).abs().requires_grad_())
    assert_derivatives(layer, inputs, first=(1e-6, 1e-3))


# -- bad elements ----------------------------------------------------------------------------------


def test_bad_elements_cost_the_others_nothing() -> None:
    u, x, lower = cp.Variable(2), cp.Parameter(2), cp.Parameter()
    constraints = [cp.sum_squares(u) <= 4, u[0] >= lower]
    objective = cp.sum(cp.power(u - x, 4)) + cp.square(u[0] * u[1])
    layer = layer_of(objective, constraints, [x, lower], [u], on_failure="nan")
    points, bounds = draw(6, 2), torch.zeros(6, dtype=DOUBLE)
    points[1, 0] = torch.nan
    bounds[3] = 5.0  # outside of the disc: infeasible
    points.requires_grad_()
    good = [0, 2, 4, 5]
    solution = layer.solve(points, bounds)
    assert solution.status.tolist() == [
        0,
        int(Status.BAD_INPUT),
        0,
        int(Status.INFEASIBLE),
        0,
        0,
    ]
    (found,) = layer(points, bounds)
    assert bool(found[[1, 3]].isnan().all())
    (gradient,) = torch.autograd.grad(found[good].sum() + 0 * found.nan_to_num().sum(), points)
    assert bool((gradient[[1, 3]] == 0).all())
    alone = points.detach()[good].requires_grad_()
    (again,) = layer(alone, bounds[good])
    torch.testing.assert_close(again, found[good], rtol=0, atol=1e-9)
    (expected,) = torch.autograd.grad(again.sum(), alone)
    torch.testing.assert_close(gradient[good], expected, rtol=0, atol=1e-8)


def test_an_unbounded_element_has_its_status_and_the_others_their_answers() -> None:
    u, a = cp.Variable(2), cp.Parameter()
    objective = a * cp.power(u[0], 2) + cp.square(u[1] - 1) + u[0]
    layer = layer_of(objective, [], [a], [u], on_failure="nan")
    solution = layer.solve(tensor(1.0, -1.0, 2.0))
    assert solution.status.tolist() == [0, int(Status.UNBOUNDED), 0]
    torch.testing.assert_close(solution.primal[0][0], tensor(-0.5, 1.0), rtol=0, atol=1e-9)
    constrained = layer_of(objective, [u[1] >= 2], [a], [u], on_failure="nan")
    solution = constrained.solve(tensor(1.0, -1.0, 2.0))
    assert solution.status.tolist() == [0, int(Status.UNBOUNDED), 0]


def test_a_start_that_is_not_a_number_costs_one_element() -> None:
    u, x = cp.Variable(2), cp.Parameter(2)
    layer = layer_of(cp.sum(cp.power(u - x, 4) + cp.square(u)), [u <= 1], [x], [u])
    points, start = draw(3, 2), torch.zeros(3, 2, dtype=DOUBLE)
    expected = layer.solve(points, initial=[start])
    start[1, 0] = torch.nan
    solution = layer.solve(points, initial=[start])
    torch.testing.assert_close(
        solution.primal[0][[0, 2]], expected.primal[0][[0, 2]], rtol=0, atol=1e-9
    )
    assert int(solution.status[1]) in (int(Status.BAD_INPUT), int(Status.SOLVED))
    if int(solution.status[1]) == Status.SOLVED:  # replaced by the default start
        torch.testing.assert_close(solution.primal[0][1], expected.primal[0][1], rtol=0, atol=1e-7)


def test_policies_about_failures() -> None:
    u, x = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum(cp.power(u, 4))), [u >= x, u <= 0])
    points = torch.stack([tensor(-1.0, -1.0), tensor(1.0, -1.0)])
    raising = ddn.DeclarativeLayer(problem, [x], [u], solver="TORCH")
    with pytest.raises(ddn.SolveError, match="INFEASIBLE") as caught:
        raising(points)
    assert caught.value.solution is not None
    assert caught.value.solution.status.tolist() == [0, int(Status.INFEASIBLE)]
    warning = ddn.DeclarativeLayer(problem, [x], [u], solver="TORCH", on_failure="warn")
    with pytest.warns(UserWarning, match="1 of 2"):
        (found,) = warning(points)
    assert found.isnan().any(1).tolist() == [False, True]


def test_an_iteration_limit_is_kept_and_told() -> None:
    u, x = cp.Variable(2), cp.Parameter(2)
    rosenbrock = cp.square(x[0] - u[0]) + 100 * cp.square(u[1] - cp.square(u[0]))
    layer = layer_of(rosenbrock, [], [x], [u], on_failure="nan")
    start = [tensor(-1.2, 1.0)]
    short = layer.solve(tensor(1.0, 1.0), initial=start, solver_args={"max_iterations": 2})
    assert int(short.status) in (int(Status.FAILED), int(Status.INACCURATE))
    long = layer.solve(tensor(1.0, 1.0), initial=start)
    assert int(long.status) == Status.SOLVED
    torch.testing.assert_close(long.primal[0], tensor(1.0, 1.0), rtol=0, atol=1e-7)
