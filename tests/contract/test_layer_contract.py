"""What a layer promises: failures, batches, dtypes, copies, and independence of the elements."""

import copy
import pickle

import cvxpy as cp
import diffcp
import numpy as np
import pytest
import torch
from helpers import draw

import ddn_cvx as ddn
from ddn_cvx import Status


def bounded(**options: str) -> ddn.DeclarativeLayer:
    """Project onto ``low <= u``, ``sum(u) <= 1``: infeasible where ``sum(low) > 1``."""
    u, x, low = cp.Variable(3), cp.Parameter(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [u >= low, cp.sum(u) <= 1])
    return ddn.DeclarativeLayer(problem, [x, low], [u], **options)  # type: ignore[arg-type]


def batch_of_64() -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Elements 5, 23 and 41 are infeasible, 57 has a NaN."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    low = -torch.rand(64, 3, generator=generator, dtype=torch.float64)
    low[[5, 23, 41]] = 1.0
    x[57, 1] = torch.nan
    return x, low, [5, 23, 41, 57]


GOOD = [element for element in range(64) if element not in (5, 23, 41, 57)]


@pytest.mark.parametrize("solver", ["CLARABEL", "SCS", "MOREAU"])
def test_bad_elements_cost_nobody_else(solver: str) -> None:
    if solver == "MOREAU":
        pytest.importorskip("moreau")
    x, low, bad = batch_of_64()
    layer = bounded(solver=solver, on_failure="nan")
    (u,) = layer(x, low)
    (alone,) = layer(x[GOOD], low[GOOD])
    tolerance = 0.0 if solver == "CLARABEL" else 1e-12
    torch.testing.assert_close(u[GOOD], alone, rtol=0, atol=tolerance)
    assert bool(u[bad].isnan().all())
    status = layer.solve(x, low).status
    assert [Status(int(s)).name for s in status[bad]] == ["INFEASIBLE"] * 3 + ["BAD_INPUT"]
    assert int((status != Status.SOLVED).sum()) == 4


def test_the_error_names_the_four_and_carries_the_sixty() -> None:
    x, low, bad = batch_of_64()
    with pytest.raises(ddn.SolveError) as caught:
        bounded()(x, low)
    error = caught.value
    assert isinstance(error, diffcp.SolverError)
    assert error.elements == tuple((element,) for element in bad)
    for text in ("4 of 64", "element 5: INFEASIBLE", "element 57: BAD_INPUT"):
        assert text in str(error)
    assert error.solution is not None
    (alone,) = bounded()(x[GOOD], low[GOOD])
    torch.testing.assert_close(error.solution.primal[0][GOOD], alone, rtol=0, atol=0)


def test_failing_elements_have_zero_gradient_and_the_others_their_own() -> None:
    x, low, bad = batch_of_64()
    leaf = x.clone().requires_grad_()
    bounded(on_failure="nan")(leaf, low)[0].square().sum().backward()
    alone = x[GOOD].clone().requires_grad_()
    bounded()(alone, low[GOOD])[0].square().sum().backward()
    assert leaf.grad is not None
    assert alone.grad is not None
    torch.testing.assert_close(leaf.grad[GOOD], alone.grad, rtol=0, atol=1e-14)
    assert float(leaf.grad[bad].abs().max()) == 0.0


def test_warn_warns_once_and_does_as_nan() -> None:
    x, low, bad = batch_of_64()
    with pytest.warns(ddn.InaccurateWarning, match="4 of 64") as record:
        (u,) = bounded(on_failure="warn")(x, low)
    assert len(record) == 1
    assert bool(u[bad].isnan().all())


def test_failures_inside_vmap_follow_the_same_policies() -> None:
    x, low, _ = batch_of_64()
    (together,) = bounded(on_failure="nan")(x, low)
    mapped = torch.func.vmap(lambda *a: bounded(on_failure="nan")(*a)[0])(x, low)
    torch.testing.assert_close(mapped, together, rtol=0, atol=1e-14, equal_nan=True)
    with pytest.raises(ddn.SolveError):
        torch.func.vmap(lambda *a: bounded()(*a)[0])(x, low)


