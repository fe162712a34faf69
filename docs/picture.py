"""Draws the README's picture from the layer itself and from ``benchmarks/results``.

Run: ``python docs/picture.py [FILE]``
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ddn_cvx import DeclarativeLayer
from ddn_cvx.problems import polyhedron_projection

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"

OURS, THEIRS, INK, PALE = "#0b6e99", "#d1731f", "#333333", "#e8eef2"
RANKS = ("#7a4ea3", "#2a9d8f", "#8a949b")  # of dy/dx, where it is 0, 1, 2
PEER = "cvxpylayers, default"


def projections(axes: Axes) -> None:
    """Points around a pentagon, their projections, and how much of the gradient passes."""
    from matplotlib.patches import Polygon

    angle = torch.arange(5) * (2 * torch.pi / 5) + 0.3
    G = torch.stack([angle.cos(), angle.sin()], 1).double()  # (5, 2): the faces' normals
    h = torch.tensor([1.0, 0.8, 1.1, 0.9, 1.0]).double()
    corners = torch.linalg.solve(
        torch.stack([G, G.roll(-1, 0)], 1), torch.stack([h, h.roll(-1)], 1)
    )
    layer = DeclarativeLayer(polyhedron_projection(n=2, m=5))
    generator = torch.Generator().manual_seed(4)
    x = 4.4 * torch.rand(46, 2, generator=generator, dtype=torch.float64) - 2.2
    x.requires_grad_()
    inputs = {"x": x, "G": G, "h": h}
    (y,) = layer(*[inputs[leaf.name()] for leaf in layer.declaration.parameters])
    rows = [torch.autograd.grad(y[:, i].sum(), x, retain_graph=True)[0] for i in range(2)]
    rank = torch.linalg.matrix_rank(
        torch.stack(rows, 1), atol=1e-6, rtol=0.0
    )  # of each point's dy/dx

    axes.add_patch(Polygon(corners.numpy(), closed=True, facecolor=PALE, edgecolor=INK, zorder=0))
    labels = ("0: a corner", "1: a face", "2: inside")
    for value in (2, 1, 0):
        start, end = x.detach()[rank == value], y.detach()[rank == value]
        colour = RANKS[value]
        for a, b in zip(start.tolist(), end.tolist(), strict=True):
            if value < 2:
                style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1, "shrinkB": 0}
                axes.annotate("", xy=b, xytext=a, arrowprops=style)
        axes.scatter(*start.T, s=16, color=colour, label=labels[value], zorder=3)
    axes.set(xlim=(-2.3, 2.3), ylim=(-3.3, 2.3), aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.legend(
        title="rank of the gradient", loc="lower center", ncols=3, frameon=False, fontsize=8,
        title_fontsize=8, handletextpad=0.1, columnspacing=0.8,
    )  # fmt: skip
    axes.set_title("A projection as a layer")


def accuracy(axes: Axes) -> None:
    """Median and worst gradient error by size, both layers at their defaults."""
    table = json.loads((RESULTS / "gradient_accuracy.json").read_text())
    for layer, colour, name in (
        (PEER, THEIRS, "cvxpylayers"),
        ("ddn_cvx, default", OURS, "ddn-cvx"),
    ):
        rows = [row for row in table if row["layer"] == layer]
        places = range(len(rows))
        median, worst = ([row[key] for row in rows] for key in ("median", "worst"))
        axes.vlines(places, median, worst, color=colour, linewidth=2, alpha=0.4)
        axes.plot(places, median, "o", color=colour, markersize=6, label=f"{name}, median")
        axes.plot(
            places,
            worst,
            "_",
            color=colour,
            markersize=12,
            markeredgewidth=2,
            label=f"{name}, worst",
        )
        axes.set_xticks(places, ["\n".join(map(str, row["size"])) for row in rows])
    axes.set_yscale("log")
    axes.set_ylim(1e-13, 1e3)
    axes.set_xlabel("variables, inequalities, equalities")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2, fontsize=8, loc="upper center", columnspacing=1)
    seeds = sum(row["regular"] for row in table) // 2
    axes.set_title(f"Gradient error, {seeds} random QPs")


def failures(axes: Axes) -> None:
    """A batch of 64 with four bad elements: what comes back."""
    from matplotlib.patches import Rectangle

    table: dict[str, Any] = json.loads((RESULTS / "failures.json").read_text())
    ours = table['ddn_cvx, on_failure="nan"']
    bad = [index for entry in table['ddn_cvx, on_failure="raise" (default)']["named as faulty"]
           for index in entry]  # fmt: skip
    returned = {
        "cvxpylayers": int(table[PEER]["sound elements returned"]),
        "ddn-cvx": int(ours["sound elements returned"]),
    }
    for column, (name, count) in enumerate(returned.items()):
        for element in range(64):
            sound = element not in bad
            kept = sound and count > 0
            colour = OURS if kept else ("#c8432b" if not sound and count else "#d9d9d9")
            corner = (column * 10 + element % 8, 7 - element // 8)
            axes.add_patch(Rectangle(corner, 0.86, 0.86, facecolor=colour))
        said = f"returns {count}, names the other {len(bad)}" if count else "raises, returns none"
        text = f"{name}\n{said}"
        axes.text(column * 10 + 3.9, -0.5, text, ha="center", va="top", fontsize=8.5)
    axes.set(xlim=(-0.5, 18.5), ylim=(-3, 8.4), aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title("A batch of 64, three infeasible, one NaN")


def main() -> None:
    """Draw, save, say where."""
    from matplotlib.figure import Figure

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=HERE / "picture.png")
    file = parser.parse_args().file
    figure = Figure(figsize=(12.6, 3.7), layout="constrained")
    for draw, axes in zip(
        (projections, accuracy, failures),
        figure.subplots(1, 3, width_ratios=(1.15, 1.25, 1.45)),
        strict=True,
    ):
        draw(axes)
        axes.title.set_fontsize(11)
    figure.savefig(file, dpi=110)
    print(file)


if __name__ == "__main__":
    main()
