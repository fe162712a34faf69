"""A comparison as a coloured table, by rich."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ddn_cvx.comparison.result import WRONG, Comparison, Row
from ddn_cvx.comparison.table import LEFT, fitting, heading, legend, ordered, sentence_of

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType


class Fitted:
    """Chooses its columns when the console's width is known."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterable[RenderableType]:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        comparison = self.comparison
        columns = fitting(comparison, options.max_width - 1)
        table = Table(
            box=box.SIMPLE_HEAD,
            title=heading(comparison),
            title_style="bold",
            title_justify="left",
            padding=(0, 1, 0, 0),
            show_edge=False,
        )
        for column in columns:
            left = column.title in LEFT
            table.add_column(column.title, justify="left" if left else "right", no_wrap=True)
        errors = []
        for row in ordered(comparison):
            if row.error is not None:
                errors.append(row)
                continue
            cells = [Text(column.cell(comparison, row)) for column in columns]
            for column, cell in zip(columns, cells, strict=True):
                cell.stylize(_style(comparison, row, column.title))
            table.add_row(*cells)
        yield table
        for row in errors:
            yield Text(f"{row.label}: {row.error}", style="dim", overflow="ellipsis", no_wrap=True)
        yield Text(legend(comparison), style="dim")
        yield Text(sentence_of(comparison.reference.text), style="dim")
        yield Text()
        for sentence in comparison.verdict.splitlines():
            first = sentence.split(" ", 1)[0]
            style = {"Use": "bold green", "Avoid": "red"}.get(first, "")
            yield Text(sentence, style=style)


def _style(comparison: Comparison, row: Row, title: str) -> str:
    if title == "gradient" and row.gradient_error is not None:
        if row.gradient_error <= comparison.tolerance:
            return "green"
        return "bold red" if row.gradient_error > WRONG else "yellow"
    if title == "failed" and row.failures:
        return "bold red"
    if title in ("solver", "adjoint") and row.is_default:
        return "bold"
    return ""
