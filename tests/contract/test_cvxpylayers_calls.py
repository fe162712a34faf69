"""However ``CvxpyLayer`` is called, the layer is called the same way and answers the same."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import cvxpy as cp
import diffcp
import pytest
import torch
from cvxpylayers.torch import CvxpyLayer

import ddn_cvx

pytestmark = [
    # cvxpylayers' own, from its diffcp interface.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    # torch.compile's own, where it resumes after the layer.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

TIGHT = {"eps": 1e-11, "max_iters": 100_000, "mode": "dense"}
VALUE, GRADIENT = 1e-6, 1e-5

needs_moreau = pytest.mark.skipif(
    importlib.util.find_spec("moreau") is None, reason="moreau is not installed"
)


def least_squares() -> tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]:
    """Nonnegative least squares with a ridge; parameters ``A`` (4, 3), ``b`` (4,), weight."""
    x = cp.Variable(3)
    A, b, weight = cp.Parameter((4, 3)), cp.Parameter(4), cp.Parameter(nonneg=True)
    objective = cp.sum_squares(A @ x - b) + weight * cp.sum_squares(x)
    return cp.Problem(cp.Minimize(objective), [x >= -0.1]), [A, b, weight], [x]


def draw(*batches: Sequence[int], seed: int = 0) -> list[torch.Tensor]:
    """Inputs for :func:`least_squares` with these leading dimensions."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(4, 3), (4,), ()]
    tensors = [
        torch.randn((*batch, *shape), dtype=torch.float64, generator=generator)
        for batch, shape in zip(batches, shapes, strict=True)
    ]
    tensors[2] = tensors[2].abs() + 0.2
    return [tensor.requires_grad_() for tensor in tensors]


def agree(
    ours: Any,
    theirs: Any,
    inputs: Sequence[torch.Tensor],
    our_call: dict[str, Any] | None = None,
    their_call: dict[str, Any] | None = None,
) -> None:
    """Values to 1e-6, gradients to 1e-5, shapes and dtypes exactly."""
    found, wanted = ours(*inputs, **(our_call or {})), theirs(*inputs, **(their_call or {}))
    assert isinstance(found, tuple)
    assert len(found) == len(wanted)
    for value, reference in zip(found, wanted, strict=True):
        assert value.shape == reference.shape
        assert value.dtype == reference.dtype
        assert torch.allclose(value, reference, atol=VALUE, rtol=VALUE)
    asking = [tensor for tensor in inputs if tensor.requires_grad]
    ours_gradients, their_gradients = (
        torch.autograd.grad(torch.stack([(v * v).sum() for v in values]).sum(), asking)
        for values in (found, wanted)
    )
    for gradient, reference in zip(ours_gradients, their_gradients, strict=True):
        assert gradient.shape == reference.shape
        assert torch.allclose(gradient, reference, atol=GRADIENT, rtol=GRADIENT)


# -- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "batches",
    [
        ((), (), ()),
        ((1,), (1,), (1,)),
        ((5,), (5,), (5,)),
        ((5,), (), ()),
        ((), (5,), ()),
        ((), (), (5,)),
        ((5,), (5,), ()),
        ((), (5,), (5,)),
        ((1,), (), ()),
    ],
    ids=str,
)
def test_batched_beside_unbatched(batches: tuple[tuple[int, ...], ...]) -> None:
    declaration = least_squares()
    agree(
        ddn_cvx.DeclarativeLayer(*declaration),
        CvxpyLayer(*declaration, solver_args=TIGHT),
        draw(*batches),
    )


