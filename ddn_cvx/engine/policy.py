"""What is said about elements that could not be solved."""

from __future__ import annotations

import math
import warnings

import torch

from ddn_cvx.errors import InaccurateWarning
from ddn_cvx.solution import Solution, SolveError
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


def warn_of_failures(status: torch.Tensor) -> None:
    """One :class:`~ddn_cvx.InaccurateWarning` that counts the elements that were not solved."""
    counts = count_by_status(status)
    if not counts:
        return
    said = "; ".join(f"{count} {kind.name}: {kind.message}" for kind, count in counts.items())
    warnings.warn(
        f"{sum(counts.values())} of {status.numel()} elements were not solved to the requested "
        f"accuracy ({said}).",
        InaccurateWarning,
        stacklevel=2,
    )
