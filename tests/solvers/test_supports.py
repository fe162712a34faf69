"""A solver that was asked for by name solves the program itself, or says why it cannot."""

import cvxpy as cp
import pytest
import torch

import ddn_cvx as ddn
from ddn_cvx.engine.engine import Engine
from ddn_cvx.solvers.registry import by_name, installed_solvers
from ddn_cvx.status import Status, translated

SOLVERS = ["INTERIOR", "CLARABEL", "SCS", "MOREAU"]
REFUSED = {
    ("MOREAU", "semidefinite"): "semidefinite cones",
}


def problem(kind: str) -> tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]:
    """The projection of a point onto a set that needs one kind of cone."""
    shape = (2, 2) if kind == "semidefinite" else (3,)
    point = cp.Parameter(shape)
    u = cp.Variable(shape, PSD=kind == "semidefinite")
    constraints = {
        "unconstrained": [],
        "linear": [u >= 0.1],
        "second-order": [cp.norm(u) <= 1],
        "semidefinite": [],
        "exponential": [cp.sum(cp.exp(u)) <= 2],
        "power": [cp.PowCone3D(u[0], u[1], u[2], 0.3)] if shape == (3,) else [],
    }[kind]
    return cp.Problem(cp.Minimize(cp.sum_squares(u - point)), constraints), [point], [u]


@pytest.mark.parametrize(
    "kind",
    ["unconstrained", "linear", "second-order", "semidefinite", "exponential", "power"],
)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_named_solver_solves_the_program_or_is_refused_with_the_reason(
    solver: str, kind: str
) -> None:
    if solver not in installed_solvers():
        pytest.skip(f"{solver} is not installed")
    reason = REFUSED.get((solver, kind))
    if reason is not None:
        with pytest.raises(ddn.DeclarationError, match=f"{solver}.*{reason}"):
            ddn.DeclarativeLayer(*problem(kind), solver=solver)
        return
    layer = ddn.DeclarativeLayer(*problem(kind), solver=solver)
    assert f"solver={solver!r} (as asked)" in repr(layer)
    shape = layer.declaration.parameters[0].shape
    point = torch.linspace(-1, 2, 3 if kind != "semidefinite" else 4, dtype=torch.float64)
    solution = layer.solve(point.reshape(shape))
    assert solution.solver == (solver,)
    (reference,) = ddn.DeclarativeLayer(*problem(kind), solver="CLARABEL")(point.reshape(shape))
    torch.testing.assert_close(solution.primal[0], reference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_supports_is_none_or_words(name: str) -> None:
    if name not in installed_solvers():
        pytest.skip(f"{name} is not installed")
    solver = by_name(name)
    for kind in ("linear", "power", "semidefinite"):
        layer = ddn.DeclarativeLayer(*problem(kind))
        assert isinstance(layer._engine, Engine)
        program = layer._engine.plan({}).program
        reason = solver.supports(program)
        expected = REFUSED.get((name, kind))
        assert reason is None if expected is None else expected in str(reason)


@pytest.mark.parametrize(("solver", "adjoint"), [(None, "lsqr"), ("SCS", "native")])
def test_diffcp_refuses_power_cones(solver: str | None, adjoint: str) -> None:
    with pytest.raises(ddn.DeclarationError, match=r"diffcp.*power cones"):
        ddn.DeclarativeLayer(*problem("power"), solver=solver, adjoint=adjoint)


def test_moreaus_own_derivative_refuses_semidefinite_cones() -> None:
    pytest.importorskip("moreau")
    with pytest.raises(ddn.DeclarationError, match=r"MOREAU.*semidefinite"):
        ddn.DeclarativeLayer(*problem("semidefinite"), solver="MOREAU", adjoint="native")


@pytest.mark.parametrize("solver", ["CLARABEL", "MOREAU", "SCS", "CVXPY"])
def test_an_unknown_status_is_a_failure(solver: str) -> None:
    assert translated(solver, "Solved indeed") is Status.FAILED
    assert translated(solver, 0) is Status.FAILED
    assert Status.SOLVED in (translated(solver, own) for own in ("Solved", 1, cp.OPTIMAL))