def test_one_input_shared_by_the_batch_gets_the_sum_of_the_elements_gradients() -> None:
    layer = ddn_cvx.DeclarativeLayer(*least_squares())
    A, b, weight = draw((), (6,), ())
    (together,) = layer(A, b, weight)
    (gradient,) = torch.autograd.grad(together.sum(), [A])
    alone = [torch.autograd.grad(layer(A, row, weight)[0].sum(), [A])[0] for row in b]
    assert torch.allclose(gradient, torch.stack(alone).sum(0), atol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("batch", "Inconsistent batch sizes"),
        ("shape", "Invalid parameter shape"),
        ("dimensions", "Invalid parameter dimensionality"),
        ("count", "A tensor must be provided for each CVXPY parameter"),
    ],
)
def test_wrong_inputs_raise_the_same_error(wrong: str, message: str) -> None:
    declaration = least_squares()
    inputs = [tensor.detach() for tensor in draw((3,), (3,), (3,))]
    match wrong:
        case "batch":
            inputs[1] = inputs[1][:2]
        case "shape":
            inputs[1] = torch.zeros(3, 8, dtype=torch.float64)
        case "dimensions":
            inputs[0] = inputs[0][0, 0]
        case "count":
            inputs = inputs[:2]
    for layer in (ddn_cvx.DeclarativeLayer(*declaration), CvxpyLayer(*declaration)):
        with pytest.raises(ValueError, match=message):
            layer(*inputs)


def test_more_leading_dimensions_than_cvxpylayers_takes() -> None:
    """Where cvxpylayers raises, the layer broadcasts: a superset."""
    declaration = least_squares()
    inputs = [tensor.detach() for tensor in draw((4,), (3, 4), ())]
    with pytest.raises(ValueError, match="Invalid parameter dimensionality"):
        CvxpyLayer(*declaration)(*inputs)
    layer = ddn_cvx.DeclarativeLayer(*declaration)
    (x,) = layer(*inputs)
    assert x.shape == (3, 4, 3)
    (alone,) = layer(inputs[0][2], inputs[1][1, 2], inputs[2])
    assert torch.allclose(x[1, 2], alone, atol=1e-12)


# -- constructing ---------------------------------------------------------------------------------


def test_positional_and_keyword_construction() -> None:
    problem, parameters, variables = least_squares()
    inputs = draw((2,), (2,), (2,))
    reference = CvxpyLayer(problem, parameters, variables, solver_args=TIGHT)
    agree(ddn_cvx.DeclarativeLayer(problem, parameters, variables), reference, inputs)
    agree(
        ddn_cvx.DeclarativeLayer(
            variables=variables,
            parameters=parameters,
            problem=problem,
            solver=None,
            gp=False,
            verbose=False,
            canon_backend=None,
            solver_args=None,
        ),
        reference,
        inputs,
    )
    agree(
        ddn_cvx.DeclarativeLayer(
            problem, tuple(parameters), tuple(variables), cp.DIFFCP, False, False, None, {}
        ),
        reference,
        inputs,
    )


@pytest.mark.parametrize("mistake", ["missing", "foreign variable", "not DPP", "set", "generator"])
def test_wrong_constructions_are_refused_as_cvxpylayers_refuses_them(mistake: str) -> None:
    problem, parameters, variables = least_squares()
    arguments: tuple[Any, ...] = (problem, parameters, variables)
    match mistake:
        case "missing":
            arguments = (problem, parameters[:2], variables)
        case "foreign variable":
            arguments = (problem, parameters, [*variables, cp.Variable()])
        case "not DPP":
            x, p, q = cp.Variable(), cp.Parameter(pos=True), cp.Parameter(pos=True)
            arguments = (cp.Problem(cp.Minimize(p * q * cp.square(x - 1))), [p, q], [x])
        case "set":
            arguments = (problem, set(parameters), variables)
        case "generator":
            arguments = (problem, parameters, iter(variables))
    with pytest.raises((ValueError, AssertionError)):
        CvxpyLayer(*arguments)
    if mistake == "not DPP":  # a nonlinear program, unless a solver of cone programs is asked for
        assert "DCP, not DPP" in repr(ddn_cvx.DeclarativeLayer(*arguments))
        arguments = (*arguments, "CLARABEL")
    with pytest.raises(ddn_cvx.DeclarationError):
        ddn_cvx.DeclarativeLayer(*arguments)


