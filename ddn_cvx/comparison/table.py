"""A comparison as a table: plain text and Markdown."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ddn_cvx.comparison import words
from ddn_cvx.comparison.result import Comparison, Row
from ddn_cvx.comparison.verdict import time_ratio

_GAP = "  "


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: its heading.
        cell: what stands in a row's cell.
        rank: a table that is too wide drops the columns of the highest rank first; zero stays.
    """

    title: str
    cell: Callable[[Comparison, Row], str]
    rank: int = 0


def _name(comparison: Comparison, row: Row) -> str:
    return f"{row.adjoint} *" if row.is_default else row.adjoint


def _time(name: str) -> Callable[[Comparison, Row], str]:
    def cell(comparison: Comparison, row: Row) -> str:
        ratio, spread = time_ratio(comparison, row), getattr(row, name)
        if ratio is None or row.total is None:
            return "-"
        return words.ratio(ratio * spread.median / row.total.median)

    return cell


def _spread(comparison: Comparison, row: Row) -> str:
    """Time with half the interquartile range, as a ratio to the fastest correct row."""
    ratio = time_ratio(comparison, row)
    if ratio is None or row.total is None:
        return "-"
    half = (row.total.high - row.total.low) / 2 / row.total.median
    return f"{words.ratio(ratio)} ±{100 * half:.0f}%"


def _cosine(comparison: Comparison, row: Row) -> str:
    return "-" if row.cosine is None else f"{row.cosine:.4f}"


def _worst(name: str) -> Callable[[Comparison, Row], str]:
    def cell(comparison: Comparison, row: Row) -> str:
        errors = getattr(row, name)
        return words.error(None if errors is None else errors.worst)

    return cell


COLUMNS = (
    Column("solver", lambda comparison, row: row.solver),
    Column("adjoint", _name),
    Column("gradient", lambda comparison, row: words.error(row.gradient_error)),
    Column("worst in", lambda comparison, row: row.worst_parameter or "-", rank=6),
    Column("cosine", _cosine, rank=3),
    Column("solution", _worst("solution")),
    Column("objective", _worst("objective"), rank=5),
    Column("violation", _worst("violation"), rank=1),
    Column("failed", lambda comparison, row: str(row.failures)),
    Column("forward", _time("forward"), rank=4),
    Column("backward", _time("backward"), rank=4),
    Column("time", _spread),
    Column("memory", lambda comparison, row: words.size(row.peak_memory), rank=2),
)
# Solver and adjoint are read from the left, numbers from the right.
LEFT = ("solver", "adjoint", "worst in")


def ordered(comparison: Comparison) -> list[Row]:
    """Correct rows, fastest first; then the others, most accurate first; then errors."""
    correct = list(comparison.correct)
    rest = [row for row in comparison.rows if row not in correct]
    rest.sort(key=lambda row: (row.error is not None, row.failures, row.gradient_error or 0.0))
    return correct + rest


def heading(comparison: Comparison) -> str:
    """What was compared, in one line."""
    problem = comparison.problem
    parameters = ", ".join(
        f"{name} {'x'.join(map(str, shape)) or 'scalar'}"
        for name, shape in problem.parameters.items()
    )
    where = "" if problem.device == "cpu" else f", {problem.device}"
    given = f" ({parameters})" if parameters else ""
    return f"{problem.name}: batch of {problem.batch}, {problem.dtype}{where}{given}"


def legend(comparison: Comparison) -> str:
    """What the columns mean, and the unit of the times."""
    fastest = comparison.fastest
    unit = "the fastest correct row" if fastest else "the fastest row"
    timed = [row.total.median for row in comparison.rows if row.total]
    best = fastest.total.median if fastest and fastest.total else min(timed, default=None)
    return (
        "Errors are relative, of the worst element (violation: absolute); time is forward and "
        f"backward, as a multiple of {unit} ({words.seconds(best)} for the batch); "
        "an asterisk marks the layer's own choice."
    )


def plain(comparison: Comparison, width: int | None = None) -> str:
    """The table with reference and verdict, without colour.

    Args:
        width: number of characters a line; None takes the terminal's.
    """
    width = width or shutil.get_terminal_size((100, 24)).columns
    columns = fitting(comparison, width)
    widths = widths_of(comparison, columns)

    def line(values: Iterable[str]) -> str:
        padded = [
            value.ljust(size) if column.title in LEFT else value.rjust(size)
            for value, size, column in zip(values, widths, columns, strict=False)
        ]
        return _GAP.join(padded).rstrip()

    lines = textwrap.wrap(
        heading(comparison), width, subsequent_indent="  ", break_on_hyphens=False
    )
    lines += [line([column.title for column in columns])]
    lines.append("-" * (len(_GAP) * (len(widths) - 1) + sum(widths)))
    for row in ordered(comparison):
        if row.error is None:
            lines.append(line([column.cell(comparison, row) for column in columns]))
        else:
            start = line([column.cell(comparison, row) for column in columns[:2]])
            start = start.ljust(widths[0] + widths[1] + len(_GAP)) + _GAP
            lines.append(start + shortened(row.error, width - len(start)))
    for text in (legend(comparison), sentence_of(comparison.reference.text)):
        lines += textwrap.wrap(text, width)
    lines.append("")
    for sentence in comparison.verdict.splitlines():
        lines += textwrap.wrap(sentence, width, subsequent_indent="  ")
    return "\n".join(lines)


def markdown(comparison: Comparison) -> str:
    """All columns as a Markdown table, with reference, environment and verdict."""
    titles = [column.title for column in COLUMNS]
    marks = [":--" if title in LEFT else "--:" for title in titles]
    lines = [f"## {heading(comparison)}", "", _pipes(titles), _pipes(marks)]
    for row in ordered(comparison):
        cells = [column.cell(comparison, row) for column in COLUMNS]
        if row.error is not None:
            cells = [*cells[:2], row.error.replace("|", "\\|"), *("" for _ in COLUMNS[3:])]
        lines.append(_pipes(cells))
    where = ", ".join(f"{name} {value}" for name, value in comparison.environment.items())
    lines += ["", legend(comparison), ""]
    lines += [sentence_of(comparison.reference.text), "", f"Environment: {where}.", ""]
    lines += [f"- {sentence}" for sentence in comparison.verdict.splitlines()]
    return "\n".join(lines) + "\n"


def fitting(comparison: Comparison, width: int, *, gap: int = len(_GAP)) -> list[Column]:
    """The columns that a line of so many characters has room for."""
    columns = list(COLUMNS)
    while (
        sum(widths_of(comparison, columns)) + gap * (len(columns) - 1) > width
        and (rank := max(column.rank for column in columns)) > 0
    ):
        columns = [column for column in columns if column.rank < rank]
    return columns


def widths_of(comparison: Comparison, columns: Sequence[Column]) -> list[int]:
    """Number of characters that each column needs; errors stand across the figures' columns."""
    widths = []
    for index, column in enumerate(columns):
        rows = [row for row in comparison.rows if row.error is None or index < 2]
        cells = [column.cell(comparison, row) for row in rows]
        widths.append(max(len(text) for text in (column.title, *cells)))
    return widths


def shortened(text: str, width: int) -> str:
    """Cut at a word, with an ellipsis."""
    return textwrap.shorten(text, max(20, width), placeholder=" ...")


def sentence_of(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def _pipes(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
