"""The solution of a batch, its residuals and proofs, and the error that carries it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ddn_cvx.batch.elements import mapped
from ddn_cvx.status import Status

if TYPE_CHECKING:
    from ddn_cvx.declaration import Declaration

Multipliers = torch.Tensor | tuple[torch.Tensor, ...] | None


class Certificate(Protocol):
    """The solution in the compiled program's own terms, by which a :class:`Solution` checks itself.

    One batch dimension; values and residuals have shape ``(B, ...)`` and ``(B,)``.
    """

    def variables(self) -> list[torch.Tensor]:
        """Values of ``problem.variables()``."""

    def stationarity(self) -> torch.Tensor:
        """Largest entry of the Lagrangian's gradient."""

    def complementarity(self) -> torch.Tensor:
        """``|<s, y>|``."""

    def objective(self) -> torch.Tensor:
        """The program's objective."""

    def violation(self) -> torch.Tensor:
        """Largest violation of the program's constraints."""


@dataclass(frozen=True, eq=False)
class InfeasibilityCertificate:
    """Why elements have no solution, in a form that anyone can check.

    An infeasible element's proof is a set of multipliers ``y``: with ``g(x)`` what is on the left
    of the constraints when these are written ``g(x) <= 0``, ``g(x) == 0`` or ``-g(x) in K``,

        sum <y, g(x)> >= 1 for every x,   y >= 0, y free, or y in K*,

    while a feasible ``x`` would have at most zero there (Farkas' lemma). An unbounded element's
    proof is a direction ``d``: from any feasible ``x``, ``x + t d`` is feasible for all ``t >= 0``,
    and the objective there is better by at least ``t``. In the canonical form
    (:mod:`ddn_cvx.programs.cone.program`) these are ``A' y = 0, y in K*, b' y = -1`` and ``P d = 0,
    -A d in K, q' d = -1``. Boyd and Vandenberghe, "Convex optimization" (2004), section 5.8.

    Attributes:
        dual: multipliers of each of ``problem.constraints``, shaped and signed as
            :attr:`Solution.dual`; float64, NaN for elements that are not infeasible.
        direction: one tensor of shape ``(*batch, *variable.shape)`` for each of
            ``problem.variables()``; float64, NaN for elements that are not unbounded. For geometric
            programs it is a direction of the variables' logarithms.
        residual: largest violation of the canonical form's conditions; float64, ``(*batch,)``.
            For an infeasible element it bounds what the proof excludes: every ``x`` whose entries'
            absolute values add up to less than ``1 / residual``. Infinite where a solver claims
            that there is no solution and gives no proof, NaN for elements of another status.

    Example:
        >>> import cvxpy as cp, torch, ddn_cvx as ddn
        >>> u, low = cp.Variable(2), cp.Parameter(2)
        >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(u)), [u >= low, cp.sum(u) <= 1])
        >>> layer = ddn.DeclarativeLayer(problem, parameters=[low], variables=[u])
        >>> proof = layer.solve(torch.tensor([[0.0, 0.0], [1.0, 2.0]])).certificate()
        >>> above, below = (dual[1] for dual in proof.dual)  # of the two constraints
        >>> above, below  # times u >= low and sum(u) <= 1, added up: 1.5 <= 0.5
        (tensor([0.5000, 0.5000], dtype=torch.float64), tensor(0.5000, dtype=torch.float64))
        >>> proof.residual[0], bool(proof.residual[1] < 1e-6)  # the first element has a solution
        (tensor(nan, dtype=torch.float64), True)
    """

    dual: tuple[Multipliers, ...]
    direction: tuple[torch.Tensor, ...]
    residual: torch.Tensor


