"""Why a problem is not a cone program: the offending part, the reason and the rewrite."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddn_cvx.declaration import Declaration
from ddn_cvx.programs.diagnosis.advice import Advice, Place
from ddn_cvx.programs.diagnosis.convexity import convexity_advice
from ddn_cvx.programs.diagnosis.geometric import geometric_advice
from ddn_cvx.programs.diagnosis.leaves import refused_leaf
from ddn_cvx.programs.diagnosis.offender import demands, find, has
from ddn_cvx.programs.diagnosis.parametric import parametric_advice
from ddn_cvx.programs.diagnosis.wording import joined, shorten, shorten_constraint
from ddn_cvx.torch_problem import TorchProblem

if TYPE_CHECKING:
    import cvxpy as cp


@dataclass(frozen=True)
class Explanation:
    """Why a problem is not a cone program.

    Attributes:
        line: the broken rules, the offending part, its place and parameters, and the reason.
        text: the same in several lines, with code that follows the rules.
    """

    line: str
    text: str


def explanation(declaration: Declaration | TorchProblem) -> Explanation | None:
    """Why a declaration in cvxpy's syntax does not follow its rules; None if it does.

    The rules are DCP and DPP, with ``gp`` DGP and DPP. A parametric matrix of a ``quad_form`` is
    allowed everywhere: :mod:`ddn_cvx.programs.cone.quadratic_forms` rewrites it.

    Example:
        >>> import cvxpy as cp
        >>> from ddn_cvx import Declaration
        >>> x, price = cp.Variable(3, name="x"), cp.Parameter(3, name="price")
        >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x)), [cp.exp(price) @ x >= 1])
        >>> why = explanation(Declaration(problem, [price], [x]))
        >>> print(*why.text.splitlines()[1:3], sep=chr(10))
        Offending part: exp(price) @ x
        Why: an expression without variables is not affine in its parameters: `exp(price)`.
    """
    from cvxpy.utilities.scopes import quad_form_dpp_scope

    if isinstance(declaration, TorchProblem):
        return None
    problem, gp = declaration.problem, declaration.gp
    leaf = refused_leaf(problem)
    if leaf is not None:
        return Explanation(re.split(r"\.\s", leaf)[0], leaf)
    places = [Place(problem, number) for number in (None, *range(len(problem.constraints)))]
    try:
        with quad_form_dpp_scope():
            broken = [place for place in places if not _follows(place, gp, dpp=True)]
    except RecursionError:
        why = "An expression is nested deeper than Python's recursion limit"
        return Explanation(
            why,
            f"{why}, which cvxpy cannot compile.\nRewrite: build it with vectors and matrices "
            "(cp.sum, @, cp.vstack) instead of a loop over numbers, or cut it with auxiliary "
            "variables.",
        )
    if not broken:
        return None
    # A part that breaks the rules whatever its parameters comes first.
    place, *others = sorted(broken, key=lambda place: _follows(place, gp))
    parametric = _follows(place, gp)
    offender, advice = _advice(place, parametric, gp)
    rules = "DPP" if parametric else "DGP" if gp else "DCP"
    leaves = offender.parameters() if parametric else []
    given = f" (parameters {joined(leaves)})" if leaves else ""
    lines = [
        f"The problem is not {rules}: {_name(place)}",
        f"Offending part: {shorten(offender)}",
        f"Why: {advice.why}.",
        f"Rewrite: {advice.rewrite}",
        *_hints(problem, gp, [other.number for other in others if other.number is not None]),
    ]
    where = "the objective" if place.number is None else f"constraint {place.number}"
    line = f"not {rules}: `{shorten(offender)}`{given} in {where}: {advice.why}"
    return Explanation(line, "\n".join(lines))


def _follows(place: Place, gp: bool, dpp: bool = False) -> bool:
    return bool(place.part.is_dgp(dpp=dpp) if gp else place.part.is_dcp(dpp=dpp))


def _advice(place: Place, parametric: bool, gp: bool) -> tuple[Any, Advice]:
    """The offending expression and the advice."""
    from cvxpy.utilities.scopes import dpp_scope, quad_form_dpp_scope

    part = place.part
    with ExitStack() as scopes:
        if parametric:
            scopes.enter_context(dpp_scope())
            scopes.enter_context(quad_form_dpp_scope())
        if gp:
            return geometric_advice(place, part, parametric)
        for expression, wanted in demands(part):
            if not has(expression, wanted):
                offender = find(expression, wanted)
                advise = parametric_advice if parametric else convexity_advice
                return offender.expression, advise(offender, place)
    why = f"cvxpy does not accept a {type(part).__name__} of these expressions"
    return part.args[0], Advice(why, "Write it with other atoms or constraints.")


def _name(place: Place) -> str:
    if place.number is None:
        verb = "maximise" if place.maximises else "minimise"
        return f"its objective, {verb} {shorten(place.problem.objective.args[0])}"
    text = shorten_constraint(place.part)
    return f"constraint {place.number} (counted from 0), {text}"


def _hints(problem: cp.Problem, gp: bool, others: list[int]) -> Iterator[str]:
    if gp and problem.is_dpp():
        yield "The problem follows the rules of convex programs: leave out gp=True."
    if not gp and problem.is_dgp():
        yield "The problem is a geometric program: pass gp=True to the layer instead of rewriting."
    if others:
        shown = ", ".join(map(str, others[:8])) + (", ..." if len(others) > 8 else "")
        yield f"Other constraints that break the rules: {shown}."
