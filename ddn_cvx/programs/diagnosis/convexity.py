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
    enclosed,
    exponent_of,
    function_name,
    joined,
    kind,
    options,
    shape_argument,
    shorten,
    unpromoted,
)

Rule = Callable[[Offender, Place], Advice | None]

# Side of a constant matrix up to which its eigenvalues are worth the time of computing them.
_LARGEST_SIDE = 500


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
    vector, matrix = offender.expression.args
    if matrix.is_psd() or matrix.is_nsd():
        return None
    text, size = shorten(matrix, 60), shape_argument(matrix.shape)
    why = "quad_form with a matrix that is not known to be positive semidefinite"
    if not matrix.parameters():
        return _indefinite_constant(matrix, shorten(vector, 60), why)
    if kind(matrix) != "Parameter":
        rewrite = new_parameter(place, matrix, "PSD=True")
        return Advice(f"{why}: cvxpy does not see it in `{text}`", rewrite)
    return Advice(
        why,
        "Declare it (its tensors must then be positive semidefinite):\n"
        f"    {text} = cp.Parameter({size}, PSD=True)\n"
        "or pass a factor F of it, P = F F':\n"
        f"    cp.sum_squares(F.T @ {enclosed(vector)})    # F = cp.Parameter({size})",
    )


def _indefinite_constant(matrix: Any, vector: str, why: str) -> Advice:
    import numpy as np

    wrapped = f"    cp.quad_form({vector}, cp.psd_wrap(P))    # P = {shorten(matrix, 40)}"
    if matrix.shape[0] <= _LARGEST_SIDE:
        value = matrix.value
        dense = value.toarray() if hasattr(value, "toarray") else np.asarray(value)
        low, high = np.linalg.eigvalsh((dense + dense.T) / 2)[[0, -1]]
        why += f"; its eigenvalues are between {low:.3g} and {high:.3g}"
        if -1e-6 * abs(high) <= low < 0:
            return Advice(why, f"The negative ones are rounding. Say so:\n{wrapped}")
    return Advice(
        why,
        "Take the nearest positive semidefinite matrix, if that is meant:\n"
        "    values, vectors = np.linalg.eigh(P)\n"
        f"    P = (vectors * values.clip(0)) @ vectors.T\n{wrapped}",
    )


def _entropy(offender: Offender, place: Place) -> Advice | None:
    """x log x."""
    expression = offender.expression
    for factor, logarithm in (expression.args, expression.args[::-1]):
        if kind(logarithm) == "log" and shorten(logarithm.args[0]) == shorten(factor):
            atom = f"cp.entr({shorten(factor, 60)})"
            return Advice(
                "product of an expression and its own logarithm",
                "cvxpy knows this function as an atom:\n    -"
                + (atom if kind(expression) == "multiply" else f"cp.sum({atom})"),
            )
    return None


def _unknown_sign(offender: Offender, place: Place) -> Advice | None:
    """A factor without variables whose sign cvxpy does not know, and one that is not affine."""
    expression = offender.expression
    factor, other = expression.args
    if factor.variables() or kind(expression) == "DivExpression":
        factor, other = other, factor
    if factor.variables() or other.is_affine() or not (other.is_convex() or other.is_concave()):
        return None
    if factor.is_nonneg() or factor.is_nonpos():
        return None
    factor = unpromoted(factor)
    text, shape = shorten(factor, 60), _curvature(other)
    if not factor.parameters():
        return Advice(
            f"a {shape} expression times constants of both signs",
            "Split the constant, and keep the terms whose sign fits:\n"
            f"    cp.multiply(np.maximum(c, 0), {shorten(other, 60)})    # c = {text}",
        )
    why = f"a {shape} expression times a parameter whose sign is not known"
    if kind(factor) == "Parameter":
        declared = f"{text} = cp.Parameter({options(factor.shape, 'nonneg=True')})"
        return Advice(
            why, f"Declare the sign, and keep it in torch (softplus, exp, clamp):\n    {declared}"
        )
    return Advice(f"{why}: `{text}`", new_parameter(place, factor, "nonneg=True"))


