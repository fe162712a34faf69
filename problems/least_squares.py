"""Least squares: weighted, penalised, with linear equalities, with bounds, on the sphere."""

from functools import partial

import torch

from ddn_cvx.declaration import Declaration
from ddn_cvx.errors import DeclarationError
from ddn_cvx.problems._entry import check_size, entry
from ddn_cvx.problems._sampling import Tensors, normal, signs, subset, times, uniform


@entry(rows=1, columns=1)
def constrained_least_squares(rows: int = 12, columns: int = 8, equalities: int = 3) -> Declaration:
    """Minimize ``1/2 |A u - b|^2`` subject to ``C u = d``.

    The parameters are ``A`` ``(rows, columns)``, ``b`` ``(rows,)``, ``C`` ``(equalities, columns)``
    and ``d`` ``(equalities,)``; the answer is ``u`` ``(columns,)``.

    Args:
        rows: number of residuals.
        columns: number of unknowns, at most ``rows + equalities``.
        equalities: number of constraints, at most ``columns``.

    Example:
        >>> from ddn_cvx.problems import constrained_least_squares
        >>> declaration = constrained_least_squares(rows=4, columns=3, equalities=1)
        >>> [parameter.name() for parameter in declaration.parameters]
        ['A', 'b', 'C', 'd']
    """
    import cvxpy as cp

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
        summary="least squares with linear equality constraints",
        citation="Boyd and Vandenberghe (2018), Introduction to Applied Linear Algebra, chapter 16",
        example=partial(_constrained_example, rows, columns, equalities),
        closed_form=_constrained_closed_form,
    )


@entry(columns=1)
def bounded_least_squares(rows: int = 12, columns: int = 8) -> Declaration:
    """Minimize ``1/2 |A u - b|^2`` subject to ``lower <= u <= upper``.

    The parameters are ``A`` ``(rows, columns)``, ``b`` ``(rows,)``, ``lower`` and ``upper``
    ``(columns,)``; the answer is ``u`` ``(columns,)``. There is no closed form.

    Args:
        rows: number of residuals, more than ``columns``.
        columns: number of unknowns.

    Example:
        >>> from ddn_cvx.problems import bounded_least_squares
        >>> bounded_least_squares(rows=4, columns=3).variables[0].shape
        (3,)
    """
    import cvxpy as cp

    check_size("rows", rows, minimum=columns + 1)
    A, b = cp.Parameter((rows, columns), name="A"), cp.Parameter(rows, name="b")
    lower, upper = cp.Parameter(columns, name="lower"), cp.Parameter(columns, name="upper")
    u = cp.Variable(columns, name="u")
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum_squares(A @ u - b) / 2), [lower <= u, u <= upper]),
        parameters=(A, b, lower, upper),
        variables=(u,),
        summary="least squares with lower and upper bounds",
        citation="Stark and Parker (1995), Bounded-variable least-squares",
        example=partial(_bounded_example, rows, columns),
    )


@entry(rows=1, columns=1)
def lasso(rows: int = 12, columns: int = 8) -> Declaration:
    """Minimize ``1/2 |A u - b|^2 + lambda |u|_1``.

    The parameters are ``A`` ``(rows, columns)``, ``b`` ``(rows,)`` and ``lambda``, a nonnegative
    scalar; the answer is ``u`` ``(columns,)``. There is no closed form.

    Args:
        rows: number of residuals.
        columns: number of unknowns; it may exceed ``rows``.

    Example:
        >>> from ddn_cvx.problems import lasso
        >>> [parameter.name() for parameter in lasso(rows=4, columns=6).parameters]
        ['A', 'b', 'lambda']
    """
    import cvxpy as cp

    A, b = cp.Parameter((rows, columns), name="A"), cp.Parameter(rows, name="b")
    weight = cp.Parameter(nonneg=True, name="lambda")
    u = cp.Variable(columns, name="u")
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum_squares(A @ u - b) / 2 + weight * cp.norm1(u))),
        parameters=(A, b, weight),
        variables=(u,),
        summary="least squares with the lasso penalty, its weight a parameter",
        citation="Tibshirani (1996), Regression shrinkage and selection via the lasso; when the "
        "answer is unique: Tibshirani (2013), The lasso problem and uniqueness",
        example=partial(_lasso_example, rows, columns),
    )


