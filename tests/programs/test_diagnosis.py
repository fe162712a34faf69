"""Refusals name the offending part, say why, and what they advise is accepted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from cvxpy.utilities.scopes import quad_form_dpp_scope

from ddn_cvx import Declaration, DeclarativeLayer
from ddn_cvx.problems import catalogue
from ddn_cvx.programs.diagnosis import estimate, explanation
from ddn_cvx.programs.diagnosis.wording import shorten

x = cp.Variable(3, name="x")
y = cp.Variable(3, name="y")
t = cp.Variable(name="t")
X = cp.Variable((3, 3), name="X")
p = cp.Parameter(name="p")
price = cp.Parameter(3, name="price")
weight = cp.Parameter(nonneg=True, name="weight")
A = cp.Parameter((3, 3), name="A")
B = cp.Parameter((3, 3), name="B")
P = cp.Parameter((3, 3), PSD=True, name="P")
S = cp.Parameter((3, 3), symmetric=True, name="S")
# what the advice adds
z = cp.Variable(3, name="z")
new = cp.Parameter(name="new")
new_nonneg = cp.Parameter(nonneg=True, name="new_nonneg")
new_vector = cp.Parameter(3, name="new_vector")
new_matrix = cp.Parameter((3, 3), name="new_matrix")
new_psd = cp.Parameter((3, 3), PSD=True, name="new_psd")
box = [x >= -1, x <= 1]


def explain(problem: cp.Problem, *, gp: bool = False) -> str | None:
    declared: Any = SimpleNamespace(problem=problem, gp=gp)  # a random one may lack variables
    found = explanation(declared)
    return None if found is None else found.text


def follows_the_rules(problem: cp.Problem) -> bool:
    """DCP and DPP, a parametric matrix of a quadratic form allowed."""
    with quad_form_dpp_scope():
        return bool(problem.is_dpp())


def minimise(expression: Any, constraints: Any = ()) -> cp.Problem:
    return cp.Problem(cp.Minimize(cp.sum(expression)), [*constraints])


def subject_to(*constraints: Any) -> cp.Problem:
    return cp.Problem(cp.Minimize(cp.sum_squares(x - y) + t), [*box, *constraints])


@dataclass(frozen=True)
class Mistake:
    """A problem that is refused, what the message must hold, and what it advises."""

    name: str
    problem: Callable[[], cp.Problem]
    says: tuple[str, ...]
    advised: Callable[[], cp.Problem] | None = None


MISTAKES = [
    # not DPP
    Mistake(
        "product of two matrices of parameters (cvxpylayers issue 164)",
        lambda: minimise(cp.norm((A @ B) @ x + price)),
        ("not DPP", "objective", "Offending part: A @ B\n", "product of two expressions that depend"
         " on parameters", "A_B_value = cp.Parameter((3, 3))", "A_B_value_tensor"),
        lambda: minimise(cp.norm(new_matrix @ x + price)),
    ),
    Mistake(
        "scalar parameter times vector of parameters (cvxpylayers issue 124)",
        lambda: cp.Problem(cp.Maximize(cp.minimum(p * price @ x, 1)), box),
        ("Offending part:", "p * price", "cp.Parameter(3)"),
    ),
    Mistake(
        "function of a parameter times a variable (cvxpylayers issue 80)",
        lambda: minimise(cp.multiply(cp.exp(price), x), box),
        ("Offending part: exp(price) * x", "not affine in its parameters: `exp(price)`",
         "cp.Parameter(3, nonneg=True)    # in place of exp(price)"),
        lambda: minimise(cp.multiply(new_vector, x), box),
    ),
    Mistake(
        "squared parameter (cvxpylayers issue 156)",
        lambda: minimise(p**2 * cp.sum_squares(x)),
        ("square(p)", "cp.Parameter(nonneg=True)"),
        lambda: minimise(new_nonneg * cp.sum_squares(x)),
    ),
    Mistake(
        "division by a parameter",
        lambda: minimise(cp.norm(x - price) / weight),
        ("Offending part: norm(x - price, 2) / weight", "division by a parameter",
         "weight_value = cp.Parameter(nonneg=True)    # in place of 1 / weight"),
        lambda: minimise(new_nonneg * cp.norm(z), [z == x - price]),
    ),
    Mistake(
        "quad_over_lin with a parameter below",
        lambda: minimise(cp.quad_over_lin(x, weight)),
        ("division by a parameter", "weight_value = cp.Parameter(nonneg=True)"),
        lambda: minimise(cp.sum_squares(x) * new_nonneg),
    ),
    Mistake(
        "parameter times an affine expression with parameters",
        lambda: minimise(cp.sum_squares(p * (A @ x - price))),
        ("Offending part: p * (A @ x - price)", "z = cp.Variable(3)", "z == A @ x - price"),
        lambda: minimise(cp.sum_squares(p * z), [z == A @ x - price]),
    ),
    Mistake(
        "regularisation weight times a function with parameters",
        lambda: minimise(weight * cp.norm(A @ x - price)),
        ("weight * norm(A @ x - price, 2)", "z == A @ x - price"),
        lambda: minimise(weight * cp.norm(z), [z == A @ x - price]),
    ),
    Mistake(
        "matrices of parameters on both sides of a variable",
        lambda: minimise(cp.trace(A @ X @ B), [X >> 0]),
        ("A @ X", "z = cp.Variable((3, 3))", "z == A @ X"),
    ),
    Mistake(
        "weight times a quadratic form with a parametric matrix",
        lambda: minimise(weight * cp.quad_form(x, P)),
        ("Offending part: weight * quad_form(x, P)", "when weight and P may vary"),
        lambda: minimise(cp.quad_form(x, new_psd)),
    ),
    Mistake(
        "quadratic form whose vector and matrix are parametric",
        lambda: minimise(cp.quad_form(x - price, P)),
        ("product of two expressions that depend on parameters", "z == x - price"),
        lambda: minimise(cp.quad_form(z, P), [z == x - price]),
    ),
    Mistake(
        "function of parameters as a bound",
        lambda: subject_to(cp.norm(x) <= cp.exp(p)),
        ("constraint 2 ", "Offending part: exp(p)", "not affine"),
        lambda: subject_to(cp.norm(x) <= new_nonneg),
    ),
    Mistake(
        "product of parameters as a bound",
        lambda: subject_to(A @ x == p * price),
        ("Offending part: p * price",),
        lambda: subject_to(A @ x == new_vector),
    ),
    Mistake(
        "convolution with a parameter",
        lambda: minimise(cp.norm(cp.convolve(price, x))),
        ("Offending part: convolve(price, x)", "when price may vary"),
        lambda: minimise(cp.norm(cp.Parameter((5, 3)) @ x)),
    ),
    # not DCP
    Mistake(
        "parameter of unknown sign (cvxpy issue 662)",
        lambda: cp.Problem(cp.Maximize(p * cp.sum(cp.log(x)))),
        ("not DCP", "sign is not known", "p = cp.Parameter(nonneg=True)"),
        lambda: cp.Problem(cp.Maximize(weight * cp.sum(cp.log(x)))),
    ),
    Mistake(
        "expression of parameters of unknown sign",
        lambda: minimise((p - weight) * cp.norm(x)),
        ("sign is not known: `p - weight`", "nonneg=True"),
        lambda: minimise(new_nonneg * cp.norm(x)),
    ),
    Mistake(
        "constant of both signs",
        lambda: minimise(np.array([1.0, -1.0, 2.0]) @ cp.square(x)),
        ("constants of both signs",),
    ),
    Mistake(
        "quadratic form with a symmetric parameter (cvxpylayers issue 136)",
        lambda: minimise(cp.quad_form(x, S)),
        ("not known to be positive semidefinite", "S = cp.Parameter((3, 3), PSD=True)"),
        lambda: minimise(cp.quad_form(x, P)),
    ),
    Mistake(
        "quadratic form with a multiple of a parameter",
        lambda: minimise(cp.quad_form(x, weight * P)),
        ("not known to be positive semidefinite: `weight * P`", "cp.Parameter((3, 3), PSD=True)"),
        lambda: minimise(cp.quad_form(x, new_psd)),
    ),
    Mistake(
        "quadratic form with an indefinite constant (cvxpy issue 1365)",
        lambda: minimise(cp.quad_form(x, np.diag([1.0, -1.0, 1.0]))),
        ("negative eigenvalues are rounding", "np.linalg.eigh", "psd_wrap"),
        lambda: minimise(cp.quad_form(x, cp.psd_wrap(np.diag([1.0, 0.0, 1.0])))),
    ),
    Mistake(
        "x @ x (cvxpy issue 961)",
        lambda: minimise(x @ x),
        ("Offending part: x @ x", "cp.sum_squares(x)"),
        lambda: minimise(cp.sum_squares(x)),
    ),
    Mistake(
        "x' A x written out",
        lambda: minimise((A @ x) @ x),
        ("two expressions that hold variables", "cp.quad_form(x, P)"),
        lambda: minimise(cp.quad_form(x, P)),
    ),
    Mistake(
        "product of a matrix and its transpose (cvxpylayers issue 78)",
        lambda: minimise(cp.norm(X @ X.T - A)),
        ("Offending part: X @ X.T", "product of two expressions that hold variables"),
    ),
    Mistake(
        "product of variables",
        lambda: minimise(t * cp.sum(x)),
        ("Offending part: t * sum(x)", "product of two expressions that hold variables"),
    ),
    Mistake(
        "ratio of variables (Sharpe ratio, cvxpy issues 1373, 1148)",
        lambda: cp.Problem(cp.Maximize((price @ x) / cp.sum(y)), box),
        ("division by an expression that holds variables", "price @ x == 1", "Charnes"),
    ),
    Mistake(
        "square over a variable",
        lambda: minimise(cp.sum_squares(x) / t),
        ("cp.quad_over_lin(x, t)",),
        lambda: minimise(cp.quad_over_lin(x, t)),
    ),
    Mistake(
        "reciprocal of a variable",
        lambda: minimise(weight / t),
        ("weight * cp.inv_pos(t)",),
        lambda: minimise(weight * cp.inv_pos(t)),
    ),
    Mistake(
        "parameter in the exponent",
        lambda: minimise(cp.power(t, p)),
        ("power(t, p)", "parameter in the exponent", "gp=True"),
        lambda: minimise(cp.power(t, 1.5)),
    ),
    Mistake(
        "maximising a convex function (cvxpy issue 2504)",
        lambda: cp.Problem(cp.Maximize(cp.quad_form(x, P)), box),
        ("maximise quad_form(x, P)", "maximising a convex function"),
    ),
    Mistake(
        "minimising a convex function with a minus sign (cvxpy issue 1051)",
        lambda: cp.Problem(cp.Minimize(cp.sum_squares(x) - cp.norm(y, 1))),
        ("Offending part: norm1(y)", "maximising a convex function"),
    ),
    Mistake(
        "minimising a concave function",
        lambda: minimise(cp.sqrt(x), box),
        ("Offending part: sqrt(x)", "minimising a concave function"),
    ),
    Mistake(
        "equality with a norm",
        lambda: subject_to(cp.norm(x) == 1),
        ("constraint 2 ", "Offending part: norm(x, 2)", "equality with a nonaffine side",
         "norm(x, 2) <= ..."),
        lambda: subject_to(cp.norm(x) <= 1),
    ),
    Mistake(
        "equality with a square (cvxpy issue 341)",
        lambda: subject_to(cp.square(y) == x),
        ("Offending part: square(y)", "square(y) <= ..."),
        lambda: subject_to(cp.square(y) <= x),
    ),
    Mistake(
        "inequality the wrong way round (cvxpy issue 1779)",
        lambda: subject_to(cp.exp(x) - x >= 0),
        ("Offending part: exp(x)", "convex function stands on the greater side"),
        lambda: subject_to(cp.exp(x) - x <= 0),
    ),
    Mistake(
        "inequality with a concave function below (cvxpy issue 302)",
        lambda: subject_to(cp.log1p(x) <= 1),
        ("concave function stands on the smaller side", "inverse"),
        lambda: subject_to(x <= np.exp(1.0) - 1),
    ),
    Mistake(
        "root of a sum of squares",
        lambda: minimise(cp.sqrt(cp.sum_squares(A @ x))),
        ("cp.norm(A @ x, 2)",),
        lambda: minimise(cp.norm(A @ x, 2)),
    ),
    Mistake(
        "root of a quadratic form",
        lambda: minimise(cp.sqrt(cp.quad_form(x, P))),
        ("Offending part: sqrt(quad_form(x, P))", "concave function sqrt of a convex argument"),
        lambda: minimise(cp.norm(new_matrix.T @ x, 2)),
    ),
    Mistake(
        "log of a sum of exponentials",
        lambda: minimise(cp.log(cp.sum(cp.exp(A @ x)))),
        ("cp.log_sum_exp(A @ x)",),
        lambda: minimise(cp.log_sum_exp(A @ x)),
    ),
    Mistake(
        "logistic loss written out (dccp issue 21)",
        lambda: minimise(cp.log(1 + cp.exp(A @ x))),
        ("Offending part: log(1 + exp(A @ x))", "concave function log of a convex argument"),
        lambda: minimise(cp.logistic(A @ x)),
    ),
    Mistake(
        "entropy written out",
        lambda: minimise(cp.multiply(x, cp.log(x))),
        ("-cp.entr(x)",),
        lambda: minimise(-cp.entr(x)),
    ),
    Mistake(
        "log of a ratio",
        lambda: cp.Problem(cp.Maximize(cp.log(t / cp.sum(x)))),
        ("Offending part: t / sum(x)", "division by an expression that holds variables"),
    ),
    Mistake(
        "root of a product",
        lambda: cp.Problem(cp.Maximize(cp.sqrt(x[0] * x[1]))),
        ("cp.geo_mean(cp.hstack([x[0], x[1]]))",),
        lambda: cp.Problem(cp.Maximize(cp.geo_mean(cp.hstack([x[0], x[1]])))),
    ),
    Mistake(
        "square of an expression that is not affine (cvxpy issue 1771)",
        lambda: minimise(cp.square(cp.norm(x - y) - 1)),
        ("convex function square of a convex argument", "cp.pos(...)"),
        lambda: minimise(cp.square(cp.pos(cp.norm(x - y) - 1))),
    ),
    Mistake(
        "difference of convex functions inside another",
        lambda: minimise(cp.square(cp.norm(x) - cp.norm(y))),
        ("Offending part: norm(x, 2) - norm(y, 2)", "terms whose curvatures differ"),
    ),
    Mistake(
        "smooth but not convex",
        lambda: minimise(cp.prod(x)),
        ("knows no curvature for prod",),
    ),
]  # fmt: skip

POSITIVE = cp.Variable(2, pos=True, name="v")
RATE = cp.Parameter(pos=True, name="rate")
OTHER = cp.Parameter(pos=True, name="other")
v0, v1 = POSITIVE[0], POSITIVE[1]
GEOMETRIC = [
    Mistake(
        "variable not positive",
        lambda: minimise(v0 * t),
        ("variable t", "t = cp.Variable(pos=True)"),
    ),
    Mistake(
        "parameter not positive",
        lambda: minimise(v0 * p),
        ("parameter p", "p = cp.Parameter(pos=True)"),
    ),
    Mistake(
        "difference",
        lambda: minimise(v0, [v0 - RATE * v1 >= 1]),
        ("constraint 0 ", "Offending part: -rate * v[1]", "minus sign"),
        lambda: minimise(v0, [1 + RATE * v1 <= v0]),
    ),
    Mistake(
        "equality of sums",
        lambda: minimise(v0, [v0 + v1 == RATE]),
        ("not a monomial: `v[0] + v[1]`",),
        lambda: minimise(v0, [v0 + v1 <= RATE]),
    ),
    Mistake(
        "sum on the greater side",
        lambda: minimise(v0, [v0 + v1 >= RATE]),
        ("`v[0] + v[1]` stands on the greater side",),
    ),
    Mistake(
        "maximising a sum",
        lambda: cp.Problem(cp.Maximize(v0 + v1)),
        ("maximising", "log-log convex"),
    ),
    Mistake(
        "zero",
        lambda: minimise(v0, [v0 >= 0]),
        ("not positive", "can go"),
        lambda: minimise(v0),
    ),
    Mistake(
        "power of parameters",
        lambda: minimise(v0 * cp.power(RATE, OTHER)),
        ("not DPP", "power(rate, other)", "pos=True"),
        lambda: minimise(v0 * cp.Parameter(pos=True)),
    ),
    Mistake(
        "exponent over a parameter",
        lambda: minimise((RATE * v0) ** OTHER),
        ("not DPP", "exponent that is a parameter"),
    ),
    Mistake(
        "a convex program",
        lambda: minimise(cp.norm(x), [x >= RATE]),
        ("leave out gp=True",),
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m.name)
def test_what_is_wrong_and_what_to_write(mistake: Mistake) -> None:
    message = explain(mistake.problem())
    assert message is not None
    for phrase in mistake.says:
        assert phrase in message, message
    if mistake.advised is not None:
        assert explain(mistake.advised()) is None


@pytest.mark.parametrize("mistake", GEOMETRIC, ids=lambda m: m.name)
def test_geometric_programs(mistake: Mistake) -> None:
    message = explain(mistake.problem(), gp=True)
    assert message is not None
    for phrase in mistake.says:
        assert phrase in message, message
    if mistake.advised is not None:
        assert explain(mistake.advised(), gp=True) is None


@pytest.mark.parametrize("mistake", [*MISTAKES, *GEOMETRIC], ids=lambda m: m.name)
def test_it_refuses_what_cvxpy_refuses(mistake: Mistake) -> None:
    for build in filter(None, (mistake.problem, mistake.advised)):
        problem: Any = build()
        assert (explain(problem) is None) == follows_the_rules(problem)
        assert (explain(problem, gp=True) is None) == problem.is_dpp("dgp")


def test_a_quadratic_form_may_have_a_parametric_matrix_in_a_constraint_too() -> None:
    assert explain(subject_to(cp.quad_form(x, P) <= 1)) is None


def test_a_geometric_program_is_recognised() -> None:
    message = explain(minimise(1 / (v0 * v1), [v0 * v1 <= RATE]))
    assert message is not None
    assert "pass gp=True" in message


def test_other_broken_constraints_are_listed() -> None:
    message = explain(subject_to(cp.norm(x) >= 1, x[0] >= 0, cp.norm(y) == 1))
    assert message is not None
    assert "constraint 2 (counted from 0)" in message
    assert message.endswith("Other constraints that break the rules: 4.")


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (lambda: minimise(weight * new_nonneg * cp.sum_squares(x - 1)),
         "not DPP: `weight * new_nonneg` (parameters weight and new_nonneg) in the objective: "
         "product of two expressions that depend on parameters"),
        (lambda: subject_to(cp.norm(x) <= cp.exp(p)),
         "not DPP: `exp(p)` (parameters p) in constraint 2: exp of parameters"),
        (lambda: subject_to(cp.norm(x) == 1),
         "not DCP: `norm(x, 2)` in constraint 2: equality with a nonaffine side"),
    ],
)  # fmt: skip
def test_the_layer_shows_a_line_and_its_check_the_whole(
    problem: Callable[[], cp.Problem], line: str
) -> None:
    """In repr(layer) the part, its parameters and the reason; in check() the rewrite too."""
    declaration = Declaration(problem(), problem().parameters(), problem().variables())
    layer = DeclarativeLayer(declaration)
    assert line in repr(layer)
    inputs = [torch.rand(2, *leaf.shape, dtype=torch.float64) for leaf in declaration.parameters]
    audit = layer.check(*inputs)
    why = explanation(declaration)
    assert why is not None
    assert why.line.startswith(line)
    assert audit.advice == why.text
    assert all(text in str(audit) for text in why.text.splitlines())


def test_nothing_is_explained_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("explained")

    monkeypatch.setattr("ddn_cvx.programs.diagnosis.explain._advice", fail)
    layer = DeclarativeLayer(minimise(weight * price @ x, box), [weight, price], [x])
    with pytest.raises(AssertionError, match="explained"):
        repr(layer)


def test_a_cone_program_needs_no_explanation() -> None:
    problem = minimise(cp.norm(x - price))
    layer = DeclarativeLayer(problem, [price], [x], solver="TORCH")
    assert "not D" not in repr(layer)
    assert layer.check(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)).advice == ""


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"boolean": True}, ("boolean", "derivative", "z = cp.Variable(3)", "0 <= z")),
        ({"integer": True}, ("integer", "derivative", "round outside")),
        ({"complex": True}, ("complex", "z_real = cp.Variable(3)")),
    ],
    ids=["boolean", "integer", "complex"],
)
def test_variables_that_no_layer_has(attributes: dict[str, bool], says: tuple[str, ...]) -> None:
    message = explain(minimise(cp.norm(cp.Variable(3, name="z", **attributes))))
    assert message is not None
    for phrase in says:
        assert phrase in message, message


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"diag": True}, ("declared with diag", "cp.diag")),
        ({"sparsity": [(0, 1), (0, 2)]}, ("declared with sparsity", "nonzeros a parameter")),
        ({"complex": True}, ("complex", "D_real = cp.Parameter((3, 3))")),
        ({"hermitian": True}, ("complex", "symmetric=True")),
    ],
    ids=["diag", "sparsity", "complex", "hermitian"],
)
def test_parameters_that_no_layer_has(attributes: dict[str, Any], says: tuple[str, ...]) -> None:
    D = cp.Parameter((3, 3), name="D", **attributes)
    message = explain(minimise(cp.sum_squares(cp.real(D) @ x)))
    assert message is not None
    for phrase in says:
        assert phrase in message, message


def test_messages_are_short_and_quick_for_large_problems() -> None:
    u = cp.Variable(2000, name="u")
    constant = np.ones((500, 2000))
    terms = cp.sum([p * cp.square(u[i]) for i in range(500)])
    problem = cp.Problem(
        cp.Minimize(terms + cp.sum_squares(constant @ u - 1)),
        [p * price[0] * u[i] <= constant[0] @ u for i in range(300)],
    )
    problem.is_dcp()
    start = time.perf_counter()
    message = explain(problem)
    elapsed = time.perf_counter() - start
    assert message is not None
    assert "p * square(u[0])" in message
    assert max(map(len, message.splitlines())) < 400
    assert elapsed < 1.0


def test_expressions_nested_beyond_recursion() -> None:
    expression: Any = t
    for _ in range(400):
        expression = cp.exp(expression)
    message = explain(minimise(expression))
    assert message is not None
    assert "recursion limit" in message


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (lambda: A @ x - price + 1, "A @ x - price + 1"),
        (lambda: cp.multiply(p, x + y) / 2, "p * (x + y) / 2"),
        (lambda: cp.sum_squares(x[1:]), "sum_squares(x[1:])"),
        (lambda: cp.norm(X[:, 0], 1), "norm1(X[:, 0])"),
        (lambda: np.ones((4, 3)) @ x, "<4x3 constant> @ x"),
        (lambda: cp.sqrt(x) + cp.power(x, 3), "sqrt(x) + power(x, 3)"),
        (lambda: cp.trace(A @ X @ B), "sum(A @ X * B.T)"),
        (lambda: cp.sum([cp.abs(x[0])] * 9), "..."),
        (lambda: cp.quad_form(x, P) - 2 * t, "quad_form(x, P) - 2 * t"),
    ],
)  # fmt: skip
def test_expressions_as_text(expression: Callable[[], Any], text: str) -> None:
    assert text in shorten(expression())


def test_the_catalogue_follows_the_rules() -> None:
    for constructor in catalogue().values():
        declaration = constructor()
        convex = declaration.problem.is_dcp()
        assert (explanation(declaration) is None) == convex


UNARY: list[Callable[[Any], Any]] = [
    cp.abs,
    cp.square,
    cp.sqrt,
    cp.exp,
    cp.log,
    cp.inv_pos,
    cp.pos,
    cp.entr,
    lambda a: -a,
    lambda a: A @ a,
    lambda a: cp.multiply(price, a),
    lambda a: weight * a,
    lambda a: a[::-1],
    lambda a: cp.norm(a) * np.ones(3),
    lambda a: cp.sum(a) + price,
    lambda a: cp.cumsum(a) / weight,
    lambda a: cp.log_sum_exp(a) - x,
    lambda a: cp.max(a) + y,
]
BINARY: list[Callable[[Any, Any], Any]] = [
    lambda a, b: a + b,
    lambda a, b: a - b,
    cp.multiply,
    lambda a, b: a / b,
    cp.maximum,
    cp.minimum,
    lambda a, b: cp.hstack([a[:2], b[:1]]),
]


def random_expression(generator: np.random.Generator, depth: int) -> Any:
    """A vector expression of three entries."""
    if depth == 0:
        leaves = [x, y, price, np.array([1.0, -2.0, 3.0]), weight * x, A @ y]
        return cp.Constant(0) + leaves[generator.integers(len(leaves))]
    if generator.random() < 0.5:
        function = UNARY[generator.integers(len(UNARY))]
        return function(random_expression(generator, depth - 1))
    combine = BINARY[generator.integers(len(BINARY))]
    left, right = (random_expression(generator, depth - 1) for _ in range(2))
    return combine(left, right)


@pytest.mark.parametrize("seed", range(8))
def test_random_problems(seed: int) -> None:
    """None exactly for what cvxpy accepts; else a message that names the place and the reason."""
    generator = np.random.default_rng(seed)
    for _ in range(40):
        first, second = (random_expression(generator, int(generator.integers(4))) for _ in "ab")
        sense: Any = [cp.Minimize, cp.Maximize][generator.integers(2)]
        constraint = first == second if generator.random() < 0.3 else first <= second
        problem: Any = cp.Problem(sense(cp.sum(first)), [constraint])
        message = explain(problem)
        assert (message is None) == follows_the_rules(problem)
        if message is not None:
            place, offender, why, rewrite, *_ = message.splitlines()
            assert place.startswith(f"The problem is not {'DPP' if problem.is_dcp() else 'DCP'}")
            assert offender.startswith("Offending part: ")
            assert why.startswith("Why: ")
            assert rewrite.startswith("Rewrite: ")
        message = explain(problem, gp=True)
        assert (message is None) == problem.is_dpp("dgp")
        assert estimate(problem) >= 0
