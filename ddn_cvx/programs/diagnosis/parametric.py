"""Why a convex problem is not DPP: parameters enter it other than affinely."""

from __future__ import annotations

from collections.abc import Callable

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
)

PRODUCTS = frozenset({"multiply", "MulExpression", "kron", "convolve", "conv"})
Rule = Callable[[Offender, Place], Advice | None]


def parametric_advice(offender: Offender, place: Place) -> Advice:
    """The first rule that fits. Call it within ``dpp_scope``, as the offender was found."""
    for rule in (_constant, _quadratic_form, _convolution, _product, _ratio, _parts):
        advice = rule(offender, place)
        if advice is not None:
            return advice
    return Advice(
        f"{function_name(offender.expression)}(...) is not convex or concave when "
        f"{joined(offender.expression.parameters())} may vary together with the variables",
        "Move the parameters into affine expressions: a new parameter for each function of "
        "parameters (computed in torch), a new variable z with the constraint z == ... for each "
        "affine expression that mixes parameters with variables.",
    )


def _constant(offender: Offender, place: Place) -> Advice | None:
    """Products and functions of parameters alone."""
    if offender.constant is None:
        return None
    if kind(offender.expression) in PRODUCTS:
        why = "product of two expressions that depend on parameters"
    elif kind(offender.expression) == "DivExpression":
        why = "division by a parameter"
    else:
        why = f"{function_name(offender.expression)} of parameters, which is not affine in them"
    return Advice(why, new_parameter(place, offender.constant))


def _quadratic_form(offender: Offender, place: Place) -> Advice | None:
    expression = offender.expression
    if kind(expression) != "QuadForm":
        return None
    vector, matrix = expression.args
    if not matrix.parameters():
        return None
    if not matrix.is_affine():
        return Advice(
            "quad_form with a matrix that is not affine in the parameters",
            new_parameter(place, matrix, attribute="PSD=True" if matrix.is_psd() else "NSD=True"),
        )
    if vector.parameters():
        return Advice(
            "both the vector and the matrix of quad_form depend on parameters",
            new_variable(place, vector, "cp.quad_form({z}, " + shorten(matrix, 60) + ")"),
        )
    size = shape_argument(matrix.shape)
    name = place.fresh(matrix.parameters()[0].name(), "factor")
    sign = "" if matrix.is_psd() else "-"
    where = (
        "in a constraint"
        if place.constraint is not None
        else "for a solver without a quadratic objective"
    )
    return Advice(
        f"quad_form with a parametric matrix {where}: cvxpy would keep the value that the matrix "
        "had when the problem was compiled",
        "Pass a factor of the matrix instead of the matrix:\n"
        f"    {name} = cp.Parameter({size})\n"
        f"    {sign}cp.sum_squares({name}.T @ {enclosed(vector)})    "
        f"# in place of {shorten(expression, 60)}\n"
        f"    {name}_tensor = torch.linalg.cholesky(...)    "
        f"# of {sign}{enclosed(matrix)}, plus a small ridge if it is singular",
    )


def _convolution(offender: Offender, place: Place) -> Advice | None:
    expression = offender.expression
    if kind(expression) not in ("convolve", "conv", "kron"):
        return None
    kernel = expression.args[0] if expression.args[0].parameters() else expression.args[1]
    other = expression.args[1] if kernel is expression.args[0] else expression.args[0]
    name = place.fresh(kernel.parameters()[0].name(), "matrix")
    rows = expression.size
    return Advice(
        f"cvxpy's {kind(expression)} takes a constant, not a parameter",
        "Write it as a product with a matrix that is a parameter, filled in torch:\n"
        f"    {name} = cp.Parameter(({rows}, {other.size}))\n"
        f"    {name} @ {enclosed(other)}    # in place of {shorten(expression, 60)}",
    )


def _product(offender: Offender, place: Place) -> Advice | None:
    expression = offender.expression
    if kind(expression) not in PRODUCTS:
        return None
    left, right = expression.args
    factor, other = (left, right) if not left.variables() else (right, left)
    if not factor.is_affine():
        return Advice(
            f"the factor of a variable is not affine in its parameters: `{shorten(factor, 60)}`",
            new_parameter(place, factor),
        )
    why = "product of two expressions that depend on parameters"
    if not other.variables():
        return Advice(why, new_parameter(place, expression))
    if kind(other) == "QuadForm" and other.args[1].parameters():
        matrix = other.args[1]
        name = place.fresh(*(leaf.name() for leaf in expression.parameters()[:2]))
        return Advice(
            why,
            "Move the factor into the matrix, and compute that in torch:\n"
            f"    {name} = cp.Parameter({shape_argument(matrix.shape)}, PSD=True)    "
            f"# in place of {shorten(factor, 30)} * {shorten(matrix, 30)}\n"
            f"    cp.quad_form({shorten(other.args[0], 60)}, {name})\n"
            f"    layer(..., {name}_tensor)    "
            f"# {shorten(factor, 30)}[:, None, None] * {shorten(matrix, 30)}, in torch",
        )
    mixture = affine_mixture(other)
    if mixture is None:
        parts = list(parametric_parts(other))
        return Advice(why, new_parameter(place, parts[0])) if parts else None
    inner = "{z}" if mixture is other else f"{function_name(other)}(...)"
    pair = (enclosed(factor), inner) if factor is left else (inner, enclosed(factor))
    sketch = (" @ " if kind(expression) == "MulExpression" else " * ").join(pair)
    if mixture is not other:
        sketch += f"    # with {{z}} in place of {shorten(mixture, 60)}"
    return Advice(why, new_variable(place, mixture, sketch))


def _ratio(offender: Offender, place: Place) -> Advice | None:
    expression = offender.expression
    if kind(expression) not in ("DivExpression", "quad_over_lin"):
        return None
    numerator, denominator = expression.args[:2]
    if not denominator.parameters() or denominator.variables():
        return None
    while kind(denominator) in ("Promote", "broadcast_to"):
        denominator = denominator.args[0]
    name = place.fresh("inverse", denominator.parameters()[0].name())
    sign = "nonneg=True" if denominator.is_nonneg() else ""
    product = (
        f"cp.sum_squares({shorten(numerator, 60)})"
        if kind(expression) == "quad_over_lin"
        else enclosed(numerator)
    )
    return Advice(
        "division by a parameter",
        "Multiply by a parameter that holds the reciprocal:\n"
        f"    {name} = cp.Parameter({options(denominator.shape, sign)})\n"
        f"    {product} * {name}    # in place of {shorten(expression, 60)}\n"
        f"    layer(..., {name}_tensor)    # 1 / {enclosed(denominator)}, in torch",
    )


def _parts(offender: Offender, place: Place) -> Advice | None:
    """A function of parameters stands inside the offender, or beside it in a sum."""
    for part in parametric_parts(offender.expression):
        return Advice(
            f"`{shorten(part, 60)}` is not affine in its parameters, and may not stand in "
            f"{function_name(offender.expression)}(...)",
            new_parameter(place, part),
        )
    return None
