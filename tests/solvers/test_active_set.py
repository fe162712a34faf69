"""Strictly convex quadratic programs by the active set of their dual, and the factors it keeps."""

import gc
import weakref
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from helpers import draw
from hypothesis import given, settings
from hypothesis import strategies as st

import ddn_cvx as ddn
from ddn_cvx.cones.product import Cones
from ddn_cvx.cones.scaling import ConeProduct
from ddn_cvx.engine import solution_map
from ddn_cvx.engine.engine import Engine
from ddn_cvx.engine.solution_map import Kept
from ddn_cvx.kkt.newton import ReducedSolution
from ddn_cvx.kkt.point import Factors
from ddn_cvx.kkt.reduced.dense import DenseMatrices
from ddn_cvx.kkt.reduced.equilibrate import ReducedData
from ddn_cvx.problems import quadratic_program
from ddn_cvx.solvers.cone.interior_point.active_set import may_apply, solve_by_active_set
from ddn_cvx.status import Status

Layer = ddn.DeclarativeLayer
Quadratic = tuple[ReducedData, ConeProduct]


def cones_of(equations: int, inequalities: int) -> ConeProduct:
    unit = torch.empty(0, dtype=torch.float64)
    return ConeProduct(Cones(nonnegative=inequalities), equations, unit)


def random(batch: int, n: int, m: int, p: int, seed: int) -> Quadratic:
    """Feasible, with about half of the inequalities active."""
    L, A = draw(batch, n, n, seed=seed), draw(batch, p + m, n, seed=seed + 1)
    room = draw(batch, p + m, seed=seed + 2).abs()
    room[:, :p] = 0.0
    b = (A @ draw(batch, n, 1, seed=seed + 3)).squeeze(2) + room
    P = L @ L.mT / n + 0.1 * torch.eye(n, dtype=torch.float64)
    q = 3 * draw(batch, n, seed=seed + 4)
    return ReducedData(DenseMatrices(P, A), q, b), cones_of(p, m)


def solved(program: ReducedData, cones: ConeProduct) -> ReducedSolution:
    return solve_by_active_set(program, cones, 1e-11)[0]


def dense(
    program: ReducedData,
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor, torch.Tensor]:
    matrices, q, b = program
    assert isinstance(matrices, DenseMatrices)
    assert matrices.P is not None
    return (matrices.P, matrices.A), q, b


def missed(program: ReducedData, cones: ConeProduct, found: ReducedSolution) -> torch.Tensor:
    """By how much the optimality conditions are violated, ``(B,)``."""
    (P, A), q, b = dense(program)
    x, z, s = (part.unsqueeze(2) for part in found[:3])
    inner = cones.inner
    stationarity = (P @ x + q.unsqueeze(2) + A.mT @ z).squeeze(2)
    feasibility = (A @ x + s - b.unsqueeze(2)).squeeze(2)
    signs = torch.minimum(found.z, found.s).clamp_max(0) * inner
    overlap = torch.minimum(found.z.abs() * inner, found.s.abs())
    parts = (stationarity, feasibility, signs, overlap)
    return torch.stack([part.abs().amax(1) for part in parts]).amax(0)


