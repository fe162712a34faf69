"""A cvxpy objective that is a sum of squares, recognised."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import cvxpy as cp

# A weight (an expression without variables, nonnegative) and what is squared.
Term = tuple["cp.Expression", "cp.Expression"]


def squared_terms(expression: cp.Expression) -> list[Term] | None:
    """Terms ``(w, r)`` with ``expression = sum over entries of w r^2``; None if it is not one.

    Recognised are ``sum_squares``, ``sum(square(...))``, ``square`` of a scalar, products with
    nonnegative weights (numbers or parameters), and sums of these.
    """
    import cvxpy as cp
    from cvxpy.atoms.affine.add_expr import AddExpression
    from cvxpy.atoms.affine.binary_operators import DivExpression, MulExpression, multiply

    if isinstance(expression, AddExpression):
        return _joined(map(squared_terms, expression.args))
    if isinstance(expression, cp.quad_over_lin) and expression.is_scalar():
        top, bottom = expression.args
        if bottom.variables() or not bottom.is_nonneg():
            return None
        return [(1 / bottom, top)]
    if isinstance(expression, cp.Sum) and expression.is_scalar():
        return _squares(expression.args[0])
    if isinstance(expression, DivExpression):
        top, bottom = expression.args
        if bottom.variables() or not (bottom.is_scalar() and bottom.is_nonneg()):
            return None
        return _scaled(squared_terms(top), 1 / bottom)
    if isinstance(expression, (MulExpression, multiply)) and expression.is_scalar():
        for weight, rest in (expression.args, expression.args[::-1]):
            if weight.is_scalar() and not weight.variables() and weight.is_nonneg():
                return _scaled(squared_terms(rest), weight)
        return None
    if expression.is_scalar():
        return _squares(expression)
    return None


def _joined(groups: Iterable[list[Term] | None]) -> list[Term] | None:
    """The terms of all groups; None if a group is None."""
    found = list(groups)
    return None if None in found else list(itertools.chain.from_iterable(filter(None, found)))


def _scaled(terms: list[Term] | None, weight: Any) -> list[Term] | None:
    return None if terms is None else [(weight * old, residual) for old, residual in terms]


def _squares(expression: cp.Expression) -> list[Term] | None:
    """Entrywise squares, with entrywise weights."""
    import cvxpy as cp
    from cvxpy.atoms.affine.add_expr import AddExpression
    from cvxpy.atoms.affine.binary_operators import multiply

    if isinstance(expression, AddExpression):
        if any(argument.shape != expression.shape for argument in expression.args):
            return None
        return _joined(map(_squares, expression.args))
    if isinstance(expression, (cp.Power, cp.PowerApprox)):
        exponent = getattr(expression.p, "value", None)
        parametric = bool(getattr(expression.p, "parameters", list)())
        if exponent is None or parametric or float(exponent) != 2:
            return None
        return [(cp.Constant(1.0), expression.args[0])]
    if isinstance(expression, multiply):
        for weight, rest in (expression.args, expression.args[::-1]):
            if weight.variables() or not weight.is_nonneg():
                continue
            found = _squares(rest)
            if found is not None and (weight.shape == rest.shape or weight.is_scalar()):
                return [(cp.multiply(weight, old), residual) for old, residual in found]
    return None
