"""The tour that ``ddn-cvx compare`` makes without a name: four problems, one of them on real data.

A quadratic program, a projection, robust pooling, and the Markowitz portfolio on rolling windows
of S&P 500 prices.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ddn_cvx.batch.elements import select
from ddn_cvx.comparison import Comparison, Row, words
from ddn_cvx.comparison.figure import COLOURS, prepare, save
from ddn_cvx.comparison.result import WRONG_ERROR
from ddn_cvx.comparison.table import grid
from ddn_cvx.datasets import rolling_returns, sp500_prices
from ddn_cvx.declaration import Declaration
from ddn_cvx.layer import DeclarativeLayer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import RenderableType

# Trading days: of a year, of a window of returns (three years: more days than the covariance of 20
# assets has entries), and from one window to the next (a quarter).
_DAYS_OF_YEAR = 252
_DAYS_OF_WINDOW = 3 * _DAYS_OF_YEAR
_DAYS_OF_QUARTER = 63
# Units of yearly return that one unit of yearly variance costs: portfolios neither of one asset
# alone nor spread evenly over all.
_RISK_AVERSION = 15.0

# The assets that are held most are named.
_NAMED = 8

_LEGEND = (
    "default: the layer's own choice; peer: cvxpylayers at its defaults; each with its worst "
    "gradient error, and its time as a multiple of the fastest correct row's."
)


@dataclass(frozen=True, eq=False)
class Portfolios:
    """The Markowitz portfolio over time, one for each window of S&P 500 returns.

    Attributes:
        declaration: of the portfolio problem.
        inputs: of its layer, one element for each window.
        names: of the assets.
        dates: last day of each window.
        weights: float64, ``(windows, assets)``.
    """

    declaration: Declaration
    inputs: tuple[torch.Tensor, ...]
    names: tuple[str, ...]
    dates: tuple[datetime.date, ...]
    weights: torch.Tensor

    def draw(self, axes: Axes) -> None:
        """Weights over time, stacked; the assets held most are named."""
        order = self.weights.mean(0).argsort(descending=True)
        ordered = self.weights[:, order]
        shares = torch.cat([ordered[:, :_NAMED], ordered[:, _NAMED:].sum(1, keepdim=True)], 1)
        colours = [*list(COLOURS.values())[:_NAMED], "#cccccc"]
        days = np.array(self.dates, dtype="datetime64[D]")
        bands = axes.stackplot(days, shares.mT.numpy(), colors=colours, linewidth=0)
        axes.margins(0)
        prepare(axes, "S&P 500 portfolio, from three years of prices", "", "share of the portfolio")
        names = [*(self.names[asset] for asset in order[:_NAMED].tolist()), "others"]
        beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "handlelength": 1}
        axes.legend(bands[::-1], names[::-1], **beside, fontsize=8, frameon=False)


@dataclass(frozen=True, eq=False)
class Tour:
    """The results of the tour; rich prints its closing table and the verdict.

    Attributes:
        comparisons: one for each problem.
        portfolios: on the S&P 500 prices; None if skfolio is not installed.
        seconds: duration of the tour.
        note: the command that installs skfolio, if the portfolios were left out.
    """

    comparisons: tuple[Comparison, ...]
    portfolios: Portfolios | None
    seconds: float
    note: str | None

    @property
    def verdict(self) -> str:
        """In words, over all problems; one sentence a line."""
        sentences = [self._own_choices(), *self._peers(), *self._throughout()]
        return "\n".join([*sentences, self.note] if self.note else sentences)

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
        ratios = [
            row.total.median / c.default.total.median
            for c, row in answered
            if row.total and c.default and c.default.total
        ]
        if ratios:
            line += f", {words.span(ratios)} times the time of the layer's own choice"
        refused = [c.problem.name for c, row in peers if row.error is not None]
        if refused:
            line += f"; it does not accept {words.listed(refused)}"
        return [f"{line}."]

    def _throughout(self) -> list[str]:
        """Rows that are correct on every problem, and rows that are wrong on one."""
        every = [(comparison, row) for comparison in self.comparisons for row in comparison.rows]
        right = words.grouped((row.label, row) for c, row in every if row.is_correct(c.tolerance))
        wrong = words.grouped(
            (row.label, c.problem.name)
            for c, row in every
            if row.error is None and (row.failures or row.worst_error > WRONG_ERROR)
        )
        always = [rows[0] for rows in right.values() if len(rows) == len(self.comparisons)]
        lines = [f"Correct on every problem: {words.labels(always)}."] if always else []
        return lines + [
            f"Not to be relied on: {label}, wrong on {words.listed(names)}."
            for label, names in wrong.items()
        ]

    def plot(self, path: str | Path) -> None:
        """One panel for each comparison, and the portfolios; format by file name."""
        save(self.comparisons, path, [self.portfolios.draw] if self.portfolios else [])

    def __rich__(self) -> RenderableType:
        """One row for each problem; :data:`_LEGEND` says what the columns mean."""
        from rich.console import Group
        from rich.text import Text

        rows = []
        for comparison in self.comparisons:
            fastest = comparison.fastest
            cells = [comparison.problem.name, fastest.label if fastest else "none"]
            for row in (comparison.default, _peer(comparison)):
                if row is None or row.error is not None:
                    cells += ["-" if row is None else "refused", "-"]
                else:
                    ratio = words.ratio(comparison.time_ratio(row))
                    cells += [words.error(row.gradient_error), ratio]
            rows.append([*cells, f"{len(comparison.correct)}/{len(comparison.rows)}"])
        titles = ("problem", "fastest", "default", "time", "peer", "time", "correct")
        table = grid([(title, title in ("problem", "fastest")) for title in titles], rows)
        return Group(table, Text(_LEGEND, style="dim"), "", Text(self.verdict))


def run_tour(
    run: Callable[..., Comparison],
    *,
    batch: int = 32,
    repeats: int = 5,
    show: Callable[[RenderableType], object] = lambda found: None,
) -> Tour:
    """Make the tour.

    Args:
        run: :func:`ddn_cvx.compare`, with the user's choice of solvers and other settings.
        batch: number of elements.
        repeats: number of timed passes for each row.
        show: called with each result, which rich can print, as soon as it is there.
    """
    from ddn_cvx.problems import huber_pooling, quadratic_program, simplex_projection

    start = time.perf_counter()
    tasks: list[tuple[Declaration, tuple[torch.Tensor, ...]]] = [
        (entry(), ()) for entry in (quadratic_program, simplex_projection, huber_pooling)
    ]
    portfolios, note = None, None
    try:
        portfolios = _portfolios()
    except ImportError as error:  # its message has the command that installs the data
        note = f"Left out: {error}"
    else:
        # At most `batch` windows, evenly spread over all.
        windows = len(portfolios.dates)
        chosen = torch.linspace(0, windows - 1, min(batch, windows)).round().long()
        tasks.append((portfolios.declaration, select(portfolios.inputs, chosen)))
    comparisons = []
    for declaration, tensors in tasks:
        comparison = run(declaration, *tensors, batch=batch, repeats=repeats, seconds=0.7)
        show(comparison)
        show("")
        comparisons.append(comparison)
    return Tour(tuple(comparisons), portfolios, time.perf_counter() - start, note)


def _portfolios() -> Portfolios:
    """The Markowitz layer on three years of returns, every quarter, in one batched call."""
    from ddn_cvx.problems import markowitz_portfolio

    dates, names, prices = sp500_prices()
    windows = rolling_returns(prices, _DAYS_OF_WINDOW)[::_DAYS_OF_QUARTER]  # (B, days, assets)
    mean = windows.mean(1, keepdim=True)
    # The covariance is F'F for the triangular factor F of the centred window; per year.
    factor = torch.linalg.qr(windows - mean, mode="r").R
    factor = factor * (_DAYS_OF_YEAR / (_DAYS_OF_WINDOW - 1)) ** 0.5
    aversion = torch.full((len(windows),), _RISK_AVERSION, dtype=torch.float64)
    inputs = (mean.squeeze(1) * _DAYS_OF_YEAR, factor, aversion)
    declaration = replace(markowitz_portfolio(len(names), len(names)), name="sp500_portfolio")
    (weights,) = DeclarativeLayer(declaration)(*inputs)
    days = dates[_DAYS_OF_WINDOW::_DAYS_OF_QUARTER][: len(windows)]
    return Portfolios(declaration, inputs, names, days, weights)


def _peer(comparison: Comparison) -> Row | None:
    rows = (row for row in comparison.rows if row.label == "cvxpylayers default")
    return next(rows, None)