@dataclass(frozen=True, eq=False)
class Solution:
    """Detached primal values and multipliers of a batch, with a status for each element.

    Attributes:
        primal: one tensor of shape ``(*batch, *variable.shape)`` for each variable the layer
            returns; NaN for elements without a solution, of which :meth:`certificate` has the
            proofs.
        dual: the multipliers of each of ``problem.constraints``: a tensor, a tuple of tensors for a
            constraint with several dual variables (second-order, exponential cones), or None where
            cvxpy does not report them. Signs are cvxpy's.
        status: :class:`~ddn_cvx.Status` of each element, int64, shape ``(*batch,)``.
        residual: relative KKT residual (the largest of stationarity, feasibility,
            complementarity), float64, shape ``(*batch,)``.
        iterations: of the solver that gave the element's answer, int64, shape ``(*batch,)``.
        degenerate: a constraint is active with a zero multiplier, so that the derivative is only
            one-sided; bool, shape ``(*batch,)``.
        solver: name of the solver that gave each element's answer, in row-major order.
        degeneracy: :class:`~ddn_cvx.Degeneracy` flags of each element, int64, shape ``(*batch,)``;
            None for cone programs.
        runner_up: with several starts, by how much the objective of the next best local solution
            is higher, relative to one plus the best; infinite where all starts agree; None for
            cone programs.

    Example:
        >>> import cvxpy as cp, torch, ddn_cvx as ddn
        >>> u, x = cp.Variable(2), cp.Parameter(2)
        >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [u >= 0])
        >>> layer = ddn.DeclarativeLayer(problem, parameters=[x], variables=[u])
        >>> solution = layer.solve(torch.tensor([[1.0, -1.0], [2.0, 3.0]]))
        >>> solution.status.tolist(), solution.primal[0].shape
        ([0, 0], torch.Size([2, 2]))
        >>> bool((solution.violation() < 1e-8).all())
        True
    """

    primal: tuple[torch.Tensor, ...]
    dual: tuple[Multipliers, ...]
    status: torch.Tensor
    residual: torch.Tensor
    iterations: torch.Tensor
    degenerate: torch.Tensor
    solver: tuple[str, ...] = ()
    degeneracy: torch.Tensor | None = None
    runner_up: torch.Tensor | None = None
    _declaration: Declaration | None = field(default=None, repr=False)
    _inputs: tuple[torch.Tensor, ...] = field(default=(), repr=False)
    _certificate: Certificate | None = field(default=None, repr=False)

    @property
    def solved(self) -> torch.Tensor:
        """Which elements were solved; bool, shape ``(*batch,)``."""
        return self.status == Status.SOLVED

    def objective(self) -> torch.Tensor:
        """``problem.objective`` at the solution, evaluated by cvxpy; float64, ``(*batch,)``."""
        return self._evaluate("objective", lambda problem: problem.objective.value)

    def violation(self) -> torch.Tensor:
        """Largest violation of ``problem.constraints``, evaluated by cvxpy; float64, ``(*batch,)``.

        A variable's own attributes (``nonneg=True``, ``PSD=True``, ...) count as constraints.
        """
        return self._evaluate("violation", largest_violation)

    def stationarity(self) -> torch.Tensor:
        """Largest entry of the Lagrangian's gradient ``P x + q + A' y``; float64, ``(*batch,)``.

        In the canonical form (:mod:`ddn_cvx.programs`).
        """
        return self._shaped(self._require_certificate().stationarity())

    def complementarity(self) -> torch.Tensor:
        """``|<s, y>|``, slack times multiplier in the canonical form; float64, ``(*batch,)``."""
        return self._shaped(self._require_certificate().complementarity())

    def certificate(self) -> InfeasibilityCertificate:
        """Proofs that the infeasible and unbounded elements have no solution.

        Raises:
            ValueError: a nonlinear program or a foreign solver, which prove nothing.
        """
        refutation = getattr(self._certificate, "refutation", None)
        if refutation is None:
            raise ValueError(
                "Only cone programs solved by this package's own adapters come with proofs of "
                "infeasibility; a nonlinear program's status is that of a local search."
            )
        flat: InfeasibilityCertificate = refutation(self.status.reshape(-1))
        return mapped(lambda value: value.reshape((*self.status.shape, *value.shape[1:])), flat)

    def _require_certificate(self) -> Certificate:
        if self._certificate is None:
            raise ValueError(
                "This solution came from a foreign solver that reports no canonical solution; "
                "stationarity and complementarity are not available."
            )
        return self._certificate

    def _has_point(self) -> torch.Tensor:
        """Elements whose status comes with a point, flat."""
        status = self.status.reshape(-1)
        return (status < Status.INFEASIBLE) | (status == Status.SADDLE)

    def _shaped(self, values: torch.Tensor) -> torch.Tensor:
        flat = torch.where(self._has_point(), values, torch.nan)
        return flat.reshape(self.status.shape)

    def _evaluate(self, name: str, function: Callable[[Any], float]) -> torch.Tensor:
        """``function(problem)`` for each element; the certificate's ``name`` without a problem."""
        certificate, declaration = self._require_certificate(), self._declaration
        if declaration is None:
            return self._shaped(getattr(certificate, name)())
        problem = declaration.problem
        leaves = [*problem.variables(), *declaration.parameters]
        values = [*certificate.variables(), *self._inputs]
        (result,) = evaluated(problem, leaves, values, self._has_point(), function)
        return result.reshape(self.status.shape).to(self.status.device)


