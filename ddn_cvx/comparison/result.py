"""The figures of a comparison: plain data, and the rows derived from them.

Everything that shows a comparison (tables, files, figure, verdict) reads this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Relative error above which a row is advised against: a descent step along such a gradient, or a
# prediction made of such a solution, is off in its third digit.
WRONG_ERROR = 1e-3


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
        is_default: the layer chooses this solver with this adjoint by itself.
        error: first line of the error that this row raised, else None. The figures are then None.
        answers: number of elements that each solver answered, by its name, among the elements with
            an answer: a layer's solver hands the elements that it cannot solve on to other solvers.
            Empty for the peer, which does not say.
        failures: elements without a finite answer and gradient, among those that have a solution.
            They are left out of the error figures.
        objective: relative gap to the reference's objective.
        violation: largest constraint violation, absolute.
        solution: relative gap to the reference's solution.
        gradients: for each parameter, by name.
        forward, backward, total: times of one pass over the whole batch.
        compile_seconds: time to build the layer.
        repeats: number of timed passes.
        peak_memory: bytes above those held before the call.
        note: first warning that the row gave, else None.
    """

    solver: str
    adjoint: str
    is_default: bool = False
    error: str | None = None
    answers: Mapping[str, int] = field(default_factory=dict)
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
    def by_others(self) -> str:
        """``25% by CLARABEL``: the share of the answers that other solvers gave; "" if none."""
        shares = (
            f"{max(1, round(100 * count / sum(self.answers.values())))}% by {name}"
            for name, count in self.answers.items()
            if name != self.solver
        )
        return ", ".join(shares)

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
        """Worst relative error of solution and gradients; infinity without any answer."""
        known = [self.gradient_error, self.solution.worst if self.solution else None]
        return max((value for value in known if value is not None), default=float("inf"))

    def is_correct(self, tolerance: float) -> bool:
        """No error, no failures, and solution and gradients within ``tolerance``.

        A row whose answers were all given by other solvers is not correct, however small its
        errors are: they say nothing about the row's own solver.
        """
        others_only = bool(self.answers) and self.solver not in self.answers
        within = self.error is None and self.failures == 0 and self.worst_error <= tolerance
        return within and not others_only


@dataclass(frozen=True)
class Refusal:
    """A solver that does not take the problem with some adjoints: there is nothing to time.

    Attributes:
        solver: name of the solver.
        adjoints: names of the adjoints; each asks for a program of its own form.
        reason: in words.
    """

    solver: str
    adjoints: tuple[str, ...]
    reason: str

    @property
    def label(self) -> str:
        """Solver and adjoints, for people."""
        return f"{self.solver} {'/'.join(self.adjoints)}"


@dataclass(frozen=True)
class ProblemSummary:
    """The problem and its batch.

    Attributes:
        name: of the declaration.
        summary: of the declaration.
        parameters: shape of each parameter, by name.
        variables: shape of each returned variable, by name.
        batch: number of elements.
        seed: of the example inputs; None if the inputs were given.
        dtype: of the rows' inputs.
        device: of the rows' inputs.
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
    """The reference of all errors, and its own accuracy.

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
class Result:
    """All figures of one comparison.

    Attributes:
        problem: the problem and its batch.
        reference: the reference of all errors.
        rows: one for each solver with each adjoint.
        environment: versions, device, threads.
        tolerance: largest relative error of solution and gradient that counts as correct.
        refusals: solvers that do not take the problem, with the reason.
    """

    problem: ProblemSummary
    reference: ReferenceSummary
    rows: tuple[Row, ...]
    environment: Mapping[str, str]
    tolerance: float
    refusals: tuple[Refusal, ...] = ()

    @property
    def default(self) -> Row | None:
        """The row of the layer's own choice."""
        return next((row for row in self.rows if row.is_default), None)

    @property
    def correct(self) -> tuple[Row, ...]:
        """Rows that are right to the tolerance, fastest first."""
        correct = [row for row in self.rows if row.total and row.is_correct(self.tolerance)]
        return tuple(sorted(correct, key=_median_time))

    @property
    def fastest(self) -> Row | None:
        """The fastest correct row: the unit of the printed times."""
        return next(iter(self.correct), None)

    @property
    def ties(self) -> tuple[Row, ...]:
        """Further correct rows whose time differs from the fastest's by no more than the noise."""
        correct = [(row, row.total) for row in self.correct if row.total is not None]
        return tuple(row for row, total in correct[1:] if total.overlaps(correct[0][1]))

    @property
    def ordered(self) -> list[Row]:
        """Correct rows, fastest first; then the others, most accurate first; then errors."""
        correct = list(self.correct)
        rest = [row for row in self.rows if row not in correct]
        rest.sort(key=lambda row: (row.error is not None, row.failures, row.gradient_error or 0.0))
        return correct + rest

    @property
    def unit_seconds(self) -> float | None:
        """Median total time of the fastest correct row; of the fastest row, if none is correct."""
        timed = [self.fastest] if self.fastest else [row for row in self.rows if row.total]
        return min(map(_median_time, timed), default=None)

    def time_ratio(self, row: Row, time: str = "total") -> float | None:
        """Median time (forward, backward or total) as a multiple of :attr:`unit_seconds`."""
        spread, unit = getattr(row, time), self.unit_seconds
        return None if spread is None or unit is None else spread.median / unit

    def row(self, solver: str, adjoint: str) -> Row:
        """The row of a solver and an adjoint.

        Raises:
            KeyError: there is none; the message lists the rows, or says why the solver refused.
        """
        for row in self.rows:
            if (row.solver, row.adjoint) == (solver, adjoint):
                return row
        for refusal in self.refusals:
            if refusal.solver == solver and adjoint in refusal.adjoints:
                raise KeyError(f"no row {solver} {adjoint}: {refusal.reason}")
        raise KeyError(f"no row {solver} {adjoint}; rows: {', '.join(r.label for r in self.rows)}")


def _median_time(row: Row) -> float:
    return row.total.median if row.total else float("inf")
