"""Problems that cvxpy cannot say: torch functions and modules as layers."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from helpers import assert_derivatives, assert_jacobians, draw

import ddn_cvx as ddn
from ddn_cvx import Status, TorchProblem

DOUBLE = torch.float64


def distance(u: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return ((u - x) ** 2).flatten(1).sum(1)


def sphere(u: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (u**2).sum(1, keepdim=True) - 1


def below(u: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return u - 0.2


def itself(x: torch.Tensor) -> torch.Tensor:
    return x


class Energy(torch.nn.Module):
    """Strongly convex in ``u``, with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 4, dtype=DOUBLE)

    def forward(self, u: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        curved = torch.nn.functional.softplus(self.linear(u - x)).square().sum(1)
        return curved + 0.1 * (u**2).sum(1)


def on_sphere() -> ddn.DeclarativeLayer:
    return ddn.DeclarativeLayer(
        TorchProblem(distance, (3,), [(3,)], equality=sphere, start=itself), on_failure="nan"
    )


def with_energy() -> ddn.DeclarativeLayer:
    torch.manual_seed(0)
    return ddn.DeclarativeLayer(TorchProblem(Energy(), (3,), [(3,)], inequality=below))


def test_the_projection_onto_the_sphere_is_the_closed_form() -> None:
    x = draw(8, 3).requires_grad_()
    (y,) = on_sphere()(x)
    exact = x / x.norm(dim=1, keepdim=True)
    torch.testing.assert_close(y, exact, rtol=0, atol=1e-12)
    v = draw(8, 3, seed=1)
    for ours, closed in zip(
        torch.autograd.grad(y, x, v), torch.autograd.grad(exact, x, v), strict=True
    ):
        torch.testing.assert_close(ours, closed, rtol=0, atol=1e-12)


def test_first_and_second_derivatives_in_both_modes() -> None:
    layer = on_sphere()
    x = draw(2, 3).requires_grad_()

    def answer(x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = layer(x)[0]
        return value

    assert_derivatives(answer, x)


def test_transforms_of_torch_func_agree_with_loops() -> None:
    layer = on_sphere()
    x = draw(4, 3)

    def answer(x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = layer(x)[0]
        return value

    whole = torch.func.jacrev(answer)(x)
    torch.testing.assert_close(torch.func.jacfwd(answer)(x), whole)
    each = torch.func.vmap(torch.func.jacrev(answer))(x)
    torch.testing.assert_close(each, torch.stack([whole[i, :, i] for i in range(4)]))
    torch.testing.assert_close(torch.func.vmap(answer)(x), answer(x))


@pytest.mark.parametrize("outer", [torch.func.jacrev, torch.func.jacfwd])
@pytest.mark.parametrize("inner", [torch.func.jacrev, torch.func.jacfwd])
def test_second_derivatives_do_not_depend_on_the_modes(
    outer: Callable[..., Callable[..., torch.Tensor]],
    inner: Callable[..., Callable[..., torch.Tensor]],
) -> None:
    """Forward over forward included, which torch's custom functions get wrong in silence."""
    layer = ddn.DeclarativeLayer(
        TorchProblem(
            lambda u, x: ((u - x) ** 4).sum(1) + (u**2).sum(1),
            (3,),
            [(3,)],
            equality=lambda u, x: ((1 + x**2) * u**2).sum(1, keepdim=True) - 1,
            start=itself,
        )
    )
    x = draw(3)

    def answer(x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = layer(x)[0]
        return value

    exact = torch.func.jacrev(torch.func.jacrev(answer))(x)
    torch.testing.assert_close(outer(inner(answer))(x), exact, rtol=1e-9, atol=1e-10)


def test_a_modules_parameters_get_gradients() -> None:
    layer = with_energy()
    x = draw(5, 3)
    (weight,) = [p for name, p in layer.named_parameters() if name.endswith("weight")]

    def loss() -> torch.Tensor:
        (u,) = layer(x)
        total: torch.Tensor = (u * torch.arange(1.0, 4.0, dtype=DOUBLE)).sum()
        return total

    loss().backward()
    assert weight.grad is not None
    direction = draw(4, 3, seed=3)
    with torch.no_grad():
        weight.add_(1e-6 * direction)
        above = loss()
        weight.sub_(2e-6 * direction)
        below = loss()
    numeric = (above - below) / 2e-6
    torch.testing.assert_close((weight.grad * direction).sum(), numeric, rtol=1e-6, atol=1e-8)


def test_functional_call_and_ensembles_of_modules() -> None:
    layer = with_energy()
    x = draw(4, 3)
    parameters = {name: p.detach().clone() for name, p in layer.named_parameters()}

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        value: torch.Tensor = torch.func.functional_call(layer, parameters, (x,))[0].sum()
        return value

    gradients = torch.func.grad(loss)(parameters)
    layer(x)[0].sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)
    many = {name: torch.stack([p, p + 0.1]) for name, p in parameters.items()}
    mapped = torch.func.vmap(torch.func.grad(loss))(many)
    for name, values in mapped.items():
        torch.testing.assert_close(values[0], gradients[name])


def test_modules_are_registered_copied_and_pickled() -> None:
    layer = with_energy()
    x = draw(3, 3)
    assert len(list(layer.parameters())) == 2
    twin, again = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    torch.testing.assert_close(twin(x)[0], layer(x)[0])
    torch.testing.assert_close(again(x)[0], layer(x)[0])
    with torch.no_grad():
        next(twin.parameters()).add_(1.0)
    assert not torch.allclose(twin(x)[0], layer(x)[0])
    twin.load_state_dict(layer.state_dict())
    torch.testing.assert_close(twin(x)[0], layer(x)[0])


def test_a_module_may_serve_two_roles() -> None:
    torch.manual_seed(0)
    energy = Energy()

    class Half(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.energy = energy

        def forward(self, u: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            value: torch.Tensor = self.energy(u, x)
            return value.unsqueeze(1) - 50

    layer = ddn.DeclarativeLayer(TorchProblem(energy, (3,), [(3,)], inequality=Half()))
    layer(draw(2, 3))[0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("start", [None, torch.full((3,), 0.1), itself])
def test_starts(start: torch.Tensor | Callable[..., torch.Tensor] | None) -> None:
    layer = ddn.DeclarativeLayer(TorchProblem(distance, (3,), [(3,)], start=start))
    x = draw(4, 3)
    torch.testing.assert_close(layer(x)[0], x, rtol=0, atol=1e-9)


def test_initial_decides_which_local_solution_is_found() -> None:
    layer = ddn.DeclarativeLayer(TorchProblem(lambda u: ((u**2 - 1) ** 2).sum(1), (1,)))
    for sign in (-1.0, 1.0):
        (u,) = layer(initial=(torch.tensor([0.8 * sign]),))
        torch.testing.assert_close(u.double(), torch.tensor([sign], dtype=DOUBLE))
    with pytest.raises(ValueError, match=r"start of u has shape \(2,\)"):
        layer(initial=(torch.zeros(2),))
    with pytest.raises(ValueError, match="one start for each"):
        layer(initial=(torch.zeros(1), torch.zeros(1)))


def test_shapes_dtypes_and_batches() -> None:
    layer = ddn.DeclarativeLayer(TorchProblem(distance, (2, 3), [(2, 3)]))
    x = draw(4, 1, 2, 3).float()
    (y,) = layer(x)
    assert y.shape == (4, 1, 2, 3)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, x)
    (empty,) = layer(x[:0])
    assert empty.shape == (0, 1, 2, 3)


def test_recorded_derivatives_change_nothing() -> None:
    plain = on_sphere()
    recorded = ddn.DeclarativeLayer(
        TorchProblem(distance, (3,), [(3,)], equality=sphere, start=itself, recorded=True)
    )
    for repeat in range(20):
        x = draw(1 + repeat % 3, 3, seed=repeat).requires_grad_()
        ours, theirs = recorded(x)[0], plain(x)[0]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        pairs = [torch.autograd.grad(y.sum(), x)[0] for y in (ours, theirs)]
        torch.testing.assert_close(*pairs, rtol=0, atol=1e-12)


def test_the_solution_checks_itself() -> None:
    solution = on_sphere().solve(draw(4, 3))
    assert (solution.objective() >= 0).all()
    assert (solution.violation() < 1e-10).all()
    assert (solution.stationarity() < 1e-9).all()
    assert (solution.complementarity() < 1e-9).all()
    (multiplier,) = solution.dual
    assert isinstance(multiplier, torch.Tensor)
    assert multiplier.shape == (4, 1)
    torch.testing.assert_close(multiplier[:, 0], draw(4, 3).norm(dim=1) - 1)


def test_a_bad_element_does_not_cost_the_others() -> None:
    layer = on_sphere()
    x = draw(5, 3)
    spoilt = x.clone()
    spoilt[2] = torch.nan
    spoilt.requires_grad_()
    (y,) = layer(spoilt)
    kept = [0, 1, 3, 4]
    torch.testing.assert_close(y[kept], layer(x)[0][kept], rtol=0, atol=1e-12)
    y.nan_to_num().sum().backward()
    assert spoilt.grad is not None
    assert (spoilt.grad[2] == 0).all()
    assert layer.solve(spoilt).status.tolist() == [0, 0, Status.BAD_INPUT, 0, 0]


def test_a_start_that_is_not_a_number_is_bad_input() -> None:
    layer = on_sphere()
    x = draw(3, 3)
    start = x.clone()
    start[1] = torch.nan
    solution = layer.solve(x, initial=(start,))
    assert solution.status.tolist() == [0, Status.BAD_INPUT, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": 3}, "objective must be a function"),
        ({"variable_shape": 3}, "variable_shape must be"),
        ({"objective": lambda u, x: u}, r"one value for each element, shape \(2,\)"),
        ({"equality": lambda u, x: u.sum()}, r"equality must return shape \(2, rows\)"),
        ({"objective": lambda u, x: 1.0}, "must return a tensor; got float"),
    ],
)
def test_wrong_problems_are_refused_in_words(arguments: dict[str, object], message: str) -> None:
    settings: dict[str, object] = {
        "objective": distance,
        "variable_shape": (3,),
        "input_shapes": [(3,)],
        **arguments,
    }
    with pytest.raises(ddn.DeclarationError, match=message):
        ddn.DeclarativeLayer(TorchProblem(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", ["CLARABEL", "UNO"])
def test_other_solvers_are_refused(solver: str) -> None:
    with pytest.raises(ddn.DeclarationError, match="TORCH"):
        ddn.DeclarativeLayer(TorchProblem(distance, (3,), [(3,)]), solver=solver)


def test_declared_residuals_are_used() -> None:
    rates = torch.linspace(0, 2, 20, dtype=DOUBLE)

    def residuals(u: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
        return u[:, :1] * torch.exp(-u[:, 1:] * rates) - data

    layer = ddn.DeclarativeLayer(
        TorchProblem(
            lambda u, data: residuals(u, data).square().sum(1),
            (2,),
            [(20,)],
            residuals=residuals,
            start=torch.tensor([1.0, 1.0]),
        )
    )
    assert "levenberg marquardt" in repr(layer)
    truth = torch.tensor([[2.0, 0.5], [1.0, 3.0]], dtype=DOUBLE)
    data = truth[:, :1] * torch.exp(-truth[:, 1:] * rates)
    torch.testing.assert_close(layer(data)[0], truth)
    for noisy in data + 0.05 * draw(2, 20):
        assert_jacobians(lambda data: layer(data)[0], [noisy])


def test_under_autocast_no_grad_and_compile() -> None:
    layer = on_sphere()
    x = draw(2, 3)
    expected = layer(x)[0]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(x)[0], expected)


def test_unrolling_starts_from_the_default_start() -> None:
    """The start of a batch is memory of its own, not one zero that is expanded."""
    problem = ddn.TorchProblem(
        lambda u, x: ((u - x) ** 2).sum(1) + (u**4).sum(1), variable_shape=(2,), input_shapes=[(2,)]
    )
    x = torch.tensor([[0.5, -1.0]], dtype=torch.float64, requires_grad=True)
    found = []
    for adjoint in ("unrolled", "implicit"):
        (u,) = ddn.DeclarativeLayer(problem, adjoint=adjoint)(x)
        found.append(torch.autograd.grad(u.sum(), x)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)
