"""Power cones: the barrier, the projection, and programs whose solutions are known."""

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
from ddn_cvx.cones.power import Power
from ddn_cvx.cones.product import Cones
from ddn_cvx.solvers.answer import Answer
from ddn_cvx.solvers.cone.interior_point.solver import InteriorPoint
from ddn_cvx.status import Status

Layer = ddn.DeclarativeLayer
SOLVERS = ["INTERIOR", "CLARABEL"]


def inside(count: int) -> tuple[Power, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cones of many exponents, their exponents, and slacks and multipliers inside of them."""
    generator = torch.Generator().manual_seed(0)
    a, x, y, u, v = 0.02 + 0.96 * torch.rand(5, count, generator=generator, dtype=torch.float64)
    a[:3] = a.new_tensor([1e-6, 1e-3, 1 - 1e-3])
    share = 2 * torch.rand(2, count, generator=generator, dtype=torch.float64) - 1
    slack = torch.stack([x, y, share[0] * x**a * y ** (1 - a)], 1)
    multiplier = torch.stack([u, v, share[1] * (u / a) ** a * (v / (1 - a)) ** (1 - a)], 1)
    index = np.arange(3 * count).reshape(-1, 3)
    return Power(index, a.numpy()), a, slack, multiplier


def value(point: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    x, y, z = point.unbind()
    h = x ** (2 * a) * y ** (2 - 2 * a) - z**2
    return -h.log() - (1 - a) * x.log() - a * y.log()


def test_the_barriers_derivatives_are_autograds() -> None:
    cone, a, slack, _ = inside(100)
    barrier = cone.barrier(slack)
    gradient = torch.func.vmap(torch.func.grad(value))(slack, a)
    hessian = torch.func.vmap(torch.func.hessian(value))(slack, a)
    torch.testing.assert_close(cone.gradient(barrier), gradient, rtol=1e-9, atol=1e-9)
    factor = cone.hessian(barrier)
    upper = torch.stack([factor.transposed_times(unit) for unit in torch.eye(3).double()], -1)
    torch.testing.assert_close(upper.mT @ upper, hessian, rtol=1e-9, atol=1e-9)
    p, q = draw(2, 100, 3, seed=1)

    def along(s: torch.Tensor, a: torch.Tensor, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.func.jvp(
            lambda s: torch.func.hessian(value)(s, a) @ p, (s,), (q,)
        )[1]
        return found

    third = torch.func.vmap(along)(slack, a, p, q)
    found = cone.third_derivative(barrier, p, q)
    torch.testing.assert_close(found, third, rtol=1e-8, atol=1e-8 * float(third.abs().max()))


@pytest.mark.parametrize("distance", [0.0, 1e-3, 1e-9])
def test_shadows_and_what_the_scaling_maps(distance: float) -> None:
    """Multipliers inside the dual cone and next to its boundary."""
    cone, a, slack, multiplier = inside(100)
    if distance:
        u, v, w = multiplier.unbind(1)
        w = w.sign() * (1 - distance) * (u / a) ** a * (v / (1 - a)) ** (1 - a)
        multiplier = torch.stack([u, v, w], 1)
    shadow, at_shadow = cone.shadow(multiplier)
    assert cone.is_inside(shadow).all()
    torch.testing.assert_close(-cone.gradient(at_shadow), multiplier, rtol=1e-9, atol=1e-12)
    if distance:
        return
    W, point = cone.scaling(slack.unsqueeze(0), multiplier.unsqueeze(0))
    image = torch.empty_like(point)
    cone.scale(W, point, image, inverse=False, transposed=True)  # W' W z
    torch.testing.assert_close(image[0], slack, rtol=1e-9, atol=1e-9)
    cone.scale(W, shadow.unsqueeze(0), image, inverse=True, transposed=True)
    cone.scale(W, image, image, inverse=True, transposed=False)
    expected = -cone.gradient(cone.barrier(slack))
    torch.testing.assert_close(image[0], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("nearer", "error"), [(0.0, 1e-5), (0.3, 3e-2)])
def test_the_scaling_keeps_its_digits_next_to_the_boundary(nearer: float, error: float) -> None:
    """On the central path and beside it ``W z = W'^-1 s``, though ``W' W`` has size ``1 / mu``
    and an eigenvalue ``mu``."""
    mu, x = 1e-9, torch.linspace(0.2, 1.0, 20, dtype=torch.float64)
    a = torch.full_like(x, 1 / 1.2)
    cone = Power(np.arange(60).reshape(-1, 3), a.numpy())
    slack = torch.stack([x, torch.ones_like(x), (1 - mu) * x**a], 1)
    multiplier = -mu * cone.gradient(cone.barrier(slack))
    multiplier[:, 2] *= 1 + nearer * mu
    W, point = cone.scaling(slack.unsqueeze(0), multiplier.unsqueeze(0))
    image = torch.empty_like(point)
    cone.scale(W, slack.unsqueeze(0), image, inverse=True, transposed=True)
    torch.testing.assert_close(image / mu**0.5, point / mu**0.5, rtol=0, atol=error)


def test_a_multiplier_on_the_axis_has_a_shadow_there() -> None:
    cone, _, _, multiplier = inside(20)
    for w in (0.0, 1e-200):
        multiplier[:, 2] = w
        shadow, barrier = cone.shadow(multiplier)
        assert shadow[:, 2].abs().max() <= 1e3 * w
        torch.testing.assert_close(-cone.gradient(barrier), multiplier, rtol=1e-12, atol=1e-12)
    unit = torch.zeros(1, 20, 3, dtype=torch.float64)
    cone.set_identity(unit)
    torch.testing.assert_close(-cone.gradient(cone.barrier(unit)), unit)


def test_layout() -> None:
    cones = Cones(zero=1, second_order=(3,), exponential=1, power=(0.3, 0.5))
    assert cones.rows == 1 + 3 + 3 + 6
    assert cones.scs()["p"] == [0.3, 0.5]
    assert cones.counts()["power"] == 2
    assert [group.name for group in cones.groups] == ["second-order", "exponential", "power"]
    assert cones.groups[2].index.tolist() == [[7, 8, 9], [10, 11, 12]]
    assert not cones.is_symmetric


def nearest(point: torch.Tensor, a: float) -> torch.Tensor:
    """The projection: Hien, "Differential properties of Euclidean projection onto power cone"
    (2015), proposition 2.2, by bisection of its one equation."""
    z = point[:, 2]
    height, size = z.abs(), torch.tensor([a, 1 - a], dtype=torch.float64)
    pair = point[:, :2]
    low, high = torch.zeros_like(height), height

    def sides(r: torch.Tensor) -> torch.Tensor:
        root = (pair.square() + 4 * size * (r * (height - r)).unsqueeze(1)).sqrt()
        return (pair + root) / 2

    for _ in range(200):
        r = (low + high) / 2
        above = (sides(r).clamp_min(0.0) ** size).prod(1) > r
        low, high = torch.where(above, r, low), torch.where(above, high, r)
    found = torch.cat([sides(low), (z.sign() * low).unsqueeze(1)], 1)
    member = (pair >= 0).all(1) & ((pair.clamp_min(0.0) ** size).prod(1) >= height)
    negative = (-pair).clamp_min(0.0) / size
    polar = (pair <= 0).all(1) & ((negative**size).prod(1) >= height)
    return torch.where(member.unsqueeze(1), point, torch.where(polar.unsqueeze(1), 0.0, found))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("a", [0.1, 0.3, 0.5, 0.8])
def test_the_projection_is_the_closed_form(solver: str, a: float) -> None:
    u, p = cp.Variable(3), cp.Parameter(3)
    cone = cp.PowCone3D(u[0], u[1], u[2], a)
    layer = Layer(cp.Problem(cp.Minimize(cp.sum_squares(u - p)), [cone]), [p], [u], solver=solver)
    point = 2 * draw(24, 3)
    solution = layer.solve(point)
    assert (solution.status == Status.SOLVED).all()
    assert set(solution.solver) == {solver}
    torch.testing.assert_close(solution.primal[0], nearest(point, a), rtol=0, atol=1e-7)


@given(st.floats(0.05, 0.95), st.integers(1, 4), st.integers(0, 50))
@settings(max_examples=10, deadline=None)
def test_demand_spends_fixed_shares(a: float, batch: int, seed: int) -> None:
    """Cobb and Douglas: ``max x^a y^(1-a)`` on a budget has ``x = a w / p``; with its gradients."""
    x, t = cp.Variable(2), cp.Variable()
    price, wealth = cp.Parameter(2, pos=True), cp.Parameter(pos=True)
    constraints = [cp.PowCone3D(x[0], x[1], t, a), price @ x <= wealth]
    problem = cp.Problem(cp.Maximize(t), constraints)
    layer = Layer(problem, [price, wealth], [x, t], solver="INTERIOR")
    inputs = [draw(batch, 2, seed=seed).exp(), draw(batch, seed=seed + 1).exp()]
    inputs = [tensor.requires_grad_() for tensor in inputs]

    def closed(price: torch.Tensor, wealth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shares = torch.tensor([a, 1 - a], dtype=torch.float64)
        x = shares * wealth.unsqueeze(1) / price
        return x, (x**shares).prod(1)

    results = []
    for demand, utility in (layer(*inputs), closed(*inputs)):
        loss = (demand * draw(batch, 2, seed=9)).sum() + utility.sin().sum()
        results.append((demand, utility, *torch.autograd.grad(loss, inputs)))
    for found, expected in zip(*results, strict=True):
        scale = float(expected.detach().abs().max())
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * scale)


def best_on_the_ball(c: torch.Tensor, p: float) -> torch.Tensor:
    """Maximises ``c'v`` over the unit ball of the p-norm."""
    q = p / (p - 1)
    length = torch.linalg.vector_norm(c, q, dim=1, keepdim=True)
    direction: torch.Tensor = c.sign() * (c.abs() / length) ** (q - 1)
    return direction


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("p", [1.5, 3.0, 7.5])
def test_the_dual_norm_is_attained(solver: str, p: float) -> None:
    """``max c'v`` over the ball of a p-norm is ``v_i = sign(c_i) |c_i|^(q-1) / |c|_q^(q-1)``."""
    v, c = cp.Variable(4), cp.Parameter(4)
    ball = cp.pnorm(v, p, approx=False) <= 1  # type: ignore[arg-type]
    layer = Layer(cp.Problem(cp.Maximize(c @ v), [ball]), [c], [v], solver=solver)
    c_value = draw(6, 4).requires_grad_()

    weights = draw(6, 4, seed=1)
    (found,) = layer(c_value)
    (gradient,) = torch.autograd.grad((found * weights).sum(), c_value)
    (expected,) = torch.autograd.grad((best_on_the_ball(c_value, p) * weights).sum(), c_value)
    torch.testing.assert_close(found, best_on_the_ball(c_value, p), rtol=0, atol=1e-7)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scales", [(1.0, 1.0), (1e6, 1e-6), (1e-6, 1e6)])
@pytest.mark.parametrize("p", [1.05, 1.2, 1.5, 3.0, 7.5, 20.0])
def test_the_interior_point_itself_comes_to_the_dual_norm(
    p: float, scales: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where ``p`` is near one most entries of the solution are tiny, and so are their slacks."""
    v, c, r = cp.Variable(4), cp.Parameter(4), cp.Parameter(nonneg=True)
    ball = cp.pnorm(v, p, approx=False) <= r  # type: ignore[arg-type]
    layer = Layer(cp.Problem(cp.Maximize(c @ v), [ball]), [c, r], [v], solver="INTERIOR")
    first: list[torch.Tensor] = []
    solve = InteriorPoint.solve

    def recorded(self: InteriorPoint, *arguments: Any) -> Answer:
        answer = solve(self, *arguments)
        first.append(answer.status.clone())
        return answer

    monkeypatch.setattr(InteriorPoint, "solve", recorded)
    size, radius = scales
    c_value, r_value = draw(16, 4), torch.full((16,), radius, dtype=torch.float64)
    solution = layer.solve(size * c_value, r_value)
    # A last step may fail for an element next to the accuracy that it is asked for.
    assert (first[0] == Status.FAILED).sum() <= 1
    assert (solution.status == Status.SOLVED).all()
    found = solution.primal[0] / radius
    lengths = torch.linalg.vector_norm(c_value, p / (p - 1), dim=1)
    torch.testing.assert_close((c_value * found).sum(1), lengths, rtol=1e-8, atol=0)
    torch.testing.assert_close(found, best_on_the_ball(c_value, p), rtol=0, atol=1e-4)


@pytest.mark.parametrize("p", [1.2, 3.0])
def test_the_interior_point_itself_solves_sums_of_powers(p: float) -> None:
    """``min sum |x|^p / p - c'x`` has ``x = sign(c) |c|^(1 / (p - 1))``."""
    x, c = cp.Variable(4), cp.Parameter(4)
    powers = cp.sum(cp.power(cp.abs(x), p, approx=False)) / p
    layer = Layer(cp.Problem(cp.Minimize(powers - c @ x)), [c], [x], solver="INTERIOR")
    c_value = draw(12, 4)
    solution = layer.solve(c_value)
    assert (solution.status == Status.SOLVED).all()
    expected = c_value.sign() * c_value.abs() ** (1 / (p - 1))
    scale = float(expected.abs().max())
    torch.testing.assert_close(solution.primal[0], expected, rtol=0, atol=1e-5 * scale)


def geometric_mean() -> tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]:
    u, c = cp.Variable(3), cp.Parameter(3)
    mean = cp.geo_mean(u, [1, 2, 4], approx=False)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - c) - mean), [cp.sum(u) <= 3])
    return problem, [c], [u]


