"""Central differences of batched functions, and gradients held against them."""

import cvxpy as cp
import pytest
import torch

from ddn_cvx.batch.differences import disagreement, gradient_by_differences


def test_central_differences_of_a_polynomial() -> None:
    """``f = x^2 y`` has the gradient ``(2 x y, x^2)``; the fourth-order stencil is exact."""
    parameters = [cp.Parameter(name="x"), cp.Parameter(name="y")]
    x, y = torch.tensor([3.0, 0.5], dtype=torch.float64), torch.tensor([2.0, -1.0]).double()
    gradient = gradient_by_differences(lambda t: t[0] ** 2 * t[1], parameters, (x, y))
    torch.testing.assert_close(gradient[0], 2 * x * y, rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient[1], x**2, rtol=1e-9, atol=0)


def test_disagreement_tells_a_right_gradient_from_a_wrong_one() -> None:
    parameters, x = [cp.Parameter(2, name="x")], torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double()
    right = 2 * x
    wrong = right.clone()
    wrong[1, 0] += 0.5
    missed = disagreement(
        lambda t: t[0].square().sum(-1), parameters, [x], [wrong], directions=3, seed=0
    )
    assert missed[0] < 1e-8
    assert missed[1] > 1e-3


def test_a_gradient_of_rounding_errors_is_compared_absolutely() -> None:
    parameters, x = [cp.Parameter(2, name="x")], torch.ones(1, 2, dtype=torch.float64)
    missed = disagreement(
        lambda t: 0 * t[0].sum(-1), parameters, [x], [1e-15 * x], directions=1, seed=0, least=1e-3
    )
    assert missed.item() == pytest.approx(0.0, abs=1e-10)
