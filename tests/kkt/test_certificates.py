"""Proofs that elements have no solution, checked on the problems' own data."""

import functools
from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ddn_cvx as ddn
from ddn_cvx import Status
from ddn_cvx.kkt.certificate import ConeCertificate
from ddn_cvx.programs.cone.program import ConeProgram
from ddn_cvx.solvers.answer import Answer
from ddn_cvx.solvers.cone.base import ConeSolver
from ddn_cvx.solvers.cone.ladder import Ladder, Rung

SOLVERS = ("INTERIOR", "CLARABEL")
CLOSE = 1e-6


def quadratic(solver: str | None) -> ddn.DeclarativeLayer:
    """``min u_0^2 / 2 + q'u`` subject to ``G u <= h``, ``sum(u) == b``."""
    u, q = cp.Variable(3), cp.Parameter(3)
    G, h, b = cp.Parameter((4, 3)), cp.Parameter(4), cp.Parameter()
    objective = cp.Minimize(0.5 * cp.square(u[0]) + q @ u)
    problem = cp.Problem(objective, [G @ u <= h, cp.sum(u) == b])
    return ddn.DeclarativeLayer(problem, [q, G, h, b], [u], solver=solver)


def quadratic_data() -> list[torch.Tensor]:
    """Solved, infeasible, unbounded, and solved."""
    q = torch.tensor([[1.0, 0, 0], [1, 2, 3], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    box = torch.cat([torch.eye(3), torch.tensor([[-1.0, 0.0, 0.0]])]).double()
    G = box.repeat(4, 1, 1)
    G[[0, 3], 3] = -1.0  # sum(u) >= -3 there
    G[2, :3] = torch.tensor([0.0, 0.0, 0.0])
    h = torch.tensor([1.0, 1.0, 1.0, 3.0], dtype=torch.float64).repeat(4, 1)
    q[[0, 3]] = -1.0 - q[[0, 3]]
    b = torch.tensor([0.0, 4.0, 0.0, 1.0], dtype=torch.float64)  # u <= 1 adds up to 3
    return [q, G, h, b]


@pytest.mark.parametrize("solver", [*SOLVERS, "SCS", None])
def test_both_proofs_hold_on_the_problem_s_own_data(solver: str | None) -> None:
    data = quadratic_data()
    q, G, h, b = (tensor.numpy() for tensor in data)
    solution = quadratic(solver).solve(*data)
    assert solution.status.tolist() == [0, 2, 3, 0]
    proof = solution.certificate()
    y, v = (np.asarray(dual) for dual in proof.dual)
    (d,) = (direction.numpy() for direction in proof.direction)
    assert y[1].min() >= -CLOSE
    assert np.abs(G[1].T @ y[1] + v[1]).max() <= CLOSE
    assert h[1] @ y[1] + b[1] * v[1] == pytest.approx(-1.0)
    assert abs(d[2, 0]) <= CLOSE
    assert abs(d[2].sum()) <= CLOSE
    assert (G[2] @ d[2]).max() <= CLOSE
    assert q[2] @ d[2] == pytest.approx(-1.0)
    assert np.isnan(y[[0, 2, 3]]).all()
    assert np.isnan(d[[0, 1, 3]]).all()
    assert proof.residual.isnan().tolist() == [True, False, False, True]
    assert float(proof.residual[1:3].max()) <= CLOSE


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_others_are_as_if_alone(solver: str) -> None:
    data, good = quadratic_data(), [0, 3]
    layer = quadratic(solver)
    together, alone = layer.solve(*data), layer.solve(*[tensor[good] for tensor in data])
    torch.testing.assert_close(together.primal[0][good], alone.primal[0], rtol=0, atol=1e-12)
    assert together.solved.tolist() == [True, False, False, True]
    for element in (1, 2):
        single = layer.solve(*[tensor[element] for tensor in data]).certificate()
        whole = together.certificate()
        for one, many in zip(
            (*single.dual, *single.direction), (*whole.dual, *whole.direction), strict=True
        ):
            assert isinstance(one, torch.Tensor)
            assert isinstance(many, torch.Tensor)
            torch.testing.assert_close(one, many[element], rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("solver", SOLVERS)
def test_leading_dimensions_are_restored(solver: str) -> None:
    data = [tensor.unflatten(0, (2, 2)) for tensor in quadratic_data()]
    proof = quadratic(solver).solve(*data).certificate()
    y, v = proof.dual
    assert isinstance(y, torch.Tensor)
    assert isinstance(v, torch.Tensor)
    assert y.shape == (2, 2, 4)
    assert v.shape == proof.residual.shape == (2, 2)
    assert proof.direction[0].shape == (2, 2, 3)
    assert y.dtype == torch.float64
    assert y[0, 1].isfinite().all()


@functools.cache
def ball_and_halfspace(solver: str) -> ddn.DeclarativeLayer:
    u, bound, slope = cp.Variable(3), cp.Parameter(), cp.Parameter(3)
    cone = cp.SOC(u[0] + 5, u[1:])
    problem = cp.Problem(cp.Minimize(cp.sum(u)), [cp.norm(u) <= 1, slope @ u >= bound, cone])
    return ddn.DeclarativeLayer(problem, [bound, slope], [u], solver=solver)


@pytest.mark.parametrize("solver", SOLVERS)
@settings(max_examples=20, deadline=None)
@given(low=st.floats(1.01, 10.0), seed=st.integers(0, 1000))
def test_the_constraints_never_hold_together(solver: str, low: float, seed: int) -> None:
    """``y_0 (|u| - 1) + y_1 (low - c'u) - t (u_0 + 5) - v'u_12 >= 1`` whatever ``u`` is."""
    generator = np.random.default_rng(seed)
    c = generator.standard_normal(3)
    c /= np.linalg.norm(c)
    solution = ball_and_halfspace(solver).solve(torch.tensor(low), torch.from_numpy(c))
    assert Status(int(solution.status)) == Status.INFEASIBLE
    ball, plane, cone = solution.certificate().dual
    assert isinstance(ball, torch.Tensor)
    assert isinstance(plane, torch.Tensor)
    assert isinstance(cone, tuple)
    t, v = cone
    for _ in range(20):
        point = generator.standard_normal(3) * generator.choice([0.1, 1.0, 10.0])
        total = float(ball) * (np.linalg.norm(point) - 1) + float(plane) * (low - c @ point)
        total -= float(t.squeeze()) * (point[0] + 5) + v.numpy().reshape(-1) @ point[1:]
        assert total >= 1 - 1e-5 * (1 + np.linalg.norm(point))


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_direction_of_what_is_maximised_goes_up(solver: str) -> None:
    u, c = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Maximize(c @ u - cp.norm(u[0])), [u >= -1, u[0] <= u[1]])
    layer = ddn.DeclarativeLayer(problem, [c], [u], solver=solver)
    c_values = torch.tensor([[0.0, 2.0], [0.0, -1.0]], dtype=torch.float64)
    solution = layer.solve(c_values)
    assert solution.status.tolist() == [3, 0]
    (d,) = solution.certificate().direction
    assert float(c_values[0] @ d[0] - d[0, 0].abs()) >= 1 - CLOSE
    assert float(d[0].min()) >= -CLOSE
    assert bool(d[1].isnan().all())


@pytest.mark.parametrize("solver", ["INTERIOR", "CLARABEL"])
def test_a_semidefinite_proof_is_a_matrix(solver: str) -> None:
    X, trace = cp.Variable((2, 2), symmetric=True), cp.Parameter()
    problem = cp.Problem(cp.Minimize(X[0, 1]), [X >> 0, cp.trace(X) == trace])
    layer = ddn.DeclarativeLayer(problem, [trace], [X], solver=solver)
    matrix, number = layer.solve(torch.tensor([1.0, -2.0])).certificate().dual
    assert isinstance(matrix, torch.Tensor)
    assert isinstance(number, torch.Tensor)
    # 0.5 (trace(X) + 2) - <I / 2, X> is one whatever X is.
    torch.testing.assert_close(matrix[1], torch.eye(2).double() / 2, rtol=0, atol=CLOSE)
    assert float(number[1]) == pytest.approx(0.5)


def test_a_geometric_program_s_direction_is_one_of_logarithms() -> None:
    x, y, a = cp.Variable(pos=True), cp.Variable(pos=True), cp.Parameter(pos=True)
    problem = cp.Problem(cp.Minimize(x), [x * y >= a])
    layer = ddn.DeclarativeLayer(problem, [a], [x], gp=True)
    solution = layer.solve(torch.tensor(2.0))
    assert Status(int(solution.status)) == Status.UNBOUNDED
    names = [variable.id for variable in problem.variables()]
    direction = dict(zip(names, solution.certificate().direction, strict=True))
    assert float(direction[x.id]) == pytest.approx(-1.0)
    assert float(direction[y.id]) >= 1 - CLOSE


def test_a_claim_without_a_proof_shows() -> None:
    data = quadratic_data()
    certificate = quadratic("CLARABEL").solve(*data)._certificate
    assert isinstance(certificate, ConeCertificate)
    empty = replace(certificate, primal=0 * certificate.primal, dual=0 * certificate.dual)
    proof = empty.refutation(torch.tensor([0, 2, 3, 5]))
    assert proof.residual.tolist()[1:3] == [torch.inf, torch.inf]
    assert proof.residual.isnan().tolist() == [True, False, False, True]


def test_a_local_solver_proves_nothing() -> None:
    u, x = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [cp.sum_squares(u) == 1])
    layer = ddn.DeclarativeLayer(problem, [x], [u])
    with pytest.raises(ValueError, match="nonlinear"):
        layer.solve(torch.ones(2)).certificate()


class Failing(ConeSolver):
    """A solver that stops at a point, and claims nothing."""

    name, on_device = "FAILING", False
    defaults: dict[str, object] = {}

    def __init__(self, primal: torch.Tensor, dual: torch.Tensor) -> None:
        self.primal, self.dual = primal, dual

    def supports(self, program: ConeProgram) -> str | None:
        return None

    def solve(self, *_: object) -> Answer:
        failed = torch.full((len(self.primal),), int(Status.FAILED))
        return Answer(self.primal, self.dual, failed, 0 * failed)


def test_a_proof_counts_though_the_solver_failed() -> None:
    """Clarabel's last point proves what Clarabel, at its tolerances, does not claim."""
    data = quadratic_data()
    certificate = quadratic("CLARABEL").solve(*data)._certificate
    assert isinstance(certificate, ConeCertificate)
    solver = Failing(certificate.primal, certificate.dual)
    outcome = Ladder([Rung(solver, {})])(certificate.instance)
    assert outcome.status.tolist() == [0, 2, 3, 0]


def test_a_large_solution_is_no_proof() -> None:
    """Multipliers that exclude all but large points, next to a solution of 1e9, prove nothing."""
    u, low, high = cp.Variable(2), cp.Parameter(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum(u)), [u >= low, u <= high])
    layer = ddn.DeclarativeLayer(problem, [low, high], [u], solver="CLARABEL")
    bounds = torch.tensor([1e9, 1.0]).double(), torch.tensor([1.0000001e9, 2.0]).double()
    certificate = layer.solve(*bounds)._certificate
    assert isinstance(certificate, ConeCertificate)
    multipliers = torch.tensor([[1.0, 0.0, 1.0 - 2e-7, 0.0]], dtype=torch.float64)
    assert float((certificate.instance.data.b * multipliers).sum()) < -50

    solver = Failing(0 * certificate.primal, multipliers)
    outcome = Ladder([Rung(solver, {})])(certificate.instance)
    assert outcome.status.tolist() == [Status.FAILED]