def of_two_exponents() -> tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]:
    u, c = cp.Variable(3), cp.Parameter(3)
    cones = [cp.PowCone3D(u[0], u[1], u[2], 0.2), cp.PowCone3D(2 - u[0], 1.5, u[1] - u[2], 0.7)]
    return cp.Problem(cp.Minimize(cp.sum_squares(u - c)), [*cones, cp.norm(u) <= 2]), [c], [u]


@pytest.mark.parametrize("case", [geometric_mean, of_two_exponents])
def test_both_solvers_and_both_adjoints_agree(
    case: Callable[[], tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]],
) -> None:
    problem, parameters, variables = case()
    results = []
    c = draw(12, 3).requires_grad_()
    for solver in SOLVERS:
        layer = Layer(problem, parameters, variables, solver=solver)
        assert (layer.solve(c.detach()).status == Status.SOLVED).all()
        (found,) = layer(c)
        results.append((found, *torch.autograd.grad(found.sin().sum(), c)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_elements_without_a_solution_are_proven(solver: str) -> None:
    """A ball of the 3-norm and a half-space that may miss it; a cone without a lower bound."""
    x, c, t = cp.Variable(3), cp.Parameter(3), cp.Parameter()
    ball = cp.pnorm(x, 3, approx=False) <= 1
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [ball, cp.sum(x) >= t])
    layer = Layer(problem, [c, t], [x], solver=solver, on_failure="nan")
    reach = 3 ** (2 / 3)  # the dual norm of (1, 1, 1)
    t_values = torch.tensor([reach - 0.1, reach + 0.1, -1.0, 50.0], dtype=torch.float64)
    solved, infeasible = int(Status.SOLVED), int(Status.INFEASIBLE)
    status = layer.solve(draw(4, 3), t_values).status
    assert status.tolist() == [solved, infeasible, solved, infeasible]
    u = cp.Variable(3)
    problem = cp.Problem(cp.Minimize(c @ u), [cp.PowCone3D(u[0], u[1], u[2] - 1, 0.3)])
    layer = Layer(problem, [c], [u], solver=solver, on_failure="nan")
    costs = torch.tensor([[1.0, 1.0, 0.5], [1.0, 1.0, -3.0], [-1.0, 1.0, 0.0]]).double()
    unbounded = int(Status.UNBOUNDED)
    solution = layer.solve(costs)
    assert solution.status.tolist() == [solved, unbounded, unbounded]
    assert float(solution.objective()[0]) == pytest.approx(0.5, abs=1e-8)
