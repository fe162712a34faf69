"""Forward and reverse mode within one another, on both paths, at every nesting."""

from collections.abc import Callable
from itertools import product
from typing import Any

import cvxpy as cp
import pytest
import torch
from helpers import central_difference, draw
from torch.func import hessian, jacfwd, jacrev

import ddn_cvx as ddn

POINT = torch.tensor([1.0, 0.2, 0.7, 0.5], dtype=torch.float64)
MODES: dict[str, Any] = {"f": jacfwd, "r": jacrev}


def cubes(kind: str, solver: str | None) -> tuple[ddn.DeclarativeLayer, Any]:
    """A sum of cubes of a projection of squares: derivatives of every order."""
    u = cp.Variable(4)
    constraints = {
        "linear": [u >= 0, cp.sum(u) == 1],
        "second-order": [cp.norm(u) <= 1],
        "exponential": [cp.log_sum_exp(u) <= 1],
    }[kind]
    squares = cp.Parameter(4)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - squares)), constraints)
    layer = ddn.DeclarativeLayer(problem, [squares], [u], solver=solver)
    return layer, lambda p: (layer(p * p)[0] ** 3).sum()


def by_differences(derivative: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """One order more, a last axis."""

    def along(axis: torch.Tensor) -> Any:
        return central_difference(lambda h: derivative(POINT + h * axis), 1e-5)

    return torch.stack([along(axis) for axis in torch.eye(4, dtype=torch.float64)], -1)


@pytest.mark.parametrize("solver", [None, "TORCH"])
@pytest.mark.parametrize("kind", ["linear", "second-order", "exponential"])
def test_derivatives_up_to_the_third_in_every_mix_of_modes(kind: str, solver: str | None) -> None:
    _, f = cubes(kind, solver)
    second = by_differences(jacrev(f))
    for modes in product("fr", repeat=2):
        found = MODES[modes[1]](MODES[modes[0]](f))(POINT)
        torch.testing.assert_close(found, second, atol=1e-7, rtol=1e-7, msg=str(modes))
    third = by_differences(hessian(f))
    for modes in product("fr", repeat=3):
        found = MODES[modes[2]](MODES[modes[1]](MODES[modes[0]](f)))(POINT)
        torch.testing.assert_close(found, third, atol=1e-6, rtol=1e-6, msg=str(modes))


@pytest.mark.parametrize("solver", [None, "TORCH"])
def test_a_layer_first_used_inside_a_transform_works_outside(solver: str | None) -> None:
    _, f = cubes("second-order", solver)
    inside = hessian(f)(POINT)
    torch.testing.assert_close(hessian(f)(POINT), inside)
    leaf = POINT.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(leaf), leaf)
    torch.testing.assert_close(gradient, jacrev(f)(POINT))


@pytest.mark.parametrize("solver", [None, "TORCH"])
def test_jacobians_of_an_empty_batch_are_empty(solver: str | None) -> None:
    layer, _ = cubes("linear", solver)
    empty = torch.zeros(0, 4, dtype=torch.float64)
    for mode in (jacrev, jacfwd):
        assert mode(lambda p: layer(p)[0])(empty).shape == (0, 4, 0, 4)


def test_second_derivatives_of_a_sparse_program() -> None:
    n = 400  # beyond the dense KKT systems, with its slacks
    u, p = cp.Variable(n), cp.Parameter(n)
    smooth = cp.sum_squares(u - p) + cp.sum(cp.exp(u / 4))
    problem = cp.Problem(cp.Minimize(smooth), [u[::2] == u[1::2]])
    sparse = ddn.DeclarativeLayer(problem, [p], [u])
    dense = ddn.DeclarativeLayer(problem, [p], [u], solver="TORCH")
    point, direction = draw(n), draw(n, seed=1)

    def curvature(layer: ddn.DeclarativeLayer) -> Any:
        gradient = torch.func.grad(lambda p: (layer(p)[0] ** 3).sum())
        return torch.func.jvp(gradient, (point,), (direction,))[1]

    torch.testing.assert_close(curvature(sparse), curvature(dense), atol=1e-6, rtol=1e-6)
    with pytest.raises(NotImplementedError, match="jacrev"):
        torch.func.jvp(
            lambda p: torch.func.jvp(lambda p: sparse(p)[0], (p,), (direction,))[1],
            (point,),
            (direction,),
        )
