"""Parametric quadratic forms as sums of squares: same value, right gradient, DPP, no bystanders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from helpers import assert_derivatives, central_difference

import ddn_cvx
from ddn_cvx.errors import DeclarationError
from ddn_cvx.programs.cone.quadratic_forms import (
    FactoredProblem,
    factor_quadratic_forms,
    semidefinite_factor,
)
from ddn_cvx.status import Status

N = 4
x = cp.Variable(N, name="x")
P = cp.Parameter((N, N), PSD=True, name="P")
Q = cp.Parameter((N, N), PSD=True, name="Q")
M = cp.Parameter((N, N), NSD=True, name="M")
c = cp.Parameter(N, name="c")
weight = cp.Parameter(nonneg=True, name="weight")
W = np.random.default_rng(0).standard_normal((N, N))

# Convex quadratic forms.
FORMS: dict[str, Callable[[], Any]] = {
    "P": lambda: cp.quad_form(x, P),
    "P + Q": lambda: cp.quad_form(x, P + Q),
    "2 P + Q / 4": lambda: cp.quad_form(x, 2 * P + 0.25 * Q),
    "P plus a constant": lambda: cp.quad_form(x, P + np.eye(N)),
    "-M": lambda: cp.quad_form(x, -M),
    "minus the form of M": lambda: -cp.quad_form(x, M),
    "weight P": lambda: cp.quad_form(x, cp.psd_wrap(weight * P)),
    "W P W'": lambda: cp.quad_form(x, cp.psd_wrap(W @ P @ W.T)),
    "P P": lambda: cp.quad_form(x, P @ P, assume_PSD=True),
    "affine vector": lambda: cp.quad_form(W @ x - 1, P),
    "two forms": lambda: cp.quad_form(x, P) + 3 * cp.quad_form(x - 1, Q) + cp.sum(x),
}


WEIGHTED = "weight P"


def semidefinite(batch: int, *, rank: int = N, seed: int = 0) -> torch.Tensor:
    """Random positive semidefinite matrices, shape ``(batch, N, N)``."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(batch, N, rank, dtype=torch.float64, generator=generator)
    return factor @ factor.mT


KINDS: dict[str, Callable[[], torch.Tensor]] = {
    "definite": lambda: semidefinite(3),
    "of rank 2": lambda: semidefinite(3, rank=2),
    "identity": lambda: torch.eye(N, dtype=torch.float64).expand(3, N, N),
    "repeated eigenvalues": lambda: torch.diag(torch.tensor([2.0, 2.0, 1.0, 1.0])).double().expand(
        3, N, N
    ),
    "zero": lambda: torch.zeros(3, N, N, dtype=torch.float64),
    "tiny": lambda: 1e-12 * semidefinite(3),
    "huge": lambda: 1e12 * semidefinite(3),
}  # fmt: skip


def factored(problem: cp.Problem) -> FactoredProblem:
    found = factor_quadratic_forms(problem, problem.parameters())
    assert found is not None
    return found


def inputs_for(problem: cp.Problem, matrices: torch.Tensor) -> list[torch.Tensor]:
    """A tensor for each parameter of a problem, made of the matrices."""
    batch = len(matrices)
    vector = torch.linspace(-1, 1, N, dtype=torch.float64).expand(batch, N)
    known = {
        "P": matrices,
        "Q": semidefinite(batch, seed=7),
        "M": -matrices,
        "c": vector,
        "weight": torch.full((batch,), 0.7, dtype=torch.float64),
    }
    return [known[parameter.name()] for parameter in problem.parameters()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", [*(form for form in FORMS if form != "weight P"), WEIGHTED])
def test_the_value_is_that_of_the_quadratic_form(form: str, kind: str) -> None:
    problem = cp.Problem(cp.Minimize(FORMS[form]()))
    rewriting = factored(problem)
    tensors = inputs_for(problem, KINDS[kind]())
    lifted, bad = rewriting.lift(tensors)
    assert not bad.any()
    generator = np.random.default_rng(1)
    for element in range(len(bad)):
        for parameter, tensor in zip(problem.parameters(), tensors, strict=True):
            parameter.value = tensor[element].numpy()
        for parameter, tensor in zip(rewriting.parameters, lifted, strict=True):
            parameter.value = tensor[element].numpy()
        for _ in range(3):
            x.value = generator.standard_normal(N)
            exact = problem.objective.value
            scale = max(1.0, abs(exact), float(tensors[0][element].abs().max()))
            assert abs(rewriting.problem.objective.value - exact) <= 1e-12 * scale


@pytest.mark.parametrize("form", FORMS)
def test_the_rewritten_problem_is_dpp_wherever_the_form_stands(form: str) -> None:
    expression = FORMS[form]()
    bound = cp.Parameter(name="bound")
    problems = [
        cp.Problem(cp.Minimize(expression)),
        cp.Problem(cp.Minimize(c @ x), [expression <= bound, x >= -1]),
        cp.Problem(cp.Maximize(-cp.exp(expression)), [cp.norm(x) + expression <= bound]),
    ]
    for problem in problems:
        assert not problem.is_dpp()
        rewritten = factored(problem).problem
        assert rewritten.is_dpp()
        assert rewritten.variables() == problem.variables()


def test_a_problem_without_parametric_forms_is_left_alone() -> None:
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, np.eye(N)) + c @ x), [x >= 0])
    assert factor_quadratic_forms(problem, problem.parameters()) is None


