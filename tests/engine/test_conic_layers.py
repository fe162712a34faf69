"""Every cone's solution and derivative, against finite differences, closed forms and each other."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cvxpy as cp
import pytest
import torch
from helpers import assert_derivatives, assert_jacobians, draw, symmetrized
from hypothesis import given, settings
from hypothesis import strategies as st

import ddn_cvx as ddn
from ddn_cvx.cones.product import Cones
from ddn_cvx.errors import AdjointError
from ddn_cvx.kkt.certificate import ConeCertificate
from ddn_cvx.kkt.residuals import relative_residual
from ddn_cvx.kkt.system import DENSE_UNKNOWNS
from ddn_cvx.linalg.dense import linear_solve

Problem = tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]
Case = tuple[Problem, list[torch.Tensor]]


def quadratic() -> Case:
    u, P, q = cp.Variable(3), cp.Parameter((3, 3), PSD=True), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.quad_form(u, P) / 2 + q @ u), [u >= -0.4, cp.sum(u) == 1])
    root = draw(2, 3, 3)
    return (problem, [P, q], [u]), [root @ root.mT + torch.eye(3), draw(2, 3, seed=1)]


def second_order() -> Case:
    u, A, r = cp.Variable(3), cp.Parameter((3, 3)), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.norm(A @ u - 1) + cp.sum(u)), [cp.norm(u) <= r])
    return (problem, [A, r], [u]), [draw(2, 3, 3) + 2 * torch.eye(3), torch.tensor([0.3, 0.4])]


def semidefinite() -> Case:
    U, C = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(U - C)), [U >> 0, cp.trace(U) == 1])
    root = draw(2, 3, 3)
    return (problem, [C], [U]), [root + root.mT]


def exponential() -> Case:
    u, c = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Maximize(cp.sum(cp.entr(u)) + c @ u), [cp.sum(u) == 1])
    return (problem, [c], [u]), [draw(2, 3)]


def log_sum_exp() -> Case:
    u, A = cp.Variable(2), cp.Parameter((4, 2))
    problem = cp.Problem(cp.Minimize(cp.log_sum_exp(A @ u) + cp.sum_squares(u)))
    return (problem, [A], [u]), [draw(2, 4, 2)]


def power() -> Case:
    u, c = cp.Variable(3), cp.Parameter(3, pos=True)
    cone = cp.PowCone3D(u[0], u[1], u[2], 0.3)
    problem = cp.Problem(cp.Maximize(u[2] - c @ cp.square(u)), [cone])
    return (problem, [c], [u]), [draw(2, 3).abs() + 0.3]


def mixed() -> Case:
    u, x, a = cp.Variable(3), cp.Parameter(3), cp.Parameter(pos=True)
    objective = cp.sum_squares(u - x) + a * cp.norm(u, 1) + cp.sum(cp.exp(u)) + cp.norm(u - 1)
    problem = cp.Problem(cp.Minimize(objective), [cp.sum(u) <= 1, u >= -1])
    return (problem, [x, a], [u]), [draw(2, 3), torch.tensor([0.1, 0.2])]


CASES = [quadratic, second_order, semidefinite, exponential, log_sum_exp, power, mixed]


@pytest.mark.parametrize("case", CASES)
def test_reverse_and_forward_mode_are_the_central_difference(case: Callable[[], Case]) -> None:
    (problem, parameters, variables), tensors = case()
    layer = ddn.DeclarativeLayer(problem, parameters, variables)
    for element in range(2):
        assert_jacobians(symmetrized(layer), [tensor[element].double() for tensor in tensors])


@pytest.mark.parametrize("case", [quadratic, second_order, mixed])
def test_second_derivatives_are_the_central_difference(case: Callable[[], Case]) -> None:
    (problem, parameters, variables), tensors = case()
    layer = ddn.DeclarativeLayer(problem, parameters, variables)
    leaves = [tensor[:1].double().requires_grad_() for tensor in tensors]
    assert torch.autograd.gradgradcheck(symmetrized(layer), leaves, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("case", CASES)
def test_the_solution_is_optimal_and_its_own_residual(case: Callable[[], Case]) -> None:
    (problem, parameters, variables), tensors = case()
    solution = ddn.DeclarativeLayer(problem, parameters, variables).solve(*tensors)
    assert solution.status.tolist() == [0, 0]
    assert float(solution.residual.max()) < 1e-8
    assert float(solution.violation().max()) < 1e-7
    assert float(solution.stationarity().max()) < 1e-7
    assert float(solution.complementarity().max()) < 1e-7


@pytest.mark.parametrize("case", CASES)
def test_vmap_jacrev_and_jacfwd_agree(case: Callable[[], Case]) -> None:
    (problem, parameters, variables), tensors = case()
    layer = ddn.DeclarativeLayer(problem, parameters, variables)
    tensors = [tensor.double() for tensor in tensors]
    mapped = torch.func.vmap(lambda *one: layer(*one)[0])(*tensors)
    torch.testing.assert_close(mapped, layer(*tensors)[0], rtol=0, atol=1e-12)
    one = [tensor[0] for tensor in tensors]
    reverse = torch.func.jacrev(lambda *a: layer(*a)[0], argnums=len(one) - 1)(*one)
    forward = torch.func.jacfwd(lambda *a: layer(*a)[0], argnums=len(one) - 1)(*one)
    torch.testing.assert_close(reverse, forward, rtol=0, atol=1e-8)


@pytest.mark.parametrize("solver", ["CLARABEL", "SCS", "MOREAU"])
@pytest.mark.parametrize("case", [quadratic, second_order, exponential, mixed])
def test_every_solver_finds_the_same_solution(case: Callable[[], Case], solver: str) -> None:
    if solver == "MOREAU":
        pytest.importorskip("moreau")
    (problem, parameters, variables), tensors = case()
    exact = ddn.DeclarativeLayer(problem, parameters, variables)(*tensors)[0]
    other = ddn.DeclarativeLayer(problem, parameters, variables, solver=solver)(*tensors)[0]
    torch.testing.assert_close(other, exact, rtol=0, atol=1e-7)


@pytest.mark.parametrize("adjoint", ["lsqr", "lsmr", "dense"])
def test_diffcps_adjoint_agrees_on_a_dense_quadratic_program(adjoint: str) -> None:
    # lsqr alone was 6e-2 off here: its residual is seen and the ladder climbed.
    n, m, p = 50, 50, 10
    u, L, q = cp.Variable(n), cp.Parameter((n, n)), cp.Parameter(n)
    G, A = cp.Parameter((m, n)), cp.Parameter((p, n))
    objective = cp.Minimize(cp.sum_squares(L @ u) / 2 + q @ u)
    problem = cp.Problem(objective, [G @ u <= 1, A @ u == 1])
    tensors = [draw(n, n, seed=1) / 5 + torch.eye(n), draw(n, seed=2)]
    tensors += [draw(m, n, seed=3), draw(p, n, seed=4)]
    weight = draw(n, seed=5)

    def gradient(name: str) -> list[torch.Tensor]:
        layer = ddn.DeclarativeLayer(problem, [L, q, G, A], [u], adjoint=name)
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        return list(torch.autograd.grad(layer(*leaves)[0] @ weight, leaves))

    for exact, theirs in zip(gradient("kkt"), gradient(adjoint), strict=True):
        assert float((theirs - exact).norm() / exact.norm()) < 1e-5


def test_redundant_constraints_do_not_change_the_gradient() -> None:
    u, x = cp.Variable(3), cp.Parameter(3)
    once = [cp.sum(u) == 1, u[0] <= 0.2]
    twice = [*once, 2 * cp.sum(u) == 2, 3 * u[0] <= 0.6]
    values, gradients = [], []
    for constraints in (once, twice):
        problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), constraints)
        layer = ddn.DeclarativeLayer(problem, [x], [u])
        leaf = torch.tensor([1.0, 0.2, -0.3], dtype=torch.float64, requires_grad=True)
        (value,) = layer(leaf)
        values.append(value.detach())
        gradients.append(torch.autograd.functional.jacobian(lambda t, f=layer: f(t)[0], leaf))
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-8)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-8)


def linear_program(**options: str) -> ddn.DeclarativeLayer:
    u, c = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(c @ u), [u >= 0, cp.sum(u) == 1])
    return ddn.DeclarativeLayer(problem, [c], [u], **options)  # type: ignore[arg-type]


def test_a_linear_programs_vertex_has_zero_gradient() -> None:
    c = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    linear_program()(c)[0][0].backward()
    assert c.grad is not None
    assert float(c.grad.abs().max()) < 1e-9


def test_a_solution_that_is_not_unique_has_no_gradient_and_says_which_element() -> None:
    c = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 3.0]], dtype=torch.float64, requires_grad=True)
    with pytest.raises(AdjointError, match="1 of 2 batch elements: 1 ") as caught:
        linear_program()(c)[0][:, 0].sum().backward()
    assert caught.value.elements == (1,)
    linear_program(on_failure="nan")(c)[0][:, 0].sum().backward()
    assert c.grad is not None
    assert float(c.grad[0].abs().max()) < 1e-9
    assert bool(c.grad[1].isnan().all())
    with pytest.warns(ddn.DegenerateWarning, match="1 of 2"):
        linear_program(on_failure="warn")(c)[0][:, 0].sum().backward()


def test_a_foreign_derivative_cannot_be_differentiated_twice_and_says_so() -> None:
    (problem, parameters, variables), tensors = second_order()
    layer = ddn.DeclarativeLayer(problem, parameters, variables, adjoint="dense")
    leaves = [tensor.double().requires_grad_() for tensor in tensors]
    with pytest.raises(NotImplementedError, match='adjoint="kkt"'):
        torch.autograd.grad(layer(*leaves)[0].sum(), leaves, create_graph=True)


PRODUCT = Cones(2, 3, (3, 4, 3), (2, 3), 2, (0.3, 0.6))


def complementary_pair(cones: Cones, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``s`` in K and ``y`` in K* with ``<s, y> = 0``, from a small cone program's solution."""
    import scs

    generator = torch.Generator().manual_seed(seed)
    point = torch.randn(cones.rows, generator=generator, dtype=torch.float64)
    # min |s + v|^2 / 2 over K has the solution s = Pi_K(-v) and the multiplier y = s + v.
    from scipy import sparse

    size = cones.rows
    data = {"P": sparse.eye(size, format="csc"), "A": -sparse.eye(size, format="csc")}
    data |= {"b": torch.zeros(size).double().numpy(), "c": point.numpy()}
    solved = scs.SCS(data, cones.scs(), eps_abs=1e-12, eps_rel=1e-12, verbose=False).solve()
    slack = torch.from_numpy(solved["s"]).unsqueeze(0)
    return slack + point, slack


