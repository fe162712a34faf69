"""Least squares, eigenvectors, entropies and control: closed forms, limits and hard cases."""

import cvxpy as cp
import pytest
import torch
from helpers import draw

from ddn_cvx import DeclarativeLayer
from ddn_cvx.problems import (
    analytic_center,
    entropic_linear_program,
    linear_mpc,
    ridge_regression,
    smallest_eigenvectors,
    softmax,
    sphere_least_squares,
    weighted_least_squares,
)

DOUBLE = torch.float64


def test_a_weight_of_zero_removes_a_residual() -> None:
    A, b, weight = draw(3, 6, 2), draw(3, 6, seed=1), 0.5 + draw(3, 6, seed=2).abs()
    weight[:, 4:] = 0
    (u,) = DeclarativeLayer(weighted_least_squares(6, 2))(A, b, weight)
    (kept,) = DeclarativeLayer(weighted_least_squares(4, 2))(A[:, :4], b[:, :4], weight[:, :4])
    torch.testing.assert_close(u, kept, rtol=0, atol=1e-9)


def test_ridge_regression_with_more_unknowns_than_rows() -> None:
    A, b, ridge = draw(4, 3, 7), draw(4, 3, seed=1), torch.full((4,), 0.3, dtype=DOUBLE)
    (u,) = DeclarativeLayer(ridge_regression(3, 7))(A, b, ridge)
    gram = A @ A.mT + ridge[:, None, None] * torch.eye(3, dtype=DOUBLE)
    expected = (A.mT @ torch.linalg.solve(gram, b.unsqueeze(-1))).squeeze(-1)
    torch.testing.assert_close(u, expected, rtol=0, atol=1e-8)


def test_least_squares_on_the_circle_is_global() -> None:
    A, b = draw(50, 3, 2), draw(50, 3, seed=1)
    solution = DeclarativeLayer(sphere_least_squares(3, 2)).solve(A, b)
    angle = torch.linspace(0, 2 * torch.pi, 20001, dtype=DOUBLE)
    circle = torch.stack([angle.cos(), angle.sin()])
    lowest = ((A @ circle - b.unsqueeze(-1)).square().sum(1) / 2).amin(1)
    assert bool((solution.objective() <= lowest + 1e-9).all())
    assert float(solution.violation().max()) < 1e-9


def projector_of(M: torch.Tensor, k: int) -> torch.Tensor:
    (U,) = DeclarativeLayer(smallest_eigenvectors(M.shape[-1], k))(M)
    product: torch.Tensor = U @ U.mT
    return product


@pytest.mark.parametrize("equal", [False, True])
def test_the_projector_on_repeated_eigenvalues_has_its_exact_derivative(equal: bool) -> None:
    """``v_i' dP v_j = v_i' dM v_j / (l_i - l_j)`` for i in, j out, whatever repeats within."""
    values = torch.tensor([1.0, 1.0 if equal else 1.3, 3.0, 3.0, 4.0], dtype=DOUBLE)
    V = torch.linalg.qr(draw(5, 5)).Q
    M = ((V * values) @ V.mT).unsqueeze(0)
    move = draw(5, 5, seed=3)
    move = (move + move.mT) / 2
    P = projector_of(M, 2)
    torch.testing.assert_close(P[0], V[:, :2] @ V[:, :2].mT, rtol=0, atol=1e-9)

    rotated = V.mT @ move @ V
    change = torch.zeros(5, 5, dtype=DOUBLE)
    for i in range(2):
        for j in range(2, 5):
            change[i, j] = change[j, i] = rotated[i, j] / (values[i] - values[j])
    expected = V @ change @ V.mT
    incoming = draw(5, 5, seed=4)
    leaf = M.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((projector_of(leaf, 2) * incoming).sum(), leaf)
    assert float((gradient[0] * move).sum()) == pytest.approx(
        float((expected * incoming).sum()), rel=1e-7
    )


def test_eigenvectors_that_may_rotate_say_so() -> None:
    M = draw(1, 4, 4)
    solution = DeclarativeLayer(smallest_eigenvectors(4, 2)).solve(M @ M.mT)
    assert bool(solution.degenerate.all())
    single = DeclarativeLayer(smallest_eigenvectors(4, 1)).solve(M @ M.mT)
    assert not bool(single.degenerate.any())


