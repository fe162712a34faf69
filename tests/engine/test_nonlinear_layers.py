"""Layers over nonlinear programs: what is solved, how it is chosen, and how it is used."""

import copy
import pickle
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from helpers import assert_derivatives, assert_jacobians, draw, symmetrized, tensor

import ddn_cvx as ddn
from ddn_cvx import Status

DOUBLE = torch.float64


def minimized(
    objective: Any, constraints: list[Any], parameters: list[Any], variables: list[Any], **more: Any
) -> ddn.DeclarativeLayer:
    return ddn.DeclarativeLayer(
        cp.Problem(cp.Minimize(objective), constraints), parameters, variables, **more
    )


# -- which path ------------------------------------------------------------------------------------


def test_a_problem_that_is_not_convex_becomes_a_nonlinear_program() -> None:
    u, x = cp.Variable(2), cp.Parameter(2)
    layer = minimized(cp.sum(cp.nlp.sin(u - x)) + cp.sum_squares(u), [], [x], [u])
    assert "nonlinear program (not DCP)" in repr(layer)
    assert "solver='TORCH'" in repr(layer)


def test_a_problem_that_is_not_dpp_becomes_a_nonlinear_program() -> None:
    u, x, k = cp.Variable(2), cp.Parameter(2), cp.Parameter(pos=True)
    layer = minimized(cp.sum_squares(u / cp.square(k) - x) + cp.norm1(k * x) * 0, [], [x, k], [u])
    assert "nonlinear program (DCP, not DPP)" in repr(layer)
    point, scale = draw(3, 2), tensor(1.0, 2.0, 0.5)
    torch.testing.assert_close(
        layer(point, scale)[0], point * scale.unsqueeze(1) ** 2, rtol=0, atol=1e-9
    )


def test_a_convex_problem_becomes_a_cone_program_unless_told_otherwise() -> None:
    u, x = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [u >= 0])
    assert "cone program" in repr(ddn.DeclarativeLayer(problem, [x], [u]))
    forced = ddn.DeclarativeLayer(problem, [x], [u], solver="TORCH")
    assert "nonlinear program (solver='TORCH')" in repr(forced)
    assert "nonlinear program (adjoint='implicit')" in repr(
        ddn.DeclarativeLayer(problem, [x], [u], adjoint="implicit")
    )
    point = draw(5, 2)
    torch.testing.assert_close(forced(point)[0], point.clamp_min(0), rtol=0, atol=1e-9)


def test_a_cone_solver_refuses_what_is_not_convex() -> None:
    u, x = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum(cp.nlp.sin(u - x))))
    with pytest.raises(ddn.DeclarationError, match="DCP"):
        ddn.DeclarativeLayer(problem, [x], [u], solver="CLARABEL")


def test_what_cannot_become_a_layer_is_refused_by_name() -> None:
    u, x = cp.Variable(2, integer=True), cp.Parameter(2)
    with pytest.raises(ddn.DeclarationError, match=r"integer|discrete"):
        minimized(cp.sum(cp.nlp.sin(u - x)), [], [x], [u], solver="TORCH")
    v = cp.Variable(2)
    with pytest.raises(ddn.DeclarationError, match="tolerence"):
        minimized(cp.sum(cp.nlp.sin(v - x)), [], [x], [v], solver_args={"tolerence": 1e-8})
    with pytest.raises(ddn.DeclarationError, match="starts"):
        minimized(cp.sum(cp.nlp.sin(v - x)), [], [x], [v], starts=0)
    with pytest.raises(ddn.DeclarationError, match="fallback"):
        minimized(cp.sum(cp.nlp.sin(v - x)), [], [x], [v], fallback="SNOPT")
    with pytest.raises(ddn.DeclarationError, match="adjoint"):
        minimized(cp.sum(cp.nlp.sin(v - x)), [], [x], [v], solver="TORCH", adjoint="kkt")


# -- every kind of constraint ----------------------------------------------------------------------


