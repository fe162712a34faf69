"""The lasso path: coefficients over the penalty's weight, from one batched call of the lasso layer.

Tibshirani, "Regression shrinkage and selection via the lasso", 1996. The path is piecewise linear,
and least angle regression finds it exactly: Efron, Hastie, Johnstone and Tibshirani, "Least angle
regression", 2004.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ddn_cvx.comparison.figure import prepare
from ddn_cvx.layer import DeclarativeLayer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A coefficient counts as zero below this fraction of the largest one: the solver's coefficients are
# right to 1e-9 of it.
_ZERO_FRACTION = 1e-7
# Height of a name at 8 points, as a share of a panel's height.
_LABEL_HEIGHT = 0.05


@dataclass(frozen=True, eq=False)
class LassoPath:
    """Coefficients of ``minimize 1/2 |X u - y|^2 + lambda |u|_1`` for a grid of ``lambda``.

    Attributes:
        names: of the columns of ``X``.
        weights: ``lambda``, decreasing, ``(L,)``.
        coefficients: ``(L, columns)``.
        slopes: derivative of the coefficients by ``lambda``, from the layer's backward pass,
            ``(L, columns)``.
        optimality: largest violation of the optimality conditions, relative to the least weight
            at which all coefficients are zero.
        against_lars: largest difference from scikit-learn's exact path, relative to the largest
            coefficient; None if scikit-learn is not installed.
        slopes_against_lars: largest difference of the slopes, relative to the largest slope.
    """

    names: tuple[str, ...]
    weights: torch.Tensor
    coefficients: torch.Tensor
    slopes: torch.Tensor
    optimality: float
    against_lars: float | None
    slopes_against_lars: float | None

    @property
    def text(self) -> str:
        """Accuracy of the path, in words."""
        said = [
            f"{len(self.weights)} values of lambda in one call; the lasso's optimality conditions "
            f"hold to {self.optimality:.0e}"
        ]
        if self.against_lars is not None and self.slopes_against_lars is not None:
            said.append(
                f"scikit-learn's exact path differs by {self.against_lars:.0e}, and its slopes from"
                f" the layer's gradients by {self.slopes_against_lars:.0e} (relative)"
            )
        return "; ".join(said)

    def draw(self, axes: Axes) -> None:
        """Coefficients over ``lambda``, named where they end."""
        from matplotlib import colormaps

        colours = colormaps["tab10"].colors  # type: ignore[attr-defined]
        axes.set_xscale("log")
        axes.invert_xaxis()
        for column in range(len(self.names)):
            values = self.coefficients[:, column].tolist()
            colour = colours[column % len(colours)]
            axes.plot(self.weights.tolist(), values, color=colour, linewidth=1.4)
        name_ends(axes, self.names, self.coefficients[-1].tolist(), colours)
        axes.axhline(0, color="#777777", linewidth=0.6)
        prepare(axes, "lasso path, diabetes data", "penalty's weight lambda", "coefficient")


def lasso_path(
    X: torch.Tensor, y: torch.Tensor, names: tuple[str, ...], *, steps: int = 60
) -> LassoPath:
    """Solve for a logarithmic grid of ``lambda`` in one batched call, and check the answers.

    Args:
        X: centred, shape ``(rows, columns)`` with full column rank, float64.
        y: shape ``(rows,)``; it is centred here.
        names: of the columns.
        steps: number of values of ``lambda``, over three decades.
    """
    from ddn_cvx.problems import lasso

    y = y - y.mean()
    # |X u - y|^2 = |R u - Q'y|^2 + constant: the same minimizers, from a square matrix.
    Q, R = torch.linalg.qr(X)
    columns = X.shape[1]
    layer = DeclarativeLayer(lasso(rows=columns, columns=columns))
    largest = float((X.mT @ y).abs().max())
    # The grid stays off both ends, where the path has a kink.
    weights = largest * torch.logspace(-0.01, -3, steps, dtype=torch.float64)
    leaf = weights.clone().requires_grad_()
    (coefficients,) = layer(R, Q.mT @ y, leaf)
    # Element i of the answer depends on weight i alone: one pass for each column gives all slopes.
    slopes = [
        torch.autograd.grad(coefficients[:, column].sum(), leaf, retain_graph=True)[0]
        for column in range(columns)
    ]
    found, slope = coefficients.detach(), torch.stack(slopes, 1)
    exact = _by_lars(X, y, weights)
    return LassoPath(
        names=names,
        weights=weights,
        coefficients=found,
        slopes=slope,
        optimality=_violation(X, y, weights, found) / largest,
        against_lars=None if exact is None else _difference(found, exact[0]),
        slopes_against_lars=None if exact is None else _difference(slope, exact[1]),
    )


def _violation(
    X: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, found: torch.Tensor
) -> float:
    """Distance of ``X'(y - X u)`` from ``lambda`` times the subdifferential of ``|u|_1``."""
    correlation = (y - found @ X.mT) @ X  # (L, columns)
    weight = weights.unsqueeze(1)
    zero = found.abs() <= _ZERO_FRACTION * found.abs().max()
    outside = (correlation.abs() - weight).clamp_min(0)
    off = (correlation - weight * found.sign()).abs()
    return float(torch.where(zero, outside, off).max())


def _by_lars(
    X: torch.Tensor, y: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Coefficients and slopes, ``(L, columns)``, of the exact path: linear between its knots."""
    try:
        from sklearn.linear_model import lars_path
    except ImportError:
        return None
    alphas, _, coefficients = lars_path(X.numpy(), y.numpy(), method="lasso")
    # scikit-learn divides the squares by the number of rows.
    knots = torch.from_numpy(alphas.copy()).flip(0) * len(y)  # increasing
    values = torch.from_numpy(coefficients.copy()).flip(1)  # (columns, K)
    right = torch.searchsorted(knots, weights).clamp(1, len(knots) - 1)
    slope = (values[:, right] - values[:, right - 1]) / (knots[right] - knots[right - 1])
    exact = values[:, right - 1] + slope * (weights - knots[right - 1])
    return exact.mT, slope.mT


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def name_ends(
    axes: Axes, names: Sequence[str], heights: Sequence[float], colours: Sequence[Any]
) -> None:
    """Write names to the right of the axes, each at its height or as close as there is room."""
    low, high = axes.get_ylim()
    places = spaced(heights, _LABEL_HEIGHT * (high - low))
    for index, (name, place) in enumerate(zip(names, places, strict=True)):
        colour = colours[index % len(colours)]
        axes.text(
            1.02, place, name, transform=axes.get_yaxis_transform(), fontsize=8, va="center",
            color=colour,
        )  # fmt: skip


def spaced(heights: Sequence[float], gap: float) -> list[float]:
    """Heights moved as little as needed to be ``gap`` apart, in the same order.

    Example:
        >>> spaced([0.0, 0.0, 5.0], 1.0)
        [-0.5, 0.5, 5.0]
    """
    order = sorted(range(len(heights)), key=heights.__getitem__)
    # Groups of labels that touch, each as (lowest place, members), merged from below.
    groups: list[tuple[float, list[int]]] = []
    for index in order:
        members = [index]
        while True:
            middle = sum(heights[member] for member in members) / len(members)
            low = middle - gap * (len(members) - 1) / 2
            if not groups or groups[-1][0] + gap * len(groups[-1][1]) <= low:
                break
            members = groups.pop()[1] + members
        groups.append((low, members))
    placed = dict.fromkeys(order, 0.0)
    for low, members in groups:
        for place, member in enumerate(members):
            placed[member] = low + gap * place
    return [placed[index] for index in range(len(heights))]
