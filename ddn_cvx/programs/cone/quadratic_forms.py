"""Parametric quadratic forms for programs that cannot hold the matrix itself.

``quad_form(x, M)`` with a matrix ``M`` that depends on parameters fits only a quadratic objective.
Anywhere else it is replaced by ``sum_squares(F' x)`` with a new parameter ``F``, where ``F F' = M``
is computed in torch, differentiably. (cvxpy itself would keep the value that ``M`` had when the
problem was compiled.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ddn_cvx.errors import DeclarationError
from ddn_cvx.linalg.triangle import from_upper_triangle
from ddn_cvx.programs.translation import TorchFunction, TranslationError, translate

if TYPE_CHECKING:
    import cvxpy as cp

# A negative eigenvalue of up to this share of the largest (or of one) counts as rounding: that of
# float32 inputs, or the step of a finite difference.
_NEGATIVE = 1e-4

# An eigenvalue of up to this share of the largest counts as zero; float64 rounds at 2e-16.
_ZERO = 1e-12


@dataclass(frozen=True, eq=False)
class Factor:
    """A new parameter ``F`` with ``F F' = sign * matrix``.

    Attributes:
        parameter: the new parameter, shape ``(n, n)``.
        matrix: as a function of the user's parameters.
        sign: -1 where the matrix is negative semidefinite.
    """

    parameter: cp.Parameter
    matrix: TorchFunction
    sign: float


@dataclass(frozen=True, eq=False)
class FactoredProblem:
    """A problem whose parametric quadratic forms are sums of squares.

    Attributes:
        problem: the rewritten problem; its variables are the user's.
        given: the user's parameters, in the order of the declaration.
        kept: those of them that still appear in ``problem``.
        factors: the new parameters; ``problem``'s parameters are ``kept`` and these.
        duals: the rewritten dual variable for each of the user's, by id.
    """

    problem: cp.Problem
    given: tuple[cp.Parameter, ...]
    kept: tuple[cp.Parameter, ...]
    factors: tuple[Factor, ...]
    duals: dict[int, cp.Variable]

    @property
    def parameters(self) -> tuple[cp.Parameter, ...]:
        """Parameters of the rewritten problem, in the order in which :meth:`lift` gives them."""
        return (*self.kept, *(factor.parameter for factor in self.factors))

    def lift(
        self, tensors: Sequence[torch.Tensor]
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Values of :attr:`parameters` from those of :attr:`given`, and the indefinite elements.

        Args:
            tensors: shape ``(B, *parameter.shape)``, float64.

        Returns:
            Tensors of shape ``(B, *parameter.shape)``, and a mask of shape ``(B,)`` of the elements
            whose matrix is not semidefinite; they get the factor zero.
        """
        # Symmetric parameters are read from their upper triangle, as cvxpylayers reads them.
        values = [
            from_upper_triangle(tensor) if p.is_symmetric() and tensor.ndim == 3 else tensor
            for p, tensor in zip(self.given, tensors, strict=True)
        ]
        by_id = {p.id: value for p, value in zip(self.given, values, strict=True)}
        lifted = [by_id[parameter.id] for parameter in self.kept]
        bad = torch.zeros(tensors[0].shape[0], dtype=torch.bool, device=tensors[0].device)
        for factor in self.factors:
            matrix = factor.sign * factor.matrix(*values)
            symmetric = (matrix + matrix.mT) / 2
            eigenvalues = torch.linalg.eigvalsh(torch.nan_to_num(symmetric.detach()))
            size = eigenvalues.abs().amax(1).clamp_min(1.0)
            indefinite = eigenvalues[:, 0] < -_NEGATIVE * size
            bad = bad | indefinite | ~symmetric.detach().flatten(1).isfinite().all(1)
            usable = torch.where(bad[:, None, None], 0.0, symmetric)
            lifted.append(semidefinite_factor(usable))
        return tuple(lifted), bad


