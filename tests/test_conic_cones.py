"""Cones at their faces, rays and repeated eigenvalues, where formulas for the interior fail."""

import cvxpy as cp
import pytest
import torch

import ddn_cvx as ddn
from ddn_cvx.conic.cones import Cones


def row(*entries: float) -> torch.Tensor:
    return torch.tensor([entries], dtype=torch.float64)


def projection(cone: str, alpha: float = 0.5) -> ddn.DeclarativeLayer:
    """Projection of three numbers onto an exponential or power cone."""
    u, p = cp.Variable(3), cp.Parameter(3)
    parts = u[0], u[1], u[2]
    onto = cp.ExpCone(*parts) if cone == "exponential" else cp.PowCone3D(*parts, alpha)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - p)), [onto])
    return ddn.DeclarativeLayer(problem, [p], [u])


@pytest.mark.parametrize("height", [1.0, 1e6, 1e50])
def test_points_beside_the_exponential_cones_face_are_outside(height: float) -> None:
    cone, zero = Cones(exponential=1), row(0, 0, 0)
    assert float(cone.violation(row(1, 0, height), zero)) == 1.0
    assert float(cone.violation(row(1, 1e-5, height), zero)) >= 1.0
    assert float(cone.violation(zero, row(0, -2, height))) >= min(2.0, height)
    assert float(cone.violation(zero, row(-1e-5, -2, height))) > 0.5
    # on the face, inside, and on the boundary
    assert float(cone.violation(row(-1, 0, height), row(0, 2, height))) == 0.0
    assert float(cone.violation(row(-1, 1, height), row(-1, 2, height))) == 0.0
    assert float(cone.violation(row(1, 2, 2 * torch.e**0.5), row(-1, 1, torch.e**-2))) < 1e-15


def test_refinement_keeps_a_projection_beside_the_exponential_cones_face() -> None:
    layer = projection("exponential")
    solution = layer.solve(torch.tensor([-30.0, 1.0, -1.0], dtype=torch.float64))
    expected = row(-30, 1, torch.exp(torch.tensor(-30.0)).item())[0]
    torch.testing.assert_close(solution.primal[0], expected, atol=1e-8, rtol=0)
    assert float(solution.objective()) == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_derivative_on_a_power_cones_ray(alpha: float, axis: int) -> None:
    # The projection of (x, -v, h) is (x, 0, c h) up to higher orders of h.
    x, v = 2.0, 0.3
    exponent = alpha if axis == 0 else 1 - alpha
    slope = {0.25: 0.0, 0.5: 1 / (1 + 2 * v / x), 0.75: 1.0}[exponent]
    point = torch.full((3,), -v, dtype=torch.float64)
    point[axis], point[2] = x, 0.0
    layer = projection("power", alpha)
    jacobian = torch.autograd.functional.jacobian(lambda p: layer(p)[0], point)
    expected = torch.zeros(3, dtype=torch.float64)
    expected[axis], expected[2] = 1.0, slope
    torch.testing.assert_close(jacobian, torch.diag(expected), atol=1e-6, rtol=0)
    step = torch.tensor([0.0, 0.0, 1e-4], dtype=torch.float64)
    difference = (layer(point + step)[0] - layer(point - step)[0]) / 2e-4
    torch.testing.assert_close(difference, jacobian[:, 2], atol=1e-2, rtol=0)