@pytest.mark.parametrize("adjoint", ["kkt", "dense", "native"])
def test_every_engine_follows_the_policy(adjoint: str) -> None:
    x, low, bad = batch_of_64()
    leaf = x.clone().requires_grad_()
    (u,) = bounded(adjoint=adjoint, on_failure="nan")(leaf, low)
    assert u.isnan().any(1).nonzero().squeeze(1).tolist() == bad
    u[GOOD].sum().backward()
    assert leaf.grad is not None
    assert float(leaf.grad[bad].abs().max()) == 0.0
    assert bool(leaf.grad.isfinite().all())


def test_every_kind_of_failure_has_its_name() -> None:
    u = cp.Variable(2)
    x, s = cp.Parameter(2, nonneg=True), cp.Parameter((2, 2), PSD=True)
    objective = cp.Minimize(cp.quad_form(u, s) + x @ u)
    layer = ddn.DeclarativeLayer(cp.Problem(objective, [u <= 1]), [x, s], [u], on_failure="nan")
    one, eye = torch.ones(2).double(), torch.eye(2).double()
    kinds = {
        Status.SOLVED: (one, eye),
        Status.UNBOUNDED: (one, torch.diag(torch.tensor([0.0, 1.0])).double()),
    }
    for wanted, inputs in kinds.items():
        assert int(layer.solve(*inputs).status) == wanted
    for bad in (
        (-one, eye),  # negative, declared nonneg
        (one, -eye),  # indefinite, declared PSD
        (one, torch.tensor([[1.0, 0.9], [0.0, 1.0]]).double()),  # asymmetric
        (one * torch.inf, eye),
    ):
        assert int(layer.solve(*bad).status) == Status.BAD_INPUT


def test_a_users_iteration_limit_is_kept_and_said() -> None:
    u, A = cp.Variable(5), cp.Parameter((8, 5))
    layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.norm(A @ u - 1, 1))), [A], [u])
    data = draw(8, 5)
    with pytest.warns(ddn.InaccurateWarning, match="INACCURATE"):
        (rough,) = layer(data, solver_args={"max_iters": 2})
    assert float((rough - layer(data)[0]).norm()) > 1e-3


def test_a_loose_scs_climbs_to_an_accurate_answer() -> None:
    u, A = cp.Variable(5), cp.Parameter((8, 5))
    objective = cp.Minimize(cp.sum_squares(A @ u - 1) + cp.norm(u, 1))
    scs = ddn.DeclarativeLayer(cp.Problem(objective), [A], [u], solver="SCS")
    exact = ddn.DeclarativeLayer(cp.Problem(objective), [A], [u])
    data = draw(8, 5)
    data[:, 0] *= 1e4  # badly scaled: plain SCS takes far too long
    torch.testing.assert_close(scs(data)[0], exact(data)[0], rtol=1e-5, atol=1e-7)


# -- batches, dtypes, devices -------------------------------------------------------------------


def simplex() -> ddn.DeclarativeLayer:
    u, x, total = cp.Variable(4), cp.Parameter(4), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [u >= 0, cp.sum(u) == total])
    return ddn.DeclarativeLayer(problem, [x, total], [u])


def inputs(*shape: int) -> torch.Tensor:
    return draw(*shape, 4, seed=1)


def test_any_number_of_leading_dimensions_broadcast() -> None:
    layer, x = simplex(), inputs(2, 3)
    (u,) = layer(x, torch.tensor(1.0))
    assert u.shape == (2, 3, 4)
    (wide,) = layer(x, torch.tensor([[[1.0]], [[2.0]]]).double())
    assert wide.shape == (2, 2, 3, 4)
    torch.testing.assert_close(wide[0], u, rtol=0, atol=1e-14)
    assert layer(x[0, 0], torch.tensor(1.0))[0].shape == (4,)
    assert layer(x[:1, 0], torch.tensor(1.0))[0].shape == (1, 4)
    assert layer(x[:0], torch.tensor(1.0))[0].shape == (0, 3, 4)


