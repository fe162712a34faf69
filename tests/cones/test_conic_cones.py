"""Cones at their faces, rays and repeated eigenvalues, where formulas for the interior fail."""

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from helpers import central_difference, draw, row, tensor

import ddn_cvx as ddn
from ddn_cvx.cones.product import Cones
from ddn_cvx.dedicated.projections.cones import positive_semidefinite_cone
from ddn_cvx.kkt.certificate import ConeCertificate
from ddn_cvx.programs.cone.instance import products


def projection(cone: str, alpha: float = 0.5) -> ddn.DeclarativeLayer:
    """Projection of three numbers onto an exponential or power cone."""
    u, p = cp.Variable(3), cp.Parameter(3)
    parts = u[0], u[1], u[2]
    onto = cp.ExpCone(*parts) if cone == "exponential" else cp.PowCone3D(*parts, alpha)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - p)), [onto])
    return ddn.DeclarativeLayer(problem, [p], [u])


@pytest.mark.parametrize("height", [1.0, 1e6, 1e50])
def test_points_beside_the_exponential_cones_face_are_outside(height: float) -> None:
    cone, zero = Cones(exponential=1), row(0, 0, 0)
    assert float(cone.violation(row(1, 0, height), zero)) == 1.0
    assert float(cone.violation(row(1, 1e-5, height), zero)) >= 1.0
    assert float(cone.violation(zero, row(0, -2, height))) >= min(2.0, height)
    assert float(cone.violation(zero, row(-1e-5, -2, height))) > 0.5
    # on the face, inside, and on the boundary
    assert float(cone.violation(row(-1, 0, height), row(0, 2, height))) == 0.0
    assert float(cone.violation(row(-1, 1, height), row(-1, 2, height))) == 0.0
    assert float(cone.violation(row(1, 2, 2 * torch.e**0.5), row(-1, 1, torch.e**-2))) < 1e-15


def test_refinement_keeps_a_projection_beside_the_exponential_cones_face() -> None:
    layer = projection("exponential")
    solution = layer.solve(torch.tensor([-30.0, 1.0, -1.0], dtype=torch.float64))
    expected = row(-30, 1, torch.exp(torch.tensor(-30.0)).item())[0]
    torch.testing.assert_close(solution.primal[0], expected, atol=1e-8, rtol=0)
    assert float(solution.objective()) == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_derivative_on_a_power_cones_ray(alpha: float, axis: int) -> None:
    # The projection of (x, -v, h) is (x, 0, c h) up to higher orders of h.
    x, v = 2.0, 0.3
    exponent = alpha if axis == 0 else 1 - alpha
    slope = {0.25: 0.0, 0.5: 1 / (1 + 2 * v / x), 0.75: 1.0}[exponent]
    point = torch.full((3,), -v, dtype=torch.float64)
    point[axis], point[2] = x, 0.0
    layer = projection("power", alpha)
    jacobian = torch.autograd.functional.jacobian(lambda p: layer(p)[0], point)
    expected = torch.zeros(3, dtype=torch.float64)
    expected[axis], expected[2] = 1.0, slope
    torch.testing.assert_close(jacobian, torch.diag(expected), atol=1e-6, rtol=0)
    difference = central_difference(lambda h: layer(point + tensor(0.0, 0.0, h))[0], 1e-4)
    torch.testing.assert_close(difference, jacobian[:, 2], atol=1e-2, rtol=0)


def simplex(radius: float, scale: float = 1.0) -> ddn.DeclarativeLayer:
    """Projection onto a simplex, its objective multiplied by a constant."""
    u, p = cp.Variable(5), cp.Parameter(5)
    objective = cp.Minimize(scale * cp.sum_squares(u - p))
    problem = cp.Problem(objective, [u >= 0, cp.sum(u) == radius])
    return ddn.DeclarativeLayer(problem, [p], [u])


POINT = torch.tensor([0.9, 0.5, 0.25, -0.1, -0.4], dtype=torch.float64)
PROJECTED = (POINT - 0.65 / 3).clamp_min(0.0)
SLOPE = torch.block_diag(torch.eye(3).double() - 1 / 3, torch.zeros(2, 2).double())


@pytest.mark.parametrize("unit", [1e-9, 1e-7, 1e-3, 1.0, 1e3, 1e7, 1e9])
def test_nothing_depends_on_the_unit_of_the_variables(unit: float) -> None:
    layer = simplex(unit)
    solution = layer.solve(POINT * unit)
    torch.testing.assert_close(solution.primal[0] / unit, PROJECTED, atol=1e-9, rtol=0)
    assert not bool(solution.degenerate)
    assert layer.check(POINT * unit).good or unit < 1e-3  # its steps and differences are absolute
    jacobian = torch.func.jacrev(lambda p: layer(p)[0])(POINT * unit)
    torch.testing.assert_close(jacobian, SLOPE, atol=1e-12, rtol=0)
    forward = torch.func.jacfwd(lambda p: layer(p)[0])(POINT * unit)
    torch.testing.assert_close(forward, SLOPE, atol=1e-12, rtol=0)


