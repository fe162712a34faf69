"""Solvers that users wrote against cvxpylayers' ``SolverInterface`` work in the layer unchanged.

Two small solvers are written the way cvxpylayers' documentation says, in every form it allows: one
for cone programs (diffcp behind it) and one for equality-constrained quadratic programs (one linear
system, in numpy and in torch). The layer must give with them what ``CvxpyLayer`` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import cvxpy as cp
import diffcp
import numpy as np
import pytest
import scipy.sparse
import torch
from cvxpy.reductions.solvers.conic_solvers.diffcp_conif import DIFFCP
from cvxpy.reductions.solvers.conic_solvers.scs_conif import dims_to_solver_dict
from cvxpylayers.interfaces.base import SolverInterface
from cvxpylayers.torch import CvxpyLayer

import ddn_cvx

# cvxpylayers' own, from its torch adapter.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

VALUE, GRADIENT = 1e-6, 1e-5
Array = np.ndarray


# -- a solver of cone programs --------------------------------------------------------------------


class Structure:
    """What ``setup`` tells: where the stored values of ``[A | b]`` stand."""

    def __init__(self, context: Any) -> None:
        self.indices, self.pointers, self.shape = context.reduced_A.problem_data_index
        self.cones = dims_to_solver_dict(context.cone_dims)

    def program(self, q: Array, values: Array) -> tuple[Any, Array, Array]:
        """``A``, ``b`` and ``c`` of diffcp from the stored values of one element."""
        whole = scipy.sparse.csc_matrix((values, self.indices, self.pointers), shape=self.shape)
        return -whole[:, :-1].tocsc(), whole[:, -1].toarray().reshape(-1), q[:-1]

    def gradient(self, dA: Any, db: Array) -> Array:
        """Gradient of the stored values; ``dA`` has the pattern of ``A``."""
        rows = self.indices[self.pointers[-2] : self.pointers[-1]]
        columns = np.repeat(np.arange(self.shape[1] - 1), np.diff(self.pointers[:-1]))
        of_A = np.asarray(dA.todense())[self.indices[: self.pointers[-2]], columns]
        return np.concatenate([-of_A, db[rows]])


def solve_cone_program(structure: Structure, q: Array, A: Array) -> tuple[Array, Array, Any]:
    """Primal, dual and diffcp's adjoint, accurately."""
    x, y, _, _, adjoint = diffcp.solve_and_derivative(
        *structure.program(q, A),
        structure.cones,
        mode="dense",
        eps=1e-11,
        max_iters=100_000,
    )
    return x, y, adjoint


def differentiate_cone_program(
    structure: Structure, adjoint: Any, dprimal: Array, ddual: Array
) -> tuple[Array, Array]:
    """Gradients of ``q`` and of the stored values of ``[A | b]``."""
    dA, db, dc = adjoint(dprimal, ddual, np.zeros_like(ddual))
    return np.append(dc, 0.0), structure.gradient(dA, db)


class OneByOne(SolverInterface):  # type: ignore[misc]
    """The simplest form: numpy, one element. ``DIFFCP`` asks for a linear objective."""

    canon_solver = "DIFFCP"

    def __init__(self) -> None:
        self.contexts: list[Any] = []
        self.parameters: list[list[Array]] = []
        self.arguments: list[dict[str, Any]] = []
        self.needs_grad: list[bool] = []

    def setup(self, ctx: Any) -> None:
        self.contexts.append(ctx)
        self.structure = Structure(ctx)

    def set_params(self, params: list[Array]) -> None:
        self.parameters.append(params)

    def solve_numpy(
        self, P: Array | None, q: Array, A: Array, dims: Any, solver_args: Any, needs_grad: bool
    ) -> tuple[Array, Array, Any]:
        assert P is None
        self.arguments.append(solver_args)
        self.needs_grad.append(needs_grad)
        return solve_cone_program(self.structure, q, A)

    def derivative_numpy(
        self, dprimal: Array, ddual: Array, saved_state: Any
    ) -> tuple[None, Array, Array]:
        return None, *differentiate_cone_program(self.structure, saved_state, dprimal, ddual)