def constrained(kind: str) -> tuple[cp.Problem, cp.Parameter, list[cp.Variable]]:
    p = cp.Parameter(4)
    x = cp.Variable(4)
    X = cp.Variable((2, 2))
    square = cp.reshape(x, (2, 2), order="F")
    constraints: dict[str, list[Any]] = {
        "equality": [x[0] + 2 * x[1] == 0.5, x[2] == x[3]],
        "inequality": [x <= 0.3, x >= -0.2, cp.sum(x) <= 0.1],
        "nonneg": [cp.NonNeg(x + 0.2)],
        "zero": [cp.Zero(x[:2] - 0.1)],
        "second-order": [cp.SOC(cp.Constant(0.5), x), x[0] >= 0.1],
        "second-order, packed": [cp.SOC(cp.Constant([0.4, 0.3]), square)],
        "norm": [cp.norm(x) <= 0.5],
        "semidefinite": [cp.bmat([[1 + x[0], x[1]], [x[1], x[2]]]) >> 0, x[3] == 0.1],
        "negative semidefinite": [cp.bmat([[x[0], x[1]], [x[1], x[2]]]) << 0],
        "exponential": [cp.ExpCone(x[0], x[1] + 1.5, x[2] + 1.0)],
        "power": [cp.PowCone3D(x[0] + 1, x[1] + 1, x[2] + 0.5, 0.4)],
        "powers": [cp.PowCone3D(x[:2] + 1, x[1:3] + 1, x[2:] + 1.5, [0.4, 0.7])],
        "power of three": [cp.PowConeND(x[:3] + 1, x[3] + 1.5, np.array([0.2, 0.3, 0.5]))],
        "convex": [cp.log_sum_exp(x) <= 1.2, cp.square(x[0]) <= 0.1],
        "broadcast": [X <= 0.1, cp.sum(X) + cp.sum(x) == 0.3],
    }
    objective = cp.sum_squares(x - p) + cp.sum(cp.exp(x / 2))
    variables = [x]
    if kind == "broadcast":
        objective, variables = objective + cp.sum_squares(X - 1), [x, X]
    return cp.Problem(cp.Minimize(objective), constraints[kind]), p, variables


@pytest.mark.parametrize(
    "kind",
    [
        "equality",
        "inequality",
        "nonneg",
        "zero",
        "second-order",
        "second-order, packed",
        "norm",
        "semidefinite",
        "negative semidefinite",
        "exponential",
        "power",
        "powers",
        "power of three",
        "convex",
        "broadcast",
    ],
)
def test_constraints_multipliers_and_gradients_are_those_of_the_cone_program(kind: str) -> None:
    problem, p, variables = constrained(kind)
    cone = ddn.DeclarativeLayer(problem, [p], variables)
    torch_layer = ddn.DeclarativeLayer(problem, [p], variables, solver="TORCH")
    points = draw(4, 4, seed=1).requires_grad_()
    expected, found = cone.solve(points), torch_layer.solve(points)
    assert bool(found.solved.all()), found.status
    for ours, theirs in zip(found.primal, expected.primal, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.objective(), expected.objective(), rtol=1e-9, atol=1e-9)
    for ours_dual, theirs_dual in zip(found.dual, expected.dual, strict=True):
        if ours_dual is None or theirs_dual is None:
            continue
        pairs = zip(
            ours_dual if isinstance(ours_dual, tuple) else (ours_dual,),
            theirs_dual if isinstance(theirs_dual, tuple) else (theirs_dual,),
            strict=True,
        )
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    incoming = [draw(*value.shape, seed=2) for value in found.primal]
    (gradient,) = torch.autograd.grad(torch_layer(points), points, incoming)
    (reference,) = torch.autograd.grad(cone(points), points, incoming)
    torch.testing.assert_close(gradient, reference, rtol=0, atol=1e-5)


