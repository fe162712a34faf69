"""Why a problem cannot become a layer over cone programs, and what to write instead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from ddn_cvx.programs.diagnosis.advice import Advice, Place
from ddn_cvx.programs.diagnosis.convexity import convexity_advice
from ddn_cvx.programs.diagnosis.geometric import geometric_advice
from ddn_cvx.programs.diagnosis.leaves import refused_leaf
from ddn_cvx.programs.diagnosis.offender import Curvature, demands, find, has
from ddn_cvx.programs.diagnosis.parametric import parametric_advice
from ddn_cvx.programs.diagnosis.wording import shorten, shorten_constraint

if TYPE_CHECKING:
    import cvxpy as cp


def explain(
    problem: cp.Problem,
    *,
    gp: bool = False,
    quadratic_objective: bool = True,
    quadratic_constraints: bool = False,
) -> str | None:
    """None for a problem that follows the rules; else a message for people.

    The message names the place (the objective, or the constraint by its number), shows the smallest
    subexpression that breaks the rules, says why, and shows code that does not.

    Args:
        problem: the user's problem.
        gp: judge it as a geometric program.
        quadratic_objective: ``quad_form`` with a parametric matrix is allowed in the objective.
        quadratic_constraints: and in constraints, where
            :mod:`ddn_cvx.programs.cone.quadratic_forms` rewrites it.

    Example:
        >>> import cvxpy as cp
        >>> x, price = cp.Variable(3, name="x"), cp.Parameter(3, name="price")
        >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x)), [cp.exp(price) @ x >= 1])
        >>> print(*explain(problem).splitlines()[1:3], sep=chr(10))
        Offending part: exp(price) @ x
        Why: the factor of a variable is not affine in its parameters: `exp(price)`.
    """
    leaf = refused_leaf(problem)
    if leaf is not None:
        return leaf
    places = list(_places(problem, quadratic_objective, quadratic_constraints))
    try:
        broken = [entry for entry in places if not _follows(*entry, gp=gp)]
    except RecursionError:
        return (
            "An expression of the problem is nested deeper than Python's recursion limit, which "
            "cvxpy cannot compile.\nRewrite: build it with vectors and matrices (cp.sum, @, "
            "cp.vstack) instead of a loop over numbers, or cut it with auxiliary variables."
        )
    if not broken:
        return None

    def only_parametric(entry: tuple[Place, Any]) -> bool:
        """The part would follow the rules if its parameters were numbers."""
        return bool(entry[1].is_dgp() if gp else entry[1].is_dcp())

    broken.sort(key=only_parametric)  # what is not even convex comes first
    place, part = broken[0]
    rules = "DGP" if gp else "DCP"
    parametric = only_parametric(broken[0])
    text, advice = (_geometric if gp else _convex)(place, part, parametric)
    return "\n".join(
        [
            f"The problem is not {'DPP' if parametric else rules}: {_name(place)}",
            f"Offending part: {text}",
            f"Why: {advice.why}.",
            f"Rewrite: {advice.rewrite}",
            *_hints(problem, gp, [other for other, _ in broken[1:]]),
        ]
    )


def _places(
    problem: cp.Problem, quadratic_objective: bool, quadratic_constraints: bool
) -> Iterator[tuple[Place, Any]]:
    yield Place(problem, None, quadratic_objective), problem.objective
    for constraint in problem.constraints:
        yield Place(problem, constraint, quadratic_constraints), constraint


def _scope(place: Place) -> AbstractContextManager[None]:
    from cvxpy.utilities.scopes import quad_form_dpp_scope

    return quad_form_dpp_scope() if place.quadratic_allowed else nullcontext()


def _follows(place: Place, part: Any, *, gp: bool) -> bool:
    if gp:
        return bool(part.is_dgp(dpp=True))
    with _scope(place):
        return bool(part.is_dcp(dpp=True))


def _convex(place: Place, part: Any, parametric: bool) -> tuple[str, Advice]:
    from cvxpy.utilities.scopes import dpp_scope

    with dpp_scope() if parametric else nullcontext(), _scope(place):
        asked: list[tuple[Any, Curvature]]
        if place.constraint is not None:
            asked = list(demands(place.constraint))
        else:
            asked = [(part.args[0], "concave" if place.maximises else "convex")]
        for expression, wanted in asked:
            if not has(expression, wanted):
                offender = find(expression, wanted)
                advise = parametric_advice if parametric else convexity_advice
                return shorten(offender.expression), advise(offender, place)
    sides = shorten_constraint(part) if place.constraint is not None else shorten(part.args[0])
    return sides, Advice(
        f"cvxpy does not accept a {type(part).__name__} of these expressions",
        "Write it with other atoms or constraints.",
    )


def _geometric(place: Place, part: Any, parametric: bool) -> tuple[str, Advice]:
    from cvxpy.utilities.scopes import dpp_scope

    with dpp_scope() if parametric else nullcontext():
        offender, advice = geometric_advice(place, part, parametric)
        return shorten(offender), advice


def _name(place: Place) -> str:
    if place.constraint is None:
        verb = "maximise" if place.maximises else "minimise"
        return f"its objective, {verb} {shorten(place.problem.objective.args[0])}"
    number = next(
        number
        for number, constraint in enumerate(place.problem.constraints)
        if constraint is place.constraint
    )
    return f"constraint {number} (counted from 0), {shorten_constraint(place.constraint)}"


def _hints(problem: cp.Problem, gp: bool, others: list[Place]) -> Iterator[str]:
    if gp and problem.is_dpp():
        yield "The problem follows the rules of convex programs: leave out gp=True."
    if not gp and problem.is_dgp():
        yield "The problem is a geometric program: pass gp=True to the layer instead of rewriting."
    broken = {id(other.constraint) for other in others}
    numbers = [
        str(number)
        for number, constraint in enumerate(problem.constraints)
        if id(constraint) in broken
    ]
    if numbers:
        shown = ", ".join(numbers[:8]) + (", ..." if len(numbers) > 8 else "")
        yield f"Other constraints that break the rules: {shown}."