def test_multiplier_of_a_constraint_that_is_not_in_the_problem() -> None:
    problem, parameters, variables = least_squares()
    elsewhere = variables[0] >= 1
    with pytest.raises(ValueError, match=r"must be a subset of problem\.variables"):
        ddn_cvx.DeclarativeLayer(problem, parameters, [*variables, elsewhere.dual_variables[0]])


def test_one_parameter_in_two_layers() -> None:
    x, A = cp.Variable(3), cp.Parameter((5, 3))
    generator = torch.Generator().manual_seed(2)
    targets = torch.randn(2, 5, dtype=torch.float64, generator=generator)
    problems = [
        cp.Problem(cp.Minimize(cp.sum_squares(A @ x - target.numpy()))) for target in targets
    ]
    layers = [ddn_cvx.DeclarativeLayer(problem, [A], [x]) for problem in problems]
    value = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    for layer, target in zip(layers, targets, strict=True):
        (found,) = layer(value)
        exact = torch.linalg.lstsq(value, target.unsqueeze(1)).solution.squeeze(1)
        assert torch.allclose(found, exact, atol=1e-9)


@pytest.mark.parametrize("solver", [None, cp.SCS, cp.CLARABEL])
@pytest.mark.parametrize("before", [cp.DIFFCP, cp.SCS, cp.CLARABEL])
def test_a_problem_that_cvxpylayers_compiled_before(before: str, solver: str | None) -> None:
    """cvxpylayers reorders what cvxpy has cached for a solver; the layer must not read that."""
    x, A, b = cp.Variable(2), cp.Parameter((3, 2)), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0])
    with contextlib.suppress(RuntimeError):  # "Unknown solver", after the cache was changed
        CvxpyLayer(problem, [A, b], [x], solver=before)
    matrix = torch.tensor([[1.0, 0.5], [-0.3, 2.0], [0.7, 0.1]], dtype=torch.float64)
    target = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    exact = torch.linalg.lstsq(matrix, target.unsqueeze(1)).solution.squeeze(1)
    assert (exact > 0.1).all()
    layer = ddn_cvx.DeclarativeLayer(problem, [A, b], [x], solver=solver)
    assert torch.allclose(layer(matrix, target)[0], exact, atol=VALUE)


def test_inside_a_network_trained_by_an_optimizer() -> None:
    class Net(torch.nn.Module):
        def __init__(self, layer: torch.nn.Module) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(5, 12, dtype=torch.float64)
            self.layer = layer

        def forward(self, features: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            A = self.linear(features).unflatten(-1, (4, 3))
            (x,) = self.layer(A, b, torch.tensor(0.5, dtype=torch.float64))
            return torch.as_tensor(x)

    declaration = least_squares()
    losses = []
    for layer in (
        ddn_cvx.DeclarativeLayer(*declaration),
        CvxpyLayer(*declaration, solver_args=TIGHT),
    ):
        torch.manual_seed(3)
        net = Net(layer)
        features = torch.randn(6, 5, dtype=torch.float64)
        b, goal = torch.randn(6, 4, dtype=torch.float64), torch.rand(6, 3, dtype=torch.float64)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            loss = (net(features, b) - goal).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], abs=VALUE)


# -- gradients on and off -------------------------------------------------------------------------


def test_inputs_that_ask_for_no_gradient() -> None:
    declaration = least_squares()
    inputs = [tensor.detach() for tensor in draw((2,), (), ())]
    (ours,) = ddn_cvx.DeclarativeLayer(*declaration)(*inputs)
    assert not ours.requires_grad
    some = [inputs[0], inputs[1].clone().requires_grad_(), inputs[2]]
    agree(ddn_cvx.DeclarativeLayer(*declaration), CvxpyLayer(*declaration, solver_args=TIGHT), some)


# -- solvers and their settings -------------------------------------------------------------------


@pytest.mark.parametrize("solver", [None, cp.DIFFCP, cp.SCS, cp.CLARABEL, "scs", "clarabel"])
def test_solver_strings(solver: str | None) -> None:
    declaration = least_squares()
    agree(
        ddn_cvx.DeclarativeLayer(*declaration, solver=solver),
        CvxpyLayer(*declaration, solver_args=TIGHT),
        draw((3,), (3,), ()),
    )


