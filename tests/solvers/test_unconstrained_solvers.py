"""The unconstrained minimisers, on functions whose minima are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import pytest
import torch
from helpers import draw
from torch import Tensor

from ddn_cvx.programs.nonlinear.at_inputs import NonlinearInstance
from ddn_cvx.solvers.answer import Answer
from ddn_cvx.solvers.nonlinear.levenberg_marquardt import LevenbergMarquardt
from ddn_cvx.solvers.nonlinear.newton import TrustRegionNewton, ball_minimum
from ddn_cvx.solvers.nonlinear.newton_cg import NewtonCG
from ddn_cvx.solvers.nonlinear.trust_region import relative_stationarity
from ddn_cvx.status import Status

F64 = torch.float64


class Each(NonlinearInstance):
    """The batched function of a per-element one, ``(n,), *data -> ()``, by torch.func."""

    function: Callable[..., Tensor]
    of_residuals: Callable[..., Tensor]
    data: tuple[Tensor, ...]

    def __init__(self, function: Callable[..., Tensor], *data: Tensor) -> None:
        self.__dict__.update(function=function, data=data)

    def value(self, u: Tensor) -> Tensor:
        return torch.func.vmap(self.function)(u, *self.data)

    def gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        g, f = torch.func.vmap(torch.func.grad_and_value(self.function))(u, *self.data)
        return f, g

    def hessian(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f, g = self.gradient(u)
        return f, g, torch.func.vmap(torch.func.hessian(self.function))(u, *self.data)

    def hessian_product(self, u: Tensor, direction: Tensor) -> Tensor:
        def product(u: Tensor, d: Tensor, *data: Tensor) -> Tensor:
            def gradient(point: Tensor) -> Any:
                return torch.func.grad(self.function)(point, *data)

            tangent: Tensor = torch.func.jvp(gradient, (u,), (d,))[1]
            return tangent

        return torch.func.vmap(product)(u, direction, *self.data)

    def select(self, elements: Tensor) -> Self:
        return type(self)(self.function, *(item[elements] for item in self.data))


class Squares(Each):
    """The same for per-element residuals, ``(n,), *data -> (k,)``."""

    def __init__(self, residuals: Callable[..., Tensor], *data: Tensor) -> None:
        super().__init__(lambda u, *data: residuals(u, *data).square().sum(), *data)
        self.__dict__.update(of_residuals=residuals)

    def residuals(self, u: Tensor) -> Tensor:
        return torch.func.vmap(self.of_residuals)(u, *self.data)

    def residual_jacobian(self, u: Tensor) -> tuple[Tensor, Tensor]:
        jacobian = torch.func.vmap(torch.func.jacrev(self.of_residuals))(u, *self.data)
        return self.residuals(u), jacobian

    def select(self, elements: Tensor) -> Self:
        return type(self)(self.of_residuals, *(item[elements] for item in self.data))


def rosenbrock(u: Tensor) -> Tensor:
    return torch.cat([10 * (u[1:] - u[:-1].square()), 1 - u[:-1]])


def powell_singular(u: Tensor) -> Tensor:
    a, b, c, d = u.unbind()
    return torch.stack(
        [a + 10 * b, 5**0.5 * (c - d), (b - 2 * c).square(), 10**0.5 * (a - d).square()]
    )


def himmelblau(u: Tensor) -> Tensor:
    x, y = u.unbind()
    return torch.stack([x * x + y - 11, x + y * y - 7])


def saddle(u: Tensor) -> Tensor:
    return u[0] ** 2 - u[1] ** 2 + u[1] ** 4


Smooth = TrustRegionNewton | NewtonCG
Method = Smooth | LevenbergMarquardt
SMOOTH: list[Any] = [TrustRegionNewton(), NewtonCG()]
ALL: list[Any] = [*SMOOTH, LevenbergMarquardt()]


def ids(method: Any) -> str:
    return str(method.name)


def check(function: Each, found: Answer, *, tolerance: float = 1e-10) -> None:
    """Solved, with what is reported true, and second-order stationary."""
    assert found.status.tolist() == [Status.SOLVED] * len(found.status), found
    f, g, hessian = function.hessian(found.primal)
    torch.testing.assert_close(found.objective, f)
    residual = g.abs().amax(1) / (1 + f.abs())
    assert (residual <= tolerance).all()
    eigenvalues = torch.linalg.eigvalsh(hessian)
    assert (eigenvalues[:, 0] >= -1e-6 * eigenvalues.abs().amax(1)).all()


@pytest.mark.parametrize("method", ALL, ids=ids)
def test_rosenbrock_from_random_starts(method: Method) -> None:
    function = Squares(rosenbrock)
    found = method(function, 3 * draw(64, 2))
    check(function, found)
    torch.testing.assert_close(found.primal, torch.ones(64, 2, dtype=F64), atol=1e-12, rtol=0)
    assert found.iterations.max() <= 60


@pytest.mark.parametrize("method", ALL, ids=ids)
def test_powell_singular_has_a_singular_hessian_at_its_minimum(method: Method) -> None:
    function = Squares(powell_singular)
    start = torch.tensor([[3.0, -1, 0, 1], [1, 1, 1, 1]], dtype=F64)
    found = method(function, start)
    check(function, found)
    assert (found.primal.abs() < 1e-2).all()
    assert (found.objective < 1e-10).all()


@pytest.mark.parametrize("method", ALL, ids=ids)
def test_himmelblau_ends_in_one_of_its_four_minima(method: Method) -> None:
    function = Squares(himmelblau)
    start = torch.cat([4 * draw(40, 2), torch.tensor([[-0.270845, -0.923039]], dtype=F64)])
    found = method(function, start)  # the last start is next to the local maximum
    check(function, found)
    assert (found.objective < 1e-20).all()


@pytest.mark.parametrize("method", SMOOTH, ids=ids)
def test_saddle_points_are_left(method: Smooth) -> None:
    function = Each(saddle)
    start = torch.tensor([[1.0, 0], [0, 0], [1e-3, 1e-9], [5, 1e-200]], dtype=F64)
    found = method(function, start)
    check(function, found)
    torch.testing.assert_close(found.objective, torch.full((4,), -0.25, dtype=F64))
    expected = torch.tensor([0, 0.5**0.5], dtype=F64).expand(4, 2)
    torch.testing.assert_close(found.primal.abs(), expected, atol=1e-10, rtol=0)


def test_levenberg_marquardt_leaves_saddle_points_of_its_sum() -> None:
    """At (0, 0) the Gauss-Newton model is flat in y, where the sum curves downwards."""
    function = Squares(lambda u: torch.stack([u[0], u[1].square() - 1]))
    found = LevenbergMarquardt()(function, torch.tensor([[0.0, 0], [1, 0]], dtype=F64))
    check(function, found)
    assert (found.objective < 1e-20).all()


@pytest.mark.parametrize("method", SMOOTH, ids=ids)
def test_indefinite_starts(method: Smooth) -> None:
    def function(u: Tensor) -> Tensor:
        return u.cos().sum() + 0.01 * u.square().sum() + 0.3 * (u[1:] * u[:-1]).sin().sum()

    each = Each(function)
    start = draw(30, 5)
    assert (torch.linalg.eigvalsh(each.hessian(start)[2])[:, 0] < 0).any()
    check(each, method(each, start))


@pytest.mark.parametrize("condition", [1e2, 1e8])
@pytest.mark.parametrize("method", ALL, ids=ids)
def test_quadratics_against_a_linear_solve(method: Method, condition: float) -> None:
    B, n = 8, 6
    rotation = torch.linalg.qr(draw(B, n, n)).Q
    power = torch.linspace(0, 1, n, dtype=F64)
    root = (
        rotation
        * condition ** (-power[None, None, :] / 2)
        @ torch.linalg.qr(draw(B, n, n, seed=1)).Q
    )
    P, target = root.mT @ root, draw(B, n, seed=2)

    function = Squares(lambda u, root, target: root @ (u - target), root, target)
    found = method(function, draw(B, n, seed=3))
    check(function, found)
    answer = torch.linalg.solve(P, (P @ target[:, :, None])[:, :, 0])
    # conjugate gradients lose to the condition number what a factorisation does not
    accuracy = 1e-15 if not isinstance(method, NewtonCG) else 1e-11
    assert (found.primal - answer).abs().max() <= 30 * accuracy * condition


def test_newton_solves_a_quadratic_in_one_step() -> None:
    root, q = draw(5, 7, 4), draw(5, 4)
    function = Each(lambda u, root, q: (root @ u).square().sum() / 2 + q @ u, root, q)
    found = TrustRegionNewton(initial_radius=1e6)(function, torch.zeros(5, 4, dtype=F64))
    check(function, found)
    assert found.iterations.max() <= 3  # the others confirm that rounding is reached
    answer = -torch.linalg.solve(root.mT @ root, q)
    torch.testing.assert_close(found.primal, answer)


def test_the_minimum_over_a_ball() -> None:
    """The optimality conditions of Moré and Sorensen, in ordinary, hard and almost hard cases."""
    lam = draw(400, 5).sort(1).values
    c = draw(400, 5, seed=1)
    c[:100, 0] = 0  # hard where the rest is short
    c[100:200, 0] *= 1e-18
    c[200:210] = 0
    lam[300:320] = lam[300:320].abs() + 0.1
    lam[320:330, 0], lam[320:330, 1] = lam[320:330, 1], lam[320:330, 1]  # a double lowest value
    lam[330:340, :2] = 0
    c[330:335, :2] = 0
    radius = 10 ** draw(400, seed=2)
    p, predicted, boundary = ball_minimum(lam, c, radius)
    length = p.norm(dim=1)
    assert (length <= radius * (1 + 1e-5)).all()
    torch.testing.assert_close(length[boundary], radius[boundary], rtol=1e-5, atol=0)
    sigma = -((lam * p + c) * p).sum(1) / length.square().clamp(min=1e-300)
    force = (lam + sigma[:, None]) * p + c
    assert (force.abs().amax(1) <= 1e-4 * (c.norm(dim=1) + lam.abs().amax(1) * length)).all()
    assert (sigma >= -1e-9).all()
    assert (sigma + lam.amin(1) >= -1e-5 * lam.abs().amax(1))[length > 0].all()
    fall = -((c * p).sum(1) + 0.5 * (lam * p * p).sum(1))
    torch.testing.assert_close(predicted, fall, rtol=1e-4, atol=1e-9)
    assert (boundary[:300] | (lam[:300, 0] > 0)).all()


def test_the_hard_case_of_the_secular_equation() -> None:
    """The gradient has no component along the only negative curvature."""
    function = Each(lambda u: 2 * u[0] ** 2 + u[0] - u[1] ** 2 + u[1] ** 6 / 6 + u[2] ** 2)
    found = TrustRegionNewton()(function, torch.tensor([[0.3, 0, 0.1]], dtype=F64))
    check(function, found)
    assert abs(float(found.primal[0, 1].abs()) - 2**0.25) < 1e-10


UNBOUNDED: dict[str, Callable[[Tensor], Tensor]] = {
    "concave": lambda u: -u.sum().square(),
    "linear": lambda u: 3 * u.sum(),
    "slightly linear": lambda u: 1e-3 * u[1] + u[0].square(),
    "cubic": lambda u: u[0].square() - u[1] ** 3,
    "saddle": lambda u: u[0] * u[1],
}


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
@pytest.mark.parametrize("name", UNBOUNDED)
@pytest.mark.parametrize("method", SMOOTH, ids=ids)
def test_unbounded_functions(method: Smooth, name: str, dtype: torch.dtype) -> None:
    function = Each(UNBOUNDED[name])
    start = torch.tensor([[0.1, 0.1], [1e3, 7]] + [[0.0, 0]] * (name != "cubic"), dtype=dtype)
    found = method(function, start)
    assert found.status.tolist() == [Status.UNBOUNDED] * len(start)


@pytest.mark.parametrize("method", SMOOTH, ids=ids)
def test_a_logarithm_may_fall_for_ever(method: Smooth) -> None:
    found = method(Each(lambda u: -u.log().sum()), torch.ones(1, 2, dtype=F64))
    assert found.status.tolist() == [Status.UNBOUNDED]
    found = method(Each(lambda u: u.log().sum()), torch.ones(1, 2, dtype=F64))
    assert found.status.tolist() == [Status.UNBOUNDED]


@pytest.mark.parametrize("method", ALL, ids=ids)
def test_a_start_without_a_value_fails_alone(method: Method) -> None:
    start = 2 * draw(6, 2)
    start[1, 0], start[4] = torch.nan, torch.inf
    found = method(Squares(rosenbrock), start)
    assert found.status.tolist() == [0, Status.FAILED, 0, 0, Status.FAILED, 0]
    assert found.iterations[[1, 4]].tolist() == [0, 0]
    every = method(Squares(rosenbrock), torch.full((2, 2), torch.nan, dtype=F64))
    assert every.status.tolist() == [Status.FAILED] * 2


@pytest.mark.parametrize("method", ALL, ids=ids)
def test_trial_points_outside_the_domain_are_refused(method: Method) -> None:
    target = torch.tensor([[1e-6, 1], [1, 1e-3], [30, 50]], dtype=F64)
    function = Squares(lambda u, target: (u / target).log(), target)
    found = method(function, torch.tensor([[5.0, 5], [1e-2, 90], [1e-4, 1e3]], dtype=F64))
    check(function, found)
    torch.testing.assert_close(found.primal, target, rtol=1e-9, atol=0)

    if not isinstance(method, LevenbergMarquardt):
        barrier = Each(lambda u, w: w @ u - u.log().sum(), 1 / target)
        found = method(barrier, torch.tensor([[5.0, 5], [1e-2, 90], [1e-4, 1e3]], dtype=F64))
        check(barrier, found)
        torch.testing.assert_close(found.primal, target, rtol=1e-9, atol=0)


@pytest.mark.parametrize("method", SMOOTH, ids=ids)
def test_nothing_can_be_done_where_only_the_start_has_a_value(method: Smooth) -> None:
    def function(u: Tensor) -> Tensor:
        return torch.where((u == 1).all(), u.sum(), torch.nan)

    found = method(Each(function), torch.ones(1, 2, dtype=F64))
    assert found.status.tolist() == [Status.FAILED]
    assert found.primal.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("method", ALL, ids=ids)
def test_an_element_does_not_know_its_neighbours(method: Method) -> None:
    data = 1 + draw(7, 3).abs() / 4
    function = Squares(lambda u, a: torch.cat([a * rosenbrock(u)[:3], u[:1] - a[:1]]), data)
    start = draw(7, 3, seed=1)
    start[3] = torch.nan
    whole = method(function, start)
    assert whole.status.bincount(minlength=6).tolist() == [6, 0, 0, 0, 0, 1]
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    permuted = method(function.select(order), start[order])
    single = [method(function.select(torch.tensor([i])), start[i : i + 1]) for i in range(7)]
    points = torch.cat([one.primal for one in single])
    for other, this in ((permuted.primal, whole.primal[order]), (points, whole.primal)):
        torch.testing.assert_close(other, this, rtol=0, atol=1e-12, equal_nan=True)
    assert torch.equal(permuted.status, whole.status[order])
    assert [int(one.status) for one in single] == whole.status.tolist()


@pytest.mark.parametrize("method", ALL, ids=ids)
def test_the_iteration_limit_ends_it(method: Any) -> None:
    function = Squares(rosenbrock)
    found = type(method)(max_iterations=1)(function, 5 + draw(3, 2).abs())
    assert found.status.tolist() == [Status.INACCURATE] * 3
    assert (relative_stationarity(*function.gradient(found.primal)) > 1e-10).all()
    assert (found.iterations <= 2).all()
    none = type(method)(max_iterations=0)(Squares(rosenbrock), torch.ones(2, 2, dtype=F64))
    assert none.status.tolist() == [Status.SOLVED] * 2
    assert none.iterations.tolist() == [0, 0]


@pytest.mark.parametrize("method", ALL, ids=ids)
def test_single_precision(method: Method) -> None:
    start = (2 * draw(16, 3)).float()
    function = Squares(rosenbrock)
    found = method(function, start)
    assert found.primal.dtype == torch.float32
    check(function, found, tolerance=2e-4)
    local = found.objective < 1
    torch.testing.assert_close(
        found.primal[local], torch.ones(int(local.sum()), 3), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("method", ALL, ids=ids)
def test_empty_batches_and_no_variables(method: Method) -> None:
    found = method(Squares(rosenbrock), torch.zeros(0, 2, dtype=F64))
    assert found.primal.shape == (0, 2)
    assert found.status.shape == (0,)


@pytest.mark.parametrize("method", ALL, ids=ids)
def test_rounding_of_a_large_value_does_not_stop_the_last_steps(method: Method) -> None:
    """The minimal value is a million; its last steps change it by less than its rounding."""
    function = Squares(lambda u: torch.cat([rosenbrock(u), u.new_full((1,), 1e3)]))
    found = method(function, 2 * draw(16, 2))
    check(function, found)
    torch.testing.assert_close(found.primal, torch.ones(16, 2, dtype=F64), atol=1e-10, rtol=0)


@pytest.mark.parametrize("method", SMOOTH, ids=ids)
def test_convergence_is_fast_to_rounding(method: Smooth) -> None:
    function = Each(lambda u: (u.exp() - 2 * u).sum() + u.square().sum() ** 2)
    found = method(function, torch.zeros(1, 4, dtype=F64))
    check(function, found)
    assert float(relative_stationarity(*function.gradient(found.primal))) < 1e-15
    assert int(found.iterations) <= 12


def exponentials(u: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return u[0] * (-u[1] * t).exp() + u[2] * (-u[3] * t).exp() - y


def test_levenberg_marquardt_fits_exponentials() -> None:
    B = 16
    t = torch.linspace(0, 5, 40, dtype=F64).expand(B, 40)
    truth = torch.tensor([3.0, 0.4, 2.0, 3.0], dtype=F64) * (1 + 0.1 * draw(B, 4))
    y = torch.func.vmap(exponentials)(truth, t, torch.zeros(B, 40, dtype=F64))
    function = Squares(exponentials, t, y)
    start = torch.tensor([1.0, 0.1, 1.0, 1.5], dtype=F64).expand(B, 4)
    found = LevenbergMarquardt()(function, start)
    check(function, found)
    torch.testing.assert_close(found.primal, truth, rtol=1e-6, atol=1e-6)

    noisy = Squares(exponentials, t, y + 0.05 * draw(B, 40, seed=1))
    found = LevenbergMarquardt()(noisy, start)
    check(noisy, found)
    assert (found.objective <= noisy.value(truth)).all()


def test_levenberg_marquardt_does_not_mind_units() -> None:
    """Scaling the variables leaves its first phase unchanged."""
    units = torch.tensor([1e-6, 1e5], dtype=F64)
    method = LevenbergMarquardt(exact_finish=False)
    start = torch.tensor([[-1.2, 1]], dtype=F64)
    plain = method(Squares(rosenbrock), start)
    scaled = method(Squares(lambda u: rosenbrock(u * units)), start / units)
    torch.testing.assert_close(scaled.primal * units, plain.primal, rtol=1e-6, atol=1e-6)


def test_levenberg_marquardt_with_large_residuals() -> None:
    """Gauss-Newton does not converge here, so that exact Hessians have to take over."""
    B = 10
    t = torch.linspace(0.2, 4, 20, dtype=F64).expand(B, 20)

    def brown_dennis(u: Tensor, t: Tensor) -> Tensor:
        first, second = u[0] + t * u[1] - t.exp(), u[2] + u[3] * t.sin() - t.cos()
        return first.square() + second.square()

    function = Squares(brown_dennis, t)
    start = torch.tensor([25.0, 5, -5, -1], dtype=F64) * (1 + 0.2 * draw(B, 4))
    found = LevenbergMarquardt()(function, start)
    check(function, found)
    expected = torch.full((B,), 85822.2, dtype=F64)
    torch.testing.assert_close(found.objective, expected, rtol=1e-5, atol=0)
    assert found.iterations.max() <= 60
    slow = LevenbergMarquardt(exact_finish=False, patience=None)(function, start)
    assert (slow.iterations > found.iterations).all()


def test_levenberg_marquardt_with_fewer_residuals_than_variables() -> None:
    function = Squares(lambda u: torch.stack([u[0] * u[1] - 1, u[2].exp() - u[0]]))
    start = 1 + 0.3 * draw(8, 3)
    found = LevenbergMarquardt()(function, start)
    check(function, found)
    assert (found.objective < 1e-20).all()
    quiet = LevenbergMarquardt(exact_finish=False)(function, start)
    assert (quiet.objective < 1e-20).all()


def test_newton_cg_on_five_hundred_variables() -> None:
    n = 500
    even, odd = torch.arange(0, n, 2), torch.arange(1, n, 2)

    def pairs(u: Tensor) -> Tensor:
        x, y = u[even], u[odd]
        return (100 * (y - x.square()).square() + (1 - x).square()).sum()

    start = torch.tensor([-1.2, 1.0], dtype=F64).repeat(1, n // 2) + 0.1 * draw(2, n)
    found = NewtonCG()(Each(pairs), start)
    assert found.status.tolist() == [0, 0]
    torch.testing.assert_close(found.primal, torch.ones(2, n, dtype=F64), atol=1e-9, rtol=0)

    function = Each(lambda u: rosenbrock(u).square().sum())  # a chain
    found = NewtonCG()(function, 0.9 + 0.1 * draw(1, n))
    assert found.status.tolist() == [0]
    torch.testing.assert_close(found.primal, torch.ones(1, n, dtype=F64), atol=1e-9, rtol=0)


def test_newton_cg_on_logistic_regression() -> None:
    B, k, n = 3, 60, 200
    X = draw(B, k, n)
    y = (draw(B, k, seed=1) > 0).to(F64) * 2 - 1

    def loss(u: Tensor, X: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-y * (X @ u)).mean() + 0.05 * u.square().sum()

    function = Each(loss, X, y)
    found = NewtonCG()(function, torch.zeros(B, n, dtype=F64))
    check(function, found)
    exact = TrustRegionNewton()(function, torch.zeros(B, n, dtype=F64))
    check(function, exact)
    torch.testing.assert_close(found.primal, exact.primal, atol=1e-9, rtol=0)


def test_gradients_of_the_caller_are_left_alone() -> None:
    start = draw(2, 2).requires_grad_()
    found = TrustRegionNewton()(Squares(rosenbrock), start)
    assert not found.primal.requires_grad
    assert start.grad is None
