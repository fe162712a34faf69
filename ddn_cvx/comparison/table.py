"""A comparison as a table: by rich for terminals, with colour or without, and as Markdown."""

from __future__ import annotations

import io
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddn_cvx.comparison import words
from ddn_cvx.comparison.result import WRONG_ERROR, Errors, Result, Row
from ddn_cvx.comparison.verdict import verdict

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: its heading.
        cell: text of a row's cell.
        rank: a table that is too wide drops the columns of the highest rank first; zero stays.
        is_text: read from the left; numbers are read from the right.
        style: of a row's cell, in rich's words.
    """

    title: str
    cell: Callable[[Result, Row], str]
    rank: int = 0
    is_text: bool = False
    style: Callable[[Result, Row], str] = lambda result, row: ""


def _time(result: Result, row: Row) -> str:
    """Total time with half the interquartile range."""
    if row.total is None:
        return "-"
    half = (row.total.high - row.total.low) / 2 / row.total.median
    return f"{words.ratio(result.time_ratio(row))} ±{100 * half:.0f}%"


def _worst(errors: Errors | None) -> str:
    return words.error(None if errors is None else errors.worst)


def _judgement(result: Result, row: Row) -> str:
    """Style of a gradient's error."""
    if row.gradient_error is None:
        return ""
    if row.gradient_error <= result.tolerance:
        return "green"
    return "bold red" if row.gradient_error > WRONG_ERROR else "yellow"


def _own_choice(result: Result, row: Row) -> str:
    return "bold" if row.is_default else ""


COLUMNS = (
    Column("solver", lambda result, row: row.solver, is_text=True, style=_own_choice),
    Column(
        "adjoint",
        lambda result, row: f"{row.adjoint} *" if row.is_default else row.adjoint,
        is_text=True,
        style=_own_choice,
    ),
    Column("answers", lambda result, row: row.by_others or "-", is_text=True),
    Column("gradient", lambda result, row: words.error(row.gradient_error), style=_judgement),
    Column("worst in", lambda result, row: row.worst_parameter or "-", rank=6, is_text=True),
    Column(
        "cosine",
        lambda result, row: "-" if row.cosine is None else f"{row.cosine:.4f}",
        rank=3,
    ),
    Column("solution", lambda result, row: _worst(row.solution)),
    Column("objective", lambda result, row: _worst(row.objective), rank=5),
    Column("violation", lambda result, row: _worst(row.violation), rank=1),
    Column(
        "failed",
        lambda result, row: str(row.failures),
        style=lambda result, row: "bold red" if row.failures else "",
    ),
    Column("forward", lambda result, row: words.ratio(result.time_ratio(row, "forward")), rank=4),
    Column("backward", lambda result, row: words.ratio(result.time_ratio(row, "backward")), rank=4),
    Column("time", _time),
    Column("memory", lambda result, row: words.size(row.peak_memory), rank=2),
)


def columns_of(result: Result) -> list[Column]:
    """All columns; "answers" only where other solvers of a ladder answered for some elements."""
    helped = any(row.by_others for row in result.rows)
    return [column for column in COLUMNS if helped or column.title != "answers"]


def heading(result: Result) -> str:
    """Problem, batch, precision and parameters, in one line."""
    problem = result.problem
    parameters = ", ".join(
        f"{name} {'x'.join(map(str, shape)) or 'scalar'}"
        for name, shape in problem.parameters.items()
    )
    where = "" if problem.device == "cpu" else f", {problem.device}"
    given = f" ({parameters})" if parameters else ""
    return f"{problem.name}: batch of {problem.batch}, {problem.dtype}{where}{given}"


def legend(result: Result) -> str:
    """Meaning of the columns, and the unit of the times."""
    unit = "the fastest correct row" if result.fastest else "the fastest row"
    return (
        "Errors are relative, of the worst element (violation: absolute); time is forward and "
        f"backward, as a multiple of {unit} ({words.seconds(result.unit_seconds)} for the batch); "
        "an asterisk marks the layer's own choice."
    )


def rendered(result: Result, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
    """For rich: the columns that the console has room for, reference and verdict."""
    from rich.text import Text

    width = options.max_width

    def filled(sentence: str, style: str) -> Text:
        lines = textwrap.fill(sentence, width, subsequent_indent="  ", break_on_hyphens=False)
        return Text(lines, style=style)

    yield filled(heading(result), "bold")
    columns = columns_of(result)
    endless = options.update(max_width=1000)  # characters: rich measures within a width
    while console.measure(table := _table(result, columns), options=endless).maximum > width:
        rank = max(column.rank for column in columns)
        if not rank:
            break
        columns = [column for column in columns if column.rank < rank]
    yield table
    for text in (legend(result), words.sentence(result.reference.text)):
        yield Text(text, style="dim")
    yield Text()
    for sentence in verdict(result).splitlines():
        first = sentence.split(" ", 1)[0]
        yield filled(sentence, {"Use": "bold green", "Avoid": "red"}.get(first, ""))


def _table(result: Result, columns: Sequence[Column]) -> Table:
    from rich.text import Text

    return grid(
        [(column.title, column.is_text) for column in columns],
        [
            [Text(column.cell(result, row), style=column.style(result, row)) for column in columns]
            for row in result.ordered
            if row.error is None
        ],
    )


def grid(columns: Iterable[tuple[str, bool]], rows: Iterable[Iterable[RenderableType]]) -> Table:
    """A table of rich in this package's looks: a line below the titles and no other.

    Args:
        columns: title, and whether the column is read from the left, as text is.
        rows: cells of each row.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for title, is_text in columns:
        # The names of other solvers may wrap, so that the narrowest table fits.
        table.add_column(
            title,
            justify="left" if is_text else "right",
            no_wrap=title != "answers",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*row)
    return table


def as_text(rendered: RenderableType, width: int | None = None) -> str:
    """Anything that rich can print, without colour.

    Args:
        width: characters of a line; None takes the terminal's.
    """
    from rich.console import Console

    width = width or shutil.get_terminal_size((100, 24)).columns
    target = io.StringIO()
    Console(file=target, width=width, color_system=None, highlight=False).print(rendered)
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines())


def markdown(result: Result) -> str:
    """All columns as a Markdown table, with reference, environment and verdict."""
    columns = columns_of(result)
    lines = [
        f"## {heading(result)}",
        "",
        _pipes(column.title for column in columns),
        _pipes(":--" if column.is_text else "--:" for column in columns),
    ]
    for row in result.ordered:
        cells = [column.cell(result, row) for column in columns]
        if row.error is not None:
            cells = [*cells[:2], row.error.replace("|", "\\|"), *("" for _ in columns[3:])]
        lines.append(_pipes(cells))
    where = ", ".join(f"{name} {value}" for name, value in result.environment.items())
    lines += ["", legend(result), ""]
    lines += [words.sentence(result.reference.text), "", f"Environment: {where}.", ""]
    lines += [f"- {sentence}" for sentence in verdict(result).splitlines()]
    return "\n".join(lines) + "\n"


def _pipes(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
