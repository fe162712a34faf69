"""Which batched solver takes a nonlinear program: one rule, in words."""

from __future__ import annotations

from typing import Any

from ddn_cvx.errors import DeclarationError
from ddn_cvx.programs.nonlinear.program import NonlinearProgram
from ddn_cvx.solvers.nonlinear.filter_interior_point import InteriorPoint
from ddn_cvx.solvers.nonlinear.levenberg_marquardt import LevenbergMarquardt
from ddn_cvx.solvers.nonlinear.newton import TrustRegionNewton
from ddn_cvx.solvers.nonlinear.newton_cg import NewtonCG
from ddn_cvx.solvers.nonlinear.settings import Settings
from ddn_cvx.solvers.nonlinear.trust_region import TrustRegion

Method = InteriorPoint | TrustRegion

# Beyond this many variables the Hessian is not formed.
_HESSIAN_VARIABLES = 400

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (InteriorPoint, TrustRegionNewton, LevenbergMarquardt, NewtonCG)
}


def choose_method(program: NonlinearProgram, settings: Settings) -> tuple[Method, str]:
    """The solver and why.

    Raises:
        DeclarationError: the method that was asked for does not fit the program.
    """
    name = settings.method
    method, why = _fitting(program) if name is None else (METHODS.get(name), "as asked")
    if method is None:
        raise DeclarationError(f"Unknown method {name!r}; choose one of {', '.join(METHODS)}.")
    if program.is_constrained and method is not InteriorPoint:
        raise DeclarationError(
            f"The method {name!r} is for problems without constraints; use 'interior point'."
        )
    if method is LevenbergMarquardt and program.residuals is None:
        raise DeclarationError(
            "'levenberg marquardt' needs an objective that is a sum of squares; write it with "
            "cp.sum_squares, or declare TorchProblem(residuals=...)."
        )
    options = {"max_iterations": settings.max_iterations, "tolerance": settings.tolerance}
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    return method(**given), why


def _fitting(program: NonlinearProgram) -> tuple[type[Method], str]:
    if program.is_constrained:
        return InteriorPoint, "there are constraints"
    if program.variables > _HESSIAN_VARIABLES:
        return NewtonCG, f"more than {_HESSIAN_VARIABLES} variables"
    if program.residuals is not None:
        return LevenbergMarquardt, "no constraints, a sum of squares"
    return TrustRegionNewton, "no constraints"
