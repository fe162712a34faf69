"""Lasso path: the coefficients and their slopes over the penalty's weight, from one batched call.

One figure, on the diabetes data that scikit-learn bundles:

- ``lasso_path.png``: the coefficients of ``minimize 1/2 |X u - y|^2 + lambda |u|_1`` (Tibshirani,
  "Regression shrinkage and selection via the lasso", 1996), and their derivatives by ``lambda``,
  which the layer's backward pass gives.

The path is piecewise linear, and least angle regression finds it exactly (Efron, Hastie, Johnstone
and Tibshirani, "Least angle regression", 2004): scikit-learn's path is printed beside the layer's.

Run: ``python examples/lasso_path.py [--out FOLDER]``; the data need ``pip install scikit-learn``
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ddn_cvx import DeclarativeLayer
from ddn_cvx.datasets import diabetes
from ddn_cvx.problems import lasso

STEPS = 60  # values of lambda, over three decades


@dataclass(frozen=True, eq=False)
class LassoPath:
    """Coefficients for a grid of ``lambda``, and their accuracy.

    Attributes:
        weights: ``lambda``, decreasing, ``(L,)``.
        coefficients: ``(L, columns)``.
        slopes: derivative of the coefficients by ``lambda``, ``(L, columns)``.
        optimality: largest violation of the optimality conditions, relative to the least weight
            at which all coefficients are zero.
        against_lars: largest difference from scikit-learn's exact path, relative to the largest
            coefficient.
        slopes_against_lars: largest difference of the slopes, relative to the largest slope.
    """

    weights: torch.Tensor
    coefficients: torch.Tensor
    slopes: torch.Tensor
    optimality: float
    against_lars: float
    slopes_against_lars: float


def lasso_path(X: torch.Tensor, y: torch.Tensor, steps: int = STEPS) -> LassoPath:
    """Solve for a logarithmic grid of ``lambda`` in one batched call, and check the answers.

    Args:
        X: centred, shape ``(rows, columns)`` with full column rank, float64.
        y: shape ``(rows,)``; it is centred here.
        steps: number of values of ``lambda``.
    """
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
    totals = coefficients.sum(0)
    slopes = [torch.autograd.grad(total, leaf, retain_graph=True)[0] for total in totals]
    found, slope = coefficients.detach(), torch.stack(slopes, 1)
    exact, exact_slope = by_lars(X, y, weights)
    return LassoPath(
        weights=weights,
        coefficients=found,
        slopes=slope,
        optimality=violation(X, y, weights, found) / largest,
        against_lars=difference(found, exact),
        slopes_against_lars=difference(slope, exact_slope),
    )


def violation(
    X: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, found: torch.Tensor
) -> float:
    """Largest step of the proximal gradient method, which is zero at a solution alone."""
    moved = found + (y - found @ X.mT) @ X  # (L, columns)
    limit = weights.unsqueeze(1)
    shrunk = moved - moved.clamp(-limit, limit)
    return float((shrunk - found).abs().max())


def by_lars(
    X: torch.Tensor, y: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Coefficients and slopes, ``(L, columns)``, of the exact path: linear between its knots."""
    from scipy.interpolate import make_interp_spline
    from sklearn.linear_model import lars_path

    alphas, _, coefficients = lars_path(X.numpy(), y.numpy(), method="lasso")
    # scikit-learn divides the squares by the number of rows, and its knots decrease.
    path = make_interp_spline(alphas[::-1] * len(y), coefficients.T[::-1], k=1)
    return torch.from_numpy(path(weights)), torch.from_numpy(path(weights, nu=1))


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference, relative to the largest entry."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def draw(path: LassoPath, names: Sequence[str], out: Path) -> None:
    """Coefficients and slopes over ``lambda``, named in the order in which the former end."""
    from matplotlib import pyplot

    order = path.coefficients[-1].argsort(descending=True)
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    panels = {"coefficient": path.coefficients, "its derivative by lambda": path.slopes}
    for axis, (label, values) in zip(axes, panels.items(), strict=True):
        axis.axhline(0, color="0.5", linewidth=0.6)
        lines = axis.plot(path.weights, values[:, order], linewidth=1.4)
        axis.set(xscale="log", xlabel="penalty's weight lambda", ylabel=label)
        axis.invert_xaxis()
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].set_yscale("symlog", linthresh=0.1)  # the slopes range over three decades too
    named = [names[column] for column in order.tolist()]
    figure.legend(lines, named, loc="outside right center", frameon=False)
    figure.suptitle("Lasso path on the diabetes data, one batched call and its backward pass")
    figure.savefig(out / "lasso_path.png", dpi=120)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, and print the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the figure")
    out = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    X, y, names = diabetes()
    path = lasso_path(X, y)
    print(f"{len(path.weights)} values of lambda in one call; relative errors:")
    print(f"  {path.optimality:.0e}  violation of the lasso's optimality conditions")
    print(f"  {path.against_lars:.0e}  coefficients against scikit-learn's exact path")
    print(f"  {path.slopes_against_lars:.0e}  gradients of the layer against that path's slopes")
    draw(path, names, out)
    print(f"Figure: {out / 'lasso_path.png'}")


if __name__ == "__main__":
    main()
