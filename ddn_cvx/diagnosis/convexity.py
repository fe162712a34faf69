"""Why a problem is not convex by cvxpy's rules (DCP), and what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ddn_cvx.diagnosis.advice import Advice, Place, new_parameter
from ddn_cvx.diagnosis.offender import Offender
from ddn_cvx.diagnosis.wording import (
    enclosed,
    exponent_of,
    function_name,
    joined,
    kind,
    options,
    shape_argument,
    shorten,
)

Rule = Callable[[Offender, Place], Advice | None]
_LARGEST_EIGENVALUES = 500  # side of a constant matrix whose eigenvalues are worth computing
_BOTH_WAYS = "it is neither convex nor concave by the rules"


def convexity_advice(offender: Offender, place: Place) -> Advice:
    """The first rule that fits. Call it outside of ``dpp_scope``, as the offender was found."""
    for rule in (
        _quadratic_form,
        _entropy,
        _unknown_sign,
        _product,
        _ratio,
        _parametric_exponent,
        _known_compositions,
        _wrong_way,
        _sum,
        _composition,
    ):
        advice = rule(offender, place)
        if advice is not None:
            return advice
    return Advice(
        f"cvxpy knows no curvature for {function_name(offender.expression)}(...): {_BOTH_WAYS}",
        "Look for a convex function that serves the same end (cvxpy's table of atoms), or state "
        "the objective in torch for a layer over nonconvex problems.",
    )


def _quadratic_form(offender: Offender, place: Place) -> Advice | None:
    expression = offender.expression
    if kind(expression) != "QuadForm":
        return None
    vector, matrix = expression.args
    if matrix.is_psd() or matrix.is_nsd():
        return None
    text = shorten(matrix, 60)
    size = shape_argument(matrix.shape)
    why = "quad_form with a matrix that is not known to be positive semidefinite"
    if not matrix.parameters():
        return Advice(*_indefinite_constant(expression, why))
    if kind(matrix) == "Parameter":
        return Advice(
            why,
            f"Declare it (its tensors must then be positive semidefinite):\n"
            f"    {text} = cp.Parameter({size}, PSD=True)\n"
            "or pass a factor F of it, P = F F':\n"
            f"    cp.sum_squares(F.T @ {enclosed(vector)})    # F = cp.Parameter({size})",
        )
    return Advice(
        f"{why}: cvxpy does not see it in `{text}`",
        new_parameter(place, matrix, attribute="PSD=True"),
    )


def _indefinite_constant(expression: Any, why: str) -> tuple[str, str]:
    import numpy as np

    matrix = expression.args[1]
    text, vector = shorten(matrix, 40), shorten(expression.args[0], 60)
    found = ""
    if matrix.shape[0] <= _LARGEST_EIGENVALUES:
        value = matrix.value
        dense = value.toarray() if hasattr(value, "toarray") else np.asarray(value)
        eigenvalues = np.linalg.eigvalsh((dense + dense.T) / 2)
        found = f"; its eigenvalues are between {eigenvalues[0]:.3g} and {eigenvalues[-1]:.3g}"
        if -1e-6 * abs(eigenvalues[-1]) <= eigenvalues[0] < 0:
            return (
                why + found,
                "The negative ones are rounding. Say so:\n"
                f"    cp.quad_form({vector}, cp.psd_wrap(P))    # P = {text}",
            )
    return (
        why + found,
        "With eigenvalues of both signs the form is not convex. Use the nearest positive "
        "semidefinite matrix, if that is what you mean:\n"
        "    values, vectors = np.linalg.eigh(P)\n"
        "    P = (vectors * values.clip(0)) @ vectors.T\n"
        f"    cp.quad_form({vector}, cp.psd_wrap(P))    # P = {text}",
    )


def _entropy(offender: Offender, place: Place) -> Advice | None:
    """x log x, x log(x / y)."""
    expression = offender.expression
    if kind(expression) not in ("multiply", "MulExpression"):
        return None
    left, right = expression.args
    for factor, logarithm in ((left, right), (right, left)):
        if kind(logarithm) == "log" and shorten(logarithm.args[0]) == shorten(factor):
            atom = f"cp.entr({shorten(factor, 60)})"
            return Advice(
                "product of an expression and its own logarithm",
                "cvxpy knows this function as an atom:\n    -"
                + (atom if kind(expression) == "multiply" else f"cp.sum({atom})"),
            )
    return None


def _unknown_sign(offender: Offender, place: Place) -> Advice | None:
    """A constant factor whose sign cvxpy does not know, and a factor that is not affine."""
    expression = offender.expression
    if kind(expression) not in ("multiply", "MulExpression", "DivExpression"):
        return None
    factor, other = expression.args
    if factor.variables() or kind(expression) == "DivExpression":
        factor, other = other, factor
    if factor.variables() or other.is_affine() or not (other.is_convex() or other.is_concave()):
        return None
    if factor.is_nonneg() or factor.is_nonpos():
        return None
    while kind(factor) in ("Promote", "broadcast_to"):
        factor = factor.args[0]
    text = shorten(factor, 60)
    shape = "convex" if other.is_convex() else "concave"
    if not factor.parameters():
        return Advice(
            f"a {shape} expression times constants of both signs",
            "Split the constant into its positive and negative entries; only the terms whose sign "
            "fits may stay:\n"
            f"    cp.multiply(np.maximum(c, 0), {shorten(other, 60)})    # c = {text}",
        )
    why = f"a {shape} expression times a parameter whose sign is not known"
    if kind(factor) == "Parameter":
        return Advice(
            why,
            f"Declare the sign, and keep it in torch (softplus, exp, clamp):\n"
            f"    {text} = cp.Parameter({options(factor.shape, 'nonneg=True')})",
        )
    return Advice(
        f"{why}: `{text}`",
        new_parameter(place, factor, attribute="nonneg=True"),
    )


def _product(offender: Offender, place: Place) -> Advice | None:
    expression = offender.expression
    if kind(expression) not in ("multiply", "MulExpression"):
        return None
    left, right = expression.args
    if not (left.variables() and right.variables()):
        return None
    if _same(left, right):
        text = shorten(left, 60)
        function = "square" if kind(expression) == "multiply" else "sum_squares"
        if kind(expression) == "MulExpression" and expression.size > 1:
            return Advice(
                "product of variables",
                "A matrix times its own transpose is not affine. For its trace, or the sum of its "
                f"diagonal, write cp.sum_squares({text}); for `S >> {shorten(expression, 40)}`, "
                "write the Schur complement:\n"
                f"    constraints += [cp.bmat([[S, {text}], [{text}.T, np.eye(k)]]) >> 0]",
            )
        return Advice(
            "product of variables", f"A square has its own atom:\n    cp.{function}({text})"
        )
    quadratic = _written_out_quadratic(left, right)
    if quadratic is not None:
        return quadratic
    outer = function_name(offender.parent) if offender.parent is not None else ""
    a, b = shorten(left, 40), shorten(right, 40)
    if outer == "log":
        return Advice(
            "logarithm of a product of variables",
            f"The logarithm of a product is a sum:\n    cp.log({a}) + cp.log({b})",
        )
    if outer == "sqrt":
        return Advice(
            "square root of a product of variables",
            "It is a geometric mean:\n"
            f"    cp.geo_mean(cp.hstack([{a}, {b}]))    # entry by entry for vectors",
        )
    return Advice(
        "product of two expressions that hold variables",
        "A product of variables is not convex. If one of the factors is known when the layer is "
        "called, make it a parameter; otherwise bound or replace the product, for example\n"
        f"    cp.geo_mean(cp.hstack([a, b]))    # sqrt(a b), concave, for a = {shorten(left, 40)} "
        f"and b = {shorten(right, 40)} nonnegative\n"
        "    cp.quad_over_lin(x, t)            # ||x||^2 / t, convex, for t > 0\n"
        "For products of positive variables alone, declare them pos=True and pass gp=True.",
    )


def _written_out_quadratic(left: Any, right: Any) -> Advice | None:
    """x' A x, written as a product."""
    for side, other in ((left, right), (right, left)):
        if kind(side) == "MulExpression" and not all(a.variables() for a in side.args):
            outer, matrix = (
                (side.args[0], side.args[1])
                if side.args[0].variables()
                else (side.args[1], side.args[0])
            )
            if _same(outer, other):
                text = shorten(other, 40)
                return Advice(
                    "product of variables",
                    "Write the quadratic form as an atom, with a symmetric positive semidefinite "
                    f"matrix (only the symmetric part counts):\n"
                    f"    P = cp.Parameter({shape_argument(matrix.shape)}, PSD=True)    "
                    f"# in place of {shorten(matrix, 40)}\n"
                    f"    cp.quad_form({text}, P)",
                )
    return None


