"""Why a convex problem is not DPP: parameters enter it other than affinely.

The rules are called within ``dpp_scope``, as the offender was found.
"""

from __future__ import annotations

from typing import Any

from ddn_cvx.programs.diagnosis.advice import Advice, Place, new_parameter, new_variable
from ddn_cvx.programs.diagnosis.offender import Offender, affine_mixture, parametric_parts
from ddn_cvx.programs.diagnosis.wording import (
    enclosed,
    function_name,
    joined,
    kind,
    options,
    shape_argument,
    shorten,
    unpromoted,
)

_CONVOLUTIONS = ("kron", "convolve", "conv")
_PRODUCTS = ("multiply", "MulExpression", *_CONVOLUTIONS)
_TWICE = "product of two expressions that depend on parameters"


def parametric_advice(offender: Offender, place: Place) -> Advice:
    """The advice of the first rule that fits."""
    name, expression = kind(offender.expression), offender.expression
    if offender.constant is not None:
        return _constant(offender, place)
    advice = None
    if name == "QuadForm" and expression.args[1].parameters():
        advice = _quadratic_form(expression, place)
    elif name in _CONVOLUTIONS:
        advice = _convolution(expression, place)
    elif name in _PRODUCTS:
        advice = _product(expression, place)
    elif name in ("DivExpression", "quad_over_lin"):
        advice = _ratio(expression, place)
    if advice is not None:
        return advice
    function = function_name(expression)
    for part in parametric_parts(expression):
        why = f"`{shorten(part, 60)}` is not affine in its parameters, and may not stand in "
        return Advice(f"{why}{function}(...)", new_parameter(place, part))
    return Advice(
        f"{function}(...) is not convex or concave when {joined(expression.parameters())} may vary "
        "together with the variables",
        "Move the parameters into affine expressions: a new parameter for each function of "
        "parameters (computed in torch), a new variable z with the constraint z == ... for each "
        "affine expression that mixes parameters with variables.",
    )


def _constant(offender: Offender, place: Place) -> Advice:
    """Products and functions of parameters alone."""
    name = kind(offender.expression)
    if name in _PRODUCTS:
        why = _TWICE
    elif name == "DivExpression":
        why = "division by a parameter"
    else:
        why = f"{function_name(offender.expression)} of parameters, which is not affine in them"
    return Advice(why, new_parameter(place, offender.constant))


def _quadratic_form(expression: Any, place: Place) -> Advice | None:
    vector, matrix = expression.args
    if not matrix.is_affine():
        attribute = "PSD=True" if matrix.is_psd() else "NSD=True"
        why = "quad_form with a matrix that is not affine in the parameters"
        return Advice(why, new_parameter(place, matrix, attribute))
    if not vector.parameters():
        return None
    sketch = "cp.quad_form({z}, " + shorten(matrix, 60) + ")"
    why = "both the vector and the matrix of quad_form depend on parameters"
    return Advice(why, new_variable(place, vector, sketch))


def _convolution(expression: Any, place: Place) -> Advice:
    kernel, other = expression.args if expression.args[0].parameters() else expression.args[::-1]
    name = place.fresh(kernel.parameters()[0].name(), "matrix")
    return Advice(
        f"cvxpy's {kind(expression)} takes a constant, not a parameter",
        "Write it as a product with a matrix that is a parameter, filled in torch:\n"
        f"    {name} = cp.Parameter(({expression.size}, {other.size}))\n"
        f"    {name} @ {enclosed(other)}    # in place of {shorten(expression, 60)}",
    )


def _product(expression: Any, place: Place) -> Advice | None:
    left, right = expression.args
    factor, other = (left, right) if not left.variables() else (right, left)
    if not factor.is_affine():
        why = f"the factor of a variable is not affine in its parameters: `{shorten(factor, 60)}`"
        return Advice(why, new_parameter(place, factor))
    if not other.variables():
        return Advice(_TWICE, new_parameter(place, expression))
    if kind(other) == "QuadForm" and other.args[1].parameters():
        vector, matrix = other.args
        name = place.fresh(*(leaf.name() for leaf in expression.parameters()[:2]))
        return Advice(
            _TWICE,
            "Move the factor into the matrix, and compute that in torch:\n"
            f"    {name} = cp.Parameter({shape_argument(matrix.shape)}, PSD=True)\n"
            f"    cp.quad_form({shorten(vector, 60)}, {name})\n"
            f"    layer(..., {name}_tensor)    "
            f"# {shorten(factor, 30)}[:, None, None] * {shorten(matrix, 30)}, in torch",
        )
    mixture = affine_mixture(other)
    if mixture is None:
        parts = parametric_parts(other)
        return next((Advice(_TWICE, new_parameter(place, part)) for part in parts), None)
    inner = "{z}" if mixture is other else f"{function_name(other)}(...)"
    pair = (enclosed(factor), inner) if factor is left else (inner, enclosed(factor))
    sketch = (" @ " if kind(expression) == "MulExpression" else " * ").join(pair)
    if mixture is not other:
        sketch += f"    # with {{z}} in place of {shorten(mixture, 60)}"
    return Advice(_TWICE, new_variable(place, mixture, sketch))


def _ratio(expression: Any, place: Place) -> Advice | None:
    top, bottom = expression.args[:2]
    if not bottom.parameters() or bottom.variables():
        return None
    bottom = unpromoted(bottom)
    name = place.fresh("inverse", bottom.parameters()[0].name())
    sign = "nonneg=True" if bottom.is_nonneg() else ""
    squares = kind(expression) == "quad_over_lin"
    factor = f"cp.sum_squares({shorten(top, 60)})" if squares else enclosed(top)
    return Advice(
        "division by a parameter",
        "Multiply by a parameter that holds the reciprocal:\n"
        f"    {name} = cp.Parameter({options(bottom.shape, sign)})\n"
        f"    {factor} * {name}    # in place of {shorten(expression, 60)}\n"
        f"    layer(..., {name}_tensor)    # 1 / {enclosed(bottom)}, in torch",
    )
