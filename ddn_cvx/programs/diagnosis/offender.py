"""The smallest subexpression that breaks the rules of convexity.

cvxpy's rules (disciplined convex programming, Grant, Boyd and Ye, 2006) give every expression a
curvature from its arguments' curvatures. The search walks down from an objective or constraint
with the curvature that is wanted there, through sums, signs and constant factors, to the first
atom whose arguments are fine and that is not. Within ``dpp_scope`` (disciplined parametrized
programming, Agrawal et al., 2019) parameters count as if they were variables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ddn_cvx.programs.diagnosis.wording import kind

Curvature = Literal["convex", "concave", "affine", "known"]
_FLIPPED: dict[Curvature, Curvature] = {"convex": "concave", "concave": "convex"}
_DEMANDS: dict[str, tuple[Curvature, ...]] = {
    "Minimize": ("convex",),
    "Maximize": ("concave",),
    "Inequality": ("convex", "concave"),
    "NonPos": ("convex",),
    "NonNeg": ("concave",),
}


@dataclass(frozen=True)
class Offender:
    """The smallest expression that breaks the rules.

    Attributes:
        expression: its arguments are fine by themselves.
        wanted: the curvature that its place asks for; "known" where any would do.
        constant: the largest expression around it that depends on no variable, if there is one.
    """

    expression: Any
    wanted: Curvature
    constant: Any = None


def demands(part: Any) -> Iterator[tuple[Any, Curvature]]:
    """The curvature that an objective or a constraint asks of each of its expressions."""
    affine: tuple[Curvature, ...] = ("affine",)
    asked = _DEMANDS.get(type(part).__name__, affine * len(part.args))
    return zip(part.args, asked, strict=True)


def has(expression: Any, wanted: Curvature) -> bool:
    """The expression has the curvature."""
    if wanted == "known":
        return bool(expression.is_convex() or expression.is_concave())
    return bool(getattr(expression, f"is_{wanted}")())


def find(expression: Any, wanted: Curvature) -> Offender:
    """The offender below an expression that does not have the wanted curvature."""
    constant = None
    while True:
        if constant is None and not expression.variables():
            constant = expression
        below = _descend(expression, wanted)
        if below is None:
            return Offender(expression, wanted, constant)
        expression, wanted = below


def _descend(expression: Any, wanted: Curvature) -> tuple[Any, Curvature] | None:
    for argument in expression.args:
        if not has(argument, "known"):
            return argument, "known"
    if wanted == "known" or not (expression.is_atom_convex() and expression.is_atom_concave()):
        return None
    # Affine in its arguments: sums, signs, indexing, constant factors.
    for position, argument in enumerate(expression.args):
        if wanted == "affine" or expression.is_incr(position):
            asked: Curvature = wanted
        elif expression.is_decr(position):
            asked = _FLIPPED[wanted]
        elif has(argument, "affine"):
            continue
        else:
            return None  # a factor of unknown sign: the product itself is at fault
        if not has(argument, asked):
            return argument, asked
    return None


def parametric_parts(expression: Any) -> Iterator[Any]:
    """Largest subexpressions without variables that are not affine in their parameters."""
    if not expression.args or not expression.parameters():
        return
    if not expression.variables():
        if not expression.is_affine():
            yield expression
        return
    for argument in expression.args:
        yield from parametric_parts(argument)


def affine_mixture(expression: Any) -> Any:
    """A largest affine subexpression that holds both variables and parameters; None without."""
    if not expression.args or not expression.parameters():
        return None
    if expression.is_affine() and expression.variables() and kind(expression) != "Promote":
        return expression
    inner = (affine_mixture(argument) for argument in expression.args)
    return next((mixture for mixture in inner if mixture is not None), None)
