"""Robust pooling against one L-BFGS for the whole batch.

The baseline is the method of the ``ddn`` library's robust pools: the sum of all rows' objectives is
minimised by one run of L-BFGS (torch's, at most 100 iterations, history 100, no line search) from
the rows' means and, for a nonconvex penalty, by another from their medians, of which the lower in
total is kept; backward by the closed form of the implicit derivative. Forward and backward pass,
float32, 20 % of the points outliers.

Run: ``python benchmarks/robust_pooling.py [--threads 2]``
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass

import torch
from common import Ratio, interleaved_ratios, markdown_table, save

from ddn_cvx.dedicated.pooling.penalties import PENALTIES
from ddn_cvx.dedicated.pooling.scalar import robust_pool, solve_pool

SHAPES = ((16, 64, 7, 7), (8, 256, 32, 32))
# Penalty, search, and the ratio that is asked for: ours over the baseline's.
CASES = (
    ("pseudo_huber", "global", 1 / 2),
    ("huber", "global", 1 / 2),
    ("truncated_quadratic", "global", 1 / 3),
    ("welsch", "global", 1.0),
    ("welsch", "local", 1 / 3),
)
ALPHA = 1.0


@dataclass
class Line:
    """One row of the table."""

    shape: tuple[int, ...]
    penalty: str
    search: str
    ratio: Ratio
    target: float
    our_misses: float
    their_misses: float


def inputs(shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal points, a fifth of them moved up by up to ten."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    outlier = torch.rand(shape, generator=generator) < 0.2
    return torch.where(outlier, x + 10 * torch.rand(shape, generator=generator), x)


def shared_lbfgs(x: torch.Tensor, penalty: str) -> torch.Tensor:
    """The baseline's minimizers, shape of ``x`` without its last two dimensions."""
    rows = x.detach().flatten(0, 1).flatten(1)  # (R, n)
    phi, alpha = PENALTIES[penalty].value, torch.tensor(ALPHA)
    starts = [rows.mean(1)]
    if penalty in ("welsch", "truncated_quadratic"):
        starts.append(rows.median(1).values)
    found = []
    for start in starts:
        u = start.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([u], max_iter=100, history_size=100)

        def total(u: torch.Tensor = u, optimizer: torch.optim.LBFGS = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            value = phi(u.unsqueeze(1) - rows, alpha).sum()
            value.backward()
            return value

        optimizer.step(total)  # type: ignore[arg-type]
        found.append(u.detach())
    heights = [float(phi(u.unsqueeze(1) - rows, alpha).sum()) for u in found]
    return found[heights.index(min(heights))].reshape(x.shape[:2])


class _SharedPool(torch.autograd.Function):
    """The baseline with its closed-form derivative."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor, penalty: str) -> torch.Tensor:
        u = shared_lbfgs(x, penalty)
        ctx.save_for_backward(x, u)  # type: ignore[attr-defined]
        ctx.penalty = penalty  # type: ignore[attr-defined]
        return u

    @staticmethod
    def backward(ctx: object, *incoming: torch.Tensor) -> tuple[torch.Tensor, None]:
        x, u = ctx.saved_tensors  # type: ignore[attr-defined]
        z = u[..., None, None] - x
        weight = PENALTIES[ctx.penalty].curvature(z, torch.tensor(ALPHA))  # type: ignore[attr-defined]
        total = weight.sum((-2, -1), keepdim=True)
        slope = torch.where(total.abs() <= 1e-9, 0.0, weight / total)
        return slope * incoming[0][..., None, None], None


def misses(u: torch.Tensor, x: torch.Tensor, penalty: str) -> float:
    """Share of the rows that are above the global minimum by more than 1e-4 of it."""
    best = solve_pool(x, penalty, ALPHA, dim=(-2, -1)).objective
    z = u.double()[..., None, None] - x.double()
    height = PENALTIES[penalty].value(z, torch.tensor(ALPHA, dtype=torch.float64)).sum((-2, -1))
    return float((height > best * (1 + 1e-4)).double().mean())


def measure(shape: tuple[int, ...], penalty: str, search: str, target: float) -> Line:
    """One size and penalty."""
    x = inputs(shape)
    leaf = x.clone().requires_grad_()
    incoming = torch.ones(shape[:2])

    def ours() -> tuple[torch.Tensor, ...]:
        y = robust_pool(leaf, penalty, ALPHA, dim=(-2, -1), search=search)
        return torch.autograd.grad(y, leaf, incoming)

    def theirs() -> tuple[torch.Tensor, ...]:
        y = _SharedPool.apply(leaf, penalty)  # type: ignore[no-untyped-call]
        return torch.autograd.grad(y, leaf, incoming)

    small = shape[0] * shape[1] * shape[2] * shape[3] < 1_000_000
    repeats = 21 if small else 5
    ratio = interleaved_ratios(ours, {"shared": theirs}, repeats=repeats, warm=3)["shared"]
    pooled = robust_pool(x, penalty, ALPHA, dim=(-2, -1), search=search)
    return Line(
        shape,
        penalty,
        search,
        ratio,
        target,
        misses(pooled, x, penalty),
        misses(shared_lbfgs(x, penalty), x, penalty),
    )


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    torch.set_num_threads(parser.parse_args().threads)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    lines = [measure(shape, *case) for shape in SHAPES for case in CASES]
    table = markdown_table(
        ["input", "penalty", "search", "our time / its time", "asked", "ours above the minimum",
         "its above the minimum"],
        [
            (
                "x".join(map(str, line.shape)), line.penalty, line.search, line.ratio,
                f"{line.target:.2f}", f"{line.our_misses:.1%}", f"{line.their_misses:.1%}",
            )
            for line in lines
        ],
    )  # fmt: skip
    met = all(line.ratio.median <= line.target for line in lines)
    text = (
        "Forward and backward pass, float32, 20 % outliers. Ratios are medians over interleaved "
        "repeats, with quartiles; below one, ours is faster. The last columns: the share of rows "
        f"above the global minimum by more than 1e-4 of it.\n\n{table}\n\n"
        f"Targets: {'met' if met else 'NOT met'}."
    )
    save("robust_pooling", "Robust pooling against one L-BFGS for the batch", text, lines)


if __name__ == "__main__":
    main()
