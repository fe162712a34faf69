"""Least squares with linear equalities, with bounds, and with the lasso penalty."""

from functools import partial

import torch

from ddn_cvx.declaration import Declaration
from ddn_cvx.errors import DeclarationError
from ddn_cvx.problems._sampling import normal, signs, subset, times, uniform
from ddn_cvx.problems._sizes import check_size

Inputs = tuple[torch.Tensor, ...]


def constrained_least_squares(rows: int = 12, columns: int = 8, equalities: int = 3) -> Declaration:
    """Minimize ``1/2 |A u - b|^2`` subject to ``C u = d``.

    The parameters are ``A`` ``(rows, columns)``, ``b`` ``(rows,)``, ``C`` ``(equalities, columns)``
    and ``d`` ``(equalities,)``; the answer is ``u`` ``(columns,)``.

    Args:
        rows: number of residuals.
        columns: number of unknowns, at most ``rows + equalities``.
        equalities: number of constraints, at most ``columns``.

    Raises:
        DeclarationError: a size is out of its range.

    Example:
        >>> from ddn_cvx.problems import constrained_least_squares
        >>> declaration = constrained_least_squares(rows=4, columns=3, equalities=1)
        >>> [parameter.name() for parameter in declaration.parameters]
        ['A', 'b', 'C', 'd']
    """
    import cvxpy as cp

    check_size("rows", rows)
    check_size("columns", columns)
    check_size("equalities", equalities, maximum=columns)
    if columns > rows + equalities:
        raise DeclarationError(
            "columns must be at most rows + equalities, or the answer is not unique; got "
            f"columns={columns}, rows={rows}, equalities={equalities}."
        )
    A, b = cp.Parameter((rows, columns), name="A"), cp.Parameter(rows, name="b")
    C, d = cp.Parameter((equalities, columns), name="C"), cp.Parameter(equalities, name="d")
    u = cp.Variable(columns, name="u")
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum_squares(A @ u - b) / 2), [C @ u == d]),
        parameters=(A, b, C, d),
        variables=(u,),
        name="constrained_least_squares",
        summary="least squares with linear equality constraints",
        citation="Boyd and Vandenberghe (2018), Introduction to Applied Linear Algebra, chapter 16",
        example=partial(_constrained_example, rows, columns, equalities),
        closed_form=_constrained_closed_form,
    )


def bounded_least_squares(rows: int = 12, columns: int = 8) -> Declaration:
    """Minimize ``1/2 |A u - b|^2`` subject to ``lower <= u <= upper``.

    The parameters are ``A`` ``(rows, columns)``, ``b`` ``(rows,)``, ``lower`` and ``upper``
    ``(columns,)``; the answer is ``u`` ``(columns,)``. There is no closed form.

    Args:
        rows: number of residuals, more than ``columns``.
        columns: number of unknowns.

    Raises:
        DeclarationError: a size is out of its range.

    Example:
        >>> from ddn_cvx.problems import bounded_least_squares
        >>> bounded_least_squares(rows=4, columns=3).variables[0].shape
        (3,)
    """
    import cvxpy as cp

    check_size("columns", columns)
    check_size("rows", rows, minimum=columns + 1)
    A, b = cp.Parameter((rows, columns), name="A"), cp.Parameter(rows, name="b")
    lower, upper = cp.Parameter(columns, name="lower"), cp.Parameter(columns, name="upper")
    u = cp.Variable(columns, name="u")
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum_squares(A @ u - b) / 2), [lower <= u, u <= upper]),
        parameters=(A, b, lower, upper),
        variables=(u,),
        name="bounded_least_squares",
        summary="least squares with lower and upper bounds",
        citation="Stark and Parker (1995), Bounded-variable least-squares",
        example=partial(_bounded_example, rows, columns),
    )


