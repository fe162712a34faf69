"""The errors that a comparison reports, and the reference that it reports them against."""

import math

import cvxpy as cp
import pytest
import torch

from ddn_cvx import Declaration
from ddn_cvx.batch.differences import tangential
from ddn_cvx.comparison.metrics import (
    cosine,
    evaluate,
    gradient_errors,
    relative_error,
    summarize,
)
from ddn_cvx.comparison.reference import Reference, find_reference, with_all_variables
from ddn_cvx.comparison.result import Spread
from ddn_cvx.problems import markowitz_portfolio, quadratic_program, simplex_projection

ALL = torch.tensor([True, True])


def test_relative_error_is_the_distance_over_the_references_length() -> None:
    reference = torch.tensor([[3.0, 4.0], [0.0, 10.0]], dtype=torch.float64)
    value = reference + torch.tensor([[0.0, 0.5], [1.0, 0.0]], dtype=torch.float64)
    errors = relative_error(value, reference, ALL)
    torch.testing.assert_close(errors, torch.tensor([0.1, 0.1], dtype=torch.float64))


def test_a_zero_reference_among_others_is_measured_against_a_tenth_of_their_size() -> None:
    reference = torch.tensor([0.0, math.sqrt(2.0)], dtype=torch.float64)  # root mean square: 1
    errors = relative_error(reference + 0.01, reference, ALL)
    assert errors[0].item() == pytest.approx(0.1)


def test_the_error_is_absolute_where_all_references_are_zero() -> None:
    zero = torch.zeros(2, 3, dtype=torch.float64)
    value = torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert relative_error(value, zero, ALL).tolist() == [5.0, 0.0]


