"""Why a problem is not convex by cvxpy's rules (DCP), and what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ddn_cvx.programs.diagnosis.advice import Advice, Place
from ddn_cvx.programs.diagnosis.offender import Offender
from ddn_cvx.programs.diagnosis.products import (
    entropy,
    product,
    quadratic_form,
    ratio,
    unknown_sign,
)
from ddn_cvx.programs.diagnosis.wording import (
    enclosed,
    exponent_of,
    function_name,
    kind,
    options,
    shape_argument,
    shorten,
)

Rule = Callable[[Offender, Place], Advice | None]
_BOTH_WAYS = "it is neither convex nor concave by the rules"


def convexity_advice(offender: Offender, place: Place) -> Advice:
    """The first rule that fits. Call it outside of ``dpp_scope``, as the offender was found."""
    for rule in (
        quadratic_form,
        entropy,
        unknown_sign,
        product,
        ratio,
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
        "Look for a convex function that serves the same end: cvxpy's table of atoms lists what it "
        "knows, with curvature and monotonicity.",
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
    stacks = expression.is_atom_convex() and expression.is_atom_concave()
    if not stacks or len(expression.args) < 2:
        return None
    convex = [term for term in expression.args if not term.is_concave()]
    concave = [term for term in expression.args if not term.is_convex()]
    if not convex or not concave:
        return None
    around = (
        f"{function_name(offender.parent)}(...)" if offender.parent is not None else "its place"
    )
    if kind(expression) == "AddExpression":
        why, whole = "sum of a convex term", "sum"
    else:
        why, whole = f"{function_name(expression)} of a convex expression", "whole"
    return Advice(
        f"{why}, `{shorten(convex[0], 50)}`, and a concave one, `{shorten(concave[0], 50)}`",
        f"The {whole} has no curvature, so that {around} has none. Check the signs, or give one of "
        "the terms a variable of its own that bounds it from the side that the problem pushes to:\n"
        f"    t = cp.Variable({shape_argument(convex[0].shape)})\n"
        f"    constraints += [t >= {shorten(convex[0], 60)}]",
    )


def _composition(offender: Offender, place: Place) -> Advice | None:
    """A curved function of a curved argument in which it is not monotone the right way."""
    expression = offender.expression
    if not (expression.is_atom_convex() or expression.is_atom_concave()):
        return None
    curved = [
        argument
        for position, argument in enumerate(expression.args)
        if not _composes(expression, position)
    ]
    if not curved:
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
    if expression.is_affine():
        return "affine"
    return "convex" if expression.is_convex() else "concave" if expression.is_concave() else "mixed"


def _innermost(expression: Any) -> str:
    return shorten(expression.args[0] if expression.args else expression, 60)


def _shape_of_variables(expression: Any) -> tuple[int, ...]:
    return tuple(expression.variables()[0].shape)
