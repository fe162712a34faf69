"""Products that are not convex by cvxpy's rules: of variables, with unknown signs, quadratic forms.

Each rule takes an offender and its place, and returns None where it does not fit.
"""

from __future__ import annotations

from typing import Any

from ddn_cvx.programs.diagnosis.advice import Advice, Place, new_parameter
from ddn_cvx.programs.diagnosis.offender import Offender
from ddn_cvx.programs.diagnosis.wording import (
    enclosed,
    function_name,
    joined,
    kind,
    options,
    shape_argument,
    shorten,
)

_LARGEST_SIDE = 500  # of a constant matrix whose eigenvalues are worth computing


def quadratic_form(offender: Offender, place: Place) -> Advice | None:
    """A quadratic form whose matrix is not known to be semidefinite."""
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
    if matrix.shape[0] <= _LARGEST_SIDE:
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


def entropy(offender: Offender, place: Place) -> Advice | None:
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


def unknown_sign(offender: Offender, place: Place) -> Advice | None:
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


def product(offender: Offender, place: Place) -> Advice | None:
    """A product of variables."""
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


def ratio(offender: Offender, place: Place) -> Advice | None:
    """Division by an expression that holds variables."""
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
