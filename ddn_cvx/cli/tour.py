"""The tour that ``ddn-cvx compare`` makes without a name: five problems, two of them on real data.

A quadratic program, a projection, robust pooling, the Markowitz portfolio on rolling windows of
S&P 500 prices, and the lasso path on the diabetes data.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from ddn_cvx.cli.lasso_path import LassoPath, lasso_path, name_ends
from ddn_cvx.comparison import Comparison, Row, compare, words
from ddn_cvx.comparison.figure import prepare
from ddn_cvx.comparison.result import WRONG_ERROR
from ddn_cvx.comparison.table import as_text, empty_table
from ddn_cvx.declaration import Declaration
from ddn_cvx.layer import DeclarativeLayer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import RenderableType
    from rich.table import Table

Result = TypeVar("Result")

# Trading days: of a year, of a window of returns (three years: more days than the covariance of 20
# assets has entries), and from one window to the next (a quarter).
_DAYS_OF_YEAR = 252
_DAYS_OF_WINDOW = 3 * _DAYS_OF_YEAR
_DAYS_OF_QUARTER = 63
# Units of yearly return that one unit of yearly variance costs: portfolios neither of one asset
# alone nor spread evenly over all.
_RISK_AVERSION = 15.0

_LEGEND = (
    "default: the layer's own choice; peer: cvxpylayers at its defaults; each with its worst "
    "gradient error, and its time as a multiple of the fastest correct row's."
)

# Colours of the assets that are held most; grey is the colour of the others together.
_COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7"),
    *("#56B4E9", "#D55E00", "#7F4FC9", "#B8A400"),
)


@dataclass(frozen=True, eq=False)
class Portfolios:
    """Portfolios over time, one for each window.

    Attributes:
        names: of the assets.
        dates: last day of each window.
        weights: float64, ``(windows, assets)``.
        inputs: of the portfolio layer, one element for each window.
    """

    names: tuple[str, ...]
    dates: tuple[datetime.date, ...]
    weights: torch.Tensor
    inputs: tuple[torch.Tensor, ...]

    def draw(self, axes: Axes) -> None:
        """Weights over time, stacked; the assets held most are named."""
        order = self.weights.mean(0).argsort(descending=True).tolist()
        named, rest = order[: len(_COLOURS)], order[len(_COLOURS) :]
        layers = [self.weights[:, asset] for asset in named] + [self.weights[:, rest].sum(1)]
        colours = [*_COLOURS[: len(named)], "#cccccc"]
        years = [date.year + (date.timetuple().tm_yday - 1) / 365.25 for date in self.dates]
        axes.stackplot(years, [layer.tolist() for layer in layers], colors=colours, linewidth=0)
        ends = torch.stack(layers)[:, -1]
        axes.set_xlim(years[0], years[-1])
        axes.set_ylim(0, 1)
        names = [*(self.names[asset] for asset in named), "others"]
        name_ends(axes, names, (ends.cumsum(0) - ends / 2).tolist(), [*colours[:-1], "#777777"])
        title = "S&P 500 portfolio, from three years of prices"
        prepare(axes, title, "", "share of the portfolio")


@dataclass(frozen=True, eq=False)
class Tour:
    """The results of the tour; print it for the closing table and the verdict.

    Attributes:
        comparisons: one for each problem that was compared.
        portfolios: on the S&P 500 prices; None if skfolio is not installed.
        path: on the diabetes data; None if scikit-learn is not installed.
        notes: the parts that were left out, and the commands that install their data.
        seconds: duration of the tour.
    """

    comparisons: tuple[Comparison, ...]
    portfolios: Portfolios | None
    path: LassoPath | None
    notes: tuple[str, ...]
    seconds: float

    @property
    def verdict(self) -> str:
        """In words, over all problems; one sentence a line."""
        sentences = [self._own_choices(), *self._peers(), *self._throughout()]
        if self.path is not None:
            sentences.append(f"Lasso path: {self.path.text}.")
        return "\n".join([*sentences, *self.notes])

    def _own_choices(self) -> str:
        defaults = [(c, c.default) for c in self.comparisons if c.default is not None]
        right = sum(row.is_correct(c.tolerance) for c, row in defaults)
        worst = max((row.gradient_error or 0.0 for _, row in defaults), default=0.0)
        return (
            f"The layer's own choice is correct on {right} of {len(self.comparisons)} "
            f"problems; its worst gradient error is {words.error(worst)}."
        )

    def _peers(self) -> list[str]:
        """Accuracy and time of cvxpylayers at its defaults; nothing if it was not compared."""
        peers = [(c, row) for c in self.comparisons if (row := _peer(c)) is not None]
        answered = [(c, row) for c, row in peers if row.error is None]
        if not answered:
            return []
        error = max(row.gradient_error or 0.0 for _, row in answered)
        line = f"cvxpylayers at its defaults: gradients off by up to {words.error(error)}"
        ratios = [ratio for c, row in answered if (ratio := _to_default(c, row)) is not None]
        if ratios:
            line += f", {words.span(ratios)} times the time of the layer's own choice"
        refused = [c.problem.name for c, row in peers if row.error is not None]
        if refused:
            line += f"; it does not accept {words.listed(refused)}"
        return [f"{line}."]

    def _throughout(self) -> list[str]:
        """Rows that are correct on every problem, and rows that are wrong on one."""
        found: dict[str, list[tuple[Comparison, Row]]] = {}
        for comparison in self.comparisons:
            for row in comparison.rows:
                found.setdefault(row.label, []).append((comparison, row))
        correct = [
            entries[0][1]
            for entries in found.values()
            if len(entries) == len(self.comparisons)
            and all(row.is_correct(comparison.tolerance) for comparison, row in entries)
        ]
        lines = [f"Correct on every problem: {words.labels(correct)}."] if correct else []
        for label, entries in found.items():
            wrong = [
                comparison.problem.name
                for comparison, row in entries
                if row.error is None and (row.failures or row.worst_error > WRONG_ERROR)
            ]
            if wrong:
                lines.append(f"Not to be relied on: {label}, wrong on {words.listed(wrong)}.")
        return lines

    def plot(self, path: str | Path) -> None:
        """One panel for each comparison, the lasso path and the portfolios; format by file name."""
        from ddn_cvx.comparison.figure import draw, panels, write

        extras = [extra for extra in (self.path, self.portfolios) if extra is not None]
        figure = panels(len(self.comparisons) + len(extras))
        axes = list(figure.axes)
        for panel, comparison in zip(axes, self.comparisons, strict=False):
            draw(panel, comparison)
        for panel, extra in zip(axes[len(self.comparisons) :], extras, strict=True):
            extra.draw(panel)
        write(figure, path)

    def __str__(self) -> str:
        return as_text(self)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        return Group(self._table(), Text(_LEGEND, style="dim"), "", Text(self.verdict))

    def _table(self) -> Table:
        """One row for each problem; :data:`_LEGEND` says what the columns mean."""
        table = empty_table()
        for title in ("problem", "fastest", "default", "time", "peer", "time", "correct"):
            is_text = title in ("problem", "fastest")
            table.add_column(title, justify="left" if is_text else "right", no_wrap=True)
        for comparison in self.comparisons:
            fastest = comparison.fastest
            cells = [comparison.problem.name, fastest.label if fastest else "none"]
            for row in (comparison.default, _peer(comparison)):
                if row is None or row.error is not None:
                    cells += ["-" if row is None else "refused", "-"]
                else:
                    ratio = words.ratio(comparison.time_ratio(row))
                    cells += [words.error(row.gradient_error), ratio]
            table.add_row(*cells, f"{len(comparison.correct)}/{len(comparison.rows)}")
        return table


def run_tour(
    *,
    solvers: Sequence[str] | None = None,
    adjoints: Sequence[str] | None = None,
    batch: int = 32,
    seed: int = 0,
    device: torch.device | str = "cpu",
    repeats: int = 5,
    progress: bool = False,
    show: Callable[[RenderableType], object] = lambda found: None,
) -> Tour:
    """Make the tour.

    Args:
        solvers, adjoints, batch, seed, device, repeats, progress: as for
            :func:`ddn_cvx.compare`.
        show: called with each result, which rich can print, as soon as it is there.
    """
    from ddn_cvx.problems import (
        huber_pooling,
        markowitz_portfolio,
        quadratic_program,
        simplex_projection,
    )

    start = time.perf_counter()
    notes: list[str] = []
    tasks: list[tuple[Declaration, tuple[torch.Tensor, ...]]] = [
        (entry(), ()) for entry in (quadratic_program, simplex_projection, huber_pooling)
    ]
    portfolios = _with_data(_portfolios, notes)
    if portfolios is not None:
        assets = len(portfolios.names)
        declaration = replace(markowitz_portfolio(assets, assets), name="sp500_portfolio")
        tasks.append((declaration, _spread_out(portfolios.inputs, batch)))
    comparisons = []
    for declaration, tensors in tasks:
        comparison = compare(
            declaration,
            *tensors,
            solvers=solvers,
            adjoints=adjoints,
            batch=batch,
            seed=seed,
            device=device,
            repeats=repeats,
            seconds=0.7,
            progress=progress,
        )
        show(comparison)
        show("")
        comparisons.append(comparison)
    path = _with_data(_diabetes_path, notes)
    if path is not None:
        show(f"lasso path on the diabetes data: {path.text}.\n")
    seconds = time.perf_counter() - start
    return Tour(tuple(comparisons), portfolios, path, tuple(notes), seconds)


def _with_data(load: Callable[[], Result], notes: list[str]) -> Result | None:
    """None, and a note with the command that installs it, if the data's package is missing."""
    try:
        return load()
    except ImportError as error:
        notes.append(f"Left out: {words.sentence(str(error)).rstrip('.')}")
        return None


