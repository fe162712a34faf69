"""Every entry of the catalogue is well formed, and says the truth about its problem."""

import pickle
import re
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from catalogue_sizes import SMALLEST, smallest
from cvxpy.utilities.scopes import quad_form_dpp_scope
from helpers import assert_derivatives

from ddn_cvx import Declaration, DeclarationError, DeclarativeLayer
from ddn_cvx import problems as package
from ddn_cvx.problems import (
    bounded_least_squares,
    catalogue,
    cone_program,
    constrained_least_squares,
    lasso,
    markowitz_portfolio,
    polyhedron_projection,
    quadratic_program,
)
from ddn_cvx.problems._entry import check_size

ENTRIES = catalogue()
CONVEX = [name for name, constructor in ENTRIES.items() if constructor().problem.is_dcp()]
CLOSED = [name for name, constructor in ENTRIES.items() if constructor().closed_form is not None]


def solve(declaration: Declaration, tensors: tuple[torch.Tensor, ...], element: int) -> None:
    """Solve one batch element with cvxpy and Clarabel; the values are left in the problem."""
    for parameter, tensor in zip(declaration.parameters, tensors, strict=True):
        parameter.value = tensor[element].detach().numpy()
    declaration.problem.solve(
        solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10
    )
    assert declaration.problem.status == cp.OPTIMAL


def violation(constraint: cp.Constraint) -> float:
    if isinstance(constraint, cp.ExpCone):  # cvxpy's is itself solved for, to 1e-8
        x, y, z = (part.value for part in constraint.args)
        return float(np.max(y * np.exp(x / y) - z))
    return float(np.max(constraint.violation()))


def assert_right(declaration: Declaration, answers: tuple[np.ndarray, ...]) -> None:
    """The answers are Clarabel's, which is in the problem, or feasible and no worse than it."""
    variables, problem = declaration.variables, declaration.problem
    gaps = [
        np.abs(answer - variable.value).max()
        for answer, variable in zip(answers, variables, strict=True)
    ]
    if max(gaps) < 1e-7:
        return
    best = problem.objective.value
    for answer, variable in zip(answers, variables, strict=True):
        variable.value = answer
    assert max(violation(constraint) for constraint in problem.constraints) < 1e-9
    assert problem.objective.value <= best + 1e-9 * abs(best)
    assert max(gaps) < 1e-5


def closed_form(declaration: Declaration) -> Callable[..., tuple[torch.Tensor, ...]]:
    assert declaration.closed_form is not None
    return declaration.closed_form


def test_what_is_not_convex_has_a_start_and_is_dnlp_or_has_a_dedicated_solver() -> None:
    others = {name: constructor() for name, constructor in ENTRIES.items() if name not in CONVEX}
    assert len(others) >= 4
    for declaration in others.values():
        assert declaration.problem.is_dnlp() or declaration.dedicated is not None
        assert declaration.start is not None
        shapes = [variable.shape for variable in declaration.problem.variables()]
        starts = declaration.start(*declaration.inputs(batch=2))
        assert [tuple(start.shape) for start in starts] == [(2, *shape) for shape in shapes]


@pytest.mark.parametrize("name", CONVEX)
def test_the_problem_is_dcp_and_dpp(name: str) -> None:
    problem = ENTRIES[name]().problem
    assert problem.is_dcp()
    with quad_form_dpp_scope():
        assert problem.is_dpp()


@pytest.mark.parametrize("name", ENTRIES)
def test_the_declaration_is_named_described_and_cited(name: str) -> None:
    declaration = ENTRIES[name]()
    assert declaration.name == name
    assert len(declaration.summary.splitlines()) == 1
    assert any(character.isdigit() for character in declaration.citation)  # a year at the least
    assert name in package.__all__