def test_other_constraints_keep_their_identity_and_duals_are_mapped() -> None:
    plain, curved = x >= -1, cp.quad_form(x, P) <= 1
    problem = cp.Problem(cp.Minimize(c @ x), [plain, curved])
    rewriting = factored(problem)
    assert rewriting.problem.constraints[0] is plain
    new = rewriting.problem.constraints[1]
    assert new is not curved
    for old_dual, new_dual in (
        (plain.dual_variables[0], plain.dual_variables[0]),
        (curved.dual_variables[0], new.dual_variables[0]),
    ):
        assert rewriting.duals[old_dual.id] is new_dual
        assert new_dual.shape == old_dual.shape


def test_parameters_keep_their_order_and_leave_when_they_are_used_up() -> None:
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, P) + weight * cp.norm(x) + c @ x))
    rewriting = factor_quadratic_forms(problem, [c, P, weight])
    assert rewriting is not None
    assert rewriting.kept == (c, weight)
    assert rewriting.parameters == (c, weight, rewriting.factors[0].parameter)


def test_a_matrix_of_unknown_sign_is_refused() -> None:
    S = cp.Parameter((N, N), symmetric=True, name="S")
    with pytest.raises(DeclarationError, match="PSD=True"):
        factor_quadratic_forms(cp.Problem(cp.Minimize(cp.quad_form(x, S))), [S])


def test_the_matrix_may_be_any_expression_that_is_translated() -> None:
    diagonal = cp.Parameter(N, nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum(x)), [cp.quad_form(x, cp.diag(diagonal)) <= 1])
    factored = factor_quadratic_forms(problem, [diagonal])
    assert factored is not None
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 0.0, 1.0, 2.0]], dtype=torch.float64)
    (factor,), bad = factored.lift([values])
    assert not bad.any()
    assert torch.allclose(factor @ factor.mT, torch.diag_embed(values), rtol=0, atol=1e-12)


# -- the factor ------------------------------------------------------------------------------------


def of_product(product: torch.Tensor) -> torch.Tensor:
    """A smooth function of a matrix, one number for each element."""
    inverse: torch.Tensor = torch.linalg.inv(product + torch.eye(N, dtype=product.dtype))
    return (inverse @ torch.tensor(W)).sum((1, 2)) + product.square().sum((1, 2))


def through_the_factor(matrix: torch.Tensor) -> torch.Tensor:
    factor = semidefinite_factor((matrix + matrix.mT) / 2)
    return of_product(factor @ factor.mT)