@pytest.mark.parametrize("solver", ["INTERIOR", "CLARABEL"])
def test_elements_without_a_solution_of_exponential_cones_are_proven(solver: str) -> None:
    """``log(sum(exp(x))) <= t`` with ``sum(x) >= 0`` holds from ``t = log(n)`` on."""
    x, c, t = cp.Variable(3), cp.Parameter(3), cp.Parameter()
    problem = cp.Problem(cp.Minimize(c @ x), [cp.log_sum_exp(x) <= t, cp.sum(x) >= 0])
    layer = ddn.DeclarativeLayer(problem, [c, t], [x], solver=solver, on_failure="nan")
    t_values = torch.tensor([1.2, 0.9, 2.0, -5.0], dtype=torch.float64)
    c_values = torch.tensor([[1.0, 2.0, 3.0]] * 2 + [[-1.0, 0.5, 0.3]] * 2, dtype=torch.float64)
    solution = layer.solve(c_values, t_values)
    solved, infeasible = int(Status.SOLVED), int(Status.INFEASIBLE)
    assert solution.status.tolist() == [solved, infeasible, solved, infeasible]
    free = cp.Problem(cp.Minimize(c @ x + cp.sum(cp.exp(x))))
    layer = ddn.DeclarativeLayer(free, [c], [x], solver=solver, on_failure="nan")
    c_values = -torch.tensor([[1.0, 2.0, 3.0], [1.0, -0.1, 1.0]], dtype=torch.float64)
    solution = layer.solve(c_values)
    assert solution.status.tolist() == [solved, int(Status.UNBOUNDED)]
    torch.testing.assert_close(solution.primal[0][0], (-c_values[0]).log(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-7])
