"""Robust pooling: the penalties, and what a moving outlier does to each pool.

Two figures, after Gould, Hartley and Campbell, "Deep declarative networks" (2021), section 5.1:

- ``penalties.png``: the five penalties and their slopes, which say how hard a residual pulls;
- ``moving_outlier.png``: the pooled value of six points, and its derivative in one of them, while
  that one moves away. The average follows it for ever, the convex robust penalties are pulled by a
  bounded force, and the nonconvex ones let it go.

Run: ``python examples/robust_pooling.py [--out FOLDER]``
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from ddn_cvx.dedicated.pooling.penalties import PENALTIES
from ddn_cvx.nn import RobustPool1d

ALPHA = 1.0
INLIERS = (-0.6, -0.25, 0.0, 0.2, 0.65)
LABELS = {
    "quadratic": "quadratic (average)",
    "pseudo_huber": "pseudo-Huber",
    "huber": "Huber",
    "welsch": "Welsch",
    "truncated_quadratic": "truncated quadratic",
}


def penalty_curves(z: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """``phi(z)`` and ``phi'(z)`` of each penalty, of the shape of ``z``."""
    alpha = torch.tensor(ALPHA, dtype=z.dtype)
    return {name: (phi.value(z, alpha), phi.slope(z, alpha)) for name, phi in PENALTIES.items()}


def moving_outlier(places: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The pooled value and its derivative in the moving point, both of the shape of ``places``."""
    inliers = torch.tensor(INLIERS, dtype=places.dtype).expand(len(places), -1)
    found = {}
    for name in PENALTIES:
        moving = places.clone().requires_grad_()
        points = torch.cat([inliers, moving.unsqueeze(1)], 1)  # (places, 6)
        pooled = RobustPool1d(name, alpha=ALPHA)(points.unsqueeze(1)).squeeze(1)
        (slope,) = torch.autograd.grad(pooled.sum(), moving)
        found[name] = (pooled.detach(), slope)
    return found


def draw(out: Path) -> None:
    """Both figures."""
    from matplotlib import pyplot

    z = torch.linspace(-4, 4, 801, dtype=torch.float64)
    figure, axes = pyplot.subplots(2, 5, figsize=(13, 4.6), sharex=True, layout="constrained")
    for column, (name, (value, slope)) in enumerate(penalty_curves(z).items()):
        top, bottom = axes[:, column]
        top.plot(z, value, color="C0")
        top.set_title(LABELS[name])
        top.set_ylim(-0.1, 4)
        bottom.plot(z, slope, color="C1")
        bottom.set_ylim(-2.2, 2.2)
        bottom.set_xlabel("residual z")
    axes[0, 0].set_ylabel("penalty")
    axes[1, 0].set_ylabel("its slope")
    figure.suptitle(f"Penalties of robust pooling, alpha = {ALPHA:g}")
    figure.savefig(out / "penalties.png", dpi=120)

    places = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    found = moving_outlier(places)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for name, (pooled, slope) in found.items():
        left.plot(places, pooled, label=LABELS[name])
        right.plot(places, slope, label=LABELS[name])
    left.plot(INLIERS, [0.0] * len(INLIERS), "k|", markersize=12, label="the other points")
    left.set(xlabel="place of the sixth point", ylabel="pooled value")
    right.set(xlabel="place of the sixth point", ylabel="derivative of the pooled value in it")
    left.legend(fontsize=8)
    figure.suptitle("Six points, of which one moves away")
    figure.savefig(out / "moving_outlier.png", dpi=120)
    pyplot.close("all")


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, and say where."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("robust_pooling"), help="folder")
    out = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    draw(out)
    far = torch.tensor([6.0], dtype=torch.float64)
    for name, (pooled, slope) in moving_outlier(far).items():
        print(f"{LABELS[name]:20s} pooled {float(pooled):+.3f}, derivative {float(slope):+.3f}")
    print(f"Figures in {out}.")


if __name__ == "__main__":
    main()
