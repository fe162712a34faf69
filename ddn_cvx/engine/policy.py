"""Errors and warnings about elements that could not be solved."""

from __future__ import annotations

import functools
import math

import torch

from ddn_cvx.batch.policy import enforce
from ddn_cvx.errors import InaccurateWarning
from ddn_cvx.solution import Solution, SolveError
from ddn_cvx.solvers.answer import Answer
from ddn_cvx.status import Status

_LISTED = 10


def solve_error(solution: Solution) -> SolveError:
    """The error of a batch with failing elements; also a ``diffcp.SolverError``."""
    import diffcp

    class ConeSolveError(SolveError, diffcp.SolverError):  # type: ignore[misc]
        """Raised in cvxpylayers' stead: code that catches diffcp's error keeps working."""

    ConeSolveError.__name__ = ConeSolveError.__qualname__ = "SolveError"
    failing = (solution.status != Status.SOLVED).nonzero().tolist()
    elements = tuple(tuple(index) for index in failing)
    return ConeSolveError(_message(solution, elements), solution, elements)


def _message(solution: Solution, elements: tuple[tuple[int, ...], ...]) -> str:
    status = solution.status
    if status.ndim == 0:
        lines = [f"The problem could not be solved: {_described(solution, ())}."]
    else:
        lines = [f"{len(elements)} of {status.numel()} elements could not be solved:"]
        lines += [
            f"  element {index[0] if len(index) == 1 else index}: {_described(solution, index)}"
            for index in elements[:_LISTED]
        ]
        if len(elements) > _LISTED:
            lines.append(f"  and {len(elements) - _LISTED} more")
    kinds = sorted({int(status[index]) for index in elements})
    lines += [f"{Status(kind).name}: {Status(kind).message}." for kind in kinds]
    if status.ndim:
        lines.append(
            'The solved elements are in this error\'s .solution; on_failure="nan" returns NaN for '
            "the failing ones and leaves the others as they are."
        )
    return "\n".join(lines)


def _described(solution: Solution, index: tuple[int, ...]) -> str:
    residual = float(solution.residual[index])
    note = f", residual {residual:.1e}" if math.isfinite(residual) else ""
    return f"{Status(int(solution.status[index])).name}{note}"


def count_by_status(status: torch.Tensor) -> dict[Status, int]:
    """How many elements have each status other than solved."""
    counts = {member: int((status == member).sum()) for member in Status}
    return {member: count for member, count in counts.items() if count and member != Status.SOLVED}


def enforce_on_answer(
    answer: Answer, failed: torch.Tensor, on_failure: str, *, limited: bool = False
) -> None:
    """The failure policy of a forward pass.

    Args:
        failed: elements without a solution, bool, shape ``(B,)``.
        limited: the user limited the work: elements that stopped short are no failures, and are
            warned of whatever the policy.

    Raises:
        ElementsFailed: to be turned into a :class:`~ddn_cvx.SolveError`.
    """
    if answer.known_solved:
        return
    if on_failure == "raise":
        enforce(failed, on_failure, lambda: ElementsFailed(answer), InaccurateWarning)
    if on_failure == "warn" or limited:
        unsolved = answer.status != Status.SOLVED
        warning = functools.partial(unsolved_warning, answer.status)
        enforce(unsolved, "warn", lambda: ElementsFailed(answer), warning)


class ElementsFailed(Exception):
    """Carries the answers of a batch with failures out of the solution map."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer


def unsolved_warning(status: torch.Tensor) -> InaccurateWarning:
    """Counts the elements that were not solved."""
    counts = count_by_status(status)
    said = "; ".join(f"{count} {kind.name}: {kind.message}" for kind, count in counts.items())
    return InaccurateWarning(
        f"{sum(counts.values())} of {status.numel()} elements were not solved to the requested "
        f"accuracy ({said})."
    )
