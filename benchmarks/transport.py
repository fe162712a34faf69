"""Sinkhorn against POT and against differentiating the iterations.

Forward and backward pass of a batch in float64, random costs in the unit interval and random
marginals. Ours solves to marginals of 1e-10 and differentiates the plan implicitly. The peers are
POT's log-domain Sinkhorn on torch tensors, differentiated by autograd, and log-domain iterations
written in torch for the whole batch, with autograd through all of them; both iterate until the
marginals are right to 1e-10, or 20,000 times at most, and the table says what they reach.

Run: ``pip install POT``, then ``python benchmarks/transport.py [--threads 2]``
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from common import Ratio, interleaved_ratios, markdown_table, save

from ddn_cvx.dedicated.transport import sinkhorn

DOUBLE = torch.float64
SHAPES = ((16, 30, 40), (4, 100, 100))
SHARPNESS = (10.0, 100.0)
ITERATIONS, TOLERANCE = 20_000, 1e-10

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass
class Line:
    """One row of the table: errors are the largest of a marginal, and of the gradient."""

    shape: tuple[int, ...]
    gamma: float
    peer: str
    ratio: Ratio
    ours: float
    theirs: float
    gradient: float


def draw(batch: int, n: int, m: int) -> Inputs:
    """Costs and marginals."""
    generator = torch.Generator().manual_seed(0)
    C = torch.rand(batch, n, m, dtype=DOUBLE, generator=generator)
    a = 0.1 + torch.rand(batch, n, dtype=DOUBLE, generator=generator)
    b = 0.1 + torch.rand(batch, m, dtype=DOUBLE, generator=generator)
    return C, a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)


def unrolled(C: torch.Tensor, a: torch.Tensor, b: torch.Tensor, gamma: float) -> torch.Tensor:
    """Log-domain iterations, all of which autograd records."""
    K, log_a, log_b = -gamma * C, a.log(), b.log()
    g = torch.zeros_like(b)
    for number in range(ITERATIONS):
        f = log_a - (K + g.unsqueeze(1)).logsumexp(2)
        g = log_b - (K + f.unsqueeze(2)).logsumexp(1)
        if number % 10 == 9:
            with torch.no_grad():
                rows = (K + f.unsqueeze(2) + g.unsqueeze(1)).exp().sum(2)
                if float((rows - a).abs().max()) < TOLERANCE:
                    break
    return (K + f.unsqueeze(2) + g.unsqueeze(1)).exp()


def by_pot(C: torch.Tensor, a: torch.Tensor, b: torch.Tensor, gamma: float) -> torch.Tensor:
    """POT, one element at a time."""
    import ot

    plans = [
        ot.bregman.sinkhorn_log(
            a[k], b[k], C[k], 1 / gamma, numItermax=ITERATIONS, stopThr=TOLERANCE
        )
        for k in range(len(C))
    ]
    return torch.stack(plans)


PEERS: dict[str, Callable[..., torch.Tensor]] = {"unrolled": unrolled, "POT": by_pot}


def step(
    solve: Callable[..., torch.Tensor], inputs: Inputs, gamma: float
) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """Plan, and the gradient of its inner product with fixed numbers with respect to the costs."""
    incoming = torch.randn(
        inputs[0].shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)
    )
    leaves = tuple(tensor.clone().requires_grad_() for tensor in inputs)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        plan = solve(*leaves, gamma)
        return plan.detach(), torch.autograd.grad((plan * incoming).sum(), leaves)[0]

    return run


def wrong(plan: torch.Tensor, inputs: Inputs) -> float:
    """The largest error of a marginal."""
    _, a, b = inputs
    return float(torch.maximum((plan.sum(2) - a).abs().max(), (plan.sum(1) - b).abs().max()))


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    torch.set_num_threads(parser.parse_args().threads)
    warnings.simplefilter("ignore")
    lines = []
    for shape in SHAPES:
        inputs = draw(*shape)
        for gamma in SHARPNESS:
            mine = step(sinkhorn, inputs, gamma)
            plan, gradient = mine()
            others = {name: step(solve, inputs, gamma) for name, solve in PEERS.items()}
            ratios = interleaved_ratios(mine, others, repeats=3, warm=1)
            for name, run in others.items():
                theirs, other = run()
                error = float((other - gradient).abs().max() / gradient.abs().max())
                lines.append(
                    Line(
                        shape, gamma, name, ratios[name], wrong(plan, inputs),
                        wrong(theirs, inputs), error,
                    )
                )  # fmt: skip
    table = markdown_table(
        ["costs", "gamma", "peer", "our time / its time", "our marginals", "its marginals",
         "gradients differ by"],
        [
            ("x".join(map(str, x.shape)), f"{x.gamma:g}", x.peer, x.ratio, f"{x.ours:.0e}",
             f"{x.theirs:.0e}", f"{x.gradient:.0e}")
            for x in lines
        ],
    )  # fmt: skip
    text = (
        "Forward and backward pass, float64. Ratios are medians over interleaved repeats, with "
        "quartiles; below one, ours is faster. Errors of marginals are the largest; gradients are "
        f"with respect to the costs, relative to the largest entry.\n\n{table}"
    )
    save("transport", "Sinkhorn against its peers", text, lines)


if __name__ == "__main__":
    main()