class WholeBatch(SolverInterface):  # type: ignore[misc]
    """The whole batch at once, in torch."""

    canon_solver = "DIFFCP"

    def setup(self, ctx: Any) -> None:
        self.structure = Structure(ctx)

    def solve_torch_batch(
        self,
        P: torch.Tensor | None,
        q: torch.Tensor,
        A: torch.Tensor,
        dims: Any,
        solver_args: Any,
        needs_grad: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        rows = [
            solve_cone_program(self.structure, c.numpy(), values.numpy())
            for c, values in zip(q.detach(), A.detach(), strict=True)
        ]
        primal, dual = (torch.from_numpy(np.stack([row[k] for row in rows])) for k in (0, 1))
        return primal, dual, [row[2] for row in rows]

    def derivative_torch_batch(
        self, dprimal: torch.Tensor, ddual: torch.Tensor, saved_state: Any
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        rows = [
            differentiate_cone_program(self.structure, adjoint, dx.numpy(), dy.numpy())
            for adjoint, dx, dy in zip(saved_state, dprimal, ddual, strict=True)
        ]
        dq, dA = (torch.from_numpy(np.stack([row[k] for row in rows])) for k in (0, 1))
        return None, dq, dA


class NumpySingleThroughBatch(SolverInterface):  # type: ignore[misc]
    """``solve_numpy_batch``: reached from ``solve_numpy``'s default, one element at a time."""

    canon_solver = DIFFCP()  # an instance instead of its name

    def setup(self, ctx: Any) -> None:
        self.structure = Structure(ctx)

    def solve_numpy_batch(
        self, P: Array | None, q: Array, A: Array, dims: Any, solver_args: Any, needs_grad: bool
    ) -> tuple[Array, Array, Any]:
        rows = [
            solve_cone_program(self.structure, c, values) for c, values in zip(q, A, strict=True)
        ]
        return np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows]), rows

    def derivative_numpy_batch(
        self, dprimal: Array, ddual: Array, saved_state: Any
    ) -> tuple[None, Array, Array]:
        states = saved_state if isinstance(saved_state, list) else [saved_state]
        rows = [
            differentiate_cone_program(self.structure, state[2], dx, dy)
            for state, dx, dy in zip(states, dprimal, ddual, strict=True)
        ]
        return None, np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows])


def from_functions() -> SolverInterface:
    """``SolverInterface.from_functions``; the structure comes by ``setup`` all the same."""
    holder: dict[str, Structure] = {}

    def solve(P: Any, q: Array, A: Array, dims: Any, arguments: Any, needs_grad: bool) -> Any:
        return solve_cone_program(holder["structure"], q, A)

    def derivative(dprimal: Array, ddual: Array, saved_state: Any) -> Any:
        return None, *differentiate_cone_program(holder["structure"], saved_state, dprimal, ddual)

    interface = SolverInterface.from_functions(solve, derivative, canon_solver="DIFFCP")
    interface.setup = lambda ctx: holder.update(structure=Structure(ctx))
    return interface


# -- a solver of equality-constrained quadratic programs ------------------------------------------