SETTINGS: dict[str, dict[str, Any]] = {
    "README, tight": {"eps": 1e-8},
    "README, when SCS does not converge": {
        "eps": 1e-10,
        "max_iters": 10_000,
        "acceleration_lookback": 0,
    },
    "SCS behind diffcp": {"solve_method": "SCS", "eps": 1e-10, "max_iters": 100_000},
    "Clarabel behind diffcp": {"solve_method": "Clarabel"},
    "Clarabel, upper case": {"solve_method": "CLARABEL"},
    "Clarabel's own settings": {"solve_method": "Clarabel", "tol_gap_rel": 1e-10, "max_iter": 100},
    "lsqr": {"mode": "lsqr", "eps": 1e-10, "max_iters": 100_000},
    "lsmr": {"mode": "lsmr", "eps": 1e-10, "max_iters": 100_000},
    "dense": {"mode": "dense", "eps": 1e-10, "max_iters": 100_000},
    "threads": {"n_jobs_forward": 1, "n_jobs_backward": 1},
    "all threads": {"n_jobs_forward": -1, "n_jobs_backward": -1, "eps": 1e-10},
    "quiet": {"verbose": False},
    "SCS without scaling": {"normalize": False, "eps": 1e-10, "max_iters": 100_000},
    "SCS with fixed scale": {"adaptive_scale": False},
    "SCS with a time limit": {"time_limit_secs": 60.0},
    "diffcp's own": {"raise_on_error": True, "warm_starts": None},
}


@pytest.mark.parametrize("where", ["constructor", "call"])
@pytest.mark.parametrize("name", SETTINGS)
def test_solver_args(name: str, where: str) -> None:
    declaration, settings = least_squares(), SETTINGS[name]
    theirs = CvxpyLayer(*declaration, solver_args=TIGHT)
    inputs = draw((2,), (2,), ())
    if where == "constructor":
        ours, call = ddn_cvx.DeclarativeLayer(*declaration, solver_args=settings), {}
    else:
        ours, call = ddn_cvx.DeclarativeLayer(*declaration), {"solver_args": settings}
    agree(ours, theirs, inputs, call)


def test_a_calls_settings_override_the_constructors_for_that_call_only() -> None:
    declaration = least_squares()
    inputs = [tensor.detach() for tensor in draw((), (), ())]
    kept = {"max_iters": 1}
    layer = ddn_cvx.DeclarativeLayer(*declaration, solver_args=kept)
    exact = ddn_cvx.DeclarativeLayer(*declaration)(*inputs)[0]
    with pytest.warns(ddn_cvx.errors.InaccurateWarning):
        (stopped,) = layer(*inputs)
    (full,) = layer(*inputs, solver_args={"max_iters": 100_000, "eps": 1e-10})
    with pytest.warns(ddn_cvx.errors.InaccurateWarning):
        (again,) = layer(*inputs)
    assert float((stopped - exact).abs().max()) > 1e-3
    assert torch.allclose(full, exact, atol=1e-7)
    assert torch.equal(stopped, again)
    assert kept == {"max_iters": 1}


def test_a_setting_that_the_solver_does_not_have() -> None:
    declaration = least_squares()
    inputs = [tensor.detach() for tensor in draw((), (), ())]
    for layer in (ddn_cvx.DeclarativeLayer(*declaration), CvxpyLayer(*declaration)):
        with pytest.raises((TypeError, AttributeError)):
            layer(*inputs, solver_args={"no_such_setting": 1})


def test_verbose_prints_and_quiet_does_not(capfd: pytest.CaptureFixture[str]) -> None:
    declaration = least_squares()
    inputs = [tensor.detach() for tensor in draw((), (), ())]
    ddn_cvx.DeclarativeLayer(*declaration)(*inputs)
    assert capfd.readouterr().out == ""
    ddn_cvx.DeclarativeLayer(*declaration, verbose=True)(*inputs)
    assert capfd.readouterr().out != ""
    ddn_cvx.DeclarativeLayer(*declaration)(*inputs, solver_args={"verbose": True})
    assert capfd.readouterr().out != ""


