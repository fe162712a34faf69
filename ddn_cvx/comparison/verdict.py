"""The verdict in words, made from the figures."""

from __future__ import annotations

from ddn_cvx.comparison import words
from ddn_cvx.comparison.result import WRONG_ERROR, Result, Row

# A row is called slow from this multiple of the fastest correct row's time on: a tie in a noisy
# measurement stays far below.
_SLOW_RATIO = 5.0


def verdict(result: Result) -> str:
    """Which row to use and why, which to avoid and why; one sentence a line."""
    parts = (_doubts, _use, _rough, helped, _avoid, _slow, unanswered)
    return "\n".join(sentence for part in parts for sentence in part(result))


def _doubts(result: Result) -> list[str]:
    reference = result.reference
    if reference.unconfirmed == reference.solved:
        return ["No verdict on gradients: central differences confirm the reference nowhere."]
    if reference.agreement is not None and reference.agreement > result.tolerance:
        return [
            "The reference is itself confirmed only to "
            f"{words.error(reference.agreement)}: smaller errors mean nothing."
        ]
    return []


def _use(result: Result) -> list[str]:
    fastest, default, ties = result.fastest, result.default, result.ties
    if fastest is None:
        return [f"None is right to {words.error(result.tolerance)} on every element."]
    first = default if default is not None and default in ties else fastest
    name = f"{first.label} (the layer's default)" if first.is_default else first.label
    count = result.reference.solved
    where = f"all {count} elements" if count > 1 else "the element"
    what = "gradient" if first.gradients else "solution"
    speed = "among the fastest" if ties else "the fastest"
    lines = [f"Use {name}: its {what} is {_accuracy(first)} on {where}, and it is {speed}."]
    others = [row for row in (fastest, *ties) if row is not first]
    if others:
        lines.append(f"A tie within the noise of the clock: {words.labels(others)}.")
    if default is not None and default is not first and default in result.correct:
        ratio = words.ratio(result.time_ratio(default))
        lines.append(
            f"The default, {default.label}, is {_accuracy(default)} as well and takes "
            f"{ratio} times as long."
        )
    return lines


def _accuracy(row: Row) -> str:
    error = row.gradient_error if row.gradients else row.worst_error
    return f"right to {words.error(error)}" if error else "exact"


def _rough(result: Result) -> list[str]:
    """Rows with errors between the tolerance and :data:`WRONG_ERROR`."""
    said = [
        f"{row.label} ({words.error(row.worst_error)})"
        for row in result.rows
        if not row.failures and result.tolerance < row.worst_error <= WRONG_ERROR
    ]
    return [f"Less accurate: {words.listed(said)}."] if said else []


def helped(result: Result) -> list[str]:
    """Rows that owe answers to other solvers, together where the shares are the same."""
    rows = words.grouped((row.by_others, row) for row in result.rows if row.by_others)
    said = [f"{words.labels(group)} ({shares})" for shares, group in rows.items()]
    return [f"Not all their own answers: {words.listed(said)}."] if said else []


def _avoid(result: Result) -> list[str]:
    reasons = {row.label: _reasons(result, row) for row in result.rows if row.error is None}
    return [f"Avoid {label}: {words.listed(given)}." for label, given in reasons.items() if given]


def _reasons(result: Result, row: Row) -> list[str]:
    """Reasons to avoid a row; none for a row that is no worse than inaccurate."""
    reasons = []
    if row.failures:
        reasons.append(f"{row.failures} of {result.reference.solved} elements failed")
    if (row.gradient_error or 0.0) > WRONG_ERROR:
        elements = "1 element" if row.wrong == 1 else f"{row.wrong} elements"
        where = f"in {row.worst_parameter}, above {WRONG_ERROR:.0e} on {elements}"
        reasons.append(f"its gradient is off by {words.error(row.gradient_error)} ({where})")
    elif row.solution is not None and row.solution.worst > WRONG_ERROR:
        reasons.append(f"its solution is off by {words.error(row.solution.worst)}")
    ratio = result.time_ratio(row)
    if reasons and ratio is not None and ratio > _SLOW_RATIO:
        reasons.append(f"it takes {words.ratio(ratio)} times as long")
    return reasons


def _slow(result: Result) -> list[str]:
    ratios = [(row, result.time_ratio(row) or 0.0) for row in result.correct]
    slow = [(row, ratio) for row, ratio in ratios if ratio > _SLOW_RATIO]
    if not slow:
        return []
    times = words.span([ratio for _, ratio in slow])
    return [f"Right, but takes {times} times as long: {words.labels([row for row, _ in slow])}."]


def unanswered(result: Result) -> list[str]:
    """Rows that raised and solvers that refused, together where the reason is the same."""
    raised = words.grouped((row.error, row) for row in result.rows if row.error is not None)
    reasons = [(error, words.labels(rows)) for error, rows in raised.items()]
    reasons += [(refusal.reason, refusal.label) for refusal in result.refusals]
    together = words.grouped(reasons).items()
    return [f"No answer from {words.listed(names)}: {reason}" for reason, names in together]