class DirectQuadratic(SolverInterface):  # type: ignore[misc]
    """``[[P, -A'], [A, 0]] (x, y) = (-q, -b)`` in torch for the batch; ``A x + b = 0`` here.

    cvxpylayers' form is ``s = A x + b`` with the stored values of ``[A | b]``, and ``P`` in full.
    """

    canon_solver = "SCS"
    supports_quad_obj = True

    def setup(self, ctx: Any) -> None:
        A_indices, A_pointers, A_shape = ctx.reduced_A.problem_data_index
        P_indices, P_pointers, P_shape = ctx.reduced_P.problem_data_index
        self.shape = (int(A_shape[0]), int(A_shape[1]) - 1)
        self.A_places = (A_indices, np.repeat(np.arange(A_shape[1]), np.diff(A_pointers)))
        self.P_places = (P_indices, np.repeat(np.arange(P_shape[1]), np.diff(P_pointers)))

    def system(self, P: torch.Tensor, q: torch.Tensor, A: torch.Tensor) -> tuple[Any, Any]:
        m, n = self.shape
        whole = q.new_zeros(len(q), m, n + 1)
        whole[:, self.A_places[0], self.A_places[1]] = A
        quadratic = q.new_zeros(len(q), n, n)
        quadratic[:, self.P_places[0], self.P_places[1]] = P
        matrix = q.new_zeros(len(q), n + m, n + m)
        matrix[:, :n, :n], matrix[:, n:, :n] = quadratic, whole[:, :, :n]
        matrix[:, :n, n:] = -whole[:, :, :n].mT
        return matrix, -torch.cat([q[:, :n], whole[:, :, n]], 1)

    def solve_torch_batch(
        self, P: Any, q: Any, A: Any, dims: Any, solver_args: Any, needs_grad: bool
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        matrix, right = self.system(P.detach(), q.detach(), A.detach())
        solution = torch.linalg.solve(matrix, right.unsqueeze(-1)).squeeze(-1)
        n = self.shape[1]
        return solution[:, :n], solution[:, n:], (matrix, solution)

    def derivative_torch_batch(
        self, dprimal: torch.Tensor, ddual: torch.Tensor, saved_state: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        matrix, solution = saved_state
        n = self.shape[1]
        incoming = torch.cat([dprimal, ddual], 1).unsqueeze(-1)
        adjoint = torch.linalg.solve(matrix.mT, incoming).squeeze(-1)
        x, y, a, c = solution[:, :n], solution[:, n:], adjoint[:, :n], adjoint[:, n:]
        rows, columns = self.P_places
        dP = -a[:, rows] * x[:, columns]
        rows, columns = self.A_places
        extended = torch.cat([x, x.new_ones(len(x), 1)], 1)
        across = torch.cat([a, a.new_zeros(len(a), 1)], 1)
        dA = y[:, rows] * across[:, columns] - c[:, rows] * extended[:, columns]
        return dP, torch.cat([-a, a.new_zeros(len(a), 1)], 1), dA


# -- problems -------------------------------------------------------------------------------------


def projection() -> tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]:
    """Onto a scaled simplex; returns a multiplier too. Parameters: the point and the scale."""
    x, point, scale = cp.Variable(4), cp.Parameter(4), cp.Parameter()
    total = cp.sum(x) == scale
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - point)), [total, x >= 0])
    return problem, [point, scale], [x, total.dual_variables[0]]


def quadratic() -> tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]:
    """Equality-constrained, with a quadratic form of a parameter."""
    x, P, q = cp.Variable(3), cp.Parameter((3, 3), PSD=True), cp.Parameter(3)
    A, b = cp.Parameter((1, 3)), cp.Parameter(1)
    equality = A @ x == b
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, P) / 2 + q @ x), [equality])
    return problem, [P, q, A, b], [x, equality.dual_variables[0]]