@entry(columns=1)
def weighted_least_squares(rows: int = 12, columns: int = 8) -> Declaration:
    """Minimize ``1/2 sum_i weight_i (a_i' u - b_i)^2``.

    The parameters are ``A`` ``(rows, columns)``, ``b`` ``(rows,)`` and ``weight`` ``(rows,)``,
    nonnegative, of which at least ``columns`` are positive; the answer is ``u`` ``(columns,)``.

    Args:
        rows: number of residuals, at least ``columns``.
        columns: number of unknowns.

    Example:
        >>> import torch
        >>> from ddn_cvx.problems import weighted_least_squares
        >>> A, b = torch.ones(1, 2, 1), torch.tensor([[0.0, 4.0]])
        >>> weight = torch.tensor([[3.0, 1.0]])
        >>> weighted_least_squares(rows=2, columns=1).closed_form(A, b, weight)
        (tensor([[1.]]),)
    """
    import cvxpy as cp

    check_size("rows", rows, minimum=columns)
    A, b = cp.Parameter((rows, columns), name="A"), cp.Parameter(rows, name="b")
    weight = cp.Parameter(rows, nonneg=True, name="weight")
    # The residual is a variable: a weight times an expression with parameters would not be DPP.
    u, residual = cp.Variable(columns, name="u"), cp.Variable(rows, name="residual")
    return Declaration(
        cp.Problem(cp.Minimize(weight @ cp.square(residual) / 2), [residual == A @ u - b]),
        parameters=(A, b, weight),
        variables=(u,),
        summary="least squares with a weight for each residual",
        citation="Boyd and Vandenberghe (2018), Introduction to Applied Linear Algebra, section "
        "12.1; as a declarative node: Gould, Hartley and Campbell (2022), Deep declarative "
        "networks",
        example=partial(_weighted_example, rows, columns),
        closed_form=_weighted_closed_form,
    )


@entry(rows=1, columns=1)
def ridge_regression(rows: int = 12, columns: int = 8) -> Declaration:
    """Minimize ``1/2 |A u - b|^2 + ridge/2 |u|^2``.

    The parameters are ``A`` ``(rows, columns)``, ``b`` ``(rows,)`` and ``ridge``, a positive
    scalar; the answer is ``u`` ``(columns,)``.

    Args:
        rows: number of residuals.
        columns: number of unknowns; it may exceed ``rows``.

    Example:
        >>> import torch
        >>> from ddn_cvx.problems import ridge_regression
        >>> A, b, ridge = torch.ones(1, 1, 1), torch.tensor([[8.0]]), torch.tensor([3.0])
        >>> ridge_regression(rows=1, columns=1).closed_form(A, b, ridge)
        (tensor([[2.]]),)
    """
    import cvxpy as cp

    A, b = cp.Parameter((rows, columns), name="A"), cp.Parameter(rows, name="b")
    ridge = cp.Parameter(pos=True, name="ridge")
    u = cp.Variable(columns, name="u")
    penalty = ridge * cp.sum_squares(u) / 2
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum_squares(A @ u - b) / 2 + penalty)),
        parameters=(A, b, ridge),
        variables=(u,),
        summary="least squares with a quadratic penalty, its weight a parameter",
        citation="Hoerl and Kennard (1970), Ridge regression: biased estimation for nonorthogonal "
        "problems",
        example=partial(_ridge_example, rows, columns),
        closed_form=_ridge_closed_form,
    )


@entry(rows=1, columns=1)
def sphere_least_squares(rows: int = 8, columns: int = 5) -> Declaration:
    """Minimize ``1/2 |A u - b|^2`` subject to ``|u| = 1``, which is not convex.

    The parameters are ``A`` ``(rows, columns)`` and ``b`` ``(rows,)``; the answer is ``u``
    ``(columns,)``. Closed form and start are the global solution, by the secular equation: it is
    unique, and differentiable, unless ``A' b`` is orthogonal to the eigenvectors of the smallest
    eigenvalue of ``A' A`` (the "hard case").

    Args:
        rows: number of residuals.
        columns: number of unknowns; it may exceed ``rows``.

    Example:
        >>> import torch
        >>> from ddn_cvx.problems import sphere_least_squares
        >>> A, b = torch.eye(2).unsqueeze(0), torch.tensor([[3.0, 4.0]])
        >>> sphere_least_squares(rows=2, columns=2).closed_form(A, b)
        (tensor([[0.6000, 0.8000]]),)
    """
    import cvxpy as cp

    A, b = cp.Parameter((rows, columns), name="A"), cp.Parameter(rows, name="b")
    u = cp.Variable(columns, name="u")
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum_squares(A @ u - b) / 2), [cp.sum_squares(u) == 1]),
        parameters=(A, b),
        variables=(u,),
        summary="least squares on the unit sphere",
        citation="Gander (1981), Least squares with a quadratic constraint; Golub and Van Loan "
        "(2013), Matrix Computations, section 6.2.1",
        example=partial(_sphere_example, rows, columns),
        closed_form=_sphere_closed_form,
        start=_sphere_closed_form,
    )


