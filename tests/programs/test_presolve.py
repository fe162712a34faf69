"""The presolved program has the solution, multipliers and derivative of the program."""

from collections.abc import Callable

import cvxpy as cp
import pytest
import torch
from helpers import draw

import ddn_cvx as ddn
from ddn_cvx.engine.engine import Engine
from ddn_cvx.programs.cone.program import ConeProgram

Case = tuple[cp.Problem, list[cp.Parameter], list[cp.Variable], list[torch.Tensor]]


def program_of(layer: ddn.DeclarativeLayer) -> ConeProgram:
    assert isinstance(layer._engine, Engine)
    program: ConeProgram = layer._engine.plan({}).program
    return program


def multipliers(solution: ddn.Solution) -> list[torch.Tensor]:
    groups = [g if isinstance(g, tuple) else (g,) for g in solution.dual]
    return [value for group in groups for value in group if value is not None]


def ball() -> Case:
    u, x, r = cp.Variable(4), cp.Parameter(4), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [cp.norm(u) <= r])
    return problem, [x, r], [u], [draw(6, 4), torch.linspace(0.2, 4, 6, dtype=torch.float64)]


def parametric_bound() -> Case:
    """The bound's row holds parameters, and meets the cone's head in the same column."""
    u, A, a = cp.Variable(3), cp.Parameter((2, 3)), cp.Parameter(3)
    constraints = [cp.norm(A @ u) <= 2 + a @ u + u[0], u <= 1]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - 1) + u[1]), constraints)
    return problem, [A, a], [u], [draw(5, 2, 3), 0.3 * draw(5, 3, seed=1)]


def sum_of_norms() -> Case:
    """Two norms in one bound: one of them is substituted."""
    u, v, x = cp.Variable(2), cp.Variable(3), cp.Parameter(5)
    objective = cp.sum_squares(cp.hstack([u, v]) - x)
    problem = cp.Problem(cp.Minimize(objective), [cp.norm(u) + cp.norm(v) <= 1.5])
    return problem, [x], [u, v], [draw(6, 5, seed=2)]


def differences() -> Case:
    u, x, c = cp.Variable(6), cp.Parameter(6), cp.Parameter(nonneg=True)
    objective = cp.sum_squares(u - x) + 3 * cp.sum_squares(cp.diff(u)) + c * cp.norm1(u)
    problem = cp.Problem(cp.Minimize(objective), [cp.sum(u) == 1, u >= -1])
    return problem, [x, c], [u], [draw(4, 6, seed=3), torch.full((4,), 0.1, dtype=torch.float64)]


def users_own_epigraph() -> Case:
    """A variable that the user asks for stays, and so does an equation with a multiplier."""
    u, t, w, x = cp.Variable(3), cp.Variable(), cp.Variable(3), cp.Parameter(3)
    constraints = [cp.norm(u - x) <= t, t <= 2, w == u - x]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(w) + cp.sum(u) + t), constraints)
    return problem, [x], [u, t, w], [draw(4, 3, seed=4)]


CASES = [ball, parametric_bound, sum_of_norms, differences, users_own_epigraph]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("solver", ["CLARABEL", "INTERIOR"])
def test_solutions_multipliers_and_gradients_are_those_of_the_program(
    case: Callable[[], Case], solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, parameters, variables, tensors = case()

    def run() -> tuple[ddn.Solution, tuple[torch.Tensor, ...], int]:
        layer = ddn.DeclarativeLayer(problem, parameters, variables, solver=solver)
        inputs = [tensor.clone().requires_grad_() for tensor in tensors]
        outputs = layer(*inputs)
        loss = sum(
            (output.reshape(len(output), -1) * draw(1, output[0].numel(), seed=9)).sum()
            for output in outputs
        )
        gradients = torch.autograd.grad(torch.as_tensor(loss), inputs)
        return layer.solve(*tensors), gradients, program_of(layer).variables

    found, gradients, variables_left = run()
    monkeypatch.setattr("ddn_cvx.programs.cone.compile.presolved", lambda program: program)
    expected, expected_gradients, all_variables = run()
    assert variables_left < all_variables
    for mine, other in zip(found.primal, expected.primal, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-7)
    for mine, other in zip(multipliers(found), multipliers(expected), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)
    for mine, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


def test_a_norm_that_does_not_hold_leaves_a_regular_point() -> None:
    problem, parameters, variables, _ = ball()
    layer = ddn.DeclarativeLayer(problem, parameters, variables)
    x = torch.tensor([[0.1, 0.2, 0.0, -0.3]], dtype=torch.float64, requires_grad=True)
    radius = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    assert not layer.solve(x.detach(), radius.detach()).degenerate.any()
    J = torch.autograd.functional.jacobian(lambda x, r: layer(x, r)[0][0], (x, radius))
    torch.testing.assert_close(J[0][:, 0], torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-10)
    assert J[1].abs().max() < 1e-12


def test_objective_and_residuals_are_those_of_the_problem() -> None:
    problem, parameters, variables, tensors = differences()
    solution = ddn.DeclarativeLayer(problem, parameters, variables).solve(*tensors)
    for element in range(4):
        for parameter, tensor in zip(parameters, tensors, strict=True):
            parameter.value = tensor[element].numpy()
        value = problem.solve(solver=cp.CLARABEL)
        assert abs(float(solution.objective()[element]) - value) < 1e-6 * (1 + abs(value))
