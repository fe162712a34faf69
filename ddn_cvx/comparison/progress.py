"""A progress bar on standard error, for people at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Called with the name of the step that begins; moves the bar by one.
Report = Callable[[str], None]


@contextmanager
def progress_bar(title: str, steps: int, *, shown: bool) -> Iterator[Report]:
    """A bar of ``steps`` steps; none unless ``shown`` and standard error is a terminal."""
    if not (shown and sys.stderr.isatty()):
        yield lambda step: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.fields[title]}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=steps, title=title)
        yield lambda step: bar.update(task, description=step, advance=1)
