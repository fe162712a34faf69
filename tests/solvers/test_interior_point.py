"""The batched interior-point method: solutions, proofs, derivatives, hard cases by name."""

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from helpers import draw
from hypothesis import given, settings
from hypothesis import strategies as st

import ddn_cvx as ddn
from ddn_cvx.cones.exponential import Exponential
from ddn_cvx.engine.choose import Extent, choose_solver, fewest_worth_it
from ddn_cvx.engine.engine import Engine
from ddn_cvx.kkt import adjoint as kkt
from ddn_cvx.kkt.point import Point
from ddn_cvx.kkt.reduced.structure import sparse_structure
from ddn_cvx.kkt.system import derivative_at, solve_kkt
from ddn_cvx.problems import cone_program, quadratic_program
from ddn_cvx.programs.cone.instance import ConeInstance
from ddn_cvx.programs.cone.program import ConeProgram
from ddn_cvx.status import Status

Layer = ddn.DeclarativeLayer
Case = tuple[cp.Problem, list[cp.Parameter], list[cp.Variable], list[torch.Tensor]]
BATCH = 8


def program_of(layer: Layer) -> ConeProgram:
    assert isinstance(layer._engine, Engine)
    program: ConeProgram = layer._engine.plan({}).program
    return program


def dense_quadratic() -> Case:
    u, F, q = cp.Variable(6), cp.Parameter((6, 6)), cp.Parameter(6)
    G, A = cp.Parameter((8, 6)), cp.Parameter((2, 6))
    objective = cp.Minimize(cp.sum_squares(F @ u) / 2 + q @ u)
    problem = cp.Problem(objective, [G @ u <= 1, A @ u == 0.1])
    F_value = torch.eye(6) + 0.3 * draw(BATCH, 6, 6)
    tensors = [
        F_value,
        3 * draw(BATCH, 6, seed=1),
        draw(BATCH, 8, 6, seed=2),
        draw(BATCH, 2, 6, seed=3),
    ]
    return problem, [F, q, G, A], [u], tensors


def linear() -> Case:
    u, c = cp.Variable(5), cp.Parameter(5)
    problem = cp.Problem(cp.Minimize(c @ u), [cp.sum(u) == 1, u >= 0, u <= 0.4])
    return problem, [c], [u], [draw(BATCH, 5)]


def second_order() -> Case:
    """Cones of two sizes, the larger one first."""
    u, c, A = cp.Variable(4), cp.Parameter(4), cp.Parameter((4, 4))
    constraints = [cp.norm(A @ u) <= 1 + u[0], cp.norm(u) <= 3, cp.norm(u[:2] - 0.1) <= 2]
    problem = cp.Problem(cp.Minimize(c @ u), constraints)
    return problem, [c, A], [u], [draw(BATCH, 4), draw(BATCH, 4, 4, seed=1)]


def sparse_box() -> Case:
    n = 60
    u, x = cp.Variable(n), cp.Parameter(n)
    objective = cp.sum_squares(u - x) + 5 * cp.sum_squares(cp.diff(u))
    problem = cp.Problem(cp.Minimize(objective), [u >= -0.3, u <= 0.3])
    return problem, [x], [u], [draw(BATCH, n)]


def sparse_l1_ball() -> Case:
    n = 40
    u, x = cp.Variable(n), cp.Parameter(n)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [cp.norm1(u) <= 1])
    return problem, [x], [u], [draw(BATCH, n)]


def sparse_ball() -> Case:
    """Half of the elements are inside of the ball."""
    n = 50
    u, x, y = cp.Variable(n), cp.Parameter(n), cp.Parameter(n)
    objective = cp.sum_squares(u - x) + 0.5 * cp.norm(u - y)
    problem = cp.Problem(cp.Minimize(objective), [cp.norm(u) <= 2])
    size = torch.linspace(0.05, 1, BATCH, dtype=torch.float64).unsqueeze(1)
    return problem, [x, y], [u], [size * draw(BATCH, n), draw(BATCH, n, seed=1)]