def _product(offender: Offender, place: Place) -> Advice | None:
    """A product of variables."""
    expression = offender.expression
    left, right = expression.args
    if not (left.variables() and right.variables()):
        return None
    a, b = shorten(left, 60), shorten(right, 40)
    if _same(left, right):
        if kind(expression) == "MulExpression" and expression.size > 1:
            return Advice(
                "product of variables",
                f"For its trace, write cp.sum_squares({a}); for `S >> {shorten(expression, 40)}`, "
                "write the Schur complement:\n"
                f"    constraints += [cp.bmat([[S, {a}], [{a}.T, np.eye(k)]]) >> 0]",
            )
        function = "square" if kind(expression) == "multiply" else "sum_squares"
        rewrite = f"A square has its own atom:\n    cp.{function}({a})"
        return Advice("product of variables", rewrite)
    matrix = _matrix_between(left, right)
    if matrix is not None:
        return Advice(
            "product of variables",
            "Write the quadratic form as an atom, with a symmetric positive semidefinite matrix "
            "(only the symmetric part counts):\n"
            f"    P = cp.Parameter({shape_argument(matrix.shape)}, PSD=True)    "
            f"# in place of {shorten(matrix, 40)}\n"
            f"    cp.quad_form({b if kind(left) == 'MulExpression' else a}, P)",
        )
    around = function_name(offender.parent) if offender.parent is not None else ""
    mean = f"    cp.geo_mean(cp.hstack([{a}, {b}]))"
    if around == "log":
        rewrite = f"The logarithm of a product is a sum:\n    cp.log({a}) + cp.log({b})"
        return Advice("logarithm of a product of variables", rewrite)
    if around == "sqrt":
        rewrite = f"It is a geometric mean:\n{mean}    # entry by entry for vectors"
        return Advice("square root of a product of variables", rewrite)
    return Advice(
        "product of two expressions that hold variables",
        "A factor that is known when the layer is called can be a parameter. Otherwise bound or "
        "replace the product, for example\n"
        f"{mean}    # its root, concave, for nonnegative factors\n"
        "    cp.quad_over_lin(x, t)    # ||x||^2 / t, convex, for t > 0\n"
        "For products of positive variables alone, declare them pos=True and pass gp=True.",
    )


def _matrix_between(left: Any, right: Any) -> Any:
    """A of x' A x, written as a product; None for other products."""
    for side, other in ((left, right), (right, left)):
        if kind(side) == "MulExpression" and not all(a.variables() for a in side.args):
            outer, matrix = side.args if side.args[0].variables() else side.args[::-1]
            if _same(outer, other):
                return matrix
    return None


def _same(left: Any, right: Any) -> bool:
    """Equal up to a transpose."""
    silent = ("transpose", "Promote", "reshape")
    left, right = unpromoted(left, silent), unpromoted(right, silent)
    return left is right or (
        shorten(left, 300) == shorten(right, 300)
        and joined(left.variables()) == joined(right.variables())
    )


def _ratio(offender: Offender, place: Place) -> Advice | None:
    """Division by an expression that holds variables."""
    top, bottom = offender.expression.args
    if not bottom.variables():
        return None
    a, b = shorten(top, 60), shorten(unpromoted(bottom), 60)
    if offender.parent is not None and function_name(offender.parent) == "log":
        rewrite = f"It is a difference:\n    cp.log({a}) - cp.log({b})"
        return Advice("logarithm of a ratio of variables", rewrite)
    if not top.variables():
        return Advice(
            "division by an expression that holds variables",
            "The reciprocal of a positive concave expression is convex:\n"
            f"    {a} * cp.inv_pos({b})    # a parameter in front must be nonneg=True",
        )
    if function_name(top) in ("sum_squares", "square"):
        return Advice(
            "ratio of variables",
            "A square over a positive affine expression is convex, as an atom:\n"
            f"    cp.quad_over_lin({shorten(top.args[0], 60)}, {b})",
        )
    return Advice(
        "ratio of variables",
        f"Make the denominator a parameter, or multiply the constraint that holds the ratio by {b}."
        " If the constraints scale with the variables (as for the Sharpe ratio), fix the numerator "
        "and rescale in torch:\n"
        f"    constraints += [{a} == 1]    # Charnes and Cooper, 1962; constants of the other "
        "constraints times a new variable s >= 0\n"
        f"    objective = cp.Minimize({b})",
    )


