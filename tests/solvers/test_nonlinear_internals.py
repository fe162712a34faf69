"""Recorded derivatives and unrolled iterations."""

import copy
import pickle

import cvxpy as cp
import pytest
import torch
from helpers import draw

import ddn_cvx as ddn
from ddn_cvx.programs.nonlinear.replay import Replayed

DOUBLE = torch.float64


def curve(x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A function and its gradient."""

    def total(x: torch.Tensor) -> torch.Tensor:
        return (scale * x.sin() * x.exp()).sum()

    gradient, value = torch.func.grad_and_value(total)(x)
    return value, gradient


def test_a_recording_gives_what_the_function_gives() -> None:
    replayed = Replayed(curve)
    for call in range(30):
        shape = (2 + call % 2, 3)
        x, scale = draw(*shape, seed=call), torch.full((1,), float(call + 1), dtype=DOUBLE)
        with torch.no_grad():
            for found, expected in zip(replayed(x, scale), curve(x, scale), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
    assert len(replayed._recorded) == 2  # one for each shape


def test_a_recording_is_made_outside_of_transforms_and_not_pickled() -> None:
    replayed = Replayed(curve)
    x, scale = draw(2, 3), torch.ones(1, dtype=DOUBLE)
    for _ in range(30):
        torch.func.vmap(lambda x: replayed(x, scale)[1])(x)
    assert not replayed._recorded
    with torch.no_grad():
        for _ in range(30):
            replayed(x, scale)
    assert replayed._recorded
    for twin in (copy.copy(replayed), pickle.loads(pickle.dumps(replayed))):
        assert not twin._recorded
        torch.testing.assert_close(twin(x, scale)[1], replayed(x, scale)[1])


@pytest.mark.parametrize("equality", [False, True])
def test_unrolled_iterations_have_the_implicit_gradient(equality: bool) -> None:
    u, x = cp.Variable(3), cp.Parameter(3)
    objective = cp.sum(cp.exp(u)) - 3 * x @ u
    constraints = [cp.sum_squares(u) == 2] if equality else []
    u.value = [1.0, 0.5, 0.5]
    problem = cp.Problem(cp.Minimize(objective), constraints)
    implicit = ddn.DeclarativeLayer(problem, [x], [u], adjoint="implicit")
    unrolled = ddn.DeclarativeLayer(problem, [x], [u], adjoint="unrolled")
    assert "backpropagation through" in repr(unrolled)
    points = (1 + draw(3, 3).abs()).requires_grad_()
    first, second = implicit(points)[0], unrolled(points)[0]
    torch.testing.assert_close(second, first, rtol=0, atol=1e-9)
    incoming = draw(3, 3, seed=1)
    (expected,) = torch.autograd.grad(first, points, incoming)
    (found,) = torch.autograd.grad(second, points, incoming)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


def test_unrolling_is_refused_with_inequalities() -> None:
    u, x = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [u >= 0])
    with pytest.raises(ddn.DeclarationError, match="unrolled"):
        ddn.DeclarativeLayer(problem, [x], [u], adjoint="unrolled")