def semidefinite() -> Case:
    """Cones of two sides, the larger one first, next to a ball and rows."""
    U, C = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3))
    v, a = cp.Variable(2), cp.Parameter(2)
    small = cp.bmat([[1 + v[0], v[1]], [v[1], 2 - v[0]]])
    constraints = [U >> 0, small >> 0, cp.norm(v) <= 1.2, cp.diag(U) == 1, U[0, 1] >= v[1] - 1]
    problem = cp.Problem(cp.Minimize(cp.trace(C @ U) + a @ v), constraints)
    return problem, [C, a], [U], [draw(BATCH, 3, 3), draw(BATCH, 2, seed=1)]


def largest_eigenvalue() -> Case:
    """Few unknowns, and a matrix of many rows, whose symmetry leaves multipliers undetermined."""
    d = 5
    y, C = cp.Variable(3), cp.Parameter((d, d))
    basis = [np.diag(np.ones(d - k), k) + np.diag(np.ones(d - k), -k) for k in range(3)]
    matrix = C + C.T + sum(y[k] * basis[k] for k in range(3))
    problem = cp.Problem(cp.Minimize(cp.lambda_max(matrix) + cp.sum_squares(y)))
    return problem, [C], [y], [draw(BATCH, d, d)]


def exponential() -> Case:
    """Next to a ball, a row and an equation."""
    u, c, p = cp.Variable(4), cp.Parameter(4), cp.Parameter(4, pos=True)
    objective = cp.Minimize(c @ u + cp.sum(cp.kl_div(u, p)))
    constraints = [cp.log_sum_exp(u) <= 1.7, cp.norm(u) <= 0.8, u[0] <= 0.3, cp.sum(u) == 1]
    tensors = [draw(BATCH, 4), draw(BATCH, 4, seed=1).exp()]
    return cp.Problem(objective, constraints), [c, p], [u], tensors


def log_determinant() -> Case:
    """Exponential and semidefinite cones that share variables."""
    U, S = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3))
    problem = cp.Problem(cp.Minimize(cp.trace(S @ U) - cp.log_det(U)))
    root = draw(BATCH, 3, 3)
    return problem, [S], [U], [root @ root.mT + 0.5 * torch.eye(3, dtype=torch.float64)]


def power() -> Case:
    """Cones of two exponents, next to a ball, a row, an equation and exponential cones."""
    u, c, r = cp.Variable(4), cp.Parameter(4), cp.Parameter(2, pos=True)
    cones = [cp.PowCone3D(u[0] + 1, r[0], u[1], 0.3), cp.PowCone3D(2 - u[2], r[1], u[3], 0.7)]
    objective = cp.Minimize(c @ u + cp.sum(cp.exp(u[:2])) + cp.pnorm(u, 3, approx=False))
    constraints = [*cones, cp.norm(u) <= 2, u[0] <= 0.9, cp.sum(u) == 0.5]
    tensors = [draw(BATCH, 4), draw(BATCH, 2, seed=1).exp()]
    return cp.Problem(objective, constraints), [c, r], [u], tensors


NOT_SYMMETRIC = [exponential, log_determinant, power]
CASES = [
    dense_quadratic, linear, second_order, semidefinite, largest_eigenvalue, sparse_box,
    sparse_l1_ball, sparse_ball,
]  # fmt: skip
SPARSE = [sparse_box, sparse_l1_ball, sparse_ball]