def lasso(rows: int = 12, columns: int = 8) -> Declaration:
    """Minimize ``1/2 |A u - b|^2 + lambda |u|_1``.

    The parameters are ``A`` ``(rows, columns)``, ``b`` ``(rows,)`` and ``lambda``, a nonnegative
    scalar; the answer is ``u`` ``(columns,)``. There is no closed form.

    Args:
        rows: number of residuals.
        columns: number of unknowns; it may exceed ``rows``.

    Raises:
        DeclarationError: a size is not a positive integer.

    Example:
        >>> from ddn_cvx.problems import lasso
        >>> [parameter.name() for parameter in lasso(rows=4, columns=6).parameters]
        ['A', 'b', 'lambda']
    """
    import cvxpy as cp

    check_size("rows", rows)
    check_size("columns", columns)
    A, b = cp.Parameter((rows, columns), name="A"), cp.Parameter(rows, name="b")
    weight = cp.Parameter(nonneg=True, name="lambda")
    u = cp.Variable(columns, name="u")
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum_squares(A @ u - b) / 2 + weight * cp.norm1(u))),
        parameters=(A, b, weight),
        variables=(u,),
        name="lasso",
        summary="least squares with the lasso penalty, its weight a parameter",
        citation="Tibshirani (1996), Regression shrinkage and selection via the lasso; when the "
        "answer is unique: Tibshirani (2013), The lasso problem and uniqueness",
        example=partial(_lasso_example, rows, columns),
    )


def _constrained_closed_form(
    A: torch.Tensor, b: torch.Tensor, C: torch.Tensor, d: torch.Tensor
) -> tuple[torch.Tensor]:
    """Solve the optimality conditions with the residual ``r = b - A u`` as an unknown.

    ``r + A u = b``, ``A' r + C' nu = 0``, ``C u = d``: unlike the normal equations, this does not
    square the condition number of ``A`` (Bjorck 1996, Numerical Methods for Least Squares
    Problems).
    """
    *batch, rows, columns = A.shape
    equalities = C.shape[-2]
    identity = torch.eye(rows, dtype=A.dtype, device=A.device).expand(*batch, rows, rows)
    upper = torch.cat([identity, A, A.new_zeros(*batch, rows, equalities)], dim=-1)
    middle = torch.cat([A.mT, A.new_zeros(*batch, columns, columns), C.mT], dim=-1)
    lower = torch.cat([A.new_zeros(*batch, equalities, rows), C], dim=-1)
    lower = torch.nn.functional.pad(lower, (0, equalities))
    matrix = torch.cat([upper, middle, lower], dim=-2)
    right = torch.cat([b, b.new_zeros(*batch, columns), d], dim=-1)
    return (torch.linalg.solve(matrix, right)[..., rows : rows + columns],)


def _constrained_example(
    rows: int, columns: int, equalities: int, batch: int, generator: torch.Generator
) -> Inputs:
    A, C = normal(generator, batch, rows, columns), normal(generator, batch, equalities, columns)
    return A, normal(generator, batch, rows), C, normal(generator, batch, equalities)


def _matrix_with(
    correlation: torch.Tensor, residual: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Random ``A`` ``(B, rows, columns)`` with ``A' residual = correlation``.

    A rank-one correction of a normal matrix, along the residual.
    """
    A = normal(generator, *residual.shape, correlation.shape[1])
    missing = correlation - times(A.mT, residual)
    return A + residual.unsqueeze(2) * (missing / residual.square().sum(1, True)).unsqueeze(1)


def _bounded_example(rows: int, columns: int, batch: int, generator: torch.Generator) -> Inputs:
    # Stationarity: A' (b - A u) is positive at an upper bound, negative at a lower, else zero.
    bound = signs(generator, batch, columns) * subset(generator, batch, columns, columns // 2)
    residual = normal(generator, batch, rows)
    A = _matrix_with(bound * uniform(generator, batch, columns), residual, generator)
    u = normal(generator, batch, columns)
    lower = u - uniform(generator, batch, columns) * (bound >= 0)
    upper = u + uniform(generator, batch, columns) * (bound <= 0)
    return A, times(A, u) + residual, lower, upper


def _lasso_example(rows: int, columns: int, batch: int, generator: torch.Generator) -> Inputs:
    # Stationarity: A' (b - A u) is lambda sign(u) on the support, and smaller off it.
    support = subset(generator, batch, columns, min(rows, (columns + 1) // 2))
    sign, weight = signs(generator, batch, columns), uniform(generator, batch)
    u = sign * uniform(generator, batch, columns) * support
    off_support = uniform(generator, batch, columns, low=0.0, high=0.8)
    correlation = weight.unsqueeze(1) * sign * torch.where(support, 1.0, off_support)
    residual = normal(generator, batch, rows)
    A = _matrix_with(correlation, residual, generator)
    return A, times(A, u) + residual, weight