@pytest.mark.parametrize("seed", range(12))
def test_the_derivative_of_the_projection_is_its_central_difference(seed: int) -> None:
    dual, slack = complementary_pair(PRODUCT, seed)
    point = dual - slack
    assert float(PRODUCT.violation(slack, dual).max()) < 1e-7
    torch.testing.assert_close(PRODUCT.project_dual(point, slack), dual, rtol=0, atol=1e-6)
    identity = torch.eye(PRODUCT.rows, dtype=torch.float64)
    dense = PRODUCT.derivative(dual, slack).times_matrix(identity.unsqueeze(0))[0]
    torch.testing.assert_close(dense, dense.mT, rtol=0, atol=1e-9)
    eigenvalues = torch.linalg.eigvalsh(dense)
    assert float(eigenvalues.min()) > -1e-9
    assert float(eigenvalues.max()) < 1 + 1e-9
    step = 1e-6
    columns = []
    for row in range(PRODUCT.rows):
        shift = torch.zeros_like(point)
        shift[0, row] = step
        high = PRODUCT.project_dual(point + shift, slack)
        low = PRODUCT.project_dual(point - shift, slack)
        columns.append((high - low)[0] / (2 * step))
    torch.testing.assert_close(dense, torch.stack(columns, 1), rtol=0, atol=1e-5)