@pytest.mark.parametrize("name", ENTRIES)
def test_inputs_are_drawn_from_their_seed_alone(name: str) -> None:
    declaration = ENTRIES[name]()
    first = declaration.inputs(batch=3, seed=1)
    torch.manual_seed(0)
    again = declaration.inputs(batch=3, seed=1)
    other = declaration.inputs(batch=3, seed=2)
    assert all(tensor.dtype == torch.float64 for tensor in first)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def complementarity_margin(constraint: cp.Constraint) -> float:
    """How far slack plus multiplier is inside the cone; zero where both vanish."""
    if isinstance(constraint, cp.constraints.Inequality):
        return float(np.min(np.asarray(constraint.dual_value) - np.asarray(constraint.expr.value)))
    if isinstance(constraint, cp.SOC):
        slack = np.concatenate([np.ravel(part.value) for part in constraint.args])
        dual = np.concatenate([np.ravel(part.value) for part in constraint.dual_variables])
        total = slack + dual
        return float(total[0] - np.linalg.norm(total[1:]))
    return np.inf


@pytest.mark.parametrize("name", CONVEX)
def test_example_inputs_are_feasible_and_clearly_strictly_complementary(name: str) -> None:
    declaration = ENTRIES[name]()
    tensors = declaration.inputs(batch=8, seed=3)
    for element in range(8):
        solve(declaration, tensors, element)
        assert all(complementarity_margin(c) > 0.05 for c in declaration.problem.constraints)


def test_the_lasso_example_is_clear_about_what_is_zero() -> None:
    declaration = lasso()
    A, b, weight = tensors = declaration.inputs(batch=8, seed=3)
    for element in range(8):
        solve(declaration, tensors, element)
        u = torch.from_numpy(declaration.variables[0].value)
        correlation = (A[element].mT @ (b[element] - A[element] @ u)).abs() / weight[element]
        zero = u.abs() < 1e-6
        assert 0 < zero.sum() < len(u)
        assert (u[~zero].abs() > 0.4).all()
        assert (correlation[zero] < 0.9).all()


@pytest.mark.parametrize("name", ["quadratic_program", "cone_program", "polyhedron_projection"])
def test_every_constraint_has_a_nonzero_multiplier(name: str) -> None:
    declaration = ENTRIES[name]()
    tensors = declaration.inputs(batch=3, seed=3)
    for element in range(3):
        solve(declaration, tensors, element)
        for constraint in declaration.problem.constraints:
            largest = max(np.abs(dual.value).max() for dual in constraint.dual_variables)
            assert largest > 1e-3


@pytest.mark.parametrize("name", sorted(set(CLOSED) & set(CONVEX)))
def test_the_closed_form_is_the_solution(name: str) -> None:
    declaration = ENTRIES[name]()
    tensors = declaration.inputs(batch=4, seed=4)
    answers = closed_form(declaration)(*tensors)
    for element in range(4):
        solve(declaration, tensors, element)
        for answer, variable in zip(answers, declaration.variables, strict=True):
            assert answer.shape == (4, *variable.shape)
        assert_right(declaration, tuple(answer[element].numpy() for answer in answers))


@pytest.mark.parametrize("name", CLOSED)
def test_the_closed_form_is_differentiable(name: str) -> None:
    declaration = ENTRIES[name]()
    tensors = [tensor.requires_grad_() for tensor in declaration.inputs(batch=2, seed=5)]
    assert_derivatives(closed_form(declaration), tensors)


@pytest.mark.parametrize("name", CLOSED)
def test_the_closed_form_follows_dtype_and_device(name: str) -> None:
    declaration = ENTRIES[name]()
    (single,) = closed_form(declaration)(*declaration.inputs(batch=2, dtype=torch.float32))
    assert single.dtype == torch.float32
    # A tensor made on the wrong device would not mix with one on the meta device.
    # A dedicated solver reads its data, which the meta device has none of.
    if declaration.dedicated is None:
        (shape_only,) = closed_form(declaration)(*declaration.inputs(batch=2, device="meta"))
        assert shape_only.shape == single.shape