def test_an_element_does_not_depend_on_its_neighbours() -> None:
    layer, x = simplex(), inputs(16)
    (u,) = layer(x, torch.tensor(1.0))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x[order], torch.tensor(1.0))[0], u[order], rtol=0, atol=0)
    alone = torch.stack([layer(one, torch.tensor(1.0))[0] for one in x])
    torch.testing.assert_close(alone, u, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_output_has_the_inputs_dtype_and_is_solved_in_float64(dtype: torch.dtype) -> None:
    x = inputs(3).to(dtype).requires_grad_()
    (u,) = simplex()(x, 1.0)
    assert u.dtype == dtype
    (exact,) = simplex()(x.double(), 1.0)
    assert torch.equal(u, exact.to(dtype))
    u.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


def test_numbers_arrays_and_integers_are_taken() -> None:
    (u,) = simplex()(np.array([1.0, 2.0, 3.0, 4.0]), 1)
    assert u.tolist() == pytest.approx([0, 0, 0, 1], abs=1e-9)
    assert simplex()(torch.tensor([1, 2, 3, 4]), 1)[0].dtype == torch.get_default_dtype()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((torch.ones(4),), ValueError, "received 1 tensors, expected 2"),
        ((torch.ones(5), torch.ones(())), ValueError, "expected .*batch, 4.*, got .5"),
        ((torch.ones(()), torch.ones(())), ValueError, "trailing dimensions"),
        ((torch.ones(2, 4), torch.ones(3)), ValueError, "Inconsistent batch sizes"),
        ((None, torch.ones(())), TypeError, "must be a tensor; got NoneType"),
        ((torch.ones(4) * 1j, torch.ones(())), TypeError, "must be real"),
    ],
)
def test_wrong_inputs_are_explained(
    arguments: tuple[torch.Tensor, ...], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        simplex()(*arguments)


# -- a module among modules ---------------------------------------------------------------------


def test_copies_and_pickles_give_the_same_numbers() -> None:
    layer, x = simplex(), inputs(5)
    (u,) = layer(x, 1.0)
    copies = (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)))
    for twin in (*copies, layer.to("cpu"), layer.double(), layer.eval()):
        torch.testing.assert_close(twin(x, 1.0)[0], u, rtol=0, atol=0)


def test_the_state_dict_is_empty_and_a_cvxpylayers_checkpoint_loads() -> None:
    from cvxpylayers.torch import CvxpyLayer

    layer = simplex()
    assert dict(layer.state_dict()) == {}
    declaration = layer.declaration
    assert isinstance(declaration, ddn.Declaration)
    peer = CvxpyLayer(
        declaration.problem, list(declaration.parameters), list(declaration.variables)
    )
    torch.nn.Sequential(layer).load_state_dict(torch.nn.Sequential(peer).state_dict())


