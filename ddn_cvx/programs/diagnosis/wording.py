"""Expressions as short text, written as the user wrote them.

cvxpy's own text repeats every entry of constants and every term of sums, which for a large problem
is megabytes long and slow to make. Here depth and width are bounded, so that time is, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import cvxpy as cp

# Terms of a sum, or arguments of an atom, before an ellipsis.
_TERMS = 4
# Precedence of a text's outermost operation.
_SUM, _PRODUCT, _ATOM = 1, 2, 3

# Functions that cvxpy's class of the atom is not named for.
_FUNCTIONS = {"Pnorm": "norm", "diag_mat": "diag", "diag_vec": "diag"}
_RELATIONS = {
    "Equality": "{} == {}",
    "Inequality": "{} <= {}",
    "PSD": "{} >> 0",
    "NonNeg": "{} >= 0",
    "NonPos": "{} <= 0",
    "Zero": "{} == 0",
}
# Atoms that cvxpy inserts, of which the user knows nothing.
_BROADCASTS = ("Promote", "broadcast_to")
_SILENT = (*_BROADCASTS, "psd_wrap", "nonneg_wrap", "nonpos_wrap", "symmetric_wrap")
_SYMBOLS = {"multiply": " * ", "MulExpression": " @ ", "DivExpression": " / "}


def kind(expression: Any) -> str:
    """Name of an atom's class, without the marks of its variants (``PowerApprox`` is "power")."""
    name = type(expression).__name__.removesuffix("Approx")
    return "power" if name == "Power" else name


def function_name(expression: Any) -> str:
    """The function that makes an atom: ``quad_form``, ``sum_squares``, ``norm``, ..."""
    name = kind(expression)
    if name == "quad_over_lin":
        divisor = expression.args[1]
        if kind(divisor) == "Constant" and divisor.size == 1 and divisor.value == 1:
            return "sum_squares"
    if name == "power":
        if getattr(expression.p, "parameters", list)():
            return name
        exponent = float(getattr(expression.p, "value", expression.p))
        return {2.0: "square", 0.5: "sqrt", -1.0: "inv_pos"}.get(exponent, name)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", _FUNCTIONS.get(name, name)).lower()


def unpromoted(expression: Any, silent: tuple[str, ...] = _BROADCASTS) -> Any:
    """The expression below atoms of the silent kinds; by default below broadcasts."""
    while kind(expression) in silent:
        expression = expression.args[0]
    return expression


def shorten(expression: Any, limit: int = 160) -> str:
    """The expression as text of at most ``limit`` characters."""
    text = ""
    for depth in (8, 6, 5, 4, 3, 2):
        text = _write(expression, depth)[0]
        if len(text) <= limit:
            return text
    return text[: limit - 3] + "..."


def brief(expression: Any) -> str:
    """The expression as text within a sentence."""
    return shorten(expression, 60)


def shorten_constraint(constraint: cp.Constraint) -> str:
    """A constraint as text of about 160 characters."""
    name = type(constraint).__name__
    sides = [shorten(side, 80) for side in constraint.args]
    if name in _RELATIONS:
        return _RELATIONS[name].format(*sides)
    return f"{name}({', '.join(sides[:_TERMS])})"


def _write(expression: Any, depth: int) -> tuple[str, int]:
    """Text and precedence."""
    if not expression.args:
        return _leaf(expression), _ATOM
    name = kind(expression)
    if name in _SILENT:
        return _write(expression.args[0], depth)
    if depth == 0:
        return "...", _ATOM
    if name == "AddExpression":
        return _sum(expression, depth), _SUM
    if name == "NegExpression":
        return "-" + _within(expression.args[0], depth - 1, _PRODUCT), _SUM
    if name in _SYMBOLS:
        left = _within(expression.args[0], depth - 1, _PRODUCT)
        right = _within(expression.args[1], depth - 1, _ATOM)
        return left + _SYMBOLS[name] + right, _PRODUCT
    if name == "transpose":
        inner = expression.args[0]
        if kind(inner) == "transpose":
            return _write(inner.args[0], depth)  # cvxpy's own detour, in traces
        return _within(inner, depth - 1, _ATOM) + ".T", _ATOM
    if name in ("index", "special_index"):
        return _within(expression.args[0], depth - 1, _ATOM) + _subscript(expression), _ATOM
    return _call(expression, depth), _ATOM


def _within(expression: Any, depth: int, least: int) -> str:
    text, precedence = _write(expression, depth)
    return text if precedence >= least else f"({text})"


def _sum(expression: Any, depth: int) -> str:
    terms = expression.args
    if len(terms) > _TERMS:
        terms = (*terms[: _TERMS - 2], None, terms[-1])
    texts = ("..." if term is None else _write(term, depth - 1)[0] for term in terms)
    return " + ".join(texts).replace(" + -", " - ")


def _call(expression: Any, depth: int) -> str:
    function = function_name(expression)
    arguments = expression.args[:1] if function == "sum_squares" else expression.args
    texts = [_write(argument, depth - 1)[0] for argument in arguments[:_TERMS]]
    if len(arguments) > _TERMS:
        texts.append("...")
    if function == "power":
        exponent = expression.p
        texts.append(shorten(exponent, 40) if hasattr(exponent, "args") else f"{float(exponent):g}")
    elif function == "norm":
        texts.append(f"{float(expression.p):g}")
    return f"{function}({', '.join(texts)})"


def _leaf(expression: Any) -> str:
    if type(expression).__name__ != "Constant":
        return str(expression.name())
    if expression.size == 1:
        value = expression.value
        return f"{(value.toarray() if hasattr(value, 'toarray') else value).item().real:g}"
    return f"<{'x'.join(map(str, expression.shape))} constant>"


def _subscript(expression: Any) -> str:
    key = getattr(expression, "_orig_key", None)
    parts = key if isinstance(key, tuple) else (key,)
    return f"[{', '.join(map(_part, parts))}]"


def _part(part: Any) -> str:
    if isinstance(part, slice):
        ends = ["" if end is None else str(end) for end in (part.start, part.stop)]
        return ":".join(ends) + (f":{part.step}" if part.step not in (None, 1) else "")
    text = str(part)
    return text if len(text) <= 12 and "\n" not in text else "..."


def options(shape: tuple[int, ...], *attributes: str) -> str:
    """Arguments of ``cp.Variable`` or ``cp.Parameter``: ``"3, nonneg=True"``, ``"(3, 2)"``."""
    size = ", ".join(map(str, shape))
    return ", ".join(filter(None, (f"({size})" if len(shape) > 1 else size, *attributes)))


def joined(leaves: Iterable[Any]) -> str:
    """Names of leaves: "p", "p and q", "p, q, r and 5 more"."""
    names = [leaf.name() for leaf in leaves]
    if len(names) > 3:
        names = [*names[:3], f"{len(names) - 3} more"]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""