def projection_inputs(batch: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    point = torch.randn((*batch, 4), dtype=torch.float64, generator=generator)
    return [point.requires_grad_(), torch.tensor(1.5, dtype=torch.float64, requires_grad=True)]


def quadratic_inputs(batch: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn((*batch, *shape), dtype=torch.float64, generator=generator)

    M = normal(3, 3)
    values = [M @ M.mT + torch.eye(3), normal(3), normal(1, 3), normal(1)]
    return [value.requires_grad_() for value in values]


def values_and_gradients(layer: Any, inputs: Sequence[torch.Tensor]) -> tuple[Any, Any]:
    values = layer(*inputs)
    loss = torch.stack([(value * value).sum() + value.sum() for value in values]).sum()
    return values, torch.autograd.grad(loss, list(inputs))


def assert_same(found: Any, wanted: Any, tolerance: float) -> None:
    for value, reference in zip(found, wanted, strict=True):
        assert value.shape == reference.shape
        assert torch.allclose(value, reference, atol=tolerance, rtol=tolerance)


# -- statements -----------------------------------------------------------------------------------

CONE_SOLVERS: dict[str, Any] = {
    "numpy, one element": OneByOne,
    "torch, the batch": WholeBatch,
    "from functions": from_functions,
}


@pytest.mark.parametrize("batch", [(), (1,), (5,)], ids=str)
@pytest.mark.parametrize("name", CONE_SOLVERS)
def test_cone_solvers_give_what_they_give_in_cvxpylayers(name: str, batch: tuple[int, ...]) -> None:
    declaration, inputs = projection(), projection_inputs(batch)
    ours = ddn_cvx.DeclarativeLayer(*declaration, solver=CONE_SOLVERS[name]())
    theirs = CvxpyLayer(*declaration, solver=CONE_SOLVERS[name]())
    values, gradients = values_and_gradients(ours, inputs)
    peer_values, peer_gradients = values_and_gradients(theirs, inputs)
    assert_same(values, peer_values, VALUE)
    assert_same(gradients, peer_gradients, GRADIENT)


@pytest.mark.parametrize("name", [*CONE_SOLVERS, "numpy, the batch"])
def test_cone_solvers_agree_with_the_layers_own(name: str) -> None:
    solver = {**CONE_SOLVERS, "numpy, the batch": NumpySingleThroughBatch}[name]()
    declaration, inputs = projection(), projection_inputs((3,))
    foreign = ddn_cvx.DeclarativeLayer(*declaration, solver=solver)
    values, gradients = values_and_gradients(foreign, inputs)
    own_values, own_gradients = values_and_gradients(ddn_cvx.DeclarativeLayer(*declaration), inputs)
    assert_same(values, own_values, VALUE)
    assert_same(gradients, own_gradients, GRADIENT)


@pytest.mark.parametrize("batch", [(), (1,), (5,)], ids=str)
def test_a_solver_that_takes_quadratic_objectives(batch: tuple[int, ...]) -> None:
    declaration, inputs = quadratic(), quadratic_inputs(batch)
    ours = ddn_cvx.DeclarativeLayer(*declaration, solver=DirectQuadratic())
    values, gradients = values_and_gradients(ours, inputs)
    theirs = CvxpyLayer(*declaration, solver=DirectQuadratic())
    peer_values, peer_gradients = values_and_gradients(theirs, inputs)
    assert_same(values, peer_values, VALUE)
    assert_same(gradients, peer_gradients, GRADIENT)
    own_values, own_gradients = values_and_gradients(ddn_cvx.DeclarativeLayer(*declaration), inputs)
    assert_same(values, own_values, VALUE)
    # A quadratic form sees the symmetric part of P only; how the rest is spread is a convention.
    symmetric = [(g + g.mT) / 2 for g in (gradients[0], own_gradients[0])]
    assert_same([symmetric[0], *gradients[1:]], [symmetric[1], *own_gradients[1:]], GRADIENT)


@pytest.mark.parametrize("adjoint", ["kkt", "native"])
def test_a_foreign_solver_goes_with_either_adjoint(adjoint: str) -> None:
    declaration, inputs = projection(), projection_inputs((3,))
    foreign = ddn_cvx.DeclarativeLayer(*declaration, solver=OneByOne(), adjoint=adjoint)
    _, gradients = values_and_gradients(foreign, inputs)
    _, reference = values_and_gradients(ddn_cvx.DeclarativeLayer(*declaration), inputs)
    assert_same(gradients, reference, GRADIENT)


def test_hooks_are_called_with_what_cvxpylayers_gives_them() -> None:
    declaration, inputs = projection(), projection_inputs((3,))
    solvers = OneByOne(), OneByOne()
    layers = (
        ddn_cvx.DeclarativeLayer(*declaration, solver=solvers[0]),
        CvxpyLayer(*declaration, solver=solvers[1]),
    )
    for solver, layer in zip(solvers, layers, strict=True):
        assert len(solver.contexts) >= 1
        assert solver.contexts[-1].cone_dims.nonneg == 4
        layer(*inputs, solver_args={"my_own_setting": 3})
        assert len(solver.parameters) == 1
        assert all(arguments["my_own_setting"] == 3 for arguments in solver.arguments)
    for ours, theirs in zip(solvers[0].parameters[0], solvers[1].parameters[0], strict=True):
        assert isinstance(ours, np.ndarray)
        assert np.allclose(ours, theirs)


def test_a_foreign_solver_is_told_whether_a_gradient_is_wanted() -> None:
    solver = OneByOne()
    layer = ddn_cvx.DeclarativeLayer(*projection(), solver=solver)
    inputs = projection_inputs(())
    layer(*inputs)
    with torch.no_grad():
        layer(*inputs)
    layer(*[tensor.detach() for tensor in inputs])
    assert solver.needs_grad == [True, False, False]


def test_one_nan_costs_a_foreign_solvers_batch_nothing() -> None:
    layer = ddn_cvx.DeclarativeLayer(*projection(), solver=OneByOne(), on_failure="nan")
    point, scale = projection_inputs((4,))
    expected, gradients = values_and_gradients(layer, [point, scale])
    spoiled = point.detach().clone()
    spoiled[2, 1] = torch.nan
    values, found = values_and_gradients(layer, [spoiled.requires_grad_(), scale])
    sound = [0, 1, 3]
    assert values[0][2].isnan().all()
    assert torch.equal(values[0][sound], expected[0][sound])
    # The loss is NaN, its gradient with respect to the sound elements is not.
    assert torch.equal(found[0][sound], gradients[0][sound])
    assert torch.equal(found[0][2], torch.zeros(4, dtype=torch.float64))


def test_a_failing_foreign_solver_is_not_taken_for_a_solution() -> None:
    class Failing(OneByOne):
        def solve_numpy(self, *arguments: Any) -> tuple[Array, Array, Any]:
            raise diffcp.SolverError("out of ideas")

    layer = ddn_cvx.DeclarativeLayer(*projection(), solver=Failing())
    with pytest.raises((diffcp.SolverError, ddn_cvx.SolveError)):
        layer(*[tensor.detach() for tensor in projection_inputs(())])


# -- solvers that work on the parameters themselves -----------------------------------------------


class ByParameters:
    """The plane projection ``x = p - (sum(p) - 1) / n``, on cvxpy's own leaves."""

    calls: ClassVar[list[str]] = []

    @classmethod
    def solve(cls, problem: cp.Problem, **_: Any) -> float:
        cls.calls.append("solve")
        (point,), (x,) = problem.parameters(), problem.variables()
        x.save_value(point.value - (point.value.sum() - 1.0) / x.size)
        return float(np.sum((x.value - point.value) ** 2))

    @classmethod
    def solve_and_state(cls, problem: cp.Problem, **_: Any) -> tuple[float, Any]:
        return cls.solve(problem), None

    @classmethod
    def gradient(cls, problem: cp.Problem, state: Any) -> None:
        cls.calls.append("gradient")
        (point,), (x,) = problem.parameters(), problem.variables()
        incoming = np.asarray(x.gradient)
        point.gradient = incoming - incoming.mean()


@pytest.mark.parametrize("form", ["parametric", "codegen"])
def test_parametric_solvers(form: str) -> None:
    x, point = cp.Variable(4), cp.Parameter(4)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - point)), [cp.sum(x) == 1])
    if form == "parametric":
        solver = SolverInterface.from_parametric_functions(
            ByParameters.solve, ByParameters.solve_and_state, ByParameters.gradient
        )
    else:
        solver = SolverInterface.from_codegen(ByParameters.solve_and_state, ByParameters.gradient)
    value = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    ByParameters.calls.clear()
    foreign = ddn_cvx.DeclarativeLayer(problem, [point], [x], solver=solver)
    values, gradients = values_and_gradients(foreign, [value])
    assert "solve" in ByParameters.calls
    assert "gradient" in ByParameters.calls
    peer = CvxpyLayer(problem, [point], [x], solver=solver)
    peer_values, peer_gradients = values_and_gradients(peer, [value])
    assert_same(values, peer_values, VALUE)
    assert_same(gradients, peer_gradients, GRADIENT)
    own_values, own_gradients = values_and_gradients(
        ddn_cvx.DeclarativeLayer(problem, [point], [x]), [value]
    )
    assert_same(values, own_values, VALUE)
    assert_same(gradients, own_gradients, GRADIENT)