@given(
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(0, 2**16),
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_linear_solve_is_numpys_with_minimum_norm(batch: int, size: int, seed: int) -> None:
    matrix, right = draw(batch, size, size, seed=seed), draw(batch, size, seed=seed + 1)
    solution, residual = linear_solve(matrix, right)
    exact = torch.linalg.solve(matrix, right.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(solution, exact, rtol=1e-6, atol=1e-8)
    assert float(residual.max()) < 1e-8
    # A singular and consistent system: the minimum-norm solution, whatever the rows' scales.
    singular = matrix.clone()
    singular[:, -1] = 0.0
    consistent = (singular @ draw(batch, size, 1, seed=seed + 2)).squeeze(-1)
    solution, _ = linear_solve(singular, consistent)
    least = (torch.linalg.pinv(singular) @ consistent.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(solution, least, rtol=1e-6, atol=1e-7)


def test_linear_solve_is_differentiable_in_every_mode() -> None:
    matrix = (draw(3, 4, 4) + 3 * torch.eye(4)).requires_grad_()
    right = draw(3, 4, seed=1).requires_grad_()

    def function(m: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        return linear_solve(m, r)[0]

    assert_derivatives(function, (matrix, right))
    stacked = torch.stack([matrix.detach(), 2 * matrix.detach()])
    mapped = torch.func.vmap(function, in_dims=(0, None))(stacked, right.detach())
    torch.testing.assert_close(mapped[1], mapped[0] / 2)


def test_the_sparse_adjoint_is_the_dense_one(monkeypatch: pytest.MonkeyPatch) -> None:
    (problem, parameters, variables), tensors = mixed()
    layer = ddn.DeclarativeLayer(problem, parameters, variables)
    leaves = [tensor.double().requires_grad_() for tensor in tensors]
    dense = torch.autograd.grad(layer(*leaves)[0].square().sum(), leaves)
    monkeypatch.setattr("ddn_cvx.kkt.system.DENSE_UNKNOWNS", 0)
    sparse = torch.autograd.grad(layer(*leaves)[0].square().sum(), leaves)
    for one, other in zip(sparse, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    assert_derivatives(layer, leaves, second=(1e-4, 1e-3), fast=True)
    each = torch.func.vmap(torch.func.grad(lambda x, a: layer(x, a)[0].square().sum()))
    torch.testing.assert_close(each(*(leaf.detach() for leaf in leaves)), sparse[0])


def test_the_residual_sees_a_wrong_point() -> None:
    (problem, parameters, variables), tensors = quadratic()
    layer = ddn.DeclarativeLayer(problem, parameters, variables)
    certificate = layer.solve(*tensors)._certificate
    assert isinstance(certificate, ConeCertificate)
    right = (
        certificate.instance.program,
        certificate.instance.data,
        certificate.primal,
        certificate.dual,
    )
    assert float(relative_residual(*right).max()) < 1e-9
    moved = relative_residual(*right[:2], certificate.primal + 1e-3, certificate.dual)
    assert float(moved.min()) > 1e-5


def test_a_thread_count_set_by_the_user_does_not_break_batched_systems() -> None:
    # Batched LU of torch 2.13's CPU build returns invalid pivots after torch.set_num_threads(2), or
    # does not return, as its batched QR.
    code = (
        "import torch; torch.set_num_threads(2)\n"
        "from ddn_cvx.linalg.dense import linear_solve\n"
        "generator = torch.Generator().manual_seed(0)\n"
        "matrix = torch.randn(8, 180, 180, generator=generator, dtype=torch.float64)\n"
        "matrix = matrix + 20 * torch.eye(180, dtype=torch.float64)\n"
        "right = torch.randn(8, 180, generator=generator, dtype=torch.float64)\n"
        "solution, residual = linear_solve(matrix, right)\n"
        "alone = torch.linalg.solve(matrix[0], right[0])\n"
        "assert float(residual.max()) < 1e-9, residual\n"
        "torch.testing.assert_close(solution[0], alone, rtol=0, atol=1e-10)\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, check=True, cwd=root, timeout=300, capture_output=True, text=True)
    assert run.stdout == run.stderr == ""


def test_a_large_program_without_rows_has_every_derivative() -> None:
    """Beyond the dense systems, where there is no ``D`` to speak of."""
    n = DENSE_UNKNOWNS + 10
    x, q = cp.Variable(n), cp.Parameter(n)
    layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(x) + q @ x)), [q], [x])
    point = torch.linspace(-1, 1, n, dtype=torch.float64)
    gradient = torch.func.grad(lambda q: layer(q)[0].pow(2).sum())(point)
    torch.testing.assert_close(gradient, point / 2, rtol=1e-9, atol=1e-12)
    tangent = torch.func.jvp(lambda q: layer(q)[0], (point,), (torch.ones_like(point),))[1]
    torch.testing.assert_close(tangent, torch.full_like(point, -0.5), rtol=1e-9, atol=1e-12)


def test_the_solver_behind_the_native_adjoint_is_named_with_its_own_reason() -> None:
    (problem, parameters, variables), _ = second_order()
    layer = ddn.DeclarativeLayer(problem, parameters, variables, adjoint="native")
    assert "solver='DIFFCP' (the one behind adjoint='native')" in repr(layer)


def test_an_element_that_diffcp_cannot_solve_costs_no_other() -> None:
    u, x = cp.Variable(), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.square(u - x)), [u >= 0, u <= x])
    x_value = torch.tensor([2.0, -1.0, 3.0], requires_grad=True)
    layer = ddn.DeclarativeLayer(problem, [x], [u], adjoint="native", on_failure="nan")
    (found,) = layer(x_value)
    assert found.isnan().tolist() == [False, True, False]
    (gradient,) = torch.autograd.grad(found[::2].sum(), x_value)
    torch.testing.assert_close(gradient, torch.tensor([1.0, 0.0, 1.0]), rtol=0, atol=1e-4)