def _ratio(offender: Offender, place: Place) -> Advice | None:
    expression = offender.expression
    if kind(expression) != "DivExpression" or not expression.args[1].variables():
        return None
    top, bottom = expression.args
    while kind(bottom) in ("Promote", "broadcast_to"):
        bottom = bottom.args[0]
    numerator, denominator = shorten(top, 60), shorten(bottom, 60)
    if offender.parent is not None and function_name(offender.parent) == "log":
        return Advice(
            "logarithm of a ratio of variables",
            "It is a difference, concave in the numerator and convex in the denominator:\n"
            f"    cp.log({numerator}) - cp.log({denominator})",
        )
    if not top.variables():
        return Advice(
            "division by an expression that holds variables",
            "The reciprocal of a positive concave expression is convex:\n"
            f"    {numerator} * cp.inv_pos({denominator})    "
            "# a parameter in front must be nonneg=True",
        )
    if function_name(top) in ("sum_squares", "square"):
        return Advice(
            "ratio of variables",
            "A square over a positive affine expression is convex, as an atom:\n"
            f"    cp.quad_over_lin({shorten(top.args[0], 60)}, {denominator})",
        )
    if expression.size > 1:
        return Advice(
            "ratio of variables",
            "A ratio is not convex. Make the denominator a parameter, or multiply the constraint "
            f"that holds the ratio by {denominator}, if the other side is constant.",
        )
    return Advice(
        "ratio of variables",
        "A ratio is not convex. If the constraints scale with the variables (as for the Sharpe "
        "ratio), fix the numerator and optimize the denominator alone, then rescale in torch:\n"
        f"    constraints += [{numerator} == 1]    # Charnes and Cooper, 1962; "
        "constants of the other constraints times a new variable s >= 0\n"
        f"    objective = cp.Minimize({denominator})",
    )