ATTRIBUTES: dict[str, dict[str, Any]] = {
    "nonneg": {"nonneg": True},
    "nonpos": {"nonpos": True},
    "bounds": {"bounds": [-0.3, 0.4]},
    "symmetric": {"symmetric": True},
    "diag": {"diag": True},
    "PSD": {"PSD": True},
    "NSD": {"NSD": True},
    "sparsity": {"sparsity": [(0, 1, 2), (1, 1, 0)]},
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_of_variables_are_constraints(name: str) -> None:
    X, P = cp.Variable((3, 3), **ATTRIBUTES[name]), cp.Parameter((3, 3))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - P) + cp.sum(cp.square(X[0]))))
    points = draw(3, 3, 3)
    expected = ddn.DeclarativeLayer(problem, [P], [X])(points)[0]
    layer = ddn.DeclarativeLayer(problem, [P], [X], solver="TORCH")
    solution = layer.solve(points)
    torch.testing.assert_close(solution.primal[0], expected, rtol=0, atol=1e-6)
    assert float(solution.violation().max()) < 1e-8
    assert_jacobians(symmetrized(layer), [points[0]])


@pytest.mark.parametrize(("attributes", "rows"), [({"nonneg": True}, 3), ({"bounds": [0, 1]}, 6)])
def test_the_domain_of_a_variable_is_a_constraint_once(
    attributes: dict[str, Any], rows: int
) -> None:
    """By its attribute and by the expressions' domains it would be twice, and dependent."""
    u, x = cp.Variable(3, **attributes), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)))
    layer = ddn.DeclarativeLayer(problem, [x], [u], solver="TORCH")
    assert f"constraints: {rows} inequality" in repr(layer)
    degeneracy = layer.solve(torch.tensor([-1.0, 0.5, -2.0])).degeneracy
    assert degeneracy is not None
    assert not int(degeneracy) & int(ddn.Degeneracy.DEPENDENT_CONSTRAINTS)


def test_maximization_and_its_multipliers() -> None:
    u, x = cp.Variable(2), cp.Parameter(2)
    bound, total = u <= 1, cp.sum(u) == 0.5
    problem = cp.Problem(cp.Maximize(x @ u - cp.sum(cp.power(u, 4))), [bound, total])
    points = draw(3, 2) * 3
    found = ddn.DeclarativeLayer(problem, [x], [u], solver="TORCH").solve(points)
    expected = ddn.DeclarativeLayer(problem, [x], [u]).solve(points)
    torch.testing.assert_close(found.objective(), expected.objective(), rtol=1e-8, atol=1e-8)
    for ours, theirs in zip(found.dual, expected.dual, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


# -- what only a nonlinear program can say ---------------------------------------------------------


def test_parameters_in_exponents_and_denominators() -> None:
    u, a, b = cp.Variable(pos=True), cp.Parameter(pos=True), cp.Parameter(pos=True)
    # u^2 / (2 b) - log(u) a: stationary at u^2 = a b
    layer = minimized(cp.square(u) / (2 * b) - a * cp.log(u) + cp.exp(a * b), [], [a, b], [u])
    first, second = tensor(1.0, 2.0, 0.3), tensor(0.7, 1.5, 2.0)
    torch.testing.assert_close(layer(first, second)[0], (first * second).sqrt(), rtol=0, atol=1e-9)
    inputs = (first[1:2].requires_grad_(), second[1:2].requires_grad_())
    assert_derivatives(lambda *p: layer(*p)[0], inputs)


def test_a_parametric_matrix_in_a_quadratic_form() -> None:
    u, M, c = cp.Variable(3), cp.Parameter((3, 3)), cp.Parameter(3)
    objective = cp.sum_squares(M @ u) + cp.power(cp.sum(u), 4) + c @ u
    layer = minimized(objective, [], [M, c], [u], solver="TORCH")
    for matrix, slope in zip(draw(2, 3, 3), draw(2, 3, seed=1), strict=True):
        assert_jacobians(symmetrized(layer), (matrix, slope), atol=1e-6)


@pytest.mark.parametrize(
    ("atom", "expected"),
    [
        ("abs", [0.5, -0.5, 0.0]),
        ("norm1", [0.5, -0.5, 0.0]),
        ("max", None),
        ("norm_inf", None),
        ("maximum", [0.5, -1.0, 0.0]),
    ],
)
def test_nonsmooth_atoms_beside_nonconvex_ones(atom: str, expected: list[float] | None) -> None:
    u, x = cp.Variable(3), cp.Parameter(3)
    kink = {
        "abs": cp.sum(cp.abs(u)),
        "norm1": cp.norm1(u),
        "max": cp.max(u),
        "norm_inf": cp.norm_inf(u),
        "maximum": cp.sum(cp.maximum(u, 0)),
    }[atom]
    convex = minimized(cp.sum_squares(u - x) + kink, [], [x], [u])
    # The same objective, hidden from cvxpy's rules.
    hidden = cp.sum(cp.square(cp.nlp.sin(u - x)) + cp.square(cp.nlp.cos(u - x))) + cp.sum_squares(
        u - x
    )
    layer = minimized(hidden + kink, [], [x], [u])
    assert "nonlinear" in repr(layer)
    point = tensor(1.0, -1.0, 0.2)
    (found,) = layer(point)
    if expected is not None:
        torch.testing.assert_close(found, tensor(*expected), rtol=0, atol=1e-7)
    torch.testing.assert_close(found, convex(point)[0], rtol=0, atol=1e-6)
    ours = torch.func.jacrev(lambda p: layer(p)[0])(point)
    theirs = torch.func.jacrev(lambda p: convex(p)[0])(point)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_truncated_quadratic_pooling_as_written() -> None:
    u, x = cp.Variable(), cp.Parameter(7)
    layer = minimized(cp.sum(cp.minimum(cp.square(u - x), 1)), [], [x], [u], starts=8)
    points = torch.cat([0.2 * draw(2, 5), 10 + draw(2, 2, seed=1)], 1)
    (found,) = layer(points)
    torch.testing.assert_close(found, points[:, :5].mean(1), rtol=0, atol=1e-8)
    leaf = points.requires_grad_()
    (gradient,) = torch.autograd.grad(layer(leaf)[0].sum(), leaf)
    expected = torch.cat([torch.full((2, 5), 0.2), torch.zeros(2, 2)], 1).to(DOUBLE)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-8)