@given(st.integers(1, 12), st.integers(1, 20), st.integers(0, 4), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_what_is_solved_is_optimal(n: int, m: int, p: int, seed: int) -> None:
    p = min(p, n - 1)
    program, cones = random(7, n, min(m, 2 * n - p), p, seed)
    found = solved(program, cones)
    good = found.status == Status.SOLVED
    errors = missed(program, cones, found) / (1 + found.z.abs().amax(1))
    assert (errors[good] < 1e-9).all()


@pytest.mark.parametrize("n", [6, 20, 50])
def test_all_are_solved_that_have_few_more_rows_than_columns(n: int) -> None:
    program, cones = random(50, n, n, n // 5, n)
    assert (solved(program, cones).status == Status.SOLVED).all()


def test_all_are_solved_between_bounds() -> None:
    """Twice as many rows as columns, of which at most half can be active."""
    n, batch = 20, 100
    (P, _), q, _ = dense(random(batch, n, 1, 0, 0)[0])
    identity = torch.eye(n, dtype=torch.float64)
    A = torch.cat([identity, -identity]).expand(batch, -1, -1).contiguous()
    program = ReducedData(
        DenseMatrices(P, A), q, torch.full((batch, 2 * n), 0.3, dtype=torch.float64)
    )
    found = solved(program, cones_of(0, 2 * n))
    assert (found.status == Status.SOLVED).all()
    assert missed(program, cones_of(0, 2 * n), found).max() < 1e-10


def test_sets_that_go_round_in_circles_in_blocks_settle_one_by_one() -> None:
    program, cones = random(20000, 6, 8, 0, 3)
    found = solved(program, cones)
    assert (found.status == Status.SOLVED).float().mean() > 0.999
    assert found.iterations.max() > 8
    good = found.status == Status.SOLVED
    errors = missed(program, cones, found) / (1 + found.z.abs().amax(1))
    assert (errors[good] < 1e-9).all()


@pytest.mark.parametrize("shape", [(6, 8, 0), (20, 36, 2)])
def test_an_element_goes_its_own_way_in_a_batch(shape: tuple[int, int, int]) -> None:
    """With single changes, and where that is given up; no step is counted for others."""
    program, cones = random(200, *shape, 4)
    found = solved(program, cones)
    for element in range(0, 200, 9):
        alone = solved(program.select(torch.tensor([element])), cones)
        assert int(alone.status) == int(found.status[element])
        assert int(alone.iterations) == int(found.iterations[element])
        torch.testing.assert_close(alone.x[0], found.x[element], rtol=0, atol=1e-10)


def test_a_user_who_limits_the_iterations_gets_the_interior_points() -> None:
    declaration = quadratic_program(n=20, m=28, p=1)
    inputs = declaration.inputs(batch=20)
    layer = Layer(declaration, solver="INTERIOR", on_failure="nan")
    limited = layer.solve(*inputs, solver_args={"max_iter": 12})
    assert limited.iterations.max() <= 12
    assert (limited.status == Status.SOLVED).all()


def test_a_good_guess_takes_one_step() -> None:
    program, cones = random(20, 10, 10, 2, 0)
    found = solved(program, cones)
    again, factors = solve_by_active_set(program, cones, 1e-11, found.z > found.s)
    assert again.iterations.max() == 1
    assert factors is not None
    torch.testing.assert_close(again.x, found.x, rtol=0, atol=1e-12)


def test_rows_in_other_units_change_nothing() -> None:
    program, cones = random(20, 6, 9, 2, 5)
    (P, A), q, b = dense(program)
    scale = 10.0 ** torch.arange(-5, 6, dtype=torch.float64)
    scaled = ReducedData(DenseMatrices(P, A * scale[:, None]), q, b * scale)
    found, other = solved(program, cones), solved(scaled, cones)
    assert torch.equal(found.iterations, other.iterations)
    torch.testing.assert_close(other.x, found.x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("eigenvalue", [0.0, -1.0, 1e-13])
def test_only_where_the_objective_curves(eigenvalue: float) -> None:
    """Elements whose P is not safely positive definite are left, the others solved."""
    program, cones = random(4, 5, 6, 1, 0)
    (P, A), q, b = dense(program)
    values, vectors = torch.linalg.eigh(P)
    values[1, 0] = eigenvalue
    P = vectors @ (values.unsqueeze(2) * vectors.mT)
    found = solved(ReducedData(DenseMatrices(P, A), q, b), cones)
    wanted = [int(Status.SOLVED)] * 4
    wanted[1] = int(Status.FAILED)
    assert found.status.tolist() == wanted


def test_where_it_is_tried() -> None:
    u, x = cp.Variable(8), cp.Parameter(8)
    squares, box = cp.sum_squares(u - x), [u >= 0, u <= 1]

    def tried(objective: Any, constraints: list[Any]) -> bool:
        layer = Layer(cp.Problem(cp.Minimize(objective), constraints), [x], [u])
        assert isinstance(layer._engine, Engine)
        return may_apply(layer._engine.plan({}).program)

    assert tried(squares, [cp.sum(u) == 1, u >= 0])
    assert tried(squares, box)
    assert not tried(squares, [*box, u[:2] <= 0.5])  # more than two rows a column
    assert not tried(squares, [])  # nothing to choose
    assert not tried(x @ u, box)
    assert not tried(cp.sum_squares(u[:4] - x[:4]) + x @ u, box)
    assert not tried(squares, [cp.norm1(u) <= 1])  # variables without curvature
    assert not tried(squares, [cp.norm(u) <= 1])


def test_infeasible_elements_are_left_and_proven_by_the_interior_point() -> None:
    u, x, low = cp.Variable(4), cp.Parameter(4), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [cp.sum(u) == 1, u >= low])
    layer = Layer(problem, [x, low], [u], solver="INTERIOR", on_failure="nan")
    low_value = torch.tensor([0.0, 0.5, -1.0], dtype=torch.float64)
    solution = layer.solve(draw(3, 4), low_value)
    assert solution.status.tolist() == [Status.SOLVED, Status.INFEASIBLE, Status.SOLVED]
    assert set(solution.solver) == {"INTERIOR"}


# -- the factors of the solution are those of its derivatives --------------------------------------


def case(batch: int) -> tuple[Layer, tuple[torch.Tensor, ...]]:
    declaration = quadratic_program(n=8, m=9, p=2)
    inputs = tuple(t.requires_grad_() for t in declaration.inputs(batch=batch, seed=1))
    return Layer(declaration, solver="INTERIOR"), inputs


def gradients(layer: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    (u,) = layer(*inputs)
    return torch.autograd.grad(u.sin().sum(), inputs, retain_graph=True)


@pytest.mark.parametrize("batch", [1, 2, 33])
def test_gradients_by_the_factors_are_those_of_the_whole_system(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, inputs = case(batch)
    kept: list[bool] = []

    def spy(factors: Any, pull: None) -> Kept:
        kept.append(factors is not None)
        return Kept(factors, pull)

    monkeypatch.setattr(solution_map, "Kept", spy)
    found = gradients(layer, inputs)
    assert kept == [True]
    monkeypatch.setattr(solution_map, "Kept", lambda factors, pull: Kept(None, pull))
    without = gradients(layer, inputs)
    other = gradients(Layer(layer.declaration, solver="CLARABEL", adjoint="kkt"), inputs)
    for mine, plain, theirs in zip(found, without, other, strict=True):
        size = float(theirs.abs().max())
        torch.testing.assert_close(mine, plain, rtol=0, atol=1e-11 * (1 + size))
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6 * (1 + size))


def test_the_factors_serve_several_backward_passes_and_orders() -> None:
    layer, inputs = case(5)
    (u,) = layer(*inputs)
    first = torch.autograd.grad(u[:, 0].sum(), inputs, retain_graph=True)
    again = torch.autograd.grad(u[:, 0].sum(), inputs, retain_graph=True)
    graph = torch.autograd.grad(u[:, 0].sum(), inputs, create_graph=True)
    for one, two, three in zip(first, again, graph, strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one, three.detach(), rtol=1e-9, atol=1e-11)
    assert (
        torch.autograd.grad(torch.stack([g.square().sum() for g in graph]).sum(), inputs)[0]
        .isfinite()
        .all()
    )


def test_two_calls_do_not_share_factors() -> None:
    layer, inputs = case(3)
    moved = tuple((t.detach() * 1.1).requires_grad_() for t in inputs)
    expected = gradients(layer, inputs)
    (u,), (v,) = layer(*inputs), layer(*moved)
    (v.sum() + 0).backward()
    found = torch.autograd.grad(u.sin().sum(), inputs)
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one, two)


def test_a_weakly_active_row_has_the_derivative_without_factors() -> None:
    u, x = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [u >= 0])
    value = torch.tensor([[0.0, 1.0, -1.0]] * 4, dtype=torch.float64).requires_grad_()
    found = []
    for solver in ("INTERIOR", "CLARABEL"):
        (u_value,) = Layer(problem, [x], [u], solver=solver)(value)
        found.append(torch.autograd.grad(u_value.sum(), value)[0])
    inner = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(4, 2)
    for gradient in found:
        torch.testing.assert_close(gradient[:, 1:], inner, rtol=0, atol=1e-9)
        assert ((gradient[:, 0] >= -1e-9) & (gradient[:, 0] <= 1 + 1e-9)).all()


def kept_by(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> list[Factors]:
    """What calls of a layer keep from now on."""
    kept: list[Factors] = []

    def spy(factors: Factors | None, pull: None) -> Kept:
        assert factors is not None
        kept.append(factors)
        return Kept(factors, pull)

    monkeypatch.setattr(solution_map, "Kept", spy)
    return kept


def test_factors_are_saved_tensors_and_go_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook sees them, and a backward pass lets go of them while the output is still held."""
    layer, inputs = case(3)
    kept, packed = kept_by(layer, monkeypatch), []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        packed.append(tensor.data_ptr())
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(*inputs)
    mine = [tensor.data_ptr() for tensor in kept.pop().tensors if tensor is not None]
    assert set(mine) <= set(packed)

    (u,) = layer(*inputs)
    watched = [weakref.ref(tensor) for tensor in kept.pop().tensors if tensor is not None]
    u.sum().backward()
    gc.collect()
    assert u.grad_fn is not None
    assert all(reference() is None for reference in watched)


# -- where the dual has few digits -----------------------------------------------------------------


@pytest.mark.parametrize("small", [1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("seed", [7, 21, 55])
def test_gradients_where_the_objective_hardly_curves_along_one_direction(
    small: float, seed: int
) -> None:
    """Of the whole KKT system in long double, at a solution that has all digits."""
    n, m = 5, 6
    F, G = draw(n, n, seed=seed), draw(m, n, seed=seed + 1)
    F[:, 0] *= small
    q, h = draw(n, seed=seed + 2), draw(m, seed=seed + 3).abs()
    u, parameter = cp.Variable(n), cp.Parameter(n)
    objective = cp.sum_squares(F.numpy() @ u) / 2 + parameter @ u
    # Bounded, wherever the objective does not curve.
    box = [G.numpy() @ u <= h.numpy(), u >= -10]
    layer = Layer(cp.Problem(cp.Minimize(objective), box), [parameter], [u], solver="INTERIOR")
    value = q.unsqueeze(0).requires_grad_()
    (found,) = layer(value)
    weights = draw(n, seed=seed + 4)
    (gradient,) = torch.autograd.grad((found * weights).sum(), value)
    A = np.concatenate([G.numpy(), -np.eye(n)]).astype(np.longdouble)
    b = np.concatenate([h.numpy(), np.full(n, 10.0)]).astype(np.longdouble)
    active = b - A @ found[0].detach().numpy() < 1e-9
    P = F.numpy().astype(np.longdouble)
    k = int(active.sum())
    matrix = np.zeros((n + k, n + k), dtype=np.longdouble)
    matrix[:n, :n], matrix[n:, :n], matrix[:n, n:] = P.T @ P, A[active], A[active].T
    right = np.zeros(n + k, dtype=np.longdouble)
    right[:n] = -weights.numpy()
    exact = torch.from_numpy(eliminated(matrix, right)[:n].astype(np.float64))
    torch.testing.assert_close(gradient[0], exact, rtol=0, atol=1e-6 * float(exact.norm()))


def eliminated(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The solution of a linear system, by Gauss's elimination with row exchanges."""
    whole = np.concatenate([matrix, right[:, None]], 1)
    for k in range(len(whole)):
        best = k + int(np.abs(whole[k:, k]).argmax())
        whole[[k, best]] = whole[[best, k]]
        whole[k] /= whole[k, k]
        others = np.arange(len(whole)) != k
        whole[others] -= np.outer(whole[others, k], whole[k])
    found: np.ndarray = whole[:, -1]
    return found


@pytest.mark.parametrize(("powers", "seed"), [(6, 3), (8, 30), (8, 31), (8, 57)])
def test_rows_of_very_different_sizes(powers: int, seed: int) -> None:
    """The solution of the same program in ordinary units, whatever solver answers.

    With rows of 1e-8 and 1e8, the residual of a batch does not see the small ones.
    """
    n, m, batch = 6, 7, 12
    declaration = quadratic_program(n=n, m=m, p=1)
    names = [parameter.name() for parameter in declaration.parameters]
    inputs = dict(zip(names, declaration.inputs(batch=batch, seed=seed), strict=True))
    layer = Layer(declaration, solver="INTERIOR", on_failure="nan")
    expected = layer(*inputs.values())[0]
    scale = 10.0 ** torch.linspace(-powers, powers, m, dtype=torch.float64)
    scaled = {**inputs, "G": inputs["G"] * scale[:, None], "h": inputs["h"] * scale}
    torch.testing.assert_close(layer(*scaled.values())[0], expected, rtol=0, atol=1e-7)


def test_equations_of_zeros_cost_nothing() -> None:
    """Padding ``0' u = 0`` is a regular row to itself: same solutions, no interior point."""
    declaration = quadratic_program(n=6, m=8, p=2)
    names = [parameter.name() for parameter in declaration.parameters]
    inputs = dict(zip(names, declaration.inputs(batch=20, seed=0), strict=True))
    inputs["A"][:, 1], inputs["b"][:, 1] = 0.0, 0.0
    layer = Layer(declaration, solver="INTERIOR")
    solution = layer.solve(*inputs.values())
    assert solution.iterations.max() < 8
    alone = torch.cat([layer(*(v[k : k + 1] for v in inputs.values()))[0] for k in range(20)])
    torch.testing.assert_close(alone, solution.primal[0], rtol=0, atol=1e-13)
    inputs["A"][:, 1], inputs["b"][:, 1] = inputs["A"][:, 0], inputs["b"][:, 0]
    expected = layer.solve(*inputs.values()).primal[0]
    torch.testing.assert_close(solution.primal[0], expected, rtol=0, atol=1e-8)


def test_an_empty_batch() -> None:
    program, cones = random(0, 5, 4, 1, seed=0)
    found, _ = solve_by_active_set(program, cones, 1e-11)
    assert found.x.shape == (0, 5)


def test_bounds_are_met_exactly() -> None:
    """What lies at a bound of zero is a zero, not the rounding of one."""
    n, batch = 8, 50
    u, F, x = cp.Variable(n), cp.Parameter((n, n)), cp.Parameter(n)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(F @ u - x)), [u >= 0])
    layer = Layer(problem, [F, x], [u], solver="INTERIOR")
    (found,) = layer(draw(batch, n, n), draw(batch, n, seed=1))
    assert ((found == 0) | (found > 1e-12)).all()
    assert 0.2 < (found == 0).double().mean() < 0.8