def _parametric_exponent(offender: Offender, place: Place) -> Advice | None:
    expression = offender.expression
    if kind(expression) != "power" or exponent_of(expression) == exponent_of(expression):
        return None
    base = shorten(expression.args[0], 60)
    return Advice(
        "parameter in the exponent",
        "Whether a power is convex depends on its exponent, so that cvxpy must know it. Write it "
        f"as a number:\n    cp.power({base}, 1.5)\n"
        "and make one layer for each exponent; or, if every variable and parameter is positive, "
        "declare them pos=True and pass gp=True, where an exponent may be a parameter.",
    )


def _known_compositions(offender: Offender, place: Place) -> Advice | None:
    """Convex functions that are written as a composition which the rules cannot see through."""
    expression = offender.expression
    if len(expression.args) != 1:
        return None
    outer, inner = function_name(expression), expression.args[0]
    text = _innermost(inner)
    why = (
        f"{outer} of a {_curvature(inner)} expression, which the rules of composition do not cover"
    )
    match outer, function_name(inner):
        case "sqrt", "sum_squares":
            return Advice(
                why, f"The square root of a sum of squares is a norm:\n    cp.norm({text}, 2)"
            )
        case "sqrt", "quad_form":
            matrix = shorten(inner.args[1], 40)
            return Advice(
                why,
                "The square root of a quadratic form is a norm, with a factor F of the matrix:\n"
                f"    F = cp.Parameter({shape_argument(inner.args[1].shape)})    "
                f"# F F' = {matrix}: F_tensor = torch.linalg.cholesky(...)\n"
                f"    cp.norm(F.T @ {enclosed(inner.args[0])}, 2)",
            )
        case "log", "sum" if function_name(inner.args[0]) == "exp":
            text = _innermost(inner.args[0])
            return Advice(why, f"cvxpy has it as one atom:\n    cp.log_sum_exp({text})")
        case "log", "AddExpression" if _is_one_plus_exp(inner):
            text = _innermost(next(term for term in inner.args if function_name(term) == "exp"))
            return Advice(why, f"cvxpy has it as one atom:\n    cp.logistic({text})")
        case ("log", "exp") | ("exp", "log"):
            return Advice(why, f"The two cancel:\n    {text}")
    return None


def _is_one_plus_exp(total: Any) -> bool:
    names = [function_name(term) for term in total.args]
    return len(names) == 2 and "exp" in names and any(t.is_constant() for t in total.args)


def _wrong_way(offender: Offender, place: Place) -> Advice | None:
    """A convex expression where a concave one is wanted, or the reverse, or where an affine is."""
    expression, wanted = offender.expression, offender.wanted
    is_convex, is_concave = expression.is_convex(), expression.is_concave()
    if wanted == "known" or not (is_convex or is_concave):
        return None
    found, text = _curvature(expression), shorten(expression, 60)
    if wanted == "affine":
        return _not_affine(place, found, text)
    if place.constraint is None:
        verb = "maximising" if place.maximises else "minimising"
        if place.maximises == (wanted == "convex"):  # it enters with a minus sign
            verb = "maximising" if verb == "minimising" else "minimising"
        return Advice(
            f"{verb} a {found} function",
            "Only convex functions can be minimised and only concave ones maximised. Check the "
            "sign of this term, or replace it by its first-order approximation at a point that is "
            "a parameter (and call the layer again with the new point):\n"
            f"    gradient = cp.Parameter({shape_argument(_shape_of_variables(expression))})    "
            f"# of {text} at the last solution, in torch\n"
            f"    gradient @ {expression.variables()[0].name()}    # in place of {text}",
        )
    side = "the greater side of <=" if is_convex else "the smaller side of <="
    sign = "<=" if is_convex else ">="
    return Advice(
        f"a {found} function stands on {side}, which describes a nonconvex set",
        "The rules accept `convex <= concave`. If the inequality is the wrong way round, turn "
        "it:\n"
        f"    {text} {sign} bound\n"
        "If the function can be inverted, apply the inverse to both sides (log(x) <= 1 becomes "
        "x <= exp(1)).",
    )