def test_warm_start_is_for_moreau_only() -> None:
    declaration = least_squares()
    inputs = [tensor.detach() for tensor in draw((), (), ())]
    for layer in (ddn_cvx.DeclarativeLayer(*declaration), CvxpyLayer(*declaration)):
        with pytest.raises(ValueError, match="warm_start=True is only supported with solver='MORE"):
            layer(*inputs, warm_start=True)


@needs_moreau
@pytest.mark.parametrize("warm_start", [False, True])
def test_moreau_as_cvxpylayers_calls_it(warm_start: bool) -> None:
    declaration = least_squares()
    layer = ddn_cvx.DeclarativeLayer(*declaration, solver="MOREAU")
    theirs = CvxpyLayer(*declaration, solver_args=TIGHT)
    for seed in range(3):
        agree(layer, theirs, draw((2,), (2,), (), seed=seed), {"warm_start": warm_start})


@needs_moreau
def test_moreaus_settings() -> None:
    declaration = least_squares()
    layer = ddn_cvx.DeclarativeLayer(*declaration, solver="MOREAU")
    theirs = CvxpyLayer(*declaration, solver_args=TIGHT)
    settings = {"tol": 1e-12, "max_iters": 500}
    agree(layer, theirs, draw((2,), (2,), ()), {"solver_args": settings})


def test_torch_compile() -> None:
    declaration = least_squares()
    compiled = torch.compile(ddn_cvx.DeclarativeLayer(*declaration), backend="eager")
    agree(compiled, CvxpyLayer(*declaration, solver_args=TIGHT), draw((2,), (2,), ()))


# -- failures -------------------------------------------------------------------------------------


def test_infeasible_and_unbounded_raise_what_cvxpylayers_raises() -> None:
    x, bound = cp.Variable(), cp.Parameter()
    infeasible = cp.Problem(cp.Minimize(cp.square(x)), [x >= 1, x <= bound])
    unbounded = cp.Problem(cp.Minimize(x), [x <= bound])
    value = torch.tensor(-1.0, dtype=torch.float64)
    for problem, status in ((infeasible, "INFEASIBLE"), (unbounded, "UNBOUNDED")):
        with pytest.raises(diffcp.SolverError):
            CvxpyLayer(problem, [bound], [x])(value)
        with pytest.raises(diffcp.SolverError, match=status):
            ddn_cvx.DeclarativeLayer(problem, [bound], [x])(value)


# -- quadratic forms with a parameter as matrix ---------------------------------------------------


def symmetrized(matrix: torch.Tensor) -> torch.Tensor:
    """The symmetric part: a symmetric parameter may only move symmetrically."""
    return (matrix + matrix.mT) / 2


QUADRATIC_SOLVERS = [None, cp.CLARABEL, cp.SCS, pytest.param("MOREAU", marks=needs_moreau)]