def factor_quadratic_forms(
    problem: cp.Problem, parameters: Sequence[cp.Parameter]
) -> FactoredProblem | None:
    """Replace every quadratic form with a parametric matrix; None if there is none.

    Args:
        problem: the user's problem.
        parameters: its parameters, in the order of the declaration.

    Raises:
        DeclarationError: a matrix is neither known to be positive nor negative semidefinite, or
            has no torch counterpart.
    """
    import cvxpy as cp

    factors: list[Factor] = []
    objective = _rewritten(problem.objective.args[0], factors, parameters)
    constraints: list[cp.Constraint] = []
    duals: dict[int, cp.Variable] = {}
    for constraint in problem.constraints:
        arguments = [_rewritten(argument, factors, parameters) for argument in constraint.args]
        changed = any(a is not b for a, b in zip(arguments, constraint.args, strict=True))
        new = constraint.copy(arguments) if changed else constraint
        constraints.append(new)
        pairs = zip(constraint.dual_variables, new.dual_variables, strict=True)
        duals |= {old.id: dual for old, dual in pairs}
    if not factors:
        return None
    rewritten = cp.Problem(type(problem.objective)(objective), constraints)
    present = {parameter.id for parameter in rewritten.parameters()}
    kept = tuple(parameter for parameter in parameters if parameter.id in present)
    return FactoredProblem(rewritten, tuple(parameters), kept, tuple(factors), duals)


def _rewritten(expression: Any, factors: list[Factor], parameters: Sequence[cp.Parameter]) -> Any:
    """The expression with its parametric quadratic forms replaced; itself if it has none."""
    import cvxpy as cp
    from cvxpy.atoms.quad_form import QuadForm

    if not expression.args or not expression.parameters():
        return expression
    if isinstance(expression, QuadForm) and expression.args[1].parameters():
        vector, matrix = expression.args
        if not matrix.is_psd() and not matrix.is_nsd():
            raise DeclarationError(
                f"quad_form(x, M) needs a matrix that is known to be semidefinite; M = {matrix} is "
                "not. Declare its parameters with PSD=True or NSD=True."
            )
        sign = 1.0 if matrix.is_psd() else -1.0
        factor = cp.Parameter(matrix.shape, name=f"factor{len(factors)}")
        try:
            factors.append(Factor(factor, translate(matrix, parameters), sign))
        except TranslationError as error:
            raise DeclarationError(
                f"The matrix of a quad_form, {matrix}: {error} Make the matrix a parameter of its "
                "own, compute it in torch and pass it to the layer."
            ) from error
        return sign * cp.sum_squares(factor.T @ vector)
    arguments = [_rewritten(argument, factors, parameters) for argument in expression.args]
    if all(a is b for a, b in zip(arguments, expression.args, strict=True)):
        return expression
    return expression.copy(arguments)


def semidefinite_factor(matrix: torch.Tensor) -> torch.Tensor:
    """``F`` with ``F F' = matrix``, for positive semidefinite matrices, singular ones included.

    The gradient is right for functions that depend on ``F`` through ``F F'`` alone. Such a function
    has the gradient ``G = 2 S F`` with a symmetric ``S``, the gradient with respect to the matrix.
    With the pseudo-inverse ``F+`` and the projection ``R = F F+`` onto the matrix's range,
    ``X = G F+ / 2 = S R`` gives ``S = X + X' - R X`` but for the block of ``S`` that acts within
    the null space, which ``G`` does not hold and which is taken as zero: there, the matrix can
    only move one way.

    Args:
        matrix: symmetric, shape ``(B, n, n)``.

    Returns:
        Shape ``(B, n, n)``.
    """
    factor: torch.Tensor = _SemidefiniteFactor.apply(matrix)  # type: ignore[no-untyped-call]
    return factor


class _SemidefiniteFactor(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: torch.Tensor) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        factor: torch.Tensor = vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)
        return factor

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (factor,) = ctx.saved_tensors
        inverse = _column_inverse(factor)
        half = gradients[0] @ inverse / 2
        result: torch.Tensor = half + half.mT - factor @ (inverse @ half)
        return result

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor) -> torch.Tensor:
        # dF = (I - R / 2) dM F+' solves dF F' + F dF' = dM within the range of M.
        (factor,) = ctx.saved_tensors
        inverse = _column_inverse(factor)
        change = tangents[0]
        result: torch.Tensor = (change - factor @ (inverse @ change) / 2) @ inverse.mT
        return result


def _column_inverse(factor: torch.Tensor) -> torch.Tensor:
    """Pseudo-inverse of a matrix with orthogonal columns, some of them (nearly) zero."""
    square = (factor * factor).sum(-2, keepdim=True)  # the eigenvalues, (B, 1, n)
    largest = square.amax(-1, keepdim=True)
    nonzero = square > _ZERO * largest
    inverse = torch.where(nonzero, 1 / torch.where(nonzero, square, 1.0), 0.0)
    return (factor * inverse).mT