def test_no_grad_and_autocast() -> None:
    layer, x = simplex(), inputs(2).requires_grad_()
    (expected,) = layer(x, 1.0)
    with torch.no_grad():
        (u,) = layer(x, 1.0)
    assert not u.requires_grad
    assert torch.equal(u, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (u,) = layer(x, 1.0)
    assert torch.equal(u, expected)


def test_a_first_call_in_inference_mode_does_not_spoil_training() -> None:
    layer, x = simplex(), inputs(2)
    with torch.inference_mode():
        (u,) = layer(x, 1.0)
    leaf = x.clone().requires_grad_()
    (again,) = layer(leaf, 1.0)
    again.square().sum().backward()
    torch.testing.assert_close(u.clone(), again.detach(), rtol=0, atol=0)
    assert leaf.grad is not None


def test_the_layer_trains_inside_a_model() -> None:
    torch.manual_seed(0)
    layer = simplex()
    linear = torch.nn.Linear(3, 4).double()
    features, target = torch.randn(16, 3).double(), torch.softmax(torch.randn(16, 4).double(), 1)
    optimizer = torch.optim.Adam(linear.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (layer(linear(features), 1.0)[0] - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_two_calls_of_one_layer_in_one_graph() -> None:
    layer, x = simplex(), inputs(3).requires_grad_()
    first, second = layer(x, 1.0)[0], layer(2 * x, 2.0)[0]
    (both,) = torch.autograd.grad((first * second).sum(), x, retain_graph=True)
    (again,) = torch.autograd.grad((first * second).sum(), x)
    torch.testing.assert_close(both, again, rtol=0, atol=0)
    # The simplex is scaled with its point: layer(2 x, 2) = 2 layer(x, 1).
    (doubled,) = torch.autograd.grad((2 * layer(x, 1.0)[0].square()).sum(), x)
    torch.testing.assert_close(both, doubled, rtol=0, atol=1e-8)


def test_the_repr_explains() -> None:
    text = repr(simplex())
    for part in ("-> ", "CLARABEL", "kkt", "1 zero, 4 nonnegative", "on_failure='raise'"):
        assert part in text


def test_a_layer_without_parameters_solves_one_problem() -> None:
    u = cp.Variable(2)
    layer = ddn.DeclarativeLayer(
        cp.Problem(cp.Minimize(cp.sum_squares(u - 1)), [u <= 0.5]), [], [u]
    )
    assert layer()[0].tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("sense", [cp.Minimize, cp.Maximize])
def test_multipliers_have_cvxpys_signs(sense: type[cp.Minimize]) -> None:
    u, x = cp.Variable(3), cp.Parameter(3)
    sign = 1.0 if sense is cp.Minimize else -1.0
    constraints = [cp.sum(u) == 1, u >= 0, cp.norm(u) <= 0.8, cp.bmat([[u[0:1], 0.1]]) >= 0.05]
    problem = cp.Problem(sense(sign * cp.sum_squares(u - x)), constraints)
    value = torch.tensor([1.0, 0.3, -0.5], dtype=torch.float64)
    solution = ddn.DeclarativeLayer(problem, [x], [u]).solve(value)
    x.value = value.numpy()
    tight = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-10)
    problem.solve(solver=cp.CLARABEL, **tight)
    for ours, constraint in zip(solution.dual, constraints, strict=True):
        assert isinstance(ours, torch.Tensor)
        np.testing.assert_allclose(ours.numpy(), constraint.dual_value, atol=1e-5)
    assert float(solution.objective()) == pytest.approx(float(problem.value), abs=1e-7)


def test_semidefinite_multipliers_and_structured_variables() -> None:
    U, C = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True)
    positive = U >> 0
    problem = cp.Problem(cp.Minimize(cp.trace(C @ U)), [positive, cp.trace(U) == 1])
    value = torch.tensor([[2.0, 0.5, 0.1], [0.5, 3.0, 0.2], [0.1, 0.2, 1.5]], dtype=torch.float64)
    layer = ddn.DeclarativeLayer(problem, [C], [U, positive.dual_variables[0]])
    primal, dual = layer(value)
    smallest, vectors = torch.linalg.eigh(value)
    direction = vectors[:, :1]
    torch.testing.assert_close(primal, direction @ direction.mT, rtol=0, atol=1e-7)
    torch.testing.assert_close(dual, value - smallest[0] * torch.eye(3), rtol=0, atol=1e-7)


def test_a_geometric_program_has_its_closed_form() -> None:
    # min x y s.t. x y >= a, x >= b y: the product is a; with 1 / x + x / b it pins x = sqrt(b).
    x, a, b = cp.Variable(pos=True), cp.Parameter(pos=True), cp.Parameter(pos=True)
    layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(a / x + x / b)), [a, b], [x], gp=True)
    values = [torch.tensor([2.0, 3.0]).double(), torch.tensor([1.0, 0.5]).double()]
    torch.testing.assert_close(layer(*values)[0], (values[0] * values[1]).sqrt(), rtol=0, atol=1e-8)
    leaves = [value.clone().requires_grad_() for value in values]
    assert torch.autograd.gradcheck(layer, leaves, atol=1e-5)
    assert layer.solve(-values[0], values[1]).status.tolist() == [Status.BAD_INPUT] * 2
