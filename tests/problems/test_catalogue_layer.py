"""Every entry of the catalogue as a layer: optimal, exact, differentiable, element by element."""

import pytest
import torch
from catalogue_sizes import small
from helpers import assert_jacobians, draw, symmetrized

from ddn_cvx import DeclarativeLayer, Status
from ddn_cvx.problems import catalogue

ENTRIES = catalogue()
CLOSED = [name for name, constructor in ENTRIES.items() if constructor().closed_form is not None]


@pytest.mark.parametrize("name", ENTRIES)
def test_the_answer_satisfies_the_optimality_conditions(name: str) -> None:
    declaration = ENTRIES[name]()
    solution = DeclarativeLayer(declaration).solve(*declaration.inputs(batch=4, seed=1))
    assert (solution.status == Status.SOLVED).all()
    assert (solution.residual < 1e-6).all()
    assert (solution.violation() < 1e-6).all()
    assert not solution.degenerate.any()


@pytest.mark.parametrize("name", CLOSED)
def test_the_layer_is_the_closed_form(name: str) -> None:
    """Value and gradient."""
    declaration = ENTRIES[name]()
    assert declaration.closed_form is not None
    tensors = [tensor.requires_grad_() for tensor in declaration.inputs(batch=4, seed=2)]
    (answer,) = DeclarativeLayer(declaration)(*tensors)
    (exact,) = declaration.closed_form(*tensors)
    torch.testing.assert_close(answer, exact, rtol=0, atol=1e-7)
    incoming = draw(*exact.shape)
    gradients = torch.autograd.grad(answer, tensors, incoming)
    known = torch.autograd.grad(exact, tensors, incoming)
    for parameter, gradient, expected in zip(declaration.parameters, gradients, known, strict=True):
        if parameter.is_symmetric() and parameter.ndim == 2:
            # A layer reads one triangle; only symmetric moves of the parameter are meant.
            gradient, expected = gradient + gradient.mT, expected + expected.mT
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ENTRIES)
def test_the_gradient_is_the_central_difference(name: str) -> None:
    declaration = small(name)
    element = [tensor[0] for tensor in declaration.inputs(batch=1, seed=3)]
    assert_jacobians(symmetrized(DeclarativeLayer(declaration)), element)


@pytest.mark.parametrize("name", ENTRIES)
def test_an_answer_and_its_gradient_do_not_depend_on_the_rest_of_the_batch(name: str) -> None:
    declaration = small(name)
    layer = DeclarativeLayer(declaration)
    tensors = declaration.inputs(batch=4, seed=4)
    incoming = draw(4, *declaration.variables[0].shape)

    def answer_and_gradients(elements: list[int]) -> list[torch.Tensor]:
        chosen = [tensor[elements].requires_grad_() for tensor in tensors]
        answer, *_ = layer(*chosen)
        return [answer.detach(), *torch.autograd.grad(answer, chosen, incoming[elements])]

    together = answer_and_gradients([0, 1, 2, 3])
    permuted = answer_and_gradients([2, 0, 3, 1])
    alone = [
        torch.cat(parts)
        for parts in zip(*map(answer_and_gradients, ([0], [1], [2], [3])), strict=True)
    ]
    for whole, shuffled, single in zip(together, permuted, alone, strict=True):
        torch.testing.assert_close(shuffled, whole[[2, 0, 3, 1]], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(single, whole, rtol=1e-9, atol=1e-9)
