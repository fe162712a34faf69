"""Why a problem is not convex by cvxpy's rules (DCP), and what to write instead.

Each rule takes an offender and its place, and returns None where it does not fit. The rules are
called outside of ``dpp_scope``, as the offender was found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ddn_cvx.programs.diagnosis.advice import Advice, Place, bounding_variable, new_parameter
from ddn_cvx.programs.diagnosis.offender import Offender
from ddn_cvx.programs.diagnosis.wording import (
    brief,
    enclosed,
    exponent_of,
    function_name,
    kind,
    options,
    shorten,
    unpromoted,
)

Rule = Callable[[Offender, Place], Advice | None]

# Side of a constant matrix up to which its eigenvalues are worth the time of computing them.
_LARGEST_SIDE = 500
# Atoms that increase on nonnegative arguments alone.
_EVEN = ("square", "sum_squares", "abs", "norm", "norm1", "norm_inf", "huber", "power")


def convexity_advice(offender: Offender, place: Place) -> Advice:
    """The advice of the first rule that fits."""
    rules = _BY_KIND.get(kind(offender.expression), ())
    for rule in (*rules, _one_atom, _wrong_way, _sum, _composition):
        advice = rule(offender, place)
        if advice is not None:
            return advice
    return Advice(
        f"cvxpy knows no curvature for {function_name(offender.expression)}(...)",
        "Look for a convex function that serves the same end in cvxpy's table of atoms.",
    )


# -- quadratic forms and products ------------------------------------------------------------------


def _quadratic_form(offender: Offender, place: Place) -> Advice | None:
    import numpy as np

    vector, matrix = offender.expression.args
    if matrix.is_psd() or matrix.is_nsd():
        return None
    why = "quad_form with a matrix that is not known to be positive semidefinite"
    if matrix.parameters():
        return _declared(place, matrix, "PSD=True", why)
    if matrix.shape[0] <= _LARGEST_SIDE:
        value = matrix.value
        dense = value.toarray() if hasattr(value, "toarray") else np.asarray(value)
        low, high = np.linalg.eigvalsh((dense + dense.T) / 2)[[0, -1]]
        why += f"; its eigenvalues are between {low:.3g} and {high:.3g}"
    return Advice(
        why,
        "If the negative ones are rounding, say so by psd_wrap; if not, take the nearest positive "
        "semidefinite matrix before:\n"
        "    values, vectors = np.linalg.eigh(P)\n"
        "    P = (vectors * values.clip(0)) @ vectors.T\n"
        f"    cp.quad_form({brief(vector)}, cp.psd_wrap(P))    # P = {brief(matrix)}",
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
    why = "product of variables"
    if _same(left, right) and (entrywise or expression.is_scalar()):
        atom = "square" if entrywise else "sum_squares"
        return Advice(why, f"A square has its own atom:\n    cp.{atom}({a})")
    if _same(left, right):
        return Advice(
            why,
            f"For its trace, write cp.sum_squares({a}); for `S >> {brief(expression)}`, write the "
            f"Schur complement:\n    constraints += [cp.bmat([[S, {a}], [{a}.T, np.eye(k)]]) >> 0]",
        )
    for side, vector in ((left, right), (right, left)):
        matrix = _between(side, vector)
        if matrix is not None:
            return Advice(
                why,
                "Write the quadratic form as an atom, with a symmetric positive semidefinite "
                "matrix (only the symmetric part counts):\n"
                f"    P = cp.Parameter({options(matrix.shape, 'PSD=True')})    "
                f"# in place of {brief(matrix)}\n"
                f"    cp.quad_form({brief(vector)}, P)",
            )
    return Advice(
        "product of two expressions that hold variables",
        "A factor that is known when the layer is called can be a parameter. Otherwise bound or "
        "replace the product, for example\n"
        f"    cp.geo_mean(cp.hstack([{a}, {b}]))    # its root, concave, for nonnegative factors\n"
        f"    cp.log({a}) + cp.log({b})    # its logarithm, concave\n"
        "For products of positive variables alone, declare them pos=True and pass gp=True.",
    )


def _between(side: Any, vector: Any) -> Any:
    """A, where the side is A x or x' A and the vector is x; None elsewhere."""
    if kind(side) == "MulExpression" and not all(a.variables() for a in side.args):
        outer, matrix = side.args if side.args[0].variables() else side.args[::-1]
        return matrix if _same(outer, vector) else None
    return None


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
    a, b, why = brief(top), brief(unpromoted(bottom)), "ratio of variables"
    if offender.parent is not None and function_name(offender.parent) == "log":
        return Advice(
            f"logarithm of a {why}", f"It is a difference:\n    cp.log({a}) - cp.log({b})"
        )
    if not top.variables():
        rewrite = (
            "The reciprocal of a positive concave expression is convex:\n"
            f"    {a} * cp.inv_pos({b})    # a parameter in front must be nonneg=True"
        )
    elif function_name(top) in ("sum_squares", "square"):
        rewrite = (
            "A square over a positive affine expression is convex, as an atom:\n"
            f"    cp.quad_over_lin({brief(top.args[0])}, {b})"
        )
    else:
        rewrite = (
            "Make the denominator a parameter, or multiply the constraint that holds the ratio by "
            f"{b}. If the constraints scale with the variables (as for the Sharpe ratio; Charnes "
            "and Cooper, 1962), fix the numerator and rescale in torch:\n"
            f"    cp.Problem(cp.Minimize({b}), [..., {a} == 1])"
        )
    return Advice(
        why if top.variables() else "division by an expression that holds variables", rewrite
    )


