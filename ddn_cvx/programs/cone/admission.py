"""Compile a declaration, or say in words why it cannot become a layer."""

from __future__ import annotations

from typing import Any

from ddn_cvx.declaration import Declaration
from ddn_cvx.errors import DeclarationError
from ddn_cvx.programs.cone.program import ConeProgram, compile_program
from ddn_cvx.programs.diagnosis import explanation, refuse_if_too_large, refused_leaf


def compile_or_explain(declaration: Declaration, **options: Any) -> ConeProgram:
    """:func:`~ddn_cvx.programs.cone.program.compile_program` with errors for people.

    Args:
        declaration: the problem.
        **options: those of ``compile_program``.

    Raises:
        DeclarationError: the problem is not DCP or not DPP (the message shows the offending
            subexpression and what to write instead), cvxpy cannot canonicalise it, or its
            canonical maps would not fit in memory.
    """
    from cvxpy.error import SolverError

    refused = refused_leaf(declaration.problem)
    if refused is not None:
        raise DeclarationError(refused)
    quadratic_objective = bool(options.get("quadratic_objective", True))
    refuse_if_too_large(declaration.problem, quadratic_objective=quadratic_objective)
    try:
        return compile_program(declaration, **options)
    except DeclarationError:
        raise
    except (ValueError, KeyError, NotImplementedError, SolverError) as error:
        why = explanation(declaration)
        message = why.text if why else f"cvxpy cannot compile this problem: {error}"
        raise DeclarationError(message) from error
