"""Why a problem is not a geometric program by cvxpy's rules (DGP), and what to write instead.

Disciplined geometric programming (Agrawal, Diamond and Boyd, 2019): with u = exp(z), products and
powers become affine in z and sums convex; differences and numbers that are not positive have no
place.
"""

from __future__ import annotations

from typing import Any

from ddn_cvx.programs.diagnosis.advice import Advice, Place, new_parameter
from ddn_cvx.programs.diagnosis.offender import demands
from ddn_cvx.programs.diagnosis.wording import brief, function_name, kind, options


def geometric_advice(place: Place, part: Any, parametric: bool) -> tuple[Any, Advice]:
    """The offending expression and the advice.

    Call it within ``dpp_scope`` if the part is DGP and only its parameters break the rules.
    """
    for expression, wanted in demands(part):
        if not _has(expression, wanted):
            offender = _find(expression)
            if offender is not None:
                return offender, _advice(offender, place, parametric)
            return expression, _wrong_way(place, expression, wanted)
    return part.args[0], Advice(
        f"a geometric program has no {type(part).__name__} constraint",
        "Use <= between posynomials and monomials, or == between monomials.",
    )


def _has(expression: Any, wanted: str) -> bool:
    return bool(getattr(expression, f"is_log_log_{wanted}")())


def _find(expression: Any) -> Any:
    """The smallest expression of no log-log curvature; None if there is none."""
    if _has(expression, "convex") or _has(expression, "concave"):
        return None
    below = (_find(argument) for argument in expression.args)
    return next((found for found in below if found is not None), expression)


def _advice(offender: Any, place: Place, parametric: bool) -> Advice:
    name, sort = brief(offender), kind(offender)
    if sort in ("Variable", "Parameter"):
        return Advice(
            f"{sort.lower()} {name} is not declared positive",
            "A geometric program knows positive numbers only:\n"
            f"    {name} = cp.{sort}({options(offender.shape, 'pos=True')})",
        )
    if sort in ("Constant", "NegExpression"):
        return Advice(
            "a constant that is not positive"
            if sort == "Constant"
            else "a difference or a minus sign",
            "A geometric program knows positive terms only. Move the term to the other side of the "
            "inequality; `0 <= x` holds by itself and can go.",
        )
    if parametric:
        why = f"{function_name(offender)} of expressions that depend on parameters twice"
        if not offender.variables():
            return Advice(why, new_parameter(place, offender, "pos=True"))
        return Advice(
            why,
            "Use each parameter once in a product; an exponent that is a parameter may only stand "
            "over expressions without parameters.",
        )
    return Advice(
        f"{function_name(offender)}(...) has no log-log curvature",
        "Use products, powers, sums of positive terms, maximum and exp.",
    )


def _wrong_way(place: Place, expression: Any, wanted: str) -> Advice:
    text = brief(expression)
    if wanted == "affine":
        return Advice(
            f"equality with a side that is not a monomial: `{text}`",
            "Only products of powers may be equal. Relax to an inequality, which is tight at the "
            f"optimum of most geometric programs:\n    constraints += [{text} <= ...]",
        )
    if place.number is None:
        verb, found = ("maximising", "convex") if place.maximises else ("minimising", "concave")
        return Advice(
            f"{verb} an expression that is log-log {found}",
            "Optimise the reciprocal of a monomial; a sum can only be minimised.",
        )
    return Advice(
        f"`{text}` stands on the greater side of <=, and is not a monomial",
        "The greater side must be one product of powers. Divide both sides, or bound the sum from "
        "above instead.",
    )