def _normal_equations(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``matrix^-1 right`` for a positive definite matrix."""
    factor = torch.linalg.cholesky_ex(matrix).L
    return torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1)


def _weighted_closed_form(A: torch.Tensor, b: torch.Tensor, weight: torch.Tensor) -> Tensors:
    transposed = A.mT * weight.unsqueeze(-2)
    return (_normal_equations(transposed @ A, times(transposed, b)),)


def _ridge_closed_form(A: torch.Tensor, b: torch.Tensor, ridge: torch.Tensor) -> Tensors:
    identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    return (_normal_equations(A.mT @ A + ridge[..., None, None] * identity, times(A.mT, b)),)


def _sphere_closed_form(A: torch.Tensor, b: torch.Tensor) -> Tensors:
    """``u = (A' A + nu I)^-1 A' b``, with the largest ``nu`` at which ``|u| = 1``.

    ``nu`` is found by bisection without autograd; Newton's method from there, twice, gives it
    derivatives up to the third order.
    """
    gram, right = A.mT @ A, times(A.mT, b)
    identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    with torch.no_grad():
        eigenvalues, V = torch.linalg.eigh(gram)
        coefficients = times(V.mT, right)
        # |u| is infinite (or jumps) at low, at most one at low + |A' b|, and decreases between.
        low, width = -eigenvalues[..., 0], coefficients.norm(dim=-1)
        multiplier = low
        for _ in range(60):
            width = width / 2
            middle = multiplier + width
            u = coefficients / (eigenvalues + middle.unsqueeze(-1))
            multiplier = torch.where(u.square().sum(dim=-1) > 1, middle, multiplier)
        multiplier = multiplier + width
    for _ in range(2):
        matrix = gram + multiplier[..., None, None] * identity
        u = _normal_equations(matrix, right)
        norm = u.norm(dim=-1)
        slope = (u * _normal_equations(matrix, u)).sum(dim=-1)
        multiplier = multiplier + (norm - 1) * norm.square() / slope
    return (_normal_equations(gram + multiplier[..., None, None] * identity, right),)


def _constrained_closed_form(
    A: torch.Tensor, b: torch.Tensor, C: torch.Tensor, d: torch.Tensor
) -> Tensors:
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
) -> Tensors:
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


def _bounded_example(rows: int, columns: int, batch: int, generator: torch.Generator) -> Tensors:
    # Stationarity: A' (b - A u) is positive at an upper bound, negative at a lower, else zero.
    bound = signs(generator, batch, columns) * subset(generator, batch, columns, columns // 2)
    residual = normal(generator, batch, rows)
    A = _matrix_with(bound * uniform(generator, batch, columns), residual, generator)
    u = normal(generator, batch, columns)
    lower = u - uniform(generator, batch, columns) * (bound >= 0)
    upper = u + uniform(generator, batch, columns) * (bound <= 0)
    return A, times(A, u) + residual, lower, upper


def _lasso_example(rows: int, columns: int, batch: int, generator: torch.Generator) -> Tensors:
    # Stationarity: A' (b - A u) is lambda sign(u) on the support, and smaller off it.
    support = subset(generator, batch, columns, min(rows, (columns + 1) // 2))
    sign, weight = signs(generator, batch, columns), uniform(generator, batch)
    u = sign * uniform(generator, batch, columns) * support
    off_support = uniform(generator, batch, columns, low=0.0, high=0.8)
    correlation = weight.unsqueeze(1) * sign * torch.where(support, 1.0, off_support)
    residual = normal(generator, batch, rows)
    A = _matrix_with(correlation, residual, generator)
    return A, times(A, u) + residual, weight


def _weighted_example(rows: int, columns: int, batch: int, generator: torch.Generator) -> Tensors:
    A, b = normal(generator, batch, rows, columns), normal(generator, batch, rows)
    return A, b, uniform(generator, batch, rows)


def _ridge_example(rows: int, columns: int, batch: int, generator: torch.Generator) -> Tensors:
    A, b = normal(generator, batch, rows, columns), normal(generator, batch, rows)
    return A, b, uniform(generator, batch)


def _sphere_example(rows: int, columns: int, batch: int, generator: torch.Generator) -> Tensors:
    # Stationarity: A' (b - A u) = nu u; a positive nu belongs to the global solution.
    u = torch.nn.functional.normalize(normal(generator, batch, columns), dim=1)
    residual = normal(generator, batch, rows)
    A = _matrix_with(uniform(generator, batch, 1) * u, residual, generator)
    return A, times(A, u) + residual
