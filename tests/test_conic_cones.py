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