def test_what_an_adjoint_cannot_read_is_refused() -> None:
    X, M = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True)
    semidefinite = cp.Problem(cp.Minimize(cp.sum_squares(X - M)), [X >> 0])
    options = {"canon_solver": "CLARABEL", "supports_quad_obj": True}
    interface = SolverInterface.from_functions(raising, raising, **options)
    with pytest.raises(ddn_cvx.DeclarationError, match="order"):
        ddn_cvx.DeclarativeLayer(semidefinite, [M], [X], solver=interface, adjoint="kkt")
    u, p = cp.Variable(3), cp.Parameter(3)
    quadratic = cp.Problem(cp.Minimize(cp.sum_squares(u - p)), [u >= 0])
    with pytest.raises(ddn_cvx.DeclarationError, match="quadratic objective"):
        ddn_cvx.DeclarativeLayer(quadratic, [p], [u], solver=interface, adjoint="lsqr")


def raising(*arguments: Any) -> Any:
    raise ValueError("cannot")


def test_a_foreign_solver_that_raises_leaves_the_ladder() -> None:
    u, p = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - p)), [u >= 0])
    interface = SolverInterface.from_functions(
        raising, raising, canon_solver="SCS", supports_quad_obj=True
    )
    layer = ddn_cvx.DeclarativeLayer(problem, [p], [u], solver=interface, adjoint="kkt")
    point = torch.tensor([[1.0, -1.0, 2.0]], dtype=torch.float64)
    solution = layer.solve(point)
    assert solution.solver == ("CLARABEL",)
    torch.testing.assert_close(solution.primal[0], point.clamp_min(0.0), atol=1e-9, rtol=0)