@pytest.mark.parametrize("case", [*CASES, *NOT_SYMMETRIC])
def test_solutions_are_clarabels(case: Callable[[], Case]) -> None:
    problem, parameters, variables, tensors = case()
    layer = Layer(problem, parameters, variables, solver="INTERIOR")
    found = layer.solve(*tensors)
    assert set(found.solver) == {"INTERIOR"}
    assert (found.status == Status.SOLVED).all()
    assert found.residual.max() < 1e-9
    expected = Layer(problem, parameters, variables, solver="CLARABEL").solve(*tensors)
    torch.testing.assert_close(found.primal[0], expected.primal[0], rtol=0, atol=1e-7)
    torch.testing.assert_close(found.objective(), expected.objective(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", SPARSE)
def test_these_are_sparse(case: Callable[[], Case]) -> None:
    problem, parameters, variables, _ = case()
    assert sparse_structure(program_of(Layer(problem, parameters, variables))) is not None


@pytest.mark.parametrize("case", [*CASES, *NOT_SYMMETRIC])
def test_gradients_are_finite_differences(case: Callable[[], Case]) -> None:
    problem, parameters, variables, tensors = case()
    layer = Layer(problem, parameters, variables, solver="INTERIOR")
    inputs = [tensor[:2].clone().requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(
        lambda *given: layer(*given)[0], inputs, eps=1e-6, atol=1e-5, rtol=1e-5, fast_mode=True
    )


@pytest.mark.parametrize(
    "case", [case for case in [*CASES, *NOT_SYMMETRIC] if case is not largest_eigenvalue]
)
def test_the_light_adjoint_is_the_whole_systems(
    case: Callable[[], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With gradients for the multipliers, too; weakly active rows are in no case."""
    problem, parameters, variables, tensors = case()
    layer = Layer(problem, parameters, variables, solver="INTERIOR")
    calls: list[Any] = []
    light = kkt._without_inactive_rows

    def spy(
        instance: ConeInstance, point: Point, g_u: torch.Tensor, g_y: torch.Tensor, policy: str
    ) -> torch.Tensor | None:
        g_y = torch.randn_like(g_y)
        found = light(instance, point, g_u, g_y, policy)
        derivative = derivative_at(instance, point)
        right = torch.cat([g_u, derivative.times(g_y)], 1)
        calls.append((found, solve_kkt(instance, point, derivative, right, policy)))
        return found

    monkeypatch.setattr(kkt, "_without_inactive_rows", spy)
    inputs = [tensor.clone().requires_grad_() for tensor in tensors]
    layer(*inputs)[0].square().sum().backward()
    ((found, expected),) = calls
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7 * float(expected.abs().max()))


@pytest.mark.parametrize("case", [*CASES, *NOT_SYMMETRIC])
def test_elements_are_as_alone_and_in_any_order(case: Callable[[], Case]) -> None:
    problem, parameters, variables, tensors = case()
    layer = Layer(problem, parameters, variables, solver="INTERIOR")
    (together,) = layer(*tensors)
    order = torch.arange(BATCH - 1, -1, -1)
    (turned,) = layer(*(tensor[order] for tensor in tensors))
    torch.testing.assert_close(turned[order], together, rtol=0, atol=1e-9)
    for element in (0, BATCH - 1):
        (alone,) = layer(*(tensor[element : element + 1] for tensor in tensors))
        torch.testing.assert_close(alone[0], together[element], rtol=0, atol=1e-9)


@given(
    st.integers(2, 12), st.integers(1, 14), st.integers(1, 4), st.integers(1, 5),
    st.sampled_from([1e-4, 1.0, 1e4]), st.integers(0, 100),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_random_quadratic_programs_are_solved(
    n: int, m: int, p: int, batch: int, size: float, seed: int
) -> None:
    """Of any shape, in any units: optimality is checked from the problem's own data."""
    p = min(p, n - 1)
    declaration = quadratic_program(n=n, m=m, p=p)
    inputs = declaration.inputs(batch=batch, seed=seed)
    names = [parameter.name() for parameter in declaration.parameters]
    scaled = [tensor * (size if name in ("b", "h", "q") else 1.0)
              for name, tensor in zip(names, inputs, strict=True)]  # fmt: skip
    solution = Layer(declaration, solver="INTERIOR").solve(*scaled)
    assert (solution.status == Status.SOLVED).all()
    assert set(solution.solver) == {"INTERIOR"}
    assert solution.violation().max() < 1e-8 * size
    assert solution.stationarity().max() < 1e-7 * size


def test_the_catalogues_cone_programs_with_several_sizes_of_cones() -> None:
    declaration = cone_program(n=9, equality=1, nonnegative=4, second_order=(5, 3, 4, 3))
    inputs = [t.requires_grad_() for t in declaration.inputs(batch=6)]
    mine = Layer(declaration, solver="INTERIOR", adjoint="kkt")
    other = Layer(declaration, solver="CLARABEL", adjoint="dense")
    results = []
    for layer in (mine, other):
        (u,) = layer(*inputs)
        results.append(torch.autograd.grad(u.sin().sum(), inputs))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(
            found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())
        )


# -- hard cases ------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_the_projection_onto_semidefinite_matrices(side: int, batch: int, seed: int) -> None:
    """Against eigenvalues clipped at zero, and its derivative's closed form."""
    U, C = cp.Variable((side, side), symmetric=True), cp.Parameter((side, side))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(U - C)), [U >> 0])
    layer = Layer(problem, [C], [U], solver="INTERIOR")
    X = draw(batch, side, side, seed=seed).requires_grad_()
    weights = draw(batch, side, side, seed=seed + 1)
    (found,) = layer(X)
    (gradient,) = torch.autograd.grad((weights * found).sum(), X)
    X = (X.detach() + X.detach().mT) / 2
    values, vectors = torch.linalg.eigh(X)
    expected = (vectors * values.clamp_min(0).unsqueeze(1)) @ vectors.mT
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-9)
    positive, negative = values.clamp_min(0), values.clamp_max(0)
    sums = positive.unsqueeze(2) - negative.unsqueeze(1)
    both = ((values > 0).unsqueeze(2) & (values > 0).unsqueeze(1)).double()
    mixed = torch.where((values > 0).unsqueeze(2) & (values <= 0).unsqueeze(1), 1.0, 0.0)
    share = mixed * positive.unsqueeze(2) / torch.where(sums > 0, sums, 1.0)
    share = share + share.mT + both
    W = (weights + weights.mT) / 2
    closed = vectors @ (share * (vectors.mT @ W @ vectors)) @ vectors.mT
    regular = (values.abs() > 1e-3).all(1)
    torch.testing.assert_close(gradient[regular], closed[regular], rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", ["INTERIOR", "CLARABEL"])
def test_matrices_with_repeated_and_with_vanishing_eigenvalues(solver: str) -> None:
    """Projections of multiples of the identity, of zero, and of matrices on the boundary."""
    U, C = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(U - C)), [U >> 0])
    layer = Layer(problem, [C], [U], solver=solver)
    corner = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    one = torch.eye(3, dtype=torch.float64)
    X = torch.stack([2 * one, -one, 0 * one, corner, one - 2 * corner]).requires_grad_()
    (found,) = layer(X)
    expected = torch.stack([2 * one, 0 * one, 0 * one, corner, one - corner])
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-8)
    (gradient,) = torch.autograd.grad(found.diagonal(dim1=1, dim2=2).sum(), X)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient[0], one, rtol=0, atol=1e-8)
    torch.testing.assert_close(gradient[1], 0 * one, rtol=0, atol=1e-8)
    torch.testing.assert_close(gradient[4], one - corner, rtol=0, atol=1e-8)


