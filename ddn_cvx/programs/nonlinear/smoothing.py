"""Nonsmooth atoms replaced by variables and constraints: cvxpy's ``Dnlp2Smooth`` for them alone.

cvxpy's reduction gives every atom variables of its own, for solvers that differentiate atom by
atom. Here the whole expression is differentiated, so that only atoms with kinks are replaced:
``max(x)`` becomes ``t`` with ``x <= t``, a norm a second-order cone, an eigenvalue a semidefinite
one. This is right where a nonsmooth convex atom is to be small and a nonsmooth concave one large,
which is what cvxpy's DNLP rule checks (``problem.is_dnlp()``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import cvxpy as cp


class Smoothed(NamedTuple):
    """A problem without kinks.

    Attributes:
        problem: minimises; its variables are the original ones and the new ones. Its constraints
            begin with those that stand for the original ones, in their order.
        values: each new variable's value at a solution, as an expression of the original
            variables and of new variables before it; a good start.
    """

    problem: cp.Problem
    values: list[tuple[cp.Variable, cp.Expression]]


def smoothed(problem: cp.Problem) -> Smoothed:
    """Replace nonsmooth atoms; the problem itself where there are none or the rule does not hold.

    Args:
        problem: any real, continuous problem.
    """
    import cvxpy as cp

    objective = problem.objective
    if isinstance(objective, cp.Maximize):
        objective = cp.Minimize(-objective.expr)
    constraints = list(problem.constraints)
    plain = Smoothed(cp.Problem(objective, constraints), [])
    if not has_kinks(plain.problem):
        return plain
    kinks = _nonsmooth()
    if not cp.Problem(objective, constraints).is_dnlp():
        return plain
    smoother = _smoother(kinks)
    target, added = smoother.canonicalize_tree(objective, True)
    kept = []
    for constraint in constraints:
        canonical, more = smoother.canonicalize_tree(constraint, False)
        kept.append(canonical)
        added += more
    return Smoothed(cp.Problem(target, [*kept, *added]), smoother.values)


def has_kinks(problem: cp.Problem) -> bool:
    """Some nonsmooth atom depends on a variable."""
    kinks = _nonsmooth()
    constraints = [arg for constraint in problem.constraints for arg in constraint.args]
    return any(_contains(e, kinks) for e in [problem.objective.expr, *constraints])


def _contains(expression: Any, kinks: dict[type, Any]) -> bool:
    if not expression.variables():
        return False
    if _has_kink(expression, kinks):
        return True
    return any(_contains(argument, kinks) for argument in expression.args)


def _has_kink(expression: Any, kinks: dict[type, Any]) -> bool:
    if type(expression) not in kinks:
        return False
    exponent = getattr(expression, "p", 2)
    return "Pnorm" not in type(expression).__name__ or float(getattr(exponent, "value", 2)) == 2


def _nonsmooth() -> dict[type, Any]:
    """Nonsmooth atoms and how cvxpy replaces each."""
    import cvxpy as cp
    from cvxpy.reductions.dcp2cone.canonicalizers import CANON_METHODS
    from cvxpy.reductions.dnlp2smooth.canonicalizers import SMOOTH_CANON_METHODS

    polyhedral: tuple[Any, ...] = (
        cp.abs, cp.maximum, cp.max, cp.norm1, cp.norm_inf, cp.sum_largest, cp.minimum, cp.min,
    )  # fmt: skip
    conic: tuple[Any, ...] = (
        cp.Pnorm, cp.PnormApprox, cp.lambda_max, cp.lambda_sum_largest, cp.sigma_max,
        cp.atoms.norm_nuc.normNuc,
    )  # fmt: skip
    kinks: dict[Any, Any] = {atom: SMOOTH_CANON_METHODS[atom] for atom in polyhedral}
    return kinks | {atom: CANON_METHODS[atom] for atom in conic}


def _smoother(kinks: dict[Any, Any]) -> Any:
    import cvxpy as cp
    from cvxpy.reductions.dnlp2smooth.dnlp2smooth import Dnlp2Smooth

    class KinkSmoother(Dnlp2Smooth):
        def __init__(self) -> None:
            super().__init__()
            self.smooth_canon_methods: dict[Any, Any] = kinks
            self.values: list[tuple[cp.Variable, cp.Expression]] = []

        def canonicalize_expr(  # type: ignore[override]
            self, expr: Any, args: list[Any], affine_above: bool
        ) -> tuple[Any, list[Any]]:
            if isinstance(expr, cp.Expression) and not expr.variables():
                return expr, []
            if not _has_kink(expr, kinks):
                return (expr.copy(args) if expr.args else expr), []
            if isinstance(expr, cp.norm1):  # through abs, whose value is a good start
                magnitude, constraints = self.canonicalize_expr(cp.abs(args[0]), args, True)
                return cp.sum(magnitude, axis=expr.axis, keepdims=expr.keepdims), constraints
            found, constraints = kinks[type(expr)](expr, args)
            if isinstance(found, cp.Variable):
                self.values.append((found, expr.copy(args)))
            return found, constraints

    return KinkSmoother()
