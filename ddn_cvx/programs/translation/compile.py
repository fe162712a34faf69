"""From a cvxpy expression to the steps of a torch function, atom by atom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ddn_cvx.programs.translation import (  # noqa: F401  (they fill the registry)
    affine,
    elementwise,
    matrix,
    nested,
    products,
    reductions,
    shapes,
    spectral,
)
from ddn_cvx.programs.translation.errors import Refusal, TranslationError
from ddn_cvx.programs.translation.function import TorchFunction
from ddn_cvx.programs.translation.registry import Rule, rule_for
from ddn_cvx.programs.translation.tape import Array, Tape, Value

if TYPE_CHECKING:
    import cvxpy as cp

# Characters of an expression that an error shows.
_TEXT = 80


def translate(
    expression: cp.Expression, leaves: Sequence[cp.Variable | cp.Parameter]
) -> TorchFunction:
    """The expression as a torch function of the leaves' values.

    Args:
        expression: real-valued, of the leaves and of constants only.
        leaves: variables and parameters, in the order in which their values will be given; they
            need not all appear in the expression.

    Raises:
        TranslationError: the expression holds something without a torch counterpart.

    >>> import cvxpy as cp, torch
    >>> x = cp.Variable(2)
    >>> function = translate(cp.sum_squares(x), [x])
    >>> function(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    tensor([25.,  1.])
    """
    import cvxpy as cp

    if not isinstance(expression, cp.Expression):
        raise TypeError(f"a cvxpy expression is expected, got {type(expression).__name__}")
    tape = Tape(translate)
    places = {leaf.id: n for n, leaf in enumerate(leaves)}
    values: dict[int, Value | None] = {}  # None: a subexpression without leaves, not yet evaluated
    rules: dict[int, tuple[Rule | None, list[Any]]] = {}  # keeps nodes alive, and so their ids
    parents: dict[int, Any] = {id(expression): None}

    def constant(node: Any) -> Value:
        value = values[id(node)]
        if value is None:
            value = values[id(node)] = tape.constant(_folded(node))
        return value

    def read(leaf: Any) -> Value:
        _check_leaf(leaf)
        if leaf.id not in places:
            kind = "variable" if isinstance(leaf, cp.Variable) else "parameter"
            reason = f"the {kind} {leaf.name()} is not among the leaves"
            raise Refusal(reason, "Pass it to translate().")
        return tape.leaf(places[leaf.id], tuple(leaf.shape))

    def enter(node: Any) -> list[Any]:
        rule = rule_for(node)
        operands = list(rule.operands(node) if rule else getattr(node, "args", []))
        if not isinstance(node, cp.atoms.atom.Atom):
            advice = _ADVICE.get(type(node).__name__, _REWRITE)
            raise Refusal("is no function of numbers that torch could evaluate", advice)
        rules[id(node)] = (rule, operands)
        return operands

    def build(node: Any) -> Value | None:
        rule, operands = rules[id(node)]
        if operands and all(_is_constant(values[id(operand)]) for operand in operands):
            return None
        if rule is None:
            raise Refusal("has no translation to torch", _REWRITE)
        if node.is_complex() or any(operand.is_complex() for operand in operands):
            raise Refusal("is complex or has a complex argument", _COMPLEX)
        built = rule.build(tape, node, [constant(operand) for operand in operands])
        return tape.view(built, tuple(node.shape))

    # Depth first on a stack of its own: an unrolled recursion is deeper than Python's stack.
    stack: list[Any] = [expression]
    node: Any = expression
    try:
        while stack:
            node = stack[-1]
            if id(node) in values:
                stack.pop()
            elif isinstance(node, cp.Constant):
                values[id(node)] = None
            elif isinstance(node, cp.Variable | cp.Parameter):
                values[id(node)] = read(node)
            elif id(node) in rules:
                values[id(node)] = build(node)
            else:
                operands = enter(node)
                parents |= {id(n): node for n in operands if id(n) not in parents}
                stack.extend(reversed(operands))
        for node in leaves:
            _check_leaf(node)
        node = expression
        program = tape.finish(constant(node), len(leaves))
    except Refusal as refusal:
        raise TranslationError(_message(node, parents, refusal)) from None
    return TorchFunction(tuple(expression.shape), [tuple(leaf.shape) for leaf in leaves], *program)


def _is_constant(value: Value | None) -> bool:
    return value is None or value.array is not None


_REWRITE = "Write it with other atoms, or register a rule in ddn_cvx.programs.translation."
_COMPLEX = "Write the real and the imaginary part as two real expressions."
_ADVICE = {
    "indicator": "State its constraints among the problem's constraints.",
    "PartialProblem": "State the inner problem's variables and constraints in the outer problem.",
}


def _check_leaf(leaf: Any) -> None:
    from cvxpy.expressions.constants.callback_param import CallbackParam

    if isinstance(leaf, CallbackParam):
        raise Refusal(
            f"the callback parameter {leaf.name()} computes its own value",
            "Write the callback's formula in its place, or use a plain cp.Parameter.",
        )
    if leaf.is_complex():
        raise Refusal(f"the leaf {leaf.name()} is complex", _COMPLEX)


def _folded(node: Any) -> Array:
    """The value of a subexpression without leaves."""
    value = node.value
    if hasattr(value, "toarray"):
        value = value.toarray()
    array = np.asarray(value)
    if np.iscomplexobj(array):
        raise Refusal("is complex", _COMPLEX)
    return array.astype(np.float64).reshape(node.shape)


def _message(node: Any, parents: dict[int, Any], refusal: Refusal) -> str:
    """The refusal with the node's text and its place, the atoms from the expression down to it."""
    import cvxpy as cp

    name = type(node).__name__
    subject = "" if isinstance(node, cp.expressions.leaf.Leaf) else f"the atom {name} "
    text = " ".join(str(node).split())
    if len(text) > _TEXT:
        text = f"{text[: _TEXT - 3]}..."
    place, parent = f"<{name}>(...)", parents.get(id(node))
    while parent is not None:
        place, parent = f"{type(parent).__name__}({place})", parents[id(parent)]
    return f"{subject}{refusal.reason}. It is {text!r}, at {place}. {refusal.advice}"
