"""Why a convex problem is not DPP: parameters enter it other than affinely.

The rules are called within ``dpp_scope``, as the offender was found.
"""

from __future__ import annotations

from ddn_cvx.programs.diagnosis.advice import Advice, Place, new_parameter, new_variable
from ddn_cvx.programs.diagnosis.offender import Offender, affine_mixture, parametric_parts
from ddn_cvx.programs.diagnosis.wording import brief, function_name, joined, kind, unpromoted

_PRODUCTS = ("multiply", "MulExpression", "QuadForm", "kron", "convolve", "conv")
_QUOTIENTS = ("DivExpression", "quad_over_lin")
_TWICE = "product of two expressions that depend on parameters"


def parametric_advice(offender: Offender, place: Place) -> Advice:
    """The advice of the first rule that fits."""
    expression, function = offender.expression, function_name(offender.expression)
    name, arguments = kind(expression), expression.args
    if offender.constant is not None:  # of parameters alone
        why = f"{function} of parameters, which is not affine in them"
        if name in _PRODUCTS:
            why = _TWICE
        elif name in _QUOTIENTS:
            why = "division by a parameter"
        return Advice(why, new_parameter(place, offender.constant))
    if name in _QUOTIENTS and arguments[1].parameters() and not arguments[1].variables():
        rewrite = new_parameter(place, 1 / unpromoted(arguments[1]))
        return Advice("division by a parameter", f"{rewrite}\nand multiply by it.")
    for part in parametric_parts(expression):
        why = f"an expression without variables is not affine in its parameters: `{brief(part)}`"
        return Advice(why, new_parameter(place, part))
    mixture = affine_mixture(expression)
    if name in _PRODUCTS and mixture is not None:
        return Advice(_TWICE, new_variable(place, mixture))
    return Advice(
        f"{function}(...) is not convex or concave when {joined(expression.parameters())} may vary "
        "together with the variables",
        "Move the parameters into affine expressions: a new parameter for each function of "
        "parameters (computed in torch), a new variable z with the constraint z == ... for each "
        "affine expression that mixes parameters with variables.",
    )
