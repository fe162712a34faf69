"""Euclidean projections against POT, scikit-learn and jaxopt.

Forward and backward pass of a batch, float32, standard normal points. jaxopt's formulas are timed
twice: written in torch, differentiated by autograd, and jaxopt itself, compiled (``jit`` of
``vmap`` of the function and of its vector-Jacobian product), which fuses what torch does one by
one. POT's run on torch tensors, differentiated by autograd; scikit-learn's isotonic regression
takes one sequence at a time and has no derivative: ours is then timed without one. (jaxopt's needs
Numba, and without it runs in Python.)

Run: ``pip install POT jax jaxopt scikit-learn``, then ``python benchmarks/projections.py [--threads
2]``
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import Ratio, interleaved_ratios, markdown_table, save

from ddn_cvx.dedicated.projections.sets import SETS

SHAPES = ((64, 10), (256, 100), (4096, 1000))
MATRICES = ((256, 5, 5), (64, 20, 20))
JAXOPT = (
    "simplex",
    "l1_ball",
    "l2_ball",
    "linf_ball",
    "l1_sphere",
    "l2_sphere",
    "hyperplane",
    "halfspace",
)
RADIUS = 3.0


@dataclass
class Line:
    """One row of the table.

    Attributes:
        error: by how much the peer's answer differs from ours, at most.
    """

    name: str
    shape: tuple[int, ...]
    peer: str
    ratio: Ratio
    error: float


def arguments(name: str, n: int) -> tuple[Any, ...]:
    """The data of the set."""
    if name in ("hyperplane", "halfspace"):
        normal = torch.randn(n, generator=torch.Generator().manual_seed(1))
        return normal, RADIUS
    return (RADIUS,) if "radius" in SETS[name].data else ()


def ours(name: str, x: torch.Tensor, *, backward: bool) -> Callable[[], torch.Tensor]:
    """Value, and gradient of its inner product with ones."""
    data = arguments(name, x.shape[-1])
    project = SETS[name].project
    leaf = x.clone().requires_grad_(backward)
    incoming = torch.ones_like(x)

    def run() -> torch.Tensor:
        u = project(leaf, *data)
        if backward:
            torch.autograd.grad(u, leaf, incoming)
        return u.detach()

    return run


def simplex_by_sorting(x: torch.Tensor, radius: float) -> torch.Tensor:
    """jaxopt's formula for the simplex."""
    ordered = x.sort(1, descending=True).values
    rank = torch.arange(1, x.shape[1] + 1)
    excess = (ordered.cumsum(1) - radius) / rank
    count = (ordered > excess).sum(1, keepdim=True)
    return (x - excess.gather(1, count - 1)).clamp_min(0.0)


def l1_ball_by_sorting(x: torch.Tensor, radius: float) -> torch.Tensor:
    """jaxopt's formula for the L1 ball."""
    outside = x.sign() * simplex_by_sorting(x.abs(), radius)
    return torch.where(x.abs().sum(1, keepdim=True) <= radius, x, outside)


def halfspace_by_formula(x: torch.Tensor, normal: torch.Tensor, offset: float) -> torch.Tensor:
    """jaxopt's formula for a halfspace."""
    excess = (x @ normal - offset).clamp_min(0.0) / (normal @ normal)
    return x - excess.unsqueeze(1) * normal


FORMULAS: dict[str, Callable[..., torch.Tensor]] = {
    "simplex": simplex_by_sorting,
    "l1_ball": l1_ball_by_sorting,
    "l2_ball": lambda x, r: x * (r / x.norm(dim=1, keepdim=True).clamp_min(r)),
    "linf_ball": lambda x, r: x.clamp(-r, r),
    "l1_sphere": lambda x, r: x.sign() * simplex_by_sorting(x.abs(), r),
    "l2_sphere": lambda x, r: x * (r / x.norm(dim=1, keepdim=True)),
    "hyperplane": lambda x, a, b: x - ((x @ a - b) / (a @ a)).unsqueeze(1) * a,
    "halfspace": halfspace_by_formula,
}