@given(st.integers(1, 6), st.integers(1, 4), st.sampled_from([0.1, 1.0, 3.0]), st.integers(0, 50))
@settings(max_examples=15, deadline=None)
def test_entropy_has_the_softmax(n: int, batch: int, size: float, seed: int) -> None:
    u, c = cp.Variable(n), cp.Parameter(n)
    problem = cp.Problem(cp.Maximize(c @ u + cp.sum(cp.entr(u))), [cp.sum(u) == 1])
    layer = Layer(problem, [c], [u], solver="INTERIOR")
    x = (size * draw(batch, n, seed=seed)).requires_grad_()
    weights = draw(batch, n, seed=seed + 1)
    (found,) = layer(x)
    expected = x.softmax(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    (gradient,) = torch.autograd.grad((weights * found).sum(), x)
    (closed,) = torch.autograd.grad((weights * expected).sum(), x)
    torch.testing.assert_close(gradient, closed, rtol=0, atol=1e-7)


def test_the_barrier_of_an_exponential_cone() -> None:
    """Derivatives against autograd's; a shadow's shadow; and what a scaling maps to what."""
    generator = torch.Generator().manual_seed(0)
    y, z, a, w, more = 0.1 + torch.rand(5, 100, generator=generator, dtype=torch.float64)
    slack = torch.stack([y * (z / y).log() - more, y, z], 1)
    multiplier = torch.stack([-a, -a * (1 + (w / a).log()) + more, w], 1)

    def value(point: torch.Tensor) -> torch.Tensor:
        x, y, z = point.unbind()
        return -(y * (z / y).log() - x).log() - y.log() - z.log()

    group = Exponential(np.arange(300).reshape(-1, 3))
    barrier = group.barrier(slack)
    gradient = torch.func.vmap(torch.func.grad(value))(slack)
    hessian = torch.func.vmap(torch.func.hessian(value))(slack)
    torch.testing.assert_close(group.gradient(barrier), gradient)
    factor = group.hessian(barrier)
    upper = torch.stack([factor.transposed_times(unit) for unit in torch.eye(3).double()], -1)
    torch.testing.assert_close(upper.mT @ upper, hessian, rtol=1e-9, atol=1e-9)
    p, q = draw(2, 100, 3, seed=1)
    third = torch.func.vmap(
        lambda s, p, q: torch.func.jvp(lambda s: torch.func.hessian(value)(s) @ p, (s,), (q,))[1]
    )(slack, p, q)
    found = group.third_derivative(barrier, p, q)
    torch.testing.assert_close(found, third, rtol=1e-8, atol=1e-8)
    shadow, at_shadow = group.shadow(multiplier)
    for known, computed in zip(at_shadow, group.barrier(shadow), strict=True):
        torch.testing.assert_close(known, computed)
    torch.testing.assert_close(-group.gradient(group.barrier(shadow)), multiplier)
    unit = torch.zeros(1, 100, 3, dtype=torch.float64)
    group.set_identity(unit)
    torch.testing.assert_close(-group.gradient(group.barrier(unit)), unit)
    W, point = group.scaling(slack.unsqueeze(0), multiplier.unsqueeze(0))
    image = torch.empty_like(point)
    group.scale(W, point, image, inverse=False, transposed=True)  # W' W z
    torch.testing.assert_close(image[0], slack, rtol=1e-9, atol=1e-9)
    group.scale(W, shadow.unsqueeze(0), image, inverse=True, transposed=True)
    group.scale(W, image, image, inverse=True, transposed=False)
    torch.testing.assert_close(image[0], -gradient, rtol=1e-6, atol=1e-6)


def test_a_cost_far_below_another_one_is_not_lost() -> None:
    """Next to a cost of one, one of 1e-6 is below the residual; the same, multiplied, is not."""
    problem, parameters, variables, (C, a) = semidefinite()
    layer = Layer(problem, parameters, variables, solver="INTERIOR")
    small, large = layer(1e-6 * C, a)[0], layer(C, 1e6 * a)[0]
    torch.testing.assert_close(small, large, rtol=0, atol=1e-6)


def test_a_done_element_stays_where_it_is() -> None:
    """Refinement of its neighbour, which takes longer, does not move it."""
    x, c = cp.Variable(3), cp.Parameter(3)
    layer = Layer(cp.Problem(cp.Minimize(c @ x + cp.sum(cp.exp(x)))), [c], [x], solver="CLARABEL")
    costs = -torch.tensor([[1e-6, 1.0, 1.0], [1e-4, 2.0, 1.0], [3.0, 1e-7, 1.0]]).double()
    (together,) = layer(costs)
    torch.testing.assert_close(together, (-costs).log(), rtol=0, atol=1e-4)
    for number in range(3):
        (alone,) = layer(costs[number : number + 1])
        torch.testing.assert_close(alone[0], together[number], rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", ["INTERIOR", "CLARABEL"])
def test_an_overflow_costs_no_other_element(solver: str) -> None:
    problem, parameters, variables, (S,) = log_determinant()
    layer = Layer(problem, parameters, variables, solver=solver, on_failure="nan")
    expected = layer.solve(S)
    S = torch.cat([S[:3], 1e200 * S[3:4], S[4:]])
    found = layer.solve(S)
    others = torch.arange(BATCH) != 3
    assert (found.status[others] == Status.SOLVED).all()
    assert found.status[3] != Status.SOLVED
    torch.testing.assert_close(
        found.primal[0][others], expected.primal[0][others], rtol=0, atol=1e-9
    )


def test_dependent_equations() -> None:
    u, x = cp.Variable(4), cp.Parameter(4)
    constraints = [cp.sum(u) == 1, 2 * cp.sum(u) == 2, u >= 0]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), constraints)
    (found,) = Layer(problem, [x], [u], solver="INTERIOR")(draw(5, 4))
    single = cp.Problem(problem.objective, [constraints[0], constraints[2]])
    (expected,) = Layer(single, [x], [u], solver="CLARABEL")(draw(5, 4))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