def directly(matrix: torch.Tensor) -> torch.Tensor:
    return of_product((matrix + matrix.mT) / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_factor_is_one(kind: str) -> None:
    matrix = KINDS[kind]()
    factor = semidefinite_factor(matrix)
    scale = matrix.abs().amax((1, 2), keepdim=True).clamp_min(1e-300)
    assert ((factor @ factor.mT - matrix).abs() <= 1e-14 * N * scale).all()


@pytest.mark.parametrize("kind", ["definite", "identity", "repeated eigenvalues"])
def test_first_and_second_derivatives_of_definite_matrices(kind: str) -> None:
    matrix = KINDS[kind]().clone().requires_grad_()
    assert_derivatives(through_the_factor, matrix)
    (found,) = torch.autograd.grad(through_the_factor(matrix).sum(), matrix)
    (exact,) = torch.autograd.grad(directly(matrix).sum(), matrix)
    assert torch.allclose(found, exact, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_gradient_of_singular_matrices(rank: int) -> None:
    """Exact but for the block within the null space, along which only one way stays semidefinite.

    Curves ``(L + t E)(L + t E)'`` stay semidefinite both ways; their derivative is exact.
    """
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(2, N, rank, dtype=torch.float64, generator=generator)
    change = torch.randn(2, N, rank, dtype=torch.float64, generator=generator)
    matrix = (root @ root.mT).requires_grad_()
    (found,) = torch.autograd.grad(through_the_factor(matrix).sum(), matrix)
    (exact,) = torch.autograd.grad(directly(matrix).sum(), matrix)
    assert torch.allclose(found, found.mT, atol=1e-12)

    def along(t: float) -> torch.Tensor:
        moved = root + t * change
        return directly(moved @ moved.mT)

    numeric = central_difference(along, 1e-5)
    direction = root @ change.mT + change @ root.mT
    assert torch.allclose((found * direction).sum((1, 2)), numeric, rtol=1e-7, atol=1e-7)

    null = torch.eye(N, dtype=torch.float64) - root @ torch.linalg.pinv(root)
    missing = null @ exact @ null
    assert torch.allclose(found, exact - missing, rtol=1e-9, atol=1e-9)


def test_elements_do_not_see_each_other() -> None:
    """Definite, singular and indefinite together, or one by one: the same factor and gradient."""
    mixed = torch.cat([semidefinite(2), semidefinite(1, rank=2), KINDS["zero"]()[:1]])
    mixed = mixed.clone().requires_grad_()
    (together,) = torch.autograd.grad(through_the_factor(mixed).sum(), mixed)
    for element in range(len(mixed)):
        alone = mixed[element : element + 1].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(through_the_factor(alone).sum(), alone)
        assert torch.allclose(gradient[0], together[element], rtol=1e-12, atol=1e-12)


# -- what is not semidefinite ----------------------------------------------------------------------

INDEFINITE = torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
NOT_FINITE = pytest.param(torch.full((N, N), torch.nan, dtype=torch.float64), id="NaN")


@pytest.mark.parametrize("wrong", [pytest.param(INDEFINITE, id="indefinite"), NOT_FINITE])
def test_an_element_that_is_not_semidefinite_is_flagged_alone(wrong: torch.Tensor) -> None:
    problem = cp.Problem(cp.Minimize(c @ x), [cp.quad_form(x, P) <= 1])
    rewriting = factored(problem)
    good = semidefinite(4)
    matrices = good.clone()
    matrices[2] = wrong
    matrices.requires_grad_()
    lifted, bad = rewriting.lift(inputs_for(problem, matrices))
    assert not bad[[0, 1, 3]].any()
    clean, _ = rewriting.lift(inputs_for(problem, good))
    for tensor, reference in zip(lifted, clean, strict=True):
        assert torch.equal(tensor[[0, 1, 3]], reference[[0, 1, 3]])
    (gradient,) = torch.autograd.grad(lifted[-1].square().sum(), matrices)
    # the sum of squares is the trace: its gradient is the identity
    identity = torch.eye(N, dtype=torch.float64).expand(3, N, N)
    assert torch.allclose(gradient[[0, 1, 3]], identity, atol=1e-10)
    assert gradient[2].isfinite().all()


@pytest.mark.parametrize("wrong", [pytest.param(INDEFINITE, id="indefinite"), NOT_FINITE])
def test_a_layer_marks_it_as_bad_input(wrong: torch.Tensor) -> None:
    """``min c' x`` with ``x' P x <= 1`` is ``-P^-1 c / sqrt(c' P^-1 c)``."""
    problem = cp.Problem(cp.Minimize(c @ x), [cp.quad_form(x, P) <= 1])
    layer = ddn_cvx.DeclarativeLayer(problem, [P, c], [x], on_failure="nan")
    matrices = semidefinite(4) + torch.eye(N, dtype=torch.float64)
    towards = torch.linalg.solve(matrices, torch.ones(4, N, dtype=torch.float64))
    exact = -towards / towards.sum(1, keepdim=True).sqrt()
    matrices[2] = wrong
    solution = layer.solve(matrices, torch.ones(4, N, dtype=torch.float64))
    expected = [Status.SOLVED, Status.SOLVED, Status.BAD_INPUT, Status.SOLVED]
    assert solution.status.tolist() == expected
    found = solution.primal[0]
    assert torch.allclose(found[[0, 1, 3]], exact[[0, 1, 3]], atol=1e-7)
    assert found[2].isnan().all()


def test_multipliers_of_a_rewritten_constraint() -> None:
    """Stationarity: ``c + 2 lambda P x = 0`` gives ``lambda = sqrt(c' P^-1 c) / 2``."""
    constraint = cp.quad_form(x, P) <= 1
    problem = cp.Problem(cp.Minimize(c @ x), [x <= 100, constraint])
    layer = ddn_cvx.DeclarativeLayer(problem, [P, c], [constraint.dual_variables[0]])
    matrices = (semidefinite(3) + torch.eye(N, dtype=torch.float64)).requires_grad_()
    ones = torch.ones(3, N, dtype=torch.float64)
    exact = (ones * torch.linalg.solve((matrices + matrices.mT) / 2, ones)).sum(1).sqrt() / 2
    (found,) = layer((matrices + matrices.mT) / 2, ones)
    assert torch.allclose(found.reshape(3), exact, atol=1e-7)
    (gradient,) = torch.autograd.grad(found.sum(), matrices)
    (reference,) = torch.autograd.grad(exact.sum(), matrices)
    assert torch.allclose(gradient, reference, atol=1e-5)