def test_cosine_of_known_angles() -> None:
    reference = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    value = torch.tensor([[2.0, 0.0], [-3.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(
        cosine(value, reference, ALL), torch.tensor([1.0, 0.0], dtype=torch.float64)
    )
    assert cosine(value, 0 * reference, ALL).isnan().all()


def test_summaries_leave_out_what_does_not_count() -> None:
    errors = torch.tensor([1.0, 5.0, 3.0, math.nan], dtype=torch.float64)
    found = summarize(errors, torch.tensor([True, True, True, False]))
    assert found is not None
    assert (found.median, found.worst) == (3.0, 5.0)
    assert summarize(errors, torch.zeros(4, dtype=torch.bool)) is None


def test_a_symmetric_parameters_gradient_counts_only_along_symmetric_matrices() -> None:
    P = cp.Parameter((2, 2), symmetric=True, name="P")
    upper = torch.tensor([[[1.0, 4.0], [0.0, 2.0]]], dtype=torch.float64)
    even = torch.tensor([[[1.0, 2.0], [2.0, 2.0]]], dtype=torch.float64)
    assert torch.equal(tangential(P, upper), even)
    one = torch.tensor([True])
    assert gradient_errors([P], [upper], [even], one, one)["P"].relative.worst == 0.0


def test_gradient_errors_count_the_wrong_elements() -> None:
    x = cp.Parameter(2, name="x")
    reference = torch.ones(3, 2, dtype=torch.float64)
    found = reference * torch.tensor([[1.0], [1.0 + 1e-5], [1.1]], dtype=torch.float64)
    every = torch.ones(3, dtype=torch.bool)
    error = gradient_errors([x], [found], [reference], every, every)["x"]
    assert error.wrong == 1
    assert error.relative.worst == pytest.approx(0.1)
    assert error.relative.median == pytest.approx(1e-5)
    assert error.cosine == pytest.approx(1.0)


def test_times_tie_when_their_quartiles_overlap() -> None:
    assert Spread(1.0, 0.9, 1.1).overlaps(Spread(1.15, 1.05, 1.2))
    assert not Spread(1.0, 0.9, 1.1).overlaps(Spread(1.5, 1.4, 1.6))


def test_objective_and_violation_are_the_problems() -> None:
    u, x = cp.Variable(2, name="u"), cp.Parameter(2, name="x")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [u >= 0, cp.sum(u) == 1])
    u.value = [7.0, 7.0]
    inputs = (torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64),)
    values = (torch.tensor([[1.0, 0.0], [-0.25, 1.25]], dtype=torch.float64),)
    objective, violation = evaluate(Declaration(problem, [x], [u]), inputs, values, ALL)
    assert objective.tolist() == [4.0, 0.0625 + 1.5625]
    assert violation.tolist() == [0.0, 0.25]
    assert u.value.tolist() == [7.0, 7.0]


def _reference(declaration: Declaration, batch: int) -> tuple[Reference, tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    inputs = declaration.inputs(batch)
    incoming = tuple(
        torch.randn((batch, *variable.shape), generator=generator, dtype=torch.float64)
        for variable in declaration.variables
    )
    return find_reference(with_all_variables(declaration), inputs, incoming), incoming


def test_the_reference_is_the_closed_form_where_there_is_one() -> None:
    declaration = simplex_projection(n=4)
    reference, incoming = _reference(declaration, 6)
    assert reference.summary.method == "closed form"
    assert declaration.closed_form is not None
    leaves = [tensor.requires_grad_() for tensor in declaration.inputs(6)]
    (projected,) = declaration.closed_form(*leaves)
    wanted = torch.autograd.grad(projected, leaves, incoming)
    torch.testing.assert_close(reference.solution[0], projected.detach())
    for ours, theirs in zip(reference.gradients, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_closed_form_the_exact_derivative_and_central_differences_agree() -> None:
    closed, _ = _reference(simplex_projection(n=4), 6)
    from dataclasses import replace

    exact, incoming = _reference(replace(simplex_projection(n=4), closed_form=None), 6)
    assert exact.summary.method == "exact KKT derivative"
    for one, other in zip(closed.gradients, exact.gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    from ddn_cvx.comparison.reference import _Search

    declaration = simplex_projection(n=4)
    search = _Search(declaration, declaration.inputs(6), incoming, 0)
    _, differences = search._differences()
    for one, other in zip(closed.gradients, differences, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_the_reference_knows_how_good_it_is() -> None:
    summary = _reference(quadratic_program(n=4, m=3, p=1), 6)[0].summary
    assert summary.residual is not None
    assert summary.residual < 1e-12
    assert summary.agreement is not None
    assert summary.agreement < 1e-8
    assert (summary.unsolved, summary.unconfirmed) == (0, 0)


def test_hidden_variables_are_asked_for_but_not_compared() -> None:
    declaration = markowitz_portfolio(4, 3)
    full = with_all_variables(declaration)
    assert [variable.name() for variable in full.variables] == ["w", "exposure"]
    assert len(_reference(declaration, 3)[0].solution) == 1


def test_a_kink_is_left_out_of_the_gradient_figures() -> None:
    """``max(x, 0)`` has no derivative at zero."""
    u, x = cp.Variable(name="u"), cp.Parameter(name="x")
    declaration = Declaration(cp.Problem(cp.Minimize((u - x) ** 2), [u >= 0]), [x], [u])
    inputs = (torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64),)
    incoming = (torch.ones(3, dtype=torch.float64),)
    found = find_reference(declaration, inputs, incoming)
    assert found.confirmed.tolist() == [True, False, True]
    assert found.summary.unconfirmed == 1
    assert "kink" in found.summary.text


def test_an_element_without_a_solution_is_left_out() -> None:
    u, x = cp.Variable(name="u"), cp.Parameter(name="x")
    declaration = Declaration(cp.Problem(cp.Minimize(u**2), [u >= x, u <= 1]), [x], [u])
    inputs = (torch.tensor([0.5, 2.0, float("nan")], dtype=torch.float64),)
    found = find_reference(declaration, inputs, (torch.ones(3, dtype=torch.float64),))
    assert found.solved.tolist() == [True, False, False]
    assert found.summary.unsolved == 2
