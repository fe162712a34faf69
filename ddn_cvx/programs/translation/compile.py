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
    for leaf in leaves:
        _check_leaf(leaf, expression)
    places = {leaf.id: n for n, leaf in enumerate(leaves)}
    values: dict[int, Value | None] = {}  # None: a subexpression without leaves, not yet evaluated
    rules: dict[int, tuple[Rule | None, list[Any]]] = {}
    kept: list[Any] = []  # ids stay unique only while the objects live

    def constant(node: Any) -> Value:
        value = values[id(node)]
        if value is None:
            value = values[id(node)] = tape.constant(_folded(node, expression))
        return value

    # Depth first on a stack of its own: an unrolled recursion is deeper than Python's stack.
    stack: list[tuple[Any, bool]] = [(expression, False)]
    while stack:
        node, entered = stack.pop()
        if id(node) in values:
            continue
        if not entered:
            kept.append(node)
            if isinstance(node, cp.Constant):
                values[id(node)] = None
            elif isinstance(node, cp.Variable | cp.Parameter):
                _check_leaf(node, expression)
                if node.id not in places:
                    kind = "variable" if isinstance(node, cp.Variable) else "parameter"
                    raise _error(
                        expression, node, f"the {kind} {node.name()} is not among the leaves",
                        "Pass it to translate().",
                    )  # fmt: skip
                values[id(node)] = tape.leaf(places[node.id], tuple(node.shape))
            else:
                rule = rule_for(node)
                try:
                    operands = list(rule.operands(node) if rule else getattr(node, "args", []))
                except Refusal as refusal:
                    raise _error(expression, node, refusal.reason, refusal.advice) from None
                if not isinstance(node, cp.atoms.atom.Atom):
                    raise _error(
                        expression, node, "is no function of numbers that torch could evaluate",
                        _ADVICE.get(type(node).__name__, _REWRITE),
                    )  # fmt: skip
                rules[id(node)] = (rule, operands)
                stack.append((node, True))
                stack.extend((operand, False) for operand in reversed(operands))
            continue
        rule, operands = rules[id(node)]
        if operands and all(_is_constant(values[id(operand)]) for operand in operands):
            values[id(node)] = None
            continue
        if rule is None:
            raise _error(expression, node, "has no translation to torch", _REWRITE)
        if node.is_complex() or any(operand.is_complex() for operand in operands):
            raise _error(expression, node, "is complex or has a complex argument", _COMPLEX)
        try:
            built = rule.build(tape, node, [constant(operand) for operand in operands])
        except Refusal as refusal:
            raise _error(expression, node, refusal.reason, refusal.advice) from None
        values[id(node)] = tape.view(built, tuple(node.shape))
    leaf_shapes = [tuple(leaf.shape) for leaf in leaves]
    program = tape.finish(constant(expression), len(leaves))
    return TorchFunction(tuple(expression.shape), leaf_shapes, *program)


def _is_constant(value: Value | None) -> bool:
    return value is None or value.array is not None


_REWRITE = "Write it with other atoms, or register a rule in ddn_cvx.programs.translation."
_COMPLEX = "Write the real and the imaginary part as two real expressions."
_ADVICE = {
    "indicator": "State its constraints among the problem's constraints.",
    "PartialProblem": "State the inner problem's variables and constraints in the outer problem.",
}


def _check_leaf(leaf: Any, expression: Any) -> None:
    from cvxpy.expressions.constants.callback_param import CallbackParam

    if isinstance(leaf, CallbackParam):
        raise _error(
            expression, leaf, f"the callback parameter {leaf.name()} computes its own value",
            "Write the callback's formula in its place, or use a plain cp.Parameter.",
        )  # fmt: skip
    if leaf.is_complex():
        raise _error(expression, leaf, f"the leaf {leaf.name()} is complex", _COMPLEX)


def _folded(node: Any, expression: Any) -> Array:
    """The value of a subexpression without leaves."""
    value = node.value
    if hasattr(value, "toarray"):
        value = value.toarray()
    array = np.asarray(value)
    if np.iscomplexobj(array):
        raise _error(expression, node, "is complex", _COMPLEX)
    return array.astype(np.float64).reshape(node.shape)


def _error(expression: Any, node: Any, reason: str, advice: str) -> TranslationError:
    import cvxpy as cp

    name = type(node).__name__
    subject = "" if isinstance(node, cp.expressions.leaf.Leaf) else f"the atom {name} "
    text = " ".join(str(node).split())
    if len(text) > _TEXT:
        text = f"{text[: _TEXT - 3]}..."
    path = _path(expression, node)
    place = "".join(f"{part}(" for part in path) + f"<{name}>(...)" + ")" * len(path)
    return TranslationError(f"{subject}{reason}. It is {text!r}, at {place}. {advice}")


def _path(expression: Any, node: Any) -> list[str]:
    """Names of the atoms from the expression down to the node, the node left out."""
    parents: dict[int, Any] = {id(expression): None}
    stack = [expression]
    while stack:
        parent = stack.pop()
        if parent is node:
            break
        rule = rule_for(parent)
        try:
            operands = [*getattr(parent, "args", []), *(rule.operands(parent) if rule else [])]
        except Refusal:
            operands = []
        for operand in operands:
            if id(operand) not in parents:
                parents[id(operand)] = parent
                stack.append(operand)
    path: list[str] = []
    parent = parents.get(id(node))
    while parent is not None:
        path.insert(0, type(parent).__name__)
        parent = parents.get(id(parent))
    return path
