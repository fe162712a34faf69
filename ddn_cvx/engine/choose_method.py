"""Which batched solver takes a nonlinear program: one rule, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ddn_cvx.errors import DeclarationError
from ddn_cvx.programs.nonlinear.at_inputs import BoundProgram
from ddn_cvx.programs.nonlinear.program import NonlinearProgram
from ddn_cvx.solvers.answer import Answer
from ddn_cvx.solvers.nonlinear.filter_interior_point import InteriorPoint
from ddn_cvx.solvers.nonlinear.settings import Settings

# Beyond this many variables the Hessian is not formed.
_HESSIAN_VARIABLES = 400

METHODS = ("interior point", "newton", "levenberg marquardt", "newton cg")


class Method(Protocol):
    """A batched solver of nonlinear programs."""

    @property
    def name(self) -> str:
        """For ``repr(layer)``."""

    def __call__(self, program: BoundProgram, start: torch.Tensor) -> Answer:
        """Solve from ``start``, shape ``(B, n)``."""


def choose_method(program: NonlinearProgram, settings: Settings) -> tuple[Method, str]:
    """The solver and why.

    Raises:
        DeclarationError: the method that was asked for does not fit the program.
    """
    asked = settings.method
    if asked is not None:
        return _build(asked, program, settings), "as asked"
    if program.is_constrained:
        return _build("interior point", program, settings), "there are constraints"
    if program.variables > _HESSIAN_VARIABLES:
        why = f"more than {_HESSIAN_VARIABLES} variables"
        return _build("newton cg", program, settings), why
    if program.residuals is not None:
        why = "no constraints, a sum of squares"
        return _build("levenberg marquardt", program, settings), why
    return _build("newton", program, settings), "no constraints"


def _build(name: str, program: NonlinearProgram, settings: Settings) -> Method:
    options: dict[str, Any] = {}
    if settings.max_iterations is not None:
        options["max_iterations"] = settings.max_iterations
    if settings.tolerance is not None:
        options["tolerance"] = settings.tolerance
    if name == "interior point":
        return InteriorPoint(**options)
    if name not in METHODS:
        raise DeclarationError(f"Unknown method {name!r}; choose one of {', '.join(METHODS)}.")
    if program.is_constrained:
        raise DeclarationError(
            f"The method {name!r} is for problems without constraints; use 'interior point'."
        )
    from ddn_cvx.solvers.nonlinear.levenberg_marquardt import LevenbergMarquardt
    from ddn_cvx.solvers.nonlinear.newton import TrustRegionNewton
    from ddn_cvx.solvers.nonlinear.newton_cg import NewtonCG

    if name == "levenberg marquardt":
        if program.residuals is None:
            raise DeclarationError(
                "'levenberg marquardt' needs an objective that is a sum of squares; write it with "
                "cp.sum_squares, or declare TorchProblem(residuals=...)."
            )
        return Unconstrained(name, LevenbergMarquardt(**options))
    if name == "newton cg":
        return Unconstrained(name, NewtonCG(**options))
    return Unconstrained(name, TrustRegionNewton(**options))
