"""The verdict in words, made from the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddn_cvx.comparison import words
from ddn_cvx.comparison.result import WRONG

if TYPE_CHECKING:
    from ddn_cvx.comparison.result import Comparison, Row

# A correct row that takes this many times as long as the fastest is called slow.
_SLOW = 5.0


def verdict(comparison: Comparison) -> str:
    """Which to use and why, which to avoid and why; one sentence a line."""
    lines = [*_doubts(comparison), *_use(comparison), *_rough(comparison)]
    return "\n".join([*lines, *_avoid(comparison), *_slow(comparison), *_refused(comparison)])


def ties(comparison: Comparison) -> tuple[Row, ...]:
    """Correct rows whose time differs from the fastest's by no more than the noise."""
    fastest = comparison.fastest
    if fastest is None or fastest.total is None:
        return ()
    return tuple(
        row
        for row in comparison.correct[1:]
        if row.total is not None and row.total.overlaps(fastest.total)
    )


def time_ratio(comparison: Comparison, row: Row) -> float | None:
    """Median total time over that of the fastest correct row; of the fastest, if none is."""
    if row.total is None:
        return None
    timed = [entry for entry in comparison.rows if entry.total is not None]
    unit = comparison.fastest or min(timed, key=lambda e: e.total.median if e.total else 0.0)
    assert unit.total is not None
    return row.total.median / unit.total.median


def _doubts(comparison: Comparison) -> list[str]:
    reference = comparison.reference
    if reference.unconfirmed == reference.solved:
        return ["No verdict on gradients: central differences confirm the reference nowhere."]
    if reference.agreement is not None and reference.agreement > comparison.tolerance:
        return [
            "The reference is itself confirmed only to "
            f"{words.error(reference.agreement)}: smaller errors mean nothing."
        ]
    return []


def _use(comparison: Comparison) -> list[str]:
    fastest, default = comparison.fastest, comparison.default
    if fastest is None:
        return [f"None is right to {words.error(comparison.tolerance)} on every element."]
    tied = ties(comparison)
    first = default if default is not None and default in tied else fastest
    name = f"{first.label} (the layer's default)" if first.is_default else first.label
    count = comparison.reference.solved
    where = f"all {count} elements" if count > 1 else "the element"
    what = "gradient" if first.gradients else "solution"
    speed = "among the fastest" if tied else "the fastest"
    lines = [f"Use {name}: its {what} is {_accuracy(first)} on {where}, and it is {speed}."]
    others = [row for row in (fastest, *tied) if row is not first]
    if others:
        lines.append(f"A tie within the noise of the clock: {words.labels(others)}.")
    if default is not None and default is not first and default in comparison.correct:
        ratio = words.ratio(time_ratio(comparison, default))
        lines.append(
            f"The default, {default.label}, is {_accuracy(default)} as well and takes "
            f"{ratio} times as long."
        )
    return lines


def _accuracy(row: Row) -> str:
    error = row.gradient_error if row.gradients else row.worst_error
    return f"right to {words.error(error)}" if error else "exact"


def _rough(comparison: Comparison) -> list[str]:
    """Between the tolerance and what is called wrong."""
    said = [
        f"{row.label} ({words.error(row.worst_error)})"
        for row in comparison.rows
        if not row.failures and comparison.tolerance < row.worst_error <= WRONG
    ]
    return [f"Less accurate: {words.listed(said)}."] if said else []


def _avoid(comparison: Comparison) -> list[str]:
    lines = []
    for row in comparison.rows:
        if row.error is not None:
            continue
        reasons = []
        if row.failures:
            reasons.append(f"{row.failures} of {comparison.reference.solved} elements failed")
        if (row.gradient_error or 0.0) > WRONG:
            elements = "1 element" if row.wrong == 1 else f"{row.wrong} elements"
            where = f"in {row.worst_parameter}, above {WRONG:.0e} on {elements}"
            reasons.append(f"its gradient is off by {words.error(row.gradient_error)} ({where})")
        elif row.solution is not None and row.solution.worst > WRONG:
            reasons.append(f"its solution is off by {words.error(row.solution.worst)}")
        if reasons:
            ratio = time_ratio(comparison, row)
            if ratio is not None and ratio > _SLOW:
                reasons.append(f"it takes {words.ratio(ratio)} times as long")
            lines.append(f"Avoid {row.label}: {words.listed(reasons)}.")
    return lines


def _slow(comparison: Comparison) -> list[str]:
    slow = [
        (row, ratio)
        for row in comparison.correct
        if (ratio := time_ratio(comparison, row)) is not None and ratio > _SLOW
    ]
    if not slow:
        return []
    low, high = words.ratio(slow[0][1]), words.ratio(slow[-1][1])
    times = f"{low} times" if low == high else f"{low} to {high} times"
    return [f"Right, but takes {times} as long: {words.labels([row for row, _ in slow])}."]


def _refused(comparison: Comparison) -> list[str]:
    """Rows with an error, those with the same one together."""
    refused: dict[str, list[Row]] = {}
    for row in comparison.rows:
        if row.error is not None:
            refused.setdefault(row.error, []).append(row)
    return [f"No answer from {words.labels(rows)}: {error}" for error, rows in refused.items()]