# -- starts, fallback, other solvers ---------------------------------------------------------------


def two_wells() -> tuple[cp.Problem, cp.Parameter, cp.Variable]:
    """Minima near -1 and 1, the lower where the tilt says."""
    u, tilt = cp.Variable(), cp.Parameter()
    return cp.Problem(cp.Minimize(cp.square(cp.square(u) - 1) + tilt * u)), tilt, u


def test_the_start_decides_which_local_solution() -> None:
    problem, tilt, u = two_wells()
    layer = ddn.DeclarativeLayer(problem, [tilt], [u])
    tilts = tensor(0.1, 0.1)
    (found,) = layer(tilts, initial=[tensor(1.0, -1.0)])
    assert found.sign().tolist() == [1.0, -1.0]
    (named,) = layer(tilts, initial={u: tensor(-1.0, 1.0)})
    assert named.sign().tolist() == [-1.0, 1.0]
    u.value = -2.0
    assert float(layer(tilts[:1])[0]) < 0
    with pytest.raises(ValueError, match="start"):
        layer(tilts, initial=[tensor(1.0, 2.0, 3.0)])


def test_several_starts_keep_the_lowest_and_report_the_runner_up() -> None:
    problem, tilt, u = two_wells()
    layer = ddn.DeclarativeLayer(problem, [tilt], [u], starts=16)
    tilts = tensor(0.3, -0.3)
    solution = layer.solve(tilts, initial=[tensor(1.0, 1.0)])
    assert solution.primal[0].sign().tolist() == [-1.0, 1.0]
    assert solution.runner_up is not None
    gap = []
    for value in tilts.tolist():
        roots = np.roots([4, 0, -4, value])
        heights = sorted((r**2 - 1) ** 2 + value * r for r in roots.real)
        gap.append((heights[1] - heights[0]) / (1 + abs(heights[0])))
    torch.testing.assert_close(solution.runner_up, tensor(*gap), rtol=1e-6, atol=1e-6)
    again = layer.solve(tilts, initial=[tensor(1.0, 1.0)])
    assert bool((again.primal[0] == solution.primal[0]).all())  # the generator is seeded