def test_an_entropic_linear_program_tends_to_the_linear_program() -> None:
    declaration = entropic_linear_program(n=6, m=2)
    A, b, c, _ = declaration.inputs(batch=3, seed=0)
    A[:, 0] = 1.0  # bounded
    u0 = 0.2 + torch.rand(3, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    b = (A @ u0.unsqueeze(-1)).squeeze(-1)
    layer = DeclarativeLayer(declaration, solver="TORCH")
    lowest = []
    for row in range(3):
        u = cp.Variable(6, nonneg=True)
        limits = [A[row].numpy() @ u == b[row].numpy()]
        lowest.append(cp.Problem(cp.Minimize(c[row].numpy() @ u), limits).solve())
    excess = []
    for gamma in (1.0, 0.1, 0.01):
        (u,) = layer(A, b, c, torch.full((3,), gamma, dtype=DOUBLE))
        assert bool((u > 0).all())
        if gamma == 1.0:  # stationarity: c + gamma (log u + 1) is in the range of A'
            slope = c + gamma * (u.log() + 1)
            rest = torch.linalg.lstsq(A.mT, slope.unsqueeze(-1)).solution
            torch.testing.assert_close((A.mT @ rest).squeeze(-1), slope, rtol=0, atol=1e-7)
        torch.testing.assert_close((A @ u.unsqueeze(-1)).squeeze(-1), b, rtol=0, atol=1e-8)
        excess.append(float(((c * u).sum(1) - torch.tensor(lowest)).max()))
    assert excess[0] > excess[1] > excess[2] > -1e-6
    assert excess[2] < 0.1


def test_softmax_at_any_temperature() -> None:
    x = draw(3, 5)
    # An exponential cone has the entropy's small entries to a few digits only.
    for solver, tolerance in (("TORCH", 1e-8), (None, 1e-6)):
        layer = DeclarativeLayer(softmax(5), solver=solver)
        for temperature in (0.2, 1.0, 20.0):
            gamma = torch.full((3,), temperature, dtype=DOUBLE)
            (u,) = layer(x, gamma)
            expected = torch.softmax(x / temperature, 1)
            torch.testing.assert_close(u, expected, rtol=0, atol=tolerance)


def test_the_analytic_centre_moves_with_the_set() -> None:
    """The set need not hold the origin, and an affine map of it maps its centre."""
    declaration = analytic_center(n=2, m=6)
    A, b = declaration.inputs(batch=4, seed=0)
    T, shift = draw(4, 2, 2), 30 * draw(4, 2, seed=1)
    layer = DeclarativeLayer(declaration)
    (u,) = layer(A, b)
    slope = (A / (b - (A @ u.unsqueeze(-1)).squeeze(-1)).unsqueeze(-1)).sum(1)
    assert float(slope.abs().max()) < 1e-5
    moved = A @ torch.linalg.inv(T)
    offset = b + (moved @ shift.unsqueeze(-1)).squeeze(-1)
    (v,) = layer(moved, offset)
    expected = (T @ u.unsqueeze(-1)).squeeze(-1) + shift
    torch.testing.assert_close(v, expected, rtol=1e-6, atol=1e-6)


def test_model_predictive_control_without_active_bounds_is_riccati_s_recursion() -> None:
    horizon, batch = 5, 3
    declaration = linear_mpc(horizon, states=3, inputs=2)
    A, B, initial, target, state_weight, input_weight, bound = declaration.inputs(batch, seed=0)
    target, bound = 0 * target, 1e3 * bound
    data = (A, B, initial, target, state_weight, input_weight, bound)
    first, plan, path = DeclarativeLayer(declaration)(*data)
    Q, R = torch.diag_embed(state_weight), torch.diag_embed(input_weight)
    P = Q
    for _ in range(horizon):
        gain = torch.linalg.solve(R + B.mT @ P @ B, B.mT @ P @ A)
        last, P = gain, Q + A.mT @ P @ (A - B @ gain)
    expected = -(last @ initial.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(first, expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(plan[:, 0], first)
    reached = (A @ initial.unsqueeze(-1) + B @ first.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(path[:, 1], reached, rtol=1e-7, atol=1e-7)


def test_model_predictive_control_keeps_its_bounds() -> None:
    declaration = linear_mpc(4, states=2, inputs=1)
    data = list(declaration.inputs(5, seed=0))
    data[-1] = data[-1] / 10
    solution = DeclarativeLayer(declaration).solve(*data)
    _, plan, _ = solution.primal
    assert bool((plan.abs() <= data[-1].unsqueeze(1) + 1e-7).all())
    assert bool(((plan.abs() - data[-1].unsqueeze(1)).abs() < 1e-7).any())
    assert float(solution.stationarity().max()) < 1e-6