def _not_affine(place: Place, found: str, text: str) -> Advice:
    if type(place.constraint).__name__ in ("Equality", "Zero"):
        sign = "<=" if found == "convex" else ">="
        return Advice(
            f"equality with a nonaffine side: `{text}` is {found}",
            "An equality holds a curved surface, which is not a convex set. Relax it to the side "
            "that is convex; often the optimum lies on the boundary by itself:\n"
            f"    constraints += [{text} {sign} ...]\n"
            "A sphere (norm(x) == 1) has no convex form: normalise in torch, after the layer.",
        )
    return Advice(
        f"{type(place.constraint).__name__} needs affine expressions; `{text}` is {found}",
        "Give it a variable of its own:\n"
        f"    z = cp.Variable(...)\n"
        f"    constraints += [z {'>=' if found == 'convex' else '<='} {text}]",
    )


def _sum(offender: Offender, place: Place) -> Advice | None:
    expression = offender.expression
    if kind(expression) != "AddExpression":
        return None
    convex = [term for term in expression.args if not term.is_concave()]
    concave = [term for term in expression.args if not term.is_convex()]
    if not convex or not concave:
        return None
    around = (
        f"{function_name(offender.parent)}(...)" if offender.parent is not None else "its place"
    )
    return Advice(
        f"sum of a convex term, `{shorten(convex[0], 50)}`, and a concave one, "
        f"`{shorten(concave[0], 50)}`",
        f"The sum has no curvature, so that {around} has none. Check the signs, or give one of the "
        "terms a variable of its own that bounds it from the side that the problem pushes to:\n"
        f"    t = cp.Variable({shape_argument(convex[0].shape)})\n"
        f"    constraints += [t >= {shorten(convex[0], 60)}]",
    )


def _composition(offender: Offender, place: Place) -> Advice | None:
    """A curved function of a curved argument in which it is not monotone the right way."""
    expression = offender.expression
    curved = [argument for argument in expression.args if not argument.is_affine()]
    if not curved or not (expression.is_atom_convex() or expression.is_atom_concave()):
        return None
    outer, argument = function_name(expression), curved[0]
    text, found = shorten(argument, 60), _curvature(argument)
    shape = "convex" if expression.is_atom_convex() else "concave"
    advice = (
        "The rules want: convex and increasing of convex, convex and decreasing of concave, convex "
        "of affine (and the mirror image for concave). "
    )
    if outer in ("square", "sum_squares", "abs", "norm", "norm1", "norm_inf", "huber", "power"):
        return Advice(
            f"{shape} function {outer} of a {found} argument of unknown sign, on which it is not "
            "monotone",
            f"{advice}If only the positive part matters:\n"
            f"    cp.{outer}(cp.pos({text}))\n"
            "If the argument is meant to be affine, bound it by a variable instead:\n"
            f"    t = cp.Variable({options(argument.shape, 'nonneg=True')})\n"
            f"    constraints += [{text} {'<=' if found == 'convex' else '>='} t]",
        )
    return Advice(
        f"{shape} function {outer} of a {found} argument",
        f"{advice}Replace the argument by a variable that bounds it from the side that keeps the "
        "problem convex, or find one atom for the whole:\n"
        f"    t = cp.Variable({shape_argument(argument.shape)})\n"
        f"    constraints += [{text} {'<=' if found == 'convex' else '>='} t]    # then {outer}(t)",
    )


def _curvature(expression: Any) -> str:
    if expression.is_affine():
        return "affine"
    return "convex" if expression.is_convex() else "concave" if expression.is_concave() else "mixed"


def _innermost(expression: Any) -> str:
    return shorten(expression.args[0] if expression.args else expression, 60)


def _same(left: Any, right: Any) -> bool:
    """Equal up to a transpose."""
    while kind(left) in ("transpose", "Promote", "reshape"):
        left = left.args[0]
    while kind(right) in ("transpose", "Promote", "reshape"):
        right = right.args[0]
    if left is right:
        return True
    return shorten(left, 300) == shorten(right, 300) and joined(left.variables()) == joined(
        right.variables()
    )


def _shape_of_variables(expression: Any) -> tuple[int, ...]:
    return tuple(expression.variables()[0].shape)