@pytest.mark.parametrize("scale", [1e-12, 1e-10, 1e-8, 1e-4, 1.0, 1e4, 1e8, 1e12])
def test_nothing_depends_on_the_unit_of_the_objective(scale: float) -> None:
    layer = simplex(1.0, scale)
    torch.testing.assert_close(layer(POINT)[0], PROJECTED, atol=1e-9, rtol=0)
    jacobian = torch.func.jacrev(lambda p: layer(p)[0])(POINT)
    torch.testing.assert_close(jacobian, SLOPE, atol=1e-12, rtol=0)
    x, c = cp.Variable(4), cp.Parameter(4)
    objective = cp.Minimize(scale * (c @ x - cp.sum(cp.entr(x))))
    layer = ddn.DeclarativeLayer(cp.Problem(objective, [cp.sum(x) == 1]), [c], [x])
    point = POINT[:4]
    torch.testing.assert_close(layer(point)[0], torch.softmax(-point, 0), atol=1e-9, rtol=0)
    jacobian = torch.func.jacrev(lambda p: layer(p)[0])(point)
    expected = torch.func.jacrev(lambda p: torch.softmax(-p, 0))(point)
    torch.testing.assert_close(jacobian, expected, atol=1e-9, rtol=0)


def test_multipliers_are_in_the_users_units() -> None:
    u, p = cp.Variable(5), cp.Parameter(5)
    total = cp.sum(u) == 1e-6
    problem = cp.Problem(cp.Minimize(1e-3 * cp.sum_squares(u - p)), [u >= 0, total])
    layer = ddn.DeclarativeLayer(problem, [p], [u, total.dual_variables[0]])
    _, multiplier = layer(POINT * 1e-6)
    assert float(multiplier) == pytest.approx(2e-3 * 0.65e-6 / 3, rel=1e-8)


@pytest.mark.parametrize("large", [1e4, 1e8, 1e10])
def test_entries_of_very_different_sizes(large: float) -> None:
    # Interior-point methods take these for infeasible, and a residual relative to the largest
    # entry does not see the others.
    layer = simplex(1.0)
    point = torch.cat([POINT[:4], POINT.new_tensor([-large])])
    torch.testing.assert_close(layer(point)[0], PROJECTED, atol=1e-7, rtol=0)
    u, p = cp.Variable(5), cp.Parameter(5)
    bounded = [u >= 0, u <= large, cp.sum(u) == 1]  # a bound that never holds
    layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(u - p)), bounded), [p], [u])
    torch.testing.assert_close(layer(POINT)[0], PROJECTED, atol=1e-7, rtol=0)


@pytest.mark.parametrize("unit", [1e-9, 1e-3, 1.0, 1e5, 1e9])
def test_infeasible_and_unbounded_in_any_unit(unit: float) -> None:
    u, p = cp.Variable(5), cp.Parameter(5)
    infeasible = [
        [u >= unit, u <= 0],
        [u >= unit, cp.sum(u) <= unit],
        [cp.norm(u) <= unit, u[0] >= 2 * unit],
    ]
    for constraints in infeasible:
        problem = cp.Problem(cp.Minimize(cp.sum_squares(u - p)), constraints)
        solution = ddn.DeclarativeLayer(problem, [p], [u]).solve(POINT * unit)
        assert int(solution.status) == ddn.Status.INFEASIBLE
    problem = cp.Problem(cp.Minimize(p @ u), [u <= unit])
    solution = ddn.DeclarativeLayer(problem, [p], [u]).solve(POINT * unit)
    assert int(solution.status) == ddn.Status.UNBOUNDED


def test_large_entries_do_not_hide_that_a_point_is_infeasible() -> None:
    u, p = cp.Variable(5), cp.Parameter(5)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - p)), [u <= 1, cp.sum(u) >= 6])
    for large in (1.0, 1e9):  # infeasible, whatever else is in the data
        solution = ddn.DeclarativeLayer(problem, [p], [u]).solve(POINT * large)
        assert int(solution.status) == ddn.Status.INFEASIBLE


def test_warm_starts_are_in_the_users_units() -> None:
    layer = simplex(1e-4)
    cold = layer.solve(POINT * 1e-4, solver_args={"solve_method": "SCS"})
    certificate = cold._certificate
    assert isinstance(certificate, ConeCertificate)
    x, y = certificate.primal, certificate.dual
    _, Ax, _ = products(certificate.instance.program, certificate.instance.data, x, y)
    start = tuple(part[0].numpy() for part in (x, y, certificate.instance.data.b - Ax))
    warm = layer.solve(POINT * 1e-4, solver_args={"solve_method": "SCS", "warm_starts": [start]})
    assert int(warm.iterations) < int(cold.iterations)


