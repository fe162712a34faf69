"""What a comparison found: plain data, so that it can be saved, read back and compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import RenderableType

# A gradient that is further off than this is not worth having.
WRONG = 1e-3


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a time over the repeats, in seconds."""

    median: float
    low: float
    high: float

    def overlaps(self, other: Spread) -> bool:
        """The interquartile ranges have a point in common: no difference beyond the noise."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Errors:
    """Typical (median) and worst error over the elements that count."""

    median: float
    worst: float


@dataclass(frozen=True)
class GradientError:
    """Error of the gradient with respect to one parameter.

    Attributes:
        relative: ``|g - r| / |r|`` for gradient ``g`` and reference ``r`` of each element, see
            :func:`ddn_cvx.comparison.metrics.relative_error`.
        cosine: smallest cosine between ``g`` and ``r``; None where the reference is zero.
        wrong: number of elements whose relative error is above 1e-3.
    """

    relative: Errors
    cosine: float | None
    wrong: int


@dataclass(frozen=True)
class Row:
    """One solver with one adjoint.

    Attributes:
        solver: name of the solver; "cvxpylayers" for the peer's own layer.
        adjoint: name of the adjoint; for the peer, its settings.
        is_default: what the layer chooses by itself.
        error: first line of the error that this row raised, else None. The figures are then None.
        failures: elements without a finite answer and gradient, among those that have a solution.
            They are left out of the error figures.
        objective: relative gap to the reference's objective.
        violation: largest constraint violation, absolute.
        solution: relative gap to the reference's solution.
        gradients: for each parameter, by name.
        forward, backward, total: times of one pass over the whole batch.
        compile_seconds: time to build the layer.
        repeats: how many times were taken.
        peak_memory: bytes above what was held before the call.
        note: first warning that the row gave, else None.
    """

    solver: str
    adjoint: str
    is_default: bool = False
    error: str | None = None
    failures: int = 0
    objective: Errors | None = None
    violation: Errors | None = None
    solution: Errors | None = None
    gradients: Mapping[str, GradientError] = field(default_factory=dict)
    forward: Spread | None = None
    backward: Spread | None = None
    total: Spread | None = None
    compile_seconds: float | None = None
    repeats: int = 0
    peak_memory: int | None = None
    note: str | None = None

    @property
    def label(self) -> str:
        """Solver and adjoint, for people."""
        return f"{self.solver} {self.adjoint}"

    @property
    def gradient_error(self) -> float | None:
        """Worst relative gradient error over parameters and elements."""
        return max((entry.relative.worst for entry in self.gradients.values()), default=None)

    @property
    def worst_parameter(self) -> str | None:
        """The parameter with the worst gradient error."""
        return max(
            self.gradients, key=lambda name: self.gradients[name].relative.worst, default=None
        )

    @property
    def wrong(self) -> int:
        """Elements with a gradient error above 1e-3, for the parameter with the worst error."""
        name = self.worst_parameter
        return 0 if name is None else self.gradients[name].wrong

    @property
    def cosine(self) -> float | None:
        """Smallest cosine over the parameters."""
        known = [entry.cosine for entry in self.gradients.values() if entry.cosine is not None]
        return min(known, default=None)

    @property
    def worst_error(self) -> float:
        """Worst relative error of solution and gradients; infinity where nothing was found."""
        known = [self.gradient_error, self.solution.worst if self.solution else None]
        return max((value for value in known if value is not None), default=float("inf"))

    def is_correct(self, tolerance: float) -> bool:
        """No error, no failures, and solution and gradients within ``tolerance``."""
        return self.error is None and self.failures == 0 and self.worst_error <= tolerance


@dataclass(frozen=True)
class ProblemSummary:
    """What was solved.

    Attributes:
        name: of the declaration.
        summary: of the declaration.
        parameters: shape of each parameter, by name.
        variables: shape of each returned variable, by name.
        batch: number of elements.
        seed: of the example inputs; None if the inputs were given.
        dtype: of the tensors that the rows were given.
        device: of the same.
    """

    name: str
    summary: str
    parameters: Mapping[str, tuple[int, ...]]
    variables: Mapping[str, tuple[int, ...]]
    batch: int
    seed: int | None
    dtype: str
    device: str


@dataclass(frozen=True)
class ReferenceSummary:
    """What the rows are held against, and how good it is itself.

    Attributes:
        method: "closed form", "exact KKT derivative" or "central differences".
        residual: largest relative KKT residual of the reference's solutions, None if unknown.
        agreement: largest relative disagreement between the reference's directional derivatives
            and central differences, over the confirmed elements; None if there are none.
        directions: number of random directions.
        elements: size of the batch.
        unsolved: elements that have no solution; they are left out of every figure.
        unconfirmed: elements where central differences disagree (the solution has a kink nearby);
            they are left out of the gradient figures.
    """

    method: str
    residual: float | None
    agreement: float | None
    directions: int
    elements: int
    unsolved: int
    unconfirmed: int

    @property
    def solved(self) -> int:
        """Elements that have a solution."""
        return self.elements - self.unsolved

    @property
    def text(self) -> str:
        """For people."""
        quality = "" if self.residual is None else f" (KKT residual {self.residual:.0e})"
        parts = [f"reference: {self.method} in float64{quality}"]
        if self.agreement is not None:
            parts.append(
                f"it agrees with central differences to {self.agreement:.0e} along "
                f"{self.directions} random directions"
            )
        if self.unsolved:
            parts.append(f"{self.unsolved} of {self.elements} elements have no solution")
        if self.unconfirmed:
            parts.append(
                f"on {self.unconfirmed} of {self.elements} elements central differences disagree "
                "(a kink nearby): these are left out of the gradient errors"
            )
        return "; ".join(parts)


@dataclass(frozen=True)
class Comparison:
    """Solvers and adjoints side by side; print it, plot it, save it.

    Attributes:
        problem: what was solved.
        reference: what the rows are held against.
        rows: one for each solver with each adjoint.
        environment: versions, device, threads.
        tolerance: what counts as correct, for solution and gradient.

    Example:
        >>> import ddn_cvx as ddn
        >>> from ddn_cvx.problems import orthant_projection
        >>> comparison = ddn.compare(orthant_projection(n=3), solvers=["CLARABEL"], batch=4)
        >>> comparison.default.gradient_error < 1e-5
        True
    """

    problem: ProblemSummary
    reference: ReferenceSummary
    rows: tuple[Row, ...]
    environment: Mapping[str, str]
    tolerance: float

    @property
    def default(self) -> Row | None:
        """The row of what the layer chooses by itself."""
        return next((row for row in self.rows if row.is_default), None)

    @property
    def correct(self) -> tuple[Row, ...]:
        """Rows that are right to the tolerance, fastest first."""
        timed = [
            (row.total.median, number, row)
            for number, row in enumerate(self.rows)
            if row.is_correct(self.tolerance) and row.total is not None
        ]
        return tuple(row for _, _, row in sorted(timed, key=lambda entry: entry[:2]))

    @property
    def fastest(self) -> Row | None:
        """The fastest correct row: the unit of the printed times."""
        return self.correct[0] if self.correct else None

    @property
    def verdict(self) -> str:
        """In words: which to use and why, which to avoid and why."""
        from ddn_cvx.comparison.verdict import verdict

        return verdict(self)

    def row(self, solver: str, adjoint: str) -> Row:
        """The row of a solver and an adjoint.

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if (row.solver, row.adjoint) == (solver, adjoint):
                return row
        raise KeyError(f"no row {solver} {adjoint}; rows: {', '.join(r.label for r in self.rows)}")

    def __str__(self) -> str:
        from ddn_cvx.comparison.table import plain

        return plain(self)

    def __rich__(self) -> RenderableType:
        from ddn_cvx.comparison.rich_table import Fitted

        return Fitted(self)

    def to_json(self, path: str | Path | None = None) -> str:
        """Everything as JSON, times in seconds; written to ``path`` if given."""
        from ddn_cvx.comparison.export import as_json

        return _written(as_json(self), path)

    def to_csv(self, path: str | Path | None = None) -> str:
        """One line for each row and parameter as CSV; written to ``path`` if given."""
        from ddn_cvx.comparison.export import as_csv

        return _written(as_csv([self]), path)

    def to_markdown(self, path: str | Path | None = None) -> str:
        """The table, the reference and the verdict in Markdown; written to ``path`` if given."""
        from ddn_cvx.comparison.table import markdown

        return _written(markdown(self), path)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read back what :meth:`to_json` wrote."""
        from ddn_cvx.comparison.export import from_json

        return from_json(cls, text)

    def plot(self, path: str | Path) -> None:
        """Draw gradient error against time, one marker for each row; format by file name."""
        from ddn_cvx.comparison.figure import save

        save([self], path)


def _written(text: str, path: str | Path | None) -> str:
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text