def _exponent(offender: Offender, place: Place) -> Advice | None:
    exponent = exponent_of(offender.expression)
    if exponent == exponent:
        return None
    return Advice(
        "parameter in the exponent",
        "Whether a power is convex depends on its exponent. Write it as a number, in one layer for "
        f"each exponent:\n    cp.power({brief(offender.expression.args[0])}, 1.5)\n"
        "or, if every variable and parameter is positive, declare them pos=True and pass gp=True, "
        "where an exponent may be a parameter.",
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
    """Convex functions that are written as a composition which the rules cannot see through."""
    outer, inner = function_name(offender.expression), offender.expression.args[0]
    terms = {function_name(term): term for term in inner.args}
    match outer, function_name(inner):
        case "sqrt", "sum_squares":
            code = f"cp.norm({brief(inner.args[0])}, 2)"
        case "sqrt", "quad_form":
            code = (
                f"cp.norm(F.T @ {enclosed(inner.args[0])}, 2)    "
                f"# {brief(inner.args[1])} = F F', F = torch.linalg.cholesky(...)"
            )
        case "log", "sum" if "exp" in terms:
            code = f"cp.log_sum_exp({brief(terms['exp'].args[0])})"
        case "log", "add_expression" if (
            len(terms) == 2 and "exp" in terms and any(term.is_constant() for term in inner.args)
        ):
            code = f"cp.logistic({brief(terms['exp'].args[0])})"
        case _:
            return None
    found = _curvature(inner)
    why = f"{outer} of a {found} expression, which the rules of composition do not cover"
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
        sort = type(place.constraint).__name__
        return Advice(
            f"{sort.lower()} with a nonaffine side: `{text}` is {found}",
            "Its solutions are no convex set. Relax it to the convex side; often the optimum lies "
            f"on the boundary by itself:\n    constraints += [{bound}]\n"
            "A sphere (norm(x) == 1) has no convex form: normalise in torch, after the layer.",
        )
    if place.constraint is None:
        why = f"{'maximising' if is_convex else 'minimising'} a {found} function"
        return Advice(why, "Check the sign of this term, or linearise it at a parameter.")
    side = "greater" if is_convex else "smaller"
    return Advice(
        f"a {found} function stands on the {side} side of <=, which describes a nonconvex set",
        "The rules accept `convex <= concave`. Turn the inequality if it is the wrong way round:\n"
        f"    constraints += [{bound}]\n"
        "If there is an inverse, apply it to both sides (log(x) <= 1 becomes x <= exp(1)).",
    )


def _sum(offender: Offender, place: Place) -> Advice | None:
    expression = offender.expression
    convex = [term for term in expression.args if not term.is_concave()]
    concave = [term for term in expression.args if not term.is_convex()]
    affine = expression.is_atom_convex() and expression.is_atom_concave()
    if not (affine and convex and concave and len(expression.args) > 1):
        return None
    name = "sum" if kind(expression) == "AddExpression" else function_name(expression)
    return Advice(
        f"{name} of a convex term, `{brief(convex[0])}`, and a concave one, `{brief(concave[0])}`",
        f"Check the signs, or give one of the terms a variable of its own. "
        f"{bounding_variable(convex[0])}",
    )


def _composition(offender: Offender, place: Place) -> Advice | None:
    """A curved function of a curved argument in which it is not monotone the right way."""
    expression = offender.expression
    argument = next((a for a in expression.args if not a.is_affine()), None)
    is_convex = expression.is_atom_convex()
    if argument is None or not (is_convex or expression.is_atom_concave()):
        return None
    outer = function_name(expression)
    why = f"{'convex' if is_convex else 'concave'} function {outer} of a {_curvature(argument)} "
    rewrite = (
        "The rules want convex and increasing of convex, convex and decreasing of concave, or "
        f"convex of affine (and the mirror image for concave). {bounding_variable(argument)}"
    )
    if outer not in _EVEN:
        return Advice(f"{why}argument", rewrite)
    return Advice(
        f"{why}argument of unknown sign, on which it is not monotone",
        f"{rewrite}\nor, if only the positive part matters:\n"
        f"    cp.{outer}(cp.pos({brief(argument)}))",
    )


def _curvature(expression: Any) -> str:
    names = ("affine", "convex", "concave")
    return next((name for name in names if getattr(expression, f"is_{name}")()), "mixed")