def test_a_linear_program_with_more_active_rows_than_unknowns() -> None:
    u, c = cp.Variable(2), cp.Parameter(2, pos=True)
    constraints = [u >= 0, u[0] + u[1] >= 0, 2 * u[0] + u[1] >= 0]
    problem = cp.Problem(cp.Minimize(c @ u), constraints)
    solution = Layer(problem, [c], [u], solver="INTERIOR").solve(draw(5, 2).abs() + 0.1)
    assert (solution.status == Status.SOLVED).all()
    assert solution.primal[0].abs().max() < 1e-8


def test_a_weakly_active_row() -> None:
    u, x = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [u >= 0])
    x_value = torch.tensor([[0.0, 1.0, -1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    solution = Layer(problem, [x], [u], solver="INTERIOR").solve(x_value)
    torch.testing.assert_close(solution.primal[0], x_value.relu(), rtol=0, atol=1e-9)
    assert solution.degenerate.tolist() == [True, False]


def test_without_constraints_and_without_objective() -> None:
    u, x = cp.Variable(3), cp.Parameter(3)
    free = cp.Problem(cp.Minimize(cp.sum_squares(u - x)))
    (found,) = Layer(free, [x], [u], solver="INTERIOR")(draw(4, 3))
    torch.testing.assert_close(found, draw(4, 3), rtol=0, atol=1e-10)
    feasible = cp.Problem(cp.Minimize(0), [u >= x, u <= x + 1])
    (found,) = Layer(feasible, [x], [u], solver="INTERIOR")(draw(4, 3))
    assert ((found >= draw(4, 3) - 1e-8) & (found <= draw(4, 3) + 1 + 1e-8)).all()


def test_a_point_at_the_apex_of_a_cone() -> None:
    """``u`` is the centre, where the norm has no derivative but the solution has one."""
    u, x = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x) / 2 + 10 * cp.norm(u)))
    x_value = draw(4, 3).requires_grad_()
    (found,) = Layer(problem, [x], [u], solver="INTERIOR")(x_value)
    assert found.abs().max() < 1e-9
    found.sum().backward()
    assert x_value.grad is not None
    assert x_value.grad.abs().max() < 1e-9