@pytest.mark.parametrize("solver", [*QUADRATIC_SOLVERS, cp.DIFFCP])
@pytest.mark.parametrize("form", ["P", "P + Q", "-N", "maximize N"])
def test_quad_form_of_a_parameter(form: str, solver: str | None) -> None:
    """``min 1/2 x' P x + q' x`` is ``x = -P^-1 q``; cvxpylayers takes it with Moreau alone."""
    n = 3
    x, q = cp.Variable(n), cp.Parameter(n)
    P, Q = cp.Parameter((n, n), PSD=True), cp.Parameter((n, n), PSD=True)
    N = cp.Parameter((n, n), NSD=True)
    half = {"P": P, "P + Q": P + Q, "-N": -N, "maximize N": N}[form]
    parameters = {"P": [P], "P + Q": [P, Q], "-N": [N], "maximize N": [N]}[form]
    expression = cp.quad_form(x, half) / 2
    goal = cp.Maximize(expression - q @ x) if "max" in form else cp.Minimize(expression + q @ x)
    layer = ddn_cvx.DeclarativeLayer(cp.Problem(goal), [*parameters, q], [x], solver=solver)

    generator = torch.Generator().manual_seed(5)
    sign = -1.0 if "N" in form else 1.0
    matrices = []
    for _ in parameters:
        M = torch.randn(2, n, n, dtype=torch.float64, generator=generator)
        matrices.append((sign * (M @ M.mT + torch.eye(n))).requires_grad_())
    linear = torch.randn(2, n, dtype=torch.float64, generator=generator).requires_grad_()

    (found,) = layer(*[symmetrized(matrix) for matrix in matrices], linear)
    whole = sign * torch.stack([symmetrized(matrix) for matrix in matrices]).sum(0)
    exact = -torch.linalg.solve(whole, linear.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(found, exact, atol=VALUE)
    inputs = [*matrices, linear]
    gradients = torch.autograd.grad(found.square().sum(), inputs)
    references = torch.autograd.grad(exact.square().sum(), inputs)
    for gradient, reference in zip(gradients, references, strict=True):
        assert torch.allclose(gradient, reference, atol=GRADIENT, rtol=GRADIENT)


def test_quad_forms_where_cvxpylayers_takes_none() -> None:
    """A superset: in a constraint, and of a product of parameters."""
    n = 3
    x, P, c = cp.Variable(n), cp.Parameter((n, n), PSD=True), cp.Parameter(n)
    generator = torch.Generator().manual_seed(6)
    M = torch.randn(n, n, dtype=torch.float64, generator=generator)
    matrix = (M @ M.mT + torch.eye(n)).requires_grad_()
    vector = torch.randn(n, dtype=torch.float64, generator=generator).requires_grad_()
    S = symmetrized(matrix)
    # min c' x with x' P x <= 1 is -P^-1 c / sqrt(c' P^-1 c).
    towards = torch.linalg.solve(S, vector)
    in_constraint = -towards / torch.sqrt(vector @ towards)
    # min x' P P x with c' x = 1 is (P P)^-1 c / (c' (P P)^-1 c).
    squared = torch.linalg.solve(S @ S, vector)
    of_product = squared / (vector @ squared)
    problems = {
        cp.Problem(cp.Minimize(c @ x), [cp.quad_form(x, P) <= 1]): in_constraint,
        cp.Problem(cp.Minimize(cp.quad_form(x, P @ P, assume_PSD=True)), [c @ x == 1]): of_product,
    }
    for problem, exact in problems.items():
        (found,) = ddn_cvx.DeclarativeLayer(problem, [P, c], [x])(S, vector)
        assert torch.allclose(found, exact, atol=VALUE)
        for gradient, reference in zip(
            torch.autograd.grad(found.square().sum(), [matrix, vector], retain_graph=True),
            torch.autograd.grad(exact.square().sum(), [matrix, vector], retain_graph=True),
            strict=True,
        ):
            assert torch.allclose(gradient, reference, atol=GRADIENT, rtol=GRADIENT)


@pytest.mark.parametrize("wrong", ["indefinite", "shifted"])
def test_quad_forms_that_cannot_be_cone_programs(wrong: str) -> None:
    n = 2
    x, p = cp.Variable(n), cp.Parameter(n)
    P, S = cp.Parameter((n, n), PSD=True), cp.Parameter((n, n), symmetric=True)
    if wrong == "indefinite":
        problem = cp.Problem(cp.Minimize(cp.quad_form(x, S)), [cp.sum(x) == 1])
    else:
        problem = cp.Problem(cp.Minimize(cp.quad_form(x + p, P)), [x >= -1])
    with pytest.raises(ddn_cvx.DeclarationError):
        ddn_cvx.DeclarativeLayer(problem, problem.parameters(), [x], solver="CLARABEL")
    assert "nonlinear program" in repr(ddn_cvx.DeclarativeLayer(problem, problem.parameters(), [x]))
