"""The comparison that users see: print it, plot it, save it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ddn_cvx.comparison import export, table
from ddn_cvx.comparison.result import Result
from ddn_cvx.comparison.verdict import verdict

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType


class Comparison(Result):
    """Solvers and adjoints side by side; print it, plot it, save it.

    Its attributes are those of :class:`~ddn_cvx.comparison.result.Result`.

    Example:
        >>> import ddn_cvx as ddn
        >>> from ddn_cvx.problems import orthant_projection
        >>> comparison = ddn.compare(orthant_projection(n=3), solvers=["CLARABEL"], batch=4)
        >>> comparison.default.gradient_error < 1e-5
        True
    """

    @property
    def verdict(self) -> str:
        """In words: which to use and why, which to avoid and why."""
        return verdict(self)

    def __str__(self) -> str:
        return table.as_text(self)

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        return table.rendered(self, console, options)

    def to_json(self, path: str | Path | None = None) -> str:
        """Everything as JSON, times in seconds; written to ``path`` if given."""
        return _written(export.as_json(self), path)

    def to_csv(self, path: str | Path | None = None) -> str:
        """One line for each row and parameter as CSV; written to ``path`` if given."""
        return _written(export.as_csv([self]), path)

    def to_markdown(self, path: str | Path | None = None) -> str:
        """The table, the reference and the verdict in Markdown; written to ``path`` if given."""
        return _written(table.markdown(self), path)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read back the text of :meth:`to_json`; the verdict is made anew."""
        result: Self = export.read(cls, json.loads(text))
        return result

    def plot(self, path: str | Path) -> None:
        """Draw gradient error against time, one marker for each row; format by file name."""
        from ddn_cvx.comparison.figure import save

        save([self], path)


def _written(text: str, path: str | Path | None) -> str:
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text