@pytest.mark.parametrize("solver", ["INTERIOR", "CLARABEL"])
@pytest.mark.parametrize("radius", [1e-2, 1e-5, 1e-6, 1e-7, 1e-8])
def test_derivatives_near_the_apex_of_a_cone(solver: str, radius: float) -> None:
    """The projection onto a tiny ball in closed form: its multiplier is large, its slack is not."""
    u, x, c, r = cp.Variable(3), cp.Parameter(3), cp.Parameter(3), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [cp.norm(u - c) <= r])
    layer = Layer(problem, [x, c, r], [u], solver=solver)
    point = (draw(3), draw(3, seed=1), torch.tensor(radius, dtype=torch.float64))

    def projected(x: torch.Tensor, c: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        direction: torch.Tensor = (x - c) / (x - c).norm()
        return c + r * direction

    found = torch.autograd.functional.jacobian(lambda *data: layer(*data)[0], point)
    expected = torch.autograd.functional.jacobian(projected, point)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_empty_batches_and_single_precision() -> None:
    problem, parameters, variables, tensors = sparse_box()
    layer = Layer(problem, parameters, variables, solver="INTERIOR")
    assert layer(tensors[0][:0])[0].shape == (0, 60)
    (found,) = layer(tensors[0].float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), layer(tensors[0])[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_bad_elements_are_named_and_the_others_solved(sparse: bool) -> None:
    n = 50 if sparse else 3
    u, x, low = cp.Variable(n), cp.Parameter(n), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [cp.sum(u) == 1, u >= low])
    layer = Layer(problem, [x, low], [u], solver="INTERIOR", on_failure="nan")
    assert (sparse_structure(program_of(layer)) is not None) == sparse
    x_value = draw(6, n)
    x_value[3, 0] = torch.nan
    low_value = torch.tensor([0.0, 1.0, 0.0, 0.0, 2.0, 0.0], dtype=torch.float64)
    solution = layer.solve(x_value, low_value)
    names = [Status(int(status)).name for status in solution.status]
    solved, infeasible = "SOLVED", "INFEASIBLE"
    assert names == [solved, infeasible, solved, "BAD_INPUT", infeasible, solved]
    good = torch.tensor([0, 2, 5])
    (alone,) = layer(x_value[good], low_value[good])
    torch.testing.assert_close(solution.primal[0][good], alone, rtol=0, atol=1e-9)


def test_unbounded_elements_are_named() -> None:
    u, c = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(c @ u), [u >= 0])
    layer = Layer(problem, [c], [u], solver="INTERIOR", on_failure="nan")
    solution = layer.solve(torch.tensor([[1.0, 2.0], [1.0, -1.0], [-3.0, 1.0]]))
    names = [Status(int(status)).name for status in solution.status]
    assert names == ["SOLVED", "UNBOUNDED", "UNBOUNDED"]