def by_formula(name: str, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """jaxopt's formula in torch."""
    data, incoming = arguments(name, x.shape[-1]), torch.ones_like(x)
    leaf = x.clone().requires_grad_()

    def run() -> torch.Tensor:
        u = FORMULAS[name](leaf, *data)
        torch.autograd.grad(u, leaf, incoming)
        return u.detach()

    return run


def by_jaxopt(name: str, x: torch.Tensor) -> Callable[[], Any]:
    """jaxopt's projection of this name, compiled for the batch."""
    import jax
    import jax.numpy as jnp
    from jaxopt import projection

    function = getattr(projection, f"projection_{name.removesuffix('_polytope')}")
    values = tuple(jnp.asarray(value) for value in arguments(name, x.shape[-1]))

    def single(v: Any) -> Any:
        if not values:
            return function(v)
        return function(v, values[0] if len(values) == 1 else values)

    batched = jax.vmap(single)

    @jax.jit
    def both(v: Any, incoming: Any) -> Any:
        value, pull = jax.vjp(batched, v)
        return value, pull(incoming)[0]

    points = jnp.asarray(x.numpy())
    ones = jnp.ones_like(points)

    def run() -> Any:
        value, gradient = both(points, ones)
        gradient.block_until_ready()
        return value

    return run


def by_pot(x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """POT's projection onto the simplex, which takes columns."""
    import ot

    leaf, incoming = x.clone().requires_grad_(), torch.ones_like(x)

    def run() -> torch.Tensor:
        u = ot.utils.proj_simplex(leaf.T, RADIUS).T
        torch.autograd.grad(u, leaf, incoming)
        return u.detach()

    return run


def by_sklearn(x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Isotonic regression, one by one."""
    from sklearn.isotonic import isotonic_regression

    rows = x.numpy()

    def run() -> torch.Tensor:
        return torch.stack([torch.from_numpy(isotonic_regression(row)) for row in rows])

    return run


def measure(
    name: str, x: torch.Tensor, peer: str, theirs: Callable[[], Any], *, backward: bool
) -> Line:
    """One row."""
    mine = ours(name, x, backward=backward)
    found = torch.from_numpy(np.array(theirs()))
    error = float((found.double() - mine().double()).abs().max())
    repeats = 31 if x.numel() < 1_000_000 else 9
    ratio = interleaved_ratios(mine, {peer: theirs}, repeats=repeats, warm=3)[peer]
    return Line(name, tuple(x.shape), peer, ratio, error)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    torch.set_num_threads(parser.parse_args().threads)
    warnings.simplefilter("ignore")
    generator = torch.Generator().manual_seed(0)
    lines = []
    for shape in SHAPES:
        x = torch.randn(shape, generator=generator)
        for name in JAXOPT:
            theirs = by_formula(name, x)
            lines.append(measure(name, x, "jaxopt's formula", theirs, backward=True))
            lines.append(measure(name, x, "jaxopt, compiled", by_jaxopt(name, x), backward=True))
        lines.append(measure("simplex", x, "POT", by_pot(x), backward=True))
        lines.append(measure("monotone_cone", x, "scikit-learn", by_sklearn(x), backward=False))
    for shape in MATRICES:
        x = torch.randn(shape, generator=generator)
        theirs = by_jaxopt("birkhoff_polytope", x)
        lines.append(measure("birkhoff_polytope", x, "jaxopt, compiled", theirs, backward=True))
    table = markdown_table(
        ["set", "input", "peer", "our time / its time", "largest difference of the answers"],
        [
            (line.name, "x".join(map(str, line.shape)), line.peer, line.ratio, f"{line.error:.0e}")
            for line in lines
        ],
    )
    slower = [x for x in lines if x.ratio.median > 1 and x.peer != "jaxopt, compiled"]
    text = (
        "Forward and backward pass (scikit-learn: forward), float32; ours sums in float64. Ratios "
        "are medians over interleaved repeats, with quartiles; below one, ours is faster.\n\n"
        f"{table}\n\nNot faster, compiled code aside: "
        + (", ".join(f"{x.name} {x.shape} than {x.peer}" for x in slower) or "none")
        + "."
    )
    save("projections", "Euclidean projections against their peers", text, lines)


if __name__ == "__main__":
    main()
