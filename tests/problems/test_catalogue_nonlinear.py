"""Every entry of the catalogue by the nonlinear path, against independent solvers."""

import warnings
from typing import Any

import cvxpy as cp
import pytest
import torch
from catalogue_sizes import small
from helpers import assert_derivatives, central_difference, draw, symmetrized

from ddn_cvx import Declaration, DeclarativeLayer, Status
from ddn_cvx.problems import catalogue
from ddn_cvx.solution import restored_values

ENTRIES = catalogue()
CONVEX = [name for name, constructor in ENTRIES.items() if constructor().problem.is_dcp()]
NONCONVEX = [name for name in ENTRIES if name not in CONVEX]
TIGHT: dict[str, dict[str, Any]] = {
    "CLARABEL": {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11},
    "UNO": {"primal_tolerance": 1e-12, "dual_tolerance": 1e-12, "logger": "SILENT"},
}
# At 1e-11 in the objective, Clarabel has these solutions to 1e-6 only.
BY_UNO = [
    *NONCONVEX,
    "analytic_center",
    "cone_program",
    "entropic_linear_program",
    "exponential_cone_projection",
    "pseudo_huber_pooling",
    "ridge_logistic_regression",
    "second_order_cone_projection",
    "softmax",
]


def independent(
    declaration: Declaration, tensors: list[torch.Tensor], start: list[torch.Tensor], solver: str
) -> torch.Tensor:
    """All variables of one element by cvxpy and a solver that is not ours, tight."""
    problem = declaration.problem if solver == "CLARABEL" else for_uno(declaration)
    with (
        restored_values([*problem.variables(), *declaration.parameters]),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # that 1e-12 was not reached
        for parameter, value in zip(declaration.parameters, tensors, strict=True):
            parameter.save_value(value.numpy())
        for variable, value in zip(declaration.variables, start, strict=True):
            variable.save_value(value.numpy())
        if solver == "CLARABEL":
            problem.solve(solver=solver, **TIGHT[solver])
        else:
            problem.solve(nlp=True, solver=cp.UNO, **TIGHT[solver])
            if problem.status != "optimal":  # its last digits can cost it the others
                for variable, value in zip(declaration.variables, start, strict=True):
                    variable.save_value(value.numpy())
                loose = dict.fromkeys(("primal_tolerance", "dual_tolerance"), 1e-10)
                problem.solve(nlp=True, solver=cp.UNO, **{**TIGHT[solver], **loose})
            assert problem.status == "optimal", problem.status
        parts = [torch.as_tensor(variable.value).reshape(-1) for variable in declaration.variables]
        return torch.cat(parts)


def for_uno(declaration: Declaration) -> cp.Problem:
    """The same problem without what cvxpy's nonlinear interface does not take."""
    problem = declaration.problem
    if declaration.name == "pseudo_huber_pooling":
        (u,), (x, alpha) = problem.variables(), declaration.parameters
        return cp.Problem(cp.Minimize(cp.sum(cp.sqrt(cp.square(alpha) + cp.square(u - x)))))
    if declaration.name == "truncated_quadratic_pooling":
        (u,), (x, alpha) = problem.variables(), declaration.parameters
        # The smaller of two numbers is the least of their convex combinations.
        share = cp.Variable(x.shape, bounds=[0, 1])
        penalties = cp.multiply(share, cp.square(u - x)) + cp.multiply(1 - share, cp.square(alpha))
        return cp.Problem(cp.Minimize(cp.sum(penalties)))
    constraints: list[Any] = []
    for constraint in problem.constraints:
        if isinstance(constraint, cp.SOC):
            t, z = constraint.args
            constraints.append(cp.sqrt(cp.sum_squares(z)) <= t)
        elif isinstance(constraint, cp.ExpCone):
            x, y, z = constraint.args
            constraints.append(cp.multiply(y, cp.exp(x / y)) <= z)
        else:
            constraints.append(constraint)
    return cp.Problem(problem.objective, constraints)


@pytest.mark.parametrize("name", ENTRIES)
def test_gradients_are_central_differences_of_an_independent_solver(name: str) -> None:
    declaration = small(name)
    solver = "UNO" if name in BY_UNO else "CLARABEL"
    if solver == "UNO":
        pytest.importorskip("unopy")
    layers = [DeclarativeLayer(declaration, solver="TORCH")]
    layers += [DeclarativeLayer(declaration)] if name in CONVEX else []
    first, second = (declaration.inputs(batch=1, seed=seed) for seed in (5, 6))
    # From one example towards another, so that symmetric and positive parameters stay so.
    tensors = [tensor[0] for tensor in first]
    moves = [(other - tensor)[0] for tensor, other in zip(first, second, strict=True)]
    start = [value[0] for value in layers[0].solve(*first).primal]

    def moved(distance: float) -> torch.Tensor:
        at = [t + distance * move for t, move in zip(tensors, moves, strict=True)]
        return independent(declaration, at, start, solver)

    numeric = central_difference(moved, 1e-3, order=4)
    for layer in layers:

        def answer(*at: torch.Tensor, layer: DeclarativeLayer = layer) -> torch.Tensor:
            return torch.cat([value.reshape(-1) for value in layer(*at)])

        _, forward = torch.func.jvp(answer, tuple(tensors), tuple(moves))[:2]
        assert float((forward - numeric).norm() / numeric.norm()) < 1e-6
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        gradients = torch.autograd.grad(answer(*leaves), leaves, numeric)
        along = sum(float((g * m).sum()) for g, m in zip(gradients, moves, strict=True))
        assert along == pytest.approx(float(numeric @ numeric), rel=1e-6)


@pytest.mark.parametrize("name", CONVEX)
def test_both_paths_agree(name: str) -> None:
    """Values, gradients, multipliers' residuals."""
    declaration = ENTRIES[name]()
    tensors = [tensor.requires_grad_() for tensor in declaration.inputs(batch=4, seed=2)]
    cone, nonlinear = DeclarativeLayer(declaration), DeclarativeLayer(declaration, solver="TORCH")
    expected, found = cone(*tensors), nonlinear(*tensors)
    solution = nonlinear.solve(*tensors)
    assert bool((solution.status == Status.SOLVED).all())
    assert float(solution.residual.max()) < 1e-9
    incoming = [draw(*value.shape, seed=seed) for seed, value in enumerate(expected)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)
    for ours, theirs in zip(
        torch.autograd.grad(found, tensors, incoming),
        torch.autograd.grad(expected, tensors, incoming),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ENTRIES)
def test_first_and_second_derivatives(name: str) -> None:
    declaration = small(name)
    answer = symmetrized(DeclarativeLayer(declaration, solver="TORCH"))
    tensors = [tensor.requires_grad_() for tensor in declaration.inputs(batch=1, seed=3)]
    assert_derivatives(answer, tensors, second=(1e-4, 1e-3), fast=True)


@pytest.mark.parametrize("name", NONCONVEX)
def test_nonconvex_entries_are_solved_to_uno_s_objective(name: str) -> None:
    pytest.importorskip("unopy")
    declaration = ENTRIES[name]()
    tensors = declaration.inputs(batch=4, seed=1)
    ours = DeclarativeLayer(declaration).solve(*tensors)
    assert bool((ours.status == Status.SOLVED).all())
    if not declaration.problem.is_dnlp():
        for element in range(4):
            at = [tensor[element] for tensor in tensors]
            start = [value[element] for value in ours.primal]
            # UNO starts where we ended, in the same problem written without kinks.
            theirs_there = independent(declaration, at, start, "UNO")
            torch.testing.assert_close(ours.primal[0][element].reshape(1), theirs_there)
        return
    theirs = DeclarativeLayer(declaration, solver="UNO").solve(*tensors)
    sense = 1.0 if isinstance(declaration.problem.objective, cp.Minimize) else -1.0
    assert bool((sense * (ours.objective() - theirs.objective()) < 1e-7).all())
    assert float(ours.violation().max()) < 1e-9