@pytest.mark.parametrize("case", CASES)
def test_a_warm_start_changes_nothing_but_the_work(case: Callable[[], Case]) -> None:
    problem, parameters, variables, tensors = case()
    layer = Layer(problem, parameters, variables, solver="INTERIOR")
    (cold,) = layer(*tensors)
    moved = [tensor + 1e-3 * draw(*tensor.shape, seed=5) for tensor in tensors]
    (warm,) = layer(*moved, warm_start=True)
    (expected,) = Layer(problem, parameters, variables, solver="CLARABEL")(*moved)
    torch.testing.assert_close(warm, expected, rtol=0, atol=1e-7)
    assert not torch.equal(cold, warm)


def test_an_unknown_setting_is_refused_by_name() -> None:
    problem, parameters, variables, tensors = linear()
    layer = Layer(problem, parameters, variables, solver="INTERIOR")
    with pytest.raises(TypeError, match="no setting 'nonsense'"):
        layer(*tensors, solver_args={"nonsense": 1})


@pytest.mark.parametrize("solver", ["INTERIOR", "CLARABEL"])
def test_equations_that_leave_nothing_to_choose(solver: str) -> None:
    u, x = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u)), [u == x])
    layer = Layer(problem, [x], [u], solver=solver)
    x_value = draw(4, 2).requires_grad_()
    (found,) = layer(x_value)
    found.sum().backward()
    torch.testing.assert_close(found.detach(), x_value.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(x_value.grad, torch.ones_like(x_value), rtol=0, atol=1e-12)
    (dual,) = layer.solve(x_value.detach()).dual
    assert isinstance(dual, torch.Tensor)
    torch.testing.assert_close(dual, -2 * x_value.detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", [dense_quadratic, sparse_box])
def test_a_program_goes_with_its_layer(case: Callable[[], Case]) -> None:
    problem, parameters, variables, tensors = case()
    layer = Layer(problem, parameters, variables, solver="INTERIOR")
    layer(*tensors)
    program = weakref.ref(program_of(layer))
    del layer
    gc.collect()
    assert program() is None


def test_transforms_leave_nothing_in_the_layer() -> None:
    problem, parameters, variables, tensors = linear()
    layer = Layer(problem, parameters, variables, solver="INTERIOR")
    (expected,) = layer(*tensors)
    fresh = Layer(problem, parameters, variables, solver="INTERIOR")
    torch.func.vmap(lambda c: fresh(c)[0])(*tensors)
    (found,) = copy.deepcopy(fresh)(*tensors, warm_start=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_the_others_use_up_no_ones_iterations() -> None:
    u, c = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(c @ u), [cp.norm(u) <= 1, u <= 0.9])
    layer = Layer(problem, [c], [u], solver="INTERIOR", on_failure="nan")
    costs = torch.logspace(-4, 4, 24, dtype=torch.float64).unsqueeze(1) * draw(24, 3)
    few = {"max_iter": 6}
    together = layer.solve(costs, solver_args=few).status
    alone = [layer.solve(cost.unsqueeze(0), solver_args=few).status for cost in costs]
    assert together.tolist() == torch.cat(alone).tolist()


def test_it_has_no_native_adjoint() -> None:
    problem, parameters, variables, _ = linear()
    with pytest.raises(ddn.DeclarationError, match="no backward pass of its own"):
        Layer(problem, parameters, variables, solver="INTERIOR", adjoint="native")


def test_a_limit_on_iterations_is_kept() -> None:
    problem, parameters, variables, tensors = second_order()
    layer = Layer(problem, parameters, variables, solver="INTERIOR", on_failure="nan")
    solution = layer.solve(*tensors, solver_args={"max_iter": 1})
    assert solution.iterations.max() <= 1
    assert not (solution.status == Status.SOLVED).all()


# -- the choice ------------------------------------------------------------------------------------


def chosen(problem: cp.Problem, batch: int, device: str = "cpu") -> str:
    layer = Layer(problem, problem.parameters(), problem.variables())
    program = program_of(layer)
    return choose_solver(program, Extent(batch, torch.device(device))).name


def test_the_rule_of_the_choice() -> None:
    dense, sparse = dense_quadratic()[0], sparse_box()[0]
    assert chosen(dense, 1) == "CLARABEL"
    assert chosen(dense, 1000) == "INTERIOR"
    assert chosen(dense, 1, "cuda") == "INTERIOR"
    assert chosen(sparse, 1) == "CLARABEL"
    assert chosen(sparse, 1000) == "INTERIOR"
    U, C = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True)
    semidefinite = cp.Problem(cp.Minimize(cp.sum_squares(U - C)), [U >> 0])
    assert chosen(semidefinite, 4) == "CLARABEL"
    assert chosen(semidefinite, 1000) == "INTERIOR"
    large, D = cp.Variable((40, 40), symmetric=True), cp.Parameter((40, 40), symmetric=True)
    many = cp.Problem(cp.Minimize(cp.sum_squares(large - D)), [large >> 0])
    assert chosen(many, 1000) == "CLARABEL"
    assert chosen(exponential()[0], 1000) == "CLARABEL"
    assert chosen(exponential()[0], 1, "cuda") == "INTERIOR"
    cone = cp.PowCone3D(U[0, 0], U[1, 1], U[0, 1], 0.3)
    with_power = cp.Problem(cp.Minimize(cp.sum_squares(U - C)), [cone])
    assert program_of(Layer(with_power, [C], [U])).cones.power
    assert chosen(with_power, 1000) == "CLARABEL"
    assert chosen(with_power, 1, "cuda") == "INTERIOR"


def test_the_representation_says_what_is_chosen_and_from_how_many_on() -> None:
    problem, parameters, variables, _ = sparse_box()
    layer = Layer(problem, parameters, variables)
    least = fewest_worth_it(program_of(layer))
    assert f"batched, sparse, 60 unknowns and 120 rows; 'CLARABEL' for fewer than {least}" in repr(
        layer
    )
    small, large = layer.solve(draw(least - 1, 60)), layer.solve(draw(least, 60))
    assert set(small.solver) == {"CLARABEL"}
    assert set(large.solver) == {"INTERIOR"}