def test_a_proof_overrules_what_is_nearly_solved(distance: float) -> None:
    """``log(x)`` on ``x <= 1``, and the trace of ``0 <= X <= I``, reach no more than 0 and 3."""
    x, d = cp.Variable(), cp.Parameter()
    logarithm = cp.Problem(cp.Minimize(x), [cp.log(x) >= d, x <= 1])
    X, C = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3))
    bounds = [X >> 0, X << np.eye(3), cp.trace(X) == 3 + d]
    fantope = cp.Problem(cp.Minimize(cp.trace(C @ X)), bounds)
    size = torch.tensor([distance, -0.5], dtype=torch.float64)
    costs = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)).expand(2, 3, 3)
    expected = [int(Status.INFEASIBLE), int(Status.SOLVED)]
    layer = ddn.DeclarativeLayer(logarithm, [d], [x], solver="INTERIOR", on_failure="nan")
    assert layer.solve(size).status.tolist() == expected
    layer = ddn.DeclarativeLayer(fantope, [C, d], [X], solver="INTERIOR", on_failure="nan")
    assert layer.solve(costs, size).status.tolist() == expected


@pytest.mark.parametrize("solver", ["INTERIOR", "SCS", "CLARABEL"])
def test_infeasible_semidefinite_elements_leave_the_others_alone(solver: str) -> None:
    """Half of a certificate is missing, and has no eigenvalues."""
    X, C, size = cp.Variable((3, 3), PSD=True), cp.Parameter((3, 3)), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.trace(C @ X)), [cp.trace(X) == size])
    layer = ddn.DeclarativeLayer(problem, [C, size], [X], solver=solver, on_failure="nan")
    sizes = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)
    solution = layer.solve(torch.diag(torch.tensor([1.0, 2.0, 3.0])).expand(3, 3, 3), sizes)
    solved, infeasible = int(Status.SOLVED), int(Status.INFEASIBLE)
    assert solution.status.tolist() == [solved, infeasible, solved]
    traces = solution.primal[0][[0, 2]].diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(traces, sizes[[0, 2]], rtol=1e-6, atol=1e-6)
