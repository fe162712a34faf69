"""Gradient error against time, one marker for each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddn_cvx.comparison.labels import place_labels
from ddn_cvx.comparison.result import WRONG, Comparison, Row
from ddn_cvx.comparison.table import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, distinguishable with any colour vision; black is the peer.
COLOURS = {
    "CLARABEL": "#0072B2",
    "INTERIOR": "#56B4E9",
    "SCS": "#E69F00",
    "DIFFCP": "#D55E00",
    "MOREAU": "#009E73",
    "cvxpylayers": "#222222",
}
OTHER = "#CC79A7"
MARKERS = {
    "kkt": "o",
    "lsqr": "s",
    "lsmr": "D",
    "dense": "^",
    "native": "v",
    "implicit": "P",
    "unrolled": "X",
}

# Below rounding there is nothing to tell apart.
_LEAST = 1e-17
_LABEL = 7.5  # points


def save(comparisons: Sequence[Comparison], path: str | Path) -> None:
    """One panel for each comparison, in one figure; format by file name."""
    figure = panels(len(comparisons))
    for axes, comparison in zip(figure.axes, comparisons, strict=True):
        draw(axes, comparison)
    write(figure, path)


def panels(count: int) -> Figure:
    """A figure with so many axes, at most three side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, count) if count != 4 else 2
    rows = math.ceil(count / columns)
    width = 7.5 if count == 1 else 5.4 * columns
    figure = Figure(figsize=(width, 4.8 if count == 1 else 4.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)  # the figure's own canvas: no global state of pyplot is touched
    grid = figure.subplots(rows, columns, squeeze=False)
    for unused in grid.flat[count:]:
        figure.delaxes(unused)
    return figure


def write(figure: Figure, path: str | Path) -> None:
    """Place the labels, now that the layout is known, and save."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        place_labels(axes)
    figure.savefig(path, dpi=160)


def draw(axes: Axes, comparison: Comparison) -> None:
    """Draw one comparison; :func:`write` places its labels."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    shown = [row for row in comparison.rows if row.total is not None]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(comparison.problem.name.replace("_", " "), fontsize=10.5, loc="left")
    axes.set_xlabel("forward and backward, ms for the batch", fontsize=9)
    what = "gradient" if any(row.gradients for row in shown) else "solution"
    axes.set_ylabel(f"worst relative {what} error", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for row in shown:
        _mark(axes, row)
    _limits(axes, shown)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    _bands(axes, comparison)
    refused = [row for row in comparison.rows if row.error is not None]
    if refused:
        text = f"no answer: {', '.join(row.label for row in refused)}"
        axes.annotate(
            shortened(text, 64),
            (0, 0),
            (2, 2),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=6.5,
            color="#777777",
            va="bottom",
        )


def _mark(axes: Axes, row: Row) -> None:
    assert row.total is not None
    x, y = 1e3 * row.total.median, _height(row)
    colour = COLOURS.get(row.solver, OTHER)
    axes.plot([1e3 * row.total.low, 1e3 * row.total.high], [y, y], color=colour, linewidth=1.2,
              alpha=0.5, gid="spread", zorder=2)  # fmt: skip
    axes.plot(
        [x], [y], marker=MARKERS.get(row.adjoint, "X"), markersize=9 if row.is_default else 6.5,
        color=colour, markeredgecolor="white", markeredgewidth=0.7, linestyle="none", zorder=3,
    )  # fmt: skip
    failed = f", {row.failures} failed" if row.failures else ""
    label = f"{row.label}{' (default)' if row.is_default else ''}{failed}"
    axes.annotate(
        label, (x, y), fontsize=_LABEL, color=colour, gid="label",
        fontweight="bold" if row.is_default else "normal",
    )  # fmt: skip


def _height(row: Row) -> float:
    error = row.gradient_error if row.gradients else row.worst_error
    return max(error or 0.0, _LEAST)


def _limits(axes: Axes, rows: Sequence[Row]) -> None:
    """Room for the labels on the right, and for the bands above and below."""
    times = [1e3 * value for row in rows if row.total for value in (row.total.low, row.total.high)]
    heights = [_height(row) for row in rows if math.isfinite(_height(row))]
    if not times:
        return
    reach = max(math.log10(max(times) / min(times)), 0.5)
    axes.set_xlim(min(times) * 10 ** (-0.08 * reach), max(times) * 10 ** (0.35 * reach))
    top = max([*heights, WRONG])
    axes.set_ylim(min([*heights, 1e-8]) * 0.03, top * 30)


def _bands(axes: Axes, comparison: Comparison) -> None:
    """What is wrong, what is correct, and what the reference cannot tell."""
    low, high = axes.get_ylim()
    axes.axhspan(WRONG, high, color="#D55E00", alpha=0.08, linewidth=0, zorder=0)
    axes.axhspan(low, comparison.tolerance, color="#009E73", alpha=0.06, linewidth=0, zorder=0)
    style: dict[str, Any] = {
        "xycoords": ("axes fraction", "data"), "textcoords": "offset points",
        "fontsize": 7, "color": "#777777", "ha": "right",
    }  # fmt: skip
    axes.annotate("avoid", (1, high), (-3, -9), **style)
    axes.annotate("correct", (1, comparison.tolerance), (-3, -9), **style)
    agreement = comparison.reference.agreement
    if agreement is not None and low < agreement < high:
        axes.axhline(agreement, color="#777777", linewidth=0.8, linestyle=(0, (1, 3)), zorder=1)
        # On the side where no marker is in the way.
        times = [
            axes.transData.transform((1e3 * row.total.median, 1.0))[0]
            for row in comparison.rows
            if row.total and agreement / 3 < _height(row) < 30 * agreement
        ]
        middle = axes.transAxes.transform((0.5, 0.5))[0]
        left = sum(time > middle for time in times) > sum(time <= middle for time in times)
        left = left or 0.1 < agreement / comparison.tolerance < 10  # "correct" stands on the right
        style |= {"ha": "left" if left else "right"}
        place = (0, agreement) if left else (1, agreement)
        axes.annotate("reference checked to here", place, (3 if left else -3, 2), **style)
