"""Projections: level sets of three norms, nearest points on their spheres, and the gradients.

Two figures, after Gould, Hartley and Campbell, "Deep declarative networks" (2021), section 5.2:

- ``spheres.png``: level sets of the L1, L2 and max norm, points of the plane, and where they go on
  the unit sphere (upper row) and in the unit ball (lower row);
- ``gradients.png``: the gradient of the projection's inner product with a fixed direction, the
  arrow in the corner, at each point. It lies along the surface: what points outward is lost. Where
  a corner is nearest, or the inside of a cube is left through a face, it is zero or one-sided.

Run: ``python examples/projections.py [--out FOLDER]``
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from ddn_cvx.nn import Projection

NORMS = {"l1": 1.0, "l2": 2.0, "linf": math.inf}
TITLES = {"l1": "L1", "l2": "L2", "linf": "max norm"}
SETS = ("sphere", "ball")
DIRECTION = (0.8, 0.6)
REACH = 2.2
# Of the gradients that are drawn.
LONGEST = 2.5


def grid(steps: int) -> torch.Tensor:
    """Points of the plane, shape ``(steps^2, 2)``; none on an axis or a diagonal."""
    side = torch.linspace(-REACH, REACH, steps, dtype=torch.float64)
    x, y = torch.meshgrid(side + 0.013, side + 0.029, indexing="xy")
    return torch.stack([x.flatten(), y.flatten()], 1)


def project(norm: str, kind: str, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Projections and gradients of their inner product with ``DIRECTION``, both ``(P, 2)``."""
    leaf = points.clone().requires_grad_()
    u = Projection(f"{norm}_{kind}")(leaf)
    direction = torch.tensor(DIRECTION, dtype=points.dtype)
    (gradient,) = torch.autograd.grad((u @ direction).sum(), leaf)
    return u.detach(), gradient


def draw(out: Path) -> None:
    """Both figures."""
    from matplotlib import pyplot

    fine = torch.linspace(-REACH, REACH, 301, dtype=torch.float64)
    x, y = torch.meshgrid(fine, fine, indexing="xy")
    plane = torch.stack([x, y], -1)
    for name, steps in (("spheres", 9), ("gradients", 17)):
        points = grid(steps)
        figure, axes = pyplot.subplots(2, 3, figsize=(11, 7.6), layout="constrained")
        for row, kind in enumerate(SETS):
            for column, (norm, order) in enumerate(NORMS.items()):
                axis = axes[row, column]
                height = torch.linalg.vector_norm(plane, ord=order, dim=-1)
                axis.contour(x, y, height, [0.5, 1.5, 2.0], colors="0.85", linewidths=0.8)
                axis.contour(x, y, height, [1.0], colors="k", linewidths=1.5)
                u, gradient = project(norm, kind, points)
                if name == "spheres":
                    for start, end in zip(points.tolist(), u.tolist(), strict=True):
                        axis.plot(*zip(start, end, strict=True), color="C0", linewidth=0.7)
                    axis.plot(*points.T, ".", color="C0", markersize=4)
                    axis.plot(*u.T, "o", color="C1", markersize=3.5)
                else:
                    drawn = gradient.norm(dim=1) < LONGEST
                    at, gradient = points[drawn], gradient[drawn]
                    axis.quiver(
                        *at.T, *gradient.T, gradient.norm(dim=1), cmap="viridis", clim=(0, 1.5),
                        angles="xy", scale=22, width=0.005,
                    )  # fmt: skip
                    axis.annotate(
                        "", (-1.9 + 0.5 * DIRECTION[0], -2.0 + 0.5 * DIRECTION[1]), (-1.9, -2.0),
                        arrowprops={"arrowstyle": "->", "color": "C3", "linewidth": 2},
                    )  # fmt: skip
                axis.set(title=f"{TITLES[norm]} {kind}", aspect="equal", xticks=[], yticks=[])
                axis.set_xlim(-2.4, 2.4)
                axis.set_ylim(-2.4, 2.4)
        title = {
            "spheres": "Points (blue), and the nearest (orange) on the unit sphere, in the ball",
            "gradients": "Gradient of the projection along the red arrow; yellow is long, and near "
            "the L2 sphere's centre too long to be drawn",
        }
        figure.suptitle(title[name])
        figure.savefig(out / f"{name}.png", dpi=120)
        pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, and print where one point goes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the figures")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    point = torch.tensor([[0.9, 0.4]], dtype=torch.float64)
    for norm in NORMS:
        for kind in SETS:
            u, gradient = project(norm, kind, point)
            shown = "  ".join(
                f"{label} ({value[0, 0]:+.3f}, {value[0, 1]:+.3f})"
                for label, value in (("nearest", u), ("gradient", gradient))
            )
            print(f"{TITLES[norm] + ' ' + kind:16} of (0.9, 0.4): {shown}")
    draw(options.out)
    print(f"Figures: {options.out / 'spheres.png'}, {options.out / 'gradients.png'}")


if __name__ == "__main__":
    main()