def packed_cone(kind: str) -> tuple[cp.Problem, cp.Parameter]:
    """Projection of a matrix onto several cones in one constraint."""
    p = cp.Parameter((3, 2))
    rows = [cp.Variable(2) for _ in range(3)]
    matrix = cp.vstack(rows)
    weights = np.array([[0.2, 0.3], [0.3, 0.3], [0.5, 0.4]])
    if kind == "second-order":
        constraint: cp.Constraint = cp.SOC(rows[0], cp.vstack(rows[1:]))
    elif kind == "second-order by rows":
        constraint = cp.SOC(rows[0], cp.vstack(rows[1:]).T, axis=1)
    elif kind == "second-order, scalar":
        constraint = cp.SOC(rows[0][0], cp.hstack([rows[0][1], rows[1], rows[2]]))
    elif kind == "exponential":
        constraint = cp.ExpCone(*rows)
    elif kind == "exponential, matrix":
        constraint = cp.ExpCone(*(cp.vstack([row, row - i / 4]) for i, row in enumerate(rows)))
    elif kind == "power":
        constraint = cp.PowCone3D(rows[0], rows[1], rows[2], [0.3, 0.6])
    elif kind == "power of two":
        constraint = cp.PowConeND(cp.vstack(rows[:2]), rows[2], np.array([[0.3, 0.6], [0.7, 0.4]]))
    elif kind == "power of three":
        constraint = cp.PowConeND(matrix, rows[0] + rows[1] - 1, weights)
    else:
        constraint = cp.PowConeND(matrix.T, rows[0] + rows[1] - 1, weights.T, axis=1)
    return cp.Problem(cp.Minimize(cp.sum_squares(matrix - p)), [constraint]), p


@pytest.mark.parametrize(
    "kind",
    [
        "second-order",
        "second-order by rows",
        "second-order, scalar",
        "exponential",
        "exponential, matrix",
        "power",
        "power of two",
        "power of three",
        "power of three by rows",
    ],
)
def test_multipliers_of_packed_cones_are_cvxpys(kind: str) -> None:
    problem, p = packed_cone(kind)
    duals = problem.constraints[0].dual_variables
    p.value = np.array([[1.0, 0.4], [0.1, 0.6], [1.5, -1.7]])
    layer = ddn.DeclarativeLayer(problem, [p], list(duals))
    assert all(dual.value is None for dual in duals)  # the user's own values are left alone
    found = layer(torch.tensor(p.value))
    reported = layer.solve(torch.tensor(p.value)).dual[0]
    assert isinstance(reported, tuple)
    tight = {"tol_gap_abs": 1e-9, "tol_gap_rel": 1e-9}
    problem.solve(solver="CLARABEL", **tight)
    assert max(float(np.abs(dual.value).max()) for dual in duals) > 0.1
    for ours, again, dual in zip(found, reported, duals, strict=True):
        theirs = torch.tensor(dual.value).reshape(ours.shape)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(again, ours)


def semidefinite_projection() -> ddn.DeclarativeLayer:
    U, X = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(U - X)), [U >> 0])
    return ddn.DeclarativeLayer(problem, [X], [U])


REPEATED = {
    "none": [1.0, -0.5, 2.0],
    "positive": [1.0, 1.0, -0.5],
    "negative": [1.0, -0.5, -0.5],
    "all": [1.0, 1.0, 1.0],
}


@pytest.mark.parametrize("kind", REPEATED)
def test_second_derivatives_of_semidefinite_cones_at_repeated_eigenvalues(kind: str) -> None:
    """Those of the projection in closed form, and finite differences of the first."""
    V = torch.linalg.qr(draw(3, 3)).Q
    X = ((V * torch.tensor(REPEATED[kind], dtype=torch.float64)) @ V.mT).requires_grad_()
    layer = semidefinite_projection()
    incoming = draw(3, 3, seed=1)

    def gradient(project: Any) -> torch.Tensor:
        u = project(X)
        (first,) = torch.autograd.grad((u * incoming).sum(), X, create_graph=True)
        found: torch.Tensor = torch.autograd.grad((first * incoming.mT).sum(), X)[0]
        return found

    found = gradient(lambda X: layer(X)[0])
    expected = gradient(positive_semidefinite_cone)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert torch.autograd.gradgradcheck(
        lambda X: layer((X + X.mT) / 2)[0], X, eps=1e-5, atol=1e-4, rtol=1e-4
    )


def test_second_derivatives_of_semidefinite_cones_by_transforms() -> None:
    layer = semidefinite_projection()
    X = torch.diag(torch.tensor([1.0, 1.0, -0.5], dtype=torch.float64))
    move = draw(3, 3, seed=2)

    def value(X: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = (layer(X)[0] * move).sum()
        return found

    curved = (torch.func.jacfwd(torch.func.jacrev(value)), torch.func.hessian(value))
    for second in curved:
        along = (second(X) * move).sum((-1, -2))
        expected = central_difference(lambda h: torch.func.grad(value)(X + h * move), 1e-5)
        torch.testing.assert_close(along, expected, rtol=1e-5, atol=1e-5)