def test_uno_retries_what_the_batched_solver_could_not_solve() -> None:
    pytest.importorskip("unopy")
    problem, tilt, u = two_wells()
    limited = {"max_iterations": 1}
    alone = ddn.DeclarativeLayer(problem, [tilt], [u], solver_args=limited, on_failure="nan")
    tilts = tensor(0.1, -0.2)
    start = [tensor(5.0, 5.0)]
    assert not bool(alone.solve(tilts, initial=start).solved.any())
    helped = ddn.DeclarativeLayer(problem, [tilt], [u], solver_args=limited, fallback="UNO")
    solution = helped.solve(tilts, initial=start)
    assert solution.solver == ("UNO", "UNO")
    assert bool(solution.solved.all())
    assert "fallback='UNO'" in repr(helped)
    leaf = tilts.requires_grad_()
    (gradient,) = torch.autograd.grad(helped(leaf, initial=start)[0].sum(), leaf)
    y = solution.primal[0]
    torch.testing.assert_close(gradient, -1 / (12 * y**2 - 4), rtol=1e-8, atol=1e-8)


def test_uno_as_the_solver() -> None:
    pytest.importorskip("unopy")
    u, x = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [cp.sum_squares(u) == 1])
    u.value = np.ones(3)
    points = draw(2, 3).abs() + 0.1
    uno = ddn.DeclarativeLayer(problem, [x], [u], solver="UNO")
    ours = ddn.DeclarativeLayer(problem, [x], [u])
    torch.testing.assert_close(uno(points)[0], ours(points)[0], rtol=0, atol=1e-9)
    assert uno.solve(points).solver == ("UNO", "UNO")


def test_a_sum_of_squares_is_recognised() -> None:
    u, x = cp.Variable(2), cp.Parameter(2)
    rosenbrock = cp.square(x[0] - u[0]) + 100 * cp.square(u[1] - cp.square(u[0]))
    layer = minimized(rosenbrock, [], [x], [u])
    assert "levenberg marquardt" in repr(layer).lower()
    for method in ("newton", "levenberg marquardt", "newton cg", "interior point"):
        solution = layer.solve(
            tensor(1.0, 1.0), initial=[tensor(-1.2, 1.0)], solver_args={"method": method}
        )
        assert int(solution.status) == Status.SOLVED, method
        torch.testing.assert_close(solution.primal[0], tensor(1.0, 1.0), rtol=0, atol=1e-8)


# -- as a module -----------------------------------------------------------------------------------


def sphere() -> ddn.DeclarativeLayer:
    u, x = cp.Variable(3), cp.Parameter(3)
    u.value = np.ones(3)
    return minimized(cp.sum_squares(u - x), [cp.sum_squares(u) == 1], [x], [u])


def test_copies_and_pickles_work_alike() -> None:
    layer = sphere()
    points = draw(2, 3)
    (expected,) = layer(points)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(twin(points)[0], expected)
        assert_jacobians(symmetrized(twin), [points[0]])


def test_batches_of_any_shape_and_dtype() -> None:
    layer = sphere()
    points = draw(2, 0, 3)
    (empty,) = layer(points.requires_grad_())
    assert empty.shape == (2, 0, 3)
    empty.sum().backward()
    assert layer.solve(points).status.shape == (2, 0)
    single = draw(3).float()
    (answer,) = layer(single)
    assert answer.dtype == torch.float32
    assert answer.shape == (3,)
    many = draw(2, 3, 3)
    (whole,) = layer(many)
    rows = torch.stack([torch.stack([layer(p)[0] for p in row]) for row in many])
    torch.testing.assert_close(whole, rows, rtol=0, atol=1e-9)
    mapped = torch.func.vmap(lambda p: layer(p)[0])(many)
    torch.testing.assert_close(mapped, whole, rtol=0, atol=1e-9)


def test_a_layer_can_be_audited_and_compared() -> None:
    layer = sphere()
    audit = layer.check(draw(3, 3))
    assert audit.good
    assert "gradient" in str(audit)


def test_a_layer_trains_a_model() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 3, dtype=DOUBLE)
    layer = sphere()
    inputs, target = draw(16, 2), torch.nn.functional.normalize(draw(16, 3, seed=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = (layer(model(inputs))[0] - target).square().sum(1).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