def _exponent(offender: Offender, place: Place) -> Advice | None:
    exponent = exponent_of(offender.expression)
    if exponent == exponent:
        return None
    return Advice(
        "parameter in the exponent",
        "Whether a power is convex depends on its exponent. Write it as a number, in one layer for "
        f"each exponent:\n    cp.power({shorten(offender.expression.args[0], 60)}, 1.5)\n"
        "or, if every variable and parameter is positive, declare them pos=True and pass gp=True, "
        "where an exponent may be a parameter.",
    )


_BY_KIND: dict[str, tuple[Rule, ...]] = {
    "QuadForm": (_quadratic_form,),
    "multiply": (_entropy, _unknown_sign, _product),
    "MulExpression": (_entropy, _unknown_sign, _product),
    "DivExpression": (_unknown_sign, _ratio),
    "power": (_exponent,),
}


# -- compositions ----------------------------------------------------------------------------------


def _one_atom(offender: Offender, place: Place) -> Advice | None:
    """Convex functions that are written as a composition which the rules cannot see through."""
    expression = offender.expression
    if len(expression.args) != 1:
        return None
    outer, inner = function_name(expression), expression.args[0]
    terms = {function_name(term): term for term in inner.args}
    text = shorten(inner.args[0] if inner.args else inner, 60)
    match outer, function_name(inner):
        case "sqrt", "sum_squares":
            code = f"cp.norm({text}, 2)"
        case "sqrt", "quad_form":
            shape, matrix = shape_argument(inner.args[1].shape), shorten(inner.args[1], 40)
            code = (
                f"F = cp.Parameter({shape})    # F F' = {matrix}: torch.linalg.cholesky(...)\n"
                f"    cp.norm(F.T @ {enclosed(inner.args[0])}, 2)"
            )
        case "log", "sum" if "exp" in terms:
            code = f"cp.log_sum_exp({shorten(terms['exp'].args[0], 60)})"
        case "log", "add_expression" if (
            len(terms) == 2 and "exp" in terms and any(term.is_constant() for term in inner.args)
        ):
            code = f"cp.logistic({shorten(terms['exp'].args[0], 60)})"
        case ("log", "exp") | ("exp", "log"):
            code = text
        case _:
            return None
    found = _curvature(inner)
    why = f"{outer} of a {found} expression, which the rules of composition do not cover"
    return Advice(why, f"cvxpy has the whole as one:\n    {code}")