class SolveError(RuntimeError):
    """Elements of a batch could not be solved, and ``on_failure="raise"``.

    Attributes:
        solution: the :class:`~ddn_cvx.Solution` of the whole batch; elements that were solved
            carry their values, the others NaN.
        elements: index of each failing element in the batch's leading dimensions.

    Where diffcp is the engine, the error raised is also a ``diffcp.SolverError``, so that code
    written for cvxpylayers keeps working.
    """

    def __init__(
        self,
        message: str,
        solution: Solution | None = None,
        elements: tuple[tuple[int, ...], ...] = (),
    ) -> None:
        super().__init__(message)
        self.solution = solution
        self.elements = elements


def evaluated(
    problem: Any,
    leaves: Sequence[Any],
    values: Sequence[torch.Tensor],
    elements: torch.Tensor,
    *functions: Callable[[Any], float],
) -> list[torch.Tensor]:
    """Functions of a cvxpy problem for each element; float64, ``(B,)``, in host memory.

    Args:
        leaves: variables and parameters of the problem.
        values: ``(B, *leaf.shape)`` for each leaf.
        elements: where to evaluate; bool, ``(B,)``. The other elements get NaN.
    """
    results = [torch.full(elements.shape, torch.nan, dtype=torch.float64) for _ in functions]
    arrays = [value.detach().cpu().numpy() for value in values]
    with restored_values(leaves), quiet_sparse_values():
        for element in elements.nonzero()[:, 0].tolist():
            for leaf, array in zip(leaves, arrays, strict=True):
                leaf.save_value(array[element])
            for result, function in zip(results, functions, strict=True):
                result[element] = float(function(problem))
    return results


@contextmanager
def quiet_sparse_values() -> Iterator[None]:
    """Without cvxpy's warning that cvxpy itself reads the values of sparse variables."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Reading from a sparse CVXPY expression")
        yield


@contextmanager
def restored_values(leaves: Sequence[Any]) -> Iterator[None]:
    """Put back the user's own values: cvxpy evaluates expressions at its leaves' values."""
    saved = [leaf._value for leaf in leaves]
    try:
        yield
    finally:
        for leaf, value in zip(leaves, saved, strict=True):
            leaf._value = value


def largest_violation(problem: Any) -> float:
    """Largest violation of constraints and variables' attributes, at the leaves' own values."""
    import numpy as np

    worst = 0.0
    for constraint in problem.constraints:
        worst = max(worst, float(np.max(constraint.violation(), initial=0.0)))
    for variable in problem.variables():
        if variable.attributes["sparsity"]:  # other entries cannot even be stored
            continue
        nearest = variable.project(variable.value)
        if variable.attributes["diag"]:
            nearest = nearest.toarray()
        outside = np.abs(np.asarray(nearest) - variable.value)
        worst = max(worst, float(np.max(outside, initial=0.0)))
    return worst
