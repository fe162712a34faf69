"""The lasso path: coefficients over the penalty's weight, from one batched call of the lasso layer.

Tibshirani, "Regression shrinkage and selection via the lasso", 1996. The path is piecewise linear,
and least angle regression finds it exactly: Efron, Hastie, Johnstone and Tibshirani, "Least angle
regression", 2004.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ddn_cvx.comparison.figure import name_beside, prepare
from ddn_cvx.layer import DeclarativeLayer

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
            coefficient.
        slopes_against_lars: largest difference of the slopes, relative to the largest slope.
    """

    names: tuple[str, ...]
    weights: torch.Tensor
    coefficients: torch.Tensor
    slopes: torch.Tensor
    optimality: float
    against_lars: float
    slopes_against_lars: float

    @property
    def text(self) -> str:
        """Accuracy of the path, in words."""
        return (
            f"{len(self.weights)} values of lambda in one call; the lasso's optimality conditions "
            f"hold to {self.optimality:.0e}; scikit-learn's exact path differs by "
            f"{self.against_lars:.0e}, and its slopes from the layer's gradients by "
            f"{self.slopes_against_lars:.0e} (relative)"
        )

    def draw(self, axes: Axes) -> None:
        """Coefficients over ``lambda``, named in the order in which they end."""
        axes.set_xscale("log")
        axes.invert_xaxis()
        order = self.coefficients[-1].argsort(descending=True)
        lines = axes.plot(self.weights.numpy(), self.coefficients[:, order].numpy(), linewidth=1.4)
        axes.axhline(0, color="#777777", linewidth=0.6)
        prepare(axes, "lasso path, diabetes data", "penalty's weight lambda", "coefficient")
        name_beside(axes, lines, [self.names[column] for column in order.tolist()])


def lasso_path(
    X: torch.Tensor, y: torch.Tensor, names: tuple[str, ...], *, steps: int = 60
) -> LassoPath:
    """Solve for a logarithmic grid of ``lambda`` in one batched call, and check the answers.

    Args:
        X: centred, shape ``(rows, columns)`` with full column rank, float64.
        y: shape ``(rows,)``; it is centred here.
        names: of the columns.
        steps: number of values of ``lambda``, over three decades.

    Raises:
        ImportError: scikit-learn is not installed.
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
        torch.autograd.grad(total, leaf, retain_graph=True)[0] for total in coefficients.sum(0)
    ]
    found, slope = coefficients.detach(), torch.stack(slopes, 1)
    exact, exact_slope = _by_lars(X, y, weights)
    return LassoPath(
        names=names,
        weights=weights,
        coefficients=found,
        slopes=slope,
        optimality=_violation(X, y, weights, found) / largest,
        against_lars=_difference(found, exact),
        slopes_against_lars=_difference(slope, exact_slope),
    )


def _violation(
    X: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, found: torch.Tensor
) -> float:
    """Largest step of the proximal gradient method, which is zero at a solution alone."""
    moved = found + (y - found @ X.mT) @ X  # (L, columns)
    limit = weights.unsqueeze(1)
    shrunk = moved - moved.clamp(-limit, limit)
    return float((shrunk - found).abs().max())


def _by_lars(
    X: torch.Tensor, y: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Coefficients and slopes, ``(L, columns)``, of the exact path: linear between its knots."""
    from scipy.interpolate import make_interp_spline
    from sklearn.linear_model import lars_path

    alphas, _, coefficients = lars_path(X.numpy(), y.numpy(), method="lasso")
    # scikit-learn divides the squares by the number of rows, and its knots decrease.
    path = make_interp_spline(alphas[::-1] * len(y), coefficients.T[::-1], k=1)
    return torch.from_numpy(path(weights)), torch.from_numpy(path(weights, nu=1))


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())