def _wrong_way(offender: Offender, place: Place) -> Advice | None:
    """A convex expression where a concave one is wanted, or the reverse, or where an affine is."""
    expression, wanted = offender.expression, offender.wanted
    found, text = _curvature(expression), shorten(expression, 60)
    if wanted == "known" or found == "mixed":
        return None
    sign = "<=" if found == "convex" else ">="
    if wanted == "affine" and type(place.constraint).__name__ in ("Equality", "Zero"):
        return Advice(
            f"equality with a nonaffine side: `{text}` is {found}",
            "Its solutions are no convex set. Relax it to the convex side; often the optimum lies "
            f"on the boundary by itself:\n    constraints += [{text} {sign} ...]\n"
            "A sphere (norm(x) == 1) has no convex form: normalise in torch, after the layer.",
        )
    if wanted == "affine":
        return Advice(
            f"{type(place.constraint).__name__} needs affine expressions; `{text}` is {found}",
            "Give it a variable of its own:\n    z = cp.Variable(...)\n"
            f"    constraints += [z {'>=' if found == 'convex' else '<='} {text}]",
        )
    if place.constraint is None:
        leaf = expression.variables()[0]
        return Advice(
            f"{'maximising' if found == 'convex' else 'minimising'} a {found} function",
            "Check the sign of this term, or replace it by its first-order approximation at a "
            "point that is a parameter (and call the layer again with the new point):\n"
            f"    gradient = cp.Parameter({shape_argument(leaf.shape)})    "
            f"# of {text} at the last solution, in torch\n"
            f"    gradient @ {leaf.name()}    # in place of {text}",
        )
    side = "greater" if found == "convex" else "smaller"
    return Advice(
        f"a {found} function stands on the {side} side of <=, which describes a nonconvex set",
        "The rules accept `convex <= concave`. If the inequality is the wrong way round, turn it:\n"
        f"    {text} {sign} bound\n"
        "If the function can be inverted, apply the inverse to both sides (log(x) <= 1 becomes "
        "x <= exp(1)).",
    )


def _sum(offender: Offender, place: Place) -> Advice | None:
    expression = offender.expression
    convex = [term for term in expression.args if not term.is_concave()]
    concave = [term for term in expression.args if not term.is_convex()]
    affine = expression.is_atom_convex() and expression.is_atom_concave()
    if not (affine and convex and concave and len(expression.args) > 1):
        return None
    name = "sum" if kind(expression) == "AddExpression" else function_name(expression)
    term = shorten(convex[0], 60)
    return Advice(
        f"{name} of a convex term, `{term}`, and a concave one, `{shorten(concave[0], 60)}`",
        "Check the signs, or give one of the terms a variable of its own that bounds it from the "
        "side that the problem pushes to:\n"
        f"    t = cp.Variable({shape_argument(convex[0].shape)})\n"
        f"    constraints += [t >= {term}]",
    )


def _composition(offender: Offender, place: Place) -> Advice | None:
    """A curved function of a curved argument in which it is not monotone the right way."""
    expression = offender.expression
    if not (expression.is_atom_convex() or expression.is_atom_concave()):
        return None
    positions = range(len(expression.args))
    argument = next((expression.args[n] for n in positions if not _composes(expression, n)), None)
    if argument is None:
        return None
    outer, text, found = function_name(expression), shorten(argument, 60), _curvature(argument)
    shape = "convex" if expression.is_atom_convex() else "concave"
    rewrite = (
        "The rules want convex and increasing of convex, convex and decreasing of concave, or "
        "convex of affine (and the mirror image for concave). Replace the argument by a variable "
        "that bounds it:\n"
        f"    t = cp.Variable({shape_argument(argument.shape)})\n"
        f"    constraints += [{text} {'<=' if found == 'convex' else '>='} t]    # then {outer}(t)"
    )
    if outer not in ("square", "sum_squares", "abs", "norm", "norm1", "norm_inf", "huber", "power"):
        return Advice(f"{shape} function {outer} of a {found} argument", rewrite)
    return Advice(
        f"{shape} function {outer} of a {found} argument of unknown sign, on which it is not "
        "monotone",
        f"{rewrite}\nor, if only the positive part matters:\n    cp.{outer}(cp.pos({text}))",
    )


def _composes(expression: Any, position: int) -> bool:
    """The rule of composition holds for an argument of an atom."""
    argument = expression.args[position]
    keeps, turns = expression.is_incr(position), expression.is_decr(position)
    if not expression.is_atom_convex():
        keeps, turns = turns, keeps
    return bool(
        argument.is_affine()
        or (argument.is_convex() and keeps)
        or (argument.is_concave() and turns)
    )


def _curvature(expression: Any) -> str:
    found = (
        name for name in ("affine", "convex", "concave") if getattr(expression, f"is_{name}")()
    )
    return next(found, "mixed")
