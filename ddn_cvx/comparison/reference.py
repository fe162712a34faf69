"""The reference of all errors: solution and gradient in float64, and their accuracy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch

from ddn_cvx.batch.differences import disagreement, gradient_by_differences, pulled, weighted
from ddn_cvx.batch.elements import select
from ddn_cvx.comparison.measure import Tensors
from ddn_cvx.comparison.metrics import evaluate
from ddn_cvx.comparison.result import ReferenceSummary
from ddn_cvx.declaration import Declaration
from ddn_cvx.errors import AdjointError, DeclarationError
from ddn_cvx.layer import DeclarativeLayer
from ddn_cvx.solvers.cone.clarabel import Clarabel

# Clarabel's tolerances, as tight as float64 allows: solutions come out with a relative KKT residual
# of 1e-14.
_TIGHT_SETTINGS = {"tol_gap_abs": 1e-14, "tol_gap_rel": 1e-14, "tol_feas": 1e-14}

# Largest relative disagreement with central differences of a gradient that counts as confirmed: the
# differences themselves are right to 1e-9 at regular points, and off by a tenth near a kink.
_CONFIRMED_DISAGREEMENT = 1e-4
# Random directions of the check: one may by chance be blind to an error, two hardly.
_DIRECTIONS = 2

# Elements that central differences of every entry may solve: about a minute of Clarabel.
_MOST_SOLVES = 300_000


@dataclass(frozen=True, eq=False)
class Reference:
    """Solution and gradient of each element; all float64, in host memory.

    Attributes:
        solution: ``(B, *variable.shape)`` for each variable that the user asked for.
        gradients: ``(B, *parameter.shape)`` for each parameter.
        objective: ``(B,)``.
        solved: elements that have a solution; bool, ``(B,)``.
        confirmed: elements whose gradient central differences confirm; bool, ``(B,)``.
        summary: in numbers and words.
    """

    solution: Tensors
    gradients: Tensors
    objective: torch.Tensor
    solved: torch.Tensor
    confirmed: torch.Tensor
    summary: ReferenceSummary


def with_all_variables(declaration: Declaration) -> Declaration:
    """The declaration with the problem's other variables after its own."""
    own = {variable.id for variable in declaration.variables}
    rest = [variable for variable in declaration.problem.variables() if variable.id not in own]
    return replace(declaration, variables=(*declaration.variables, *rest))


def find_reference(
    declaration: Declaration, inputs: Tensors, incoming: Tensors, *, seed: int = 0
) -> Reference:
    """Closed form, else the exact KKT derivative, else central differences.

    Each is checked against central differences along random directions, and the next is tried if
    it is not confirmed on at least half of the elements.

    Args:
        declaration: from :func:`with_all_variables`.
        inputs: ``(B, *parameter.shape)``, float64, in host memory.
        incoming: gradient ``v``, ``(B, *variable.shape)`` for each variable that the user asked
            for; they come first in ``declaration``.
        seed: of the random directions.

    Raises:
        DeclarationError: the problem cannot become a layer at all, or has no reference.
    """
    with warnings.catch_warnings(action="ignore"):
        return _Search(declaration, inputs, incoming, seed).best()


class _Search:
    """The attempts at a reference, with the tight layer and its solutions, which they share."""

    def __init__(
        self, declaration: Declaration, inputs: Tensors, incoming: Tensors, seed: int
    ) -> None:
        self.declaration, self.inputs, self.incoming = declaration, inputs, incoming
        self.seed = seed
        self.layer = _tight_layer(declaration)
        solution = self.layer.solve(*inputs)
        self.solved = solution.solved.reshape(-1)  # (B,)
        self.residual = _largest(solution.residual.reshape(-1)[self.solved])
        self.values = self._shaped(solution.primal)
        self.objective, _ = evaluate(declaration, inputs, self.values, self.solved)

    def _shaped(self, values: Tensors) -> Tensors:
        """Values of the first variables with a batch dimension, also without parameters."""
        return tuple(
            value.reshape(len(self.solved), *variable.shape)
            for value, variable in zip(values, self.declaration.variables, strict=False)
        )

    def best(self) -> Reference:
        """The first attempt that is confirmed on half of the elements, else the best of all."""
        best: Reference | None = None
        for method, attempt in self._attempts():
            try:
                solution, gradients = attempt()
            except (AdjointError, DeclarationError):
                continue
            candidate = self._checked(method, solution, gradients)
            confirmed = int(candidate.confirmed.sum())
            if best is None or confirmed > int(best.confirmed.sum()):
                best = candidate
            if 2 * confirmed >= int(self.solved.sum()):
                break
        if best is None:
            raise DeclarationError(
                "No reference gradient: the problem has no closed form and no exact KKT "
                "derivative here, and is too large for central differences."
            )
        return best

    def _attempts(self) -> Iterator[tuple[str, Callable[[], tuple[Tensors, Tensors]]]]:
        if self.declaration.closed_form is not None:
            closed_form = self.declaration.closed_form
            yield "closed form", partial(pulled, closed_form, self.inputs, self.incoming)
        yield "exact KKT derivative", partial(pulled, self.layer, self.inputs, self.incoming)
        yield "central differences", self._differences

    def _differences(self) -> tuple[Tensors, Tensors]:
        if 4 * sum(tensor.numel() for tensor in self.inputs) > _MOST_SOLVES:
            raise DeclarationError("too large for central differences")
        gradients = gradient_by_differences(
            weighted(self.layer, self.incoming), self.declaration.parameters, self.inputs
        )
        return self.values[: len(self.incoming)], tuple(gradients)

    def _checked(self, method: str, solution: Tensors, gradients: Tensors) -> Reference:
        solved = self.solved
        missed = torch.zeros(len(solved), dtype=torch.float64)
        if self.inputs and bool(solved.any()):
            missed[solved] = disagreement(
                weighted(self.layer, select(self.incoming, solved)),
                self.declaration.parameters,
                select(self.inputs, solved),
                select(gradients, solved),
                directions=_DIRECTIONS,
                seed=self.seed,
            )
        confirmed = solved & (missed <= _CONFIRMED_DISAGREEMENT)
        summary = ReferenceSummary(
            method=method,
            residual=self.residual,
            agreement=_largest(missed[confirmed]) if self.inputs else None,
            directions=_DIRECTIONS if self.inputs else 0,
            elements=len(solved),
            unsolved=int((~solved).sum()),
            unconfirmed=int((solved & ~confirmed).sum()),
        )
        shaped = self._shaped(solution)
        return Reference(shaped, gradients, self.objective, solved, confirmed, summary)


def _tight_layer(declaration: Declaration) -> DeclarativeLayer:
    try:
        return DeclarativeLayer(
            declaration,
            solver=Clarabel.name,
            adjoint="kkt",
            solver_args=_TIGHT_SETTINGS,
            on_failure="nan",
        )
    except DeclarationError:
        return DeclarativeLayer(declaration, on_failure="nan")


def _largest(values: torch.Tensor) -> float | None:
    finite = values[values.isfinite()]
    return float(finite.max()) if finite.numel() else None