def _portfolios() -> Portfolios:
    """The Markowitz layer on three years of returns, every quarter, in one batched call."""
    from ddn_cvx.datasets import rolling_returns, sp500_prices
    from ddn_cvx.problems import markowitz_portfolio

    dates, names, prices = sp500_prices()
    windows = rolling_returns(prices, _DAYS_OF_WINDOW)[::_DAYS_OF_QUARTER]  # (B, days, assets)
    mean = windows.mean(1, keepdim=True)
    # The covariance is F'F for the triangular factor F of the centred window; per year.
    factor = torch.linalg.qr(windows - mean, mode="r").R
    factor = factor * (_DAYS_OF_YEAR / (_DAYS_OF_WINDOW - 1)) ** 0.5
    inputs = (
        mean.squeeze(1) * _DAYS_OF_YEAR,
        factor,
        torch.full((len(windows),), _RISK_AVERSION, dtype=torch.float64),
    )
    layer = DeclarativeLayer(markowitz_portfolio(len(names), len(names)))
    (weights,) = layer(*inputs)
    return Portfolios(
        names, dates[_DAYS_OF_WINDOW::_DAYS_OF_QUARTER][: len(windows)], weights, inputs
    )


def _diabetes_path() -> LassoPath:
    from ddn_cvx.datasets import diabetes

    return lasso_path(*diabetes())


def _spread_out(inputs: Sequence[torch.Tensor], batch: int) -> tuple[torch.Tensor, ...]:
    """At most ``batch`` elements, evenly spread over all."""
    chosen = torch.linspace(0, len(inputs[0]) - 1, min(batch, len(inputs[0]))).round().long()
    return tuple(tensor[chosen] for tensor in inputs)


def _peer(comparison: Comparison) -> Row | None:
    rows = (row for row in comparison.rows if row.label == "cvxpylayers default")
    return next(rows, None)


def _to_default(comparison: Comparison, row: Row) -> float | None:
    default = comparison.default
    if row.total is None or default is None or default.total is None:
        return None
    return row.total.median / default.total.median
