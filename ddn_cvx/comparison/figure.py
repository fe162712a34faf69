"""Gradient error against time, one marker for each row."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddn_cvx.comparison import words
from ddn_cvx.comparison.result import WRONG_ERROR, Result, Row
from ddn_cvx.comparison.verdict import helped, unanswered
from ddn_cvx.solvers.cone.clarabel import Clarabel
from ddn_cvx.solvers.cone.interface import DiffcpPair
from ddn_cvx.solvers.cone.interior_point.solver import InteriorPoint
from ddn_cvx.solvers.cone.moreau import Moreau
from ddn_cvx.solvers.cone.scs import SCS
from ddn_cvx.solvers.nonlinear.settings import DEDICATED, IPOPT, TORCH, UNO

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, distinguishable with any colour vision, and further colours for solvers
# that share few panels; black is the peer.
COLOURS = {
    Clarabel.name: "#0072B2",
    InteriorPoint.name: "#56B4E9",
    SCS.name: "#E69F00",
    DiffcpPair.name: "#D55E00",
    Moreau.name: "#009E73",
    TORCH: "#CC79A7",
    DEDICATED: "#7F4FC9",
    UNO: "#8A6D00",
    IPOPT: "#777777",
    "cvxpylayers": "#222222",
}
OTHER_COLOUR = "#999999"
MARKERS = {
    "kkt": "o",
    "lsqr": "s",
    "lsmr": "D",
    "dense": "^",
    "native": "v",
    "implicit": "P",
    "unrolled": "X",
    "default": "X",
    Moreau.name: "p",
}
OTHER_MARKER = "h"

# Relative error at which smaller ones are drawn: a tenth of float64's rounding.
_LOWEST_ERROR = 1e-17
# Characters of a line below the axes, at 6.5 points: the width of a panel.
_FOOTNOTE_WIDTH = 88


def save(
    results: Sequence[Result],
    path: str | Path,
    others: Sequence[Callable[[Axes], None]] = (),
) -> None:
    """One panel for each comparison, in one figure with one legend; format by file name.

    Args:
        others: draw further panels.
    """
    figure = panels(len(results) + len(others))
    drawn: list[Callable[[Axes], None]] = [partial(draw, result=result) for result in results]
    for axes, fill in zip(figure.axes, [*drawn, *others], strict=True):
        fill(axes)
    add_legend(figure)
    figure.savefig(path, dpi=160)


def panels(count: int) -> Figure:
    """A figure with ``count`` axes, at most three side by side; the last fills its row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, count) if count != 4 else 2
    rows = math.ceil(count / columns)
    # Inches; the legend to the right takes 1.9, and its entries fit beside one panel.
    figure = Figure(figsize=(5.4 * columns + 1.9, 4.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)  # the figure's own canvas: no global state of pyplot is touched
    for place in range(1, count):
        figure.add_subplot(rows, columns, place)
    figure.add_subplot(rows, columns, (count, rows * columns))
    return figure


def add_legend(figure: Figure) -> None:
    """One legend for the rows of all panels, to the right of the panels."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        shown, labels = axes.get_legend_handles_labels()
        handles |= zip(labels, shown, strict=True)
    labels = sorted(handles)
    ordered = [handles[label] for label in labels]
    figure.legend(ordered, labels, loc="outside right upper", fontsize=8, frameon=False)


def prepare(axes: Axes, title: str, across: str, up: str) -> None:
    """Title, names of both axes, and a grid, as all panels have them."""
    axes.set_title(title, fontsize=10.5, loc="left")
    axes.set_xlabel(across, fontsize=9)
    axes.set_ylabel(up, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw(axes: Axes, result: Result) -> None:
    """Draw one comparison; :func:`add_legend` names the rows."""
    from matplotlib.ticker import LogLocator

    shown = [row for row in result.rows if row.total is not None]
    axes.set_xscale("log")
    axes.set_yscale("log")
    what = "gradient" if any(row.gradients for row in shown) else "solution"
    prepare(
        axes,
        result.problem.name.replace("_", " "),
        "forward and backward, ms for the batch",
        f"worst relative {what} error",
    )
    for row in shown:
        _mark(axes, row)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    _bands(axes, result, shown)
    _footnotes(axes, result)


def _mark(axes: Axes, row: Row) -> None:
    """Marker with whiskers; a ring around the default, a white dot on a row with a footnote."""
    assert row.total is not None
    x, y = 1e3 * row.total.median, _height(row)
    style: dict[str, Any] = {"linestyle": "none", "zorder": 3, "markeredgecolor": "white"}
    style |= {"markeredgewidth": 0.7, "color": COLOURS.get(row.solver, OTHER_COLOUR)}
    whiskers = [1e3 * row.total.low, 1e3 * row.total.high]
    axes.plot(whiskers, [y, y], color=style["color"], linewidth=1.2, alpha=0.5, zorder=2)
    shape = MARKERS.get(row.adjoint, OTHER_MARKER)
    axes.plot([x], [y], **style, marker=shape, markersize=7, label=row.label)
    if row.is_default:
        style |= {"markerfacecolor": "none", "markeredgecolor": "#222222"}
        axes.plot([x], [y], **style, marker="o", markersize=13, label="the layer's own choice")
    if row.failures or row.by_others:
        style |= {"markerfacecolor": "white", "markeredgecolor": "#222222"}
        axes.plot([x], [y], **style, marker="o", markersize=3, label="see below the panel")


def _height(row: Row) -> float:
    error = row.gradient_error if row.gradients else row.worst_error
    return max(error or 0.0, _LOWEST_ERROR)


def _bands(axes: Axes, result: Result, rows: Sequence[Row]) -> None:
    """Errors that are wrong, errors that are correct, and the accuracy of the reference."""
    times = [1e3 * value for row in rows if row.total for value in (row.total.low, row.total.high)]
    if times:
        reach = max(math.log10(max(times) / min(times)), 0.5)
        axes.set_xlim(min(times) * 10 ** (-0.08 * reach), max(times) * 10 ** (0.2 * reach))
    heights = [height for row in rows if math.isfinite(height := _height(row))]
    low, high = min([*heights, 1e-8]) * 0.1, max([*heights, WRONG_ERROR]) * 30
    axes.set_ylim(low, high)
    axes.axhspan(WRONG_ERROR, high, color="#D55E00", alpha=0.08, linewidth=0, zorder=0)
    axes.axhspan(low, result.tolerance, color="#009E73", alpha=0.06, linewidth=0, zorder=0)
    for name, height in (("avoid", high), ("correct", result.tolerance)):
        axes.annotate(
            name, (1, height), (-3, -9), xycoords=("axes fraction", "data"), ha="right",
            textcoords="offset points", fontsize=7, color="#777777",
        )  # fmt: skip
    agreement = result.reference.agreement
    if agreement is not None and low < agreement < high:
        axes.axhline(agreement, color="#777777", linewidth=0.8, linestyle=(0, (1, 3)), zorder=1,
                     label="reference checked to here")  # fmt: skip


def _footnotes(axes: Axes, result: Result) -> None:
    """Below the axes: the reasons for white dots, and rows and solvers without a marker."""
    failed = [f"{row.label} ({row.failures})" for row in result.rows if row.failures]
    said = [f"Failed elements: {words.listed(failed)}."] if failed else []
    lines = [
        textwrap.fill(note, _FOOTNOTE_WIDTH, max_lines=3, placeholder=" ...")
        for note in (*helped(result), *said, *unanswered(result))
    ]
    axes.annotate(
        "\n".join(lines), (0, 0), (0, -36), xycoords="axes fraction", va="top",
        textcoords="offset points", fontsize=6.5, color="#777777",
    )  # fmt: skip