@pytest.mark.parametrize("name", ENTRIES)
def test_example_and_closed_form_pickle(name: str) -> None:
    declaration = ENTRIES[name]()
    tensors = declaration.inputs(batch=2)
    example = pickle.loads(pickle.dumps(declaration.example))
    drawn = example(2, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(drawn, tensors, strict=True))
    if declaration.closed_form is not None:
        copy = pickle.loads(pickle.dumps(declaration.closed_form))
        assert torch.equal(copy(*tensors)[0], declaration.closed_form(*tensors)[0])


@pytest.mark.parametrize("name", ENTRIES)
def test_the_smallest_size_has_a_solution(name: str) -> None:
    declaration = smallest(name)
    tensors = declaration.inputs(batch=2, seed=6)
    if name not in CONVEX:
        assert DeclarativeLayer(declaration).solve(*tensors).solved.all()
        return
    for element in range(2):
        solve(declaration, tensors, element)
        if declaration.closed_form is not None:
            answers = declaration.closed_form(*tensors)
            assert_right(declaration, tuple(answer[element].numpy() for answer in answers))


@pytest.mark.parametrize(
    "sizes",
    [
        {"n": 3, "equality": 3, "nonnegative": 0, "second_order": ()},
        {"n": 3, "equality": 0, "nonnegative": 7, "second_order": ()},
        {"n": 3, "equality": 0, "nonnegative": 0, "second_order": (4,)},
        {"n": 4, "equality": 0, "nonnegative": 2, "second_order": (2, 3)},
    ],
    ids=["equalities only", "linear program", "one second-order cone", "smallest cones"],
)
def test_a_cone_program_may_leave_a_cone_out(sizes: dict[str, Any]) -> None:
    declaration = cone_program(**sizes)
    solve(declaration, declaration.inputs(batch=1, seed=7), 0)


def test_the_lasso_may_have_more_unknowns_than_residuals() -> None:
    declaration = lasso(rows=4, columns=9)
    solve(declaration, declaration.inputs(batch=1, seed=8), 0)
    answer = np.asarray(declaration.variables[0].value)
    assert 0 < (np.abs(answer) > 1e-6).sum() <= 4


WRONG: list[Any] = [0, -3, 2.0, True, "4"]


def test_only_integers_in_the_range_are_sizes() -> None:
    for wrong in WRONG:
        message = f"n must be an integer at least 1; got {wrong!r}."
        with pytest.raises(DeclarationError, match=f"^{re.escape(message)}$"):
            check_size("n", wrong)
    with pytest.raises(DeclarationError, match=r"^n must be an integer from 2 to 4; got 5\.$"):
        check_size("n", 5, minimum=2, maximum=4)
    check_size("n", 4, minimum=2, maximum=4)


def test_a_wrong_size_is_refused_by_name() -> None:
    for name, constructor in ENTRIES.items():
        size = next(iter(SMALLEST.get(name, {"n": 1})))
        for wrong in WRONG:
            with pytest.raises(DeclarationError, match=rf"^{size} .*got {wrong!r}"):
                constructor(**{size: wrong})


@pytest.mark.parametrize(
    ("constructor", "sizes", "argument"),
    [
        (quadratic_program, {"n": 2, "p": 3}, "p"),
        (quadratic_program, {"m": 0}, "m"),
        (polyhedron_projection, {"m": 0}, "m"),
        (markowitz_portfolio, {"factors": 0}, "factors"),
        (constrained_least_squares, {"columns": 2, "equalities": 3}, "equalities"),
        (constrained_least_squares, {"rows": 2, "columns": 6}, "columns"),
        (bounded_least_squares, {"rows": 5, "columns": 5}, "rows"),
        (cone_program, {"equality": -1}, "equality"),
        (cone_program, {"second_order": (4, 1)}, r"second_order\[1\]"),
        (cone_program, {"n": 3, "equality": 4}, "the cones do not fit n"),
        (cone_program, {"n": 40}, "the cones do not fit n"),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_refused(
    constructor: Callable[..., Declaration], sizes: dict[str, Any], argument: str
) -> None:
    with pytest.raises(DeclarationError, match=f"^{argument}.*got"):
        constructor(**sizes)
