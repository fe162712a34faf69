"""Why a problem is not convex by cvxpy's rules (DCP), and what to write instead.

Each rule takes an offender and its place, and returns None where it does not fit. The rules are
called outside of ``dpp_scope``, as the offender was found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ddn_cvx.programs.diagnosis.advice import Advice, Place, new_parameter
from ddn_cvx.programs.diagnosis.offender import Offender
from ddn_cvx.programs.diagnosis.wording import (
    brief,
    function_name,
    kind,
    options,
    shorten,
    unpromoted,
)

Rule = Callable[[Offender, Place], Advice | None]


def convexity_advice(offender: Offender, place: Place) -> Advice:
    """The advice of the first rule that fits."""
    rules = _BY_KIND.get(kind(offender.expression), ())
    for rule in (*rules, _one_atom, _wrong_way, _composition):
        advice = rule(offender, place)
        if advice is not None:
            return advice
    return Advice(
        f"cvxpy knows no curvature for {function_name(offender.expression)}(...)",
        "Look for a convex function that serves the same end in cvxpy's table of atoms.",
    )


# -- quadratic forms and products ------------------------------------------------------------------


def _quadratic_form(offender: Offender, place: Place) -> Advice | None:
    vector, matrix = offender.expression.args
    if matrix.is_psd() or matrix.is_nsd():
        return None
    why = "quad_form with a matrix that is not known to be positive semidefinite"
    if matrix.parameters():
        return _declared(place, matrix, "PSD=True", why)
    return Advice(
        why,
        "If its negative eigenvalues are rounding, say so; else clip them first (np.linalg.eigh):\n"
        f"    cp.quad_form({brief(vector)}, cp.psd_wrap({brief(matrix)}))",
    )


def _declared(place: Place, expression: Any, attribute: str, why: str) -> Advice:
    """A parameter, or an expression of parameters, is to be declared with an attribute."""
    if kind(expression) != "Parameter":
        return Advice(f"{why}: `{brief(expression)}`", new_parameter(place, expression, attribute))
    declaration = f"{expression.name()} = cp.Parameter({options(expression.shape, attribute)})"
    return Advice(
        why, f"Declare it, and let the tensors be so (softplus, L @ L.T):\n    {declaration}"
    )


def _unknown_sign(offender: Offender, place: Place) -> Advice | None:
    """A factor without variables whose sign cvxpy does not know, and one that is not affine."""
    expression = offender.expression
    factor, other = expression.args
    if factor.variables() or kind(expression) == "DivExpression":
        factor, other = other, factor
    known = factor.is_nonneg() or factor.is_nonpos()
    if factor.variables() or known or _curvature(other) in ("affine", "mixed"):
        return None
    why = f"a {_curvature(other)} expression times"
    if factor.parameters():
        why = f"{why} a parameter whose sign is not known"
        return _declared(place, unpromoted(factor), "nonneg=True", why)
    return Advice(f"{why} constants of both signs", "Keep the terms whose sign fits.")


def _product(offender: Offender, place: Place) -> Advice | None:
    """A product of variables."""
    expression = offender.expression
    left, right = expression.args
    if not (left.variables() and right.variables()):
        return None
    a, b, entrywise = brief(left), brief(right), kind(expression) == "multiply"
    for factor, other in ((a, right), (b, left)):
        if kind(other) == "log" and brief(other.args[0]) == factor:
            entropy = f"-cp.entr({factor})" if entrywise else f"-cp.sum(cp.entr({factor}))"
            why = "product of an expression and its own logarithm"
            return Advice(why, f"cvxpy knows this function as an atom:\n    {entropy}")
    if _same(left, right) and (entrywise or expression.is_scalar()):
        atom = "square" if entrywise else "sum_squares"
        return Advice("product of variables", f"A square has its own atom:\n    cp.{atom}({a})")
    root = f"cp.geo_mean(cp.hstack([{a}, {b}]))" if left.size == right.size == 1 else "cp.geo_mean"
    return Advice(
        "product of two expressions that hold variables",
        "A factor that is known when the layer is called can be a parameter, and x' P x is "
        "cp.quad_form(x, P). For nonnegative scalars the root of the product is concave:\n"
        f"    {root}\n"
        "For products of positive variables alone, declare them pos=True and pass gp=True.",
    )


def _same(left: Any, right: Any) -> bool:
    """Equal up to a transpose."""
    silent = ("transpose", "Promote", "reshape")
    left, right = unpromoted(left, silent), unpromoted(right, silent)
    return left is right or shorten(left, 300) == shorten(right, 300)


def _ratio(offender: Offender, place: Place) -> Advice | None:
    """Division by an expression that holds variables."""
    top, bottom = offender.expression.args
    if not bottom.variables():
        return None
    a, b = brief(top), brief(unpromoted(bottom))
    if function_name(top) in ("sum_squares", "square"):
        rewrite = (
            "A square over a positive affine expression is convex, as an atom:\n"
            f"    cp.quad_over_lin({brief(top.args[0])}, {b})"
        )
    elif top.variables():
        rewrite = (
            "Make the denominator a parameter, or multiply the constraint that holds the ratio by "
            f"{b}. If the constraints scale with the variables (as for the Sharpe ratio; Charnes "
            "and Cooper, 1962), fix the numerator and rescale in torch:\n"
            f"    cp.Problem(cp.Minimize({b}), [..., {a} == 1])"
        )
    else:
        rewrite = (
            "The reciprocal of a positive concave expression is convex:\n"
            f"    {a} * cp.inv_pos({b})    # a parameter in front must be nonneg=True"
        )
    return Advice("division by an expression that holds variables", rewrite)


def _exponent(offender: Offender, place: Place) -> Advice | None:
    if not getattr(offender.expression.p, "parameters", list)():
        return None
    return Advice(
        "parameter in the exponent",
        "Whether a power is convex depends on its exponent. Write it as a number, in one layer for "
        "each exponent; or, if every variable and parameter is positive, declare them pos=True and "
        "pass gp=True, where an exponent may be a parameter.",
    )


_BY_KIND: dict[str, tuple[Rule, ...]] = {
    "QuadForm": (_quadratic_form,),
    "multiply": (_unknown_sign, _product),
    "MulExpression": (_unknown_sign, _product),
    "DivExpression": (_unknown_sign, _ratio),
    "power": (_exponent,),
}


# -- compositions ----------------------------------------------------------------------------------


def _one_atom(offender: Offender, place: Place) -> Advice | None:
    """Functions written as compositions that the rules cannot see through."""
    inner = offender.expression.args[0]
    functions = (function_name(offender.expression), function_name(inner))
    if functions == ("sqrt", "sum_squares"):
        code = f"cp.norm({brief(inner.args[0])}, 2)"
    elif functions == ("log", "sum") and function_name(inner.args[0]) == "exp":
        code = f"cp.log_sum_exp({brief(inner.args[0].args[0])})"
    elif functions in (("log", "exp"), ("exp", "log")):
        code = brief(inner.args[0])
    else:
        return None
    why = f"{functions[0]} of a {_curvature(inner)} expression"
    why += ", which the rules of composition do not cover"
    return Advice(why, f"cvxpy has the whole as one:\n    {code}")


def _wrong_way(offender: Offender, place: Place) -> Advice | None:
    """A convex expression where a concave one is wanted, or the reverse, or where an affine is."""
    expression, wanted = offender.expression, offender.wanted
    found, text = _curvature(expression), brief(expression)
    if wanted == "known" or found == "mixed":
        return None
    is_convex = found == "convex"
    bound = f"{text} {'<=' if is_convex else '>='} ..."
    if wanted == "affine":
        sort = type(place.part).__name__
        return Advice(
            f"{sort.lower()} with a nonaffine side: `{text}` is {found}",
            "Its solutions are no convex set. Relax it to the convex side; often the optimum lies "
            f"on the boundary by itself:\n    constraints += [{bound}]\n"
            "A sphere (norm(x) == 1) has no convex form: normalise in torch, after the layer.",
        )
    if place.number is None:
        why = f"{'maximising' if is_convex else 'minimising'} a {found} function"
        return Advice(why, "Check the sign of this term, or linearise it at a parameter.")
    side = "greater" if is_convex else "smaller"
    return Advice(
        f"a {found} function stands on the {side} side of <=, which describes a nonconvex set",
        "The rules accept `convex <= concave`. Turn the inequality if it is the wrong way round:\n"
        f"    constraints += [{bound}]\n"
        "If there is an inverse, apply it to both sides (log(x) <= 1 becomes x <= exp(1)).",
    )


def _composition(offender: Offender, place: Place) -> Advice | None:
    """A sum of terms, or a curved function of an argument, whose curvatures do not fit."""
    expression = offender.expression
    name = "sum" if kind(expression) == "AddExpression" else function_name(expression)
    is_convex, is_concave = expression.is_atom_convex(), expression.is_atom_concave()
    curved = [(n, a) for n, a in enumerate(expression.args) if not a.is_affine()]
    if not curved or not (is_convex or is_concave):
        return None
    rises, falls = expression.is_incr, expression.is_decr
    convex, concave = (rises, falls) if is_convex else (falls, rises)
    fits = [(a.is_convex() and convex(n)) or (a.is_concave() and concave(n)) for n, a in curved]
    number, argument = curved[fits.index(False) if False in fits else 0]
    if is_convex and is_concave:
        why = f"{name} of terms whose curvatures differ, `{brief(argument)}` among them"
    else:
        sort = "convex" if is_convex else "concave"
        why = f"{sort} function {name} of a {_curvature(argument)} argument"
        why += "" if rises(number) or falls(number) else ", not monotone in it"
    return Advice(
        why,
        "The rules want sums of one curvature, convex and increasing of convex, convex and "
        "decreasing of concave (and the mirror image). Check the signs, use cp.pos(...) for an "
        "argument whose positive part alone matters, or give the argument a variable of its own, "
        "bounded from the side that the problem pushes to.",
    )


def _curvature(expression: Any) -> str:
    names = ("affine", "convex", "concave")
    return next((name for name in names if getattr(expression, f"is_{name}")()), "mixed")
