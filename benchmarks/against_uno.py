"""Batched solves of nonconvex catalogue entries against a loop of UNO over the elements.

Ours is the forward and the backward pass. UNO solves one element after the other through cvxpy,
``problem.solve(nlp=True, solver=cp.UNO)``, from the same start; it has no backward pass, and
nothing is added for one.

Run: ``python benchmarks/against_uno.py [--threads 1] [--batch 1 64 1024]``
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from common import Ratio, interleaved_ratios, markdown_table, save

from ddn_cvx import Declaration, DeclarativeLayer
from ddn_cvx.problems import perspective_n_point, welsch_pooling

REPEATS = {1: 25, 64: 5, 1024: 5}

# For each entry, the ratio that is asked for at some batch sizes, ours over UNO's.
ENTRIES: dict[str, tuple[Callable[[], Declaration], dict[int, float]]] = {
    "welsch_pooling, n=64": (partial(welsch_pooling, 64), {1024: 1 / 50}),
    "perspective_n_point, n=100": (
        partial(perspective_n_point, 100),
        {1: 5.0, 64: 1 / 3, 1024: 1 / 6},
    ),
}


@dataclass
class Line:
    """One row of the table."""

    entry: str
    batch: int
    ratio: Ratio
    asked: float | None
    our_failures: int
    uno_failures: int
    higher: int
    difference: float


def step(layer: DeclarativeLayer, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Forward and backward pass."""
    leaves = tuple(tensor.clone().requires_grad_() for tensor in inputs)
    values = layer(*leaves)
    total = torch.stack([torch.nan_to_num(value).sum() for value in values]).sum()
    return torch.autograd.grad(total, leaves)


def uno_loop(declaration: Declaration, inputs: tuple[torch.Tensor, ...]) -> None:
    """UNO on each element, as a user of cvxpy would call it."""
    import cvxpy as cp

    assert declaration.start is not None
    problem = declaration.problem
    starts = declaration.start(*inputs)
    for element in range(len(inputs[0])):
        for parameter, tensor in zip(declaration.parameters, inputs, strict=True):
            parameter.value = tensor[element].numpy()
        for variable, tensor in zip(problem.variables(), starts, strict=True):
            variable.value = tensor[element].numpy()
        problem.solve(nlp=True, solver=cp.UNO, logger="SILENT")


def measure(entry: str, batch: int) -> Line:
    """One entry at one batch size."""
    build, asked = ENTRIES[entry]
    declaration = build()
    ours = DeclarativeLayer(declaration, solver="TORCH", on_failure="nan")
    uno = DeclarativeLayer(declaration, solver="UNO", on_failure="nan")
    inputs = declaration.inputs(batch, seed=0)
    mine, theirs = ours.solve(*inputs), uno.solve(*inputs)
    both = mine.solved & theirs.solved
    gap = (mine.objective() - theirs.objective())[both] / (1 + theirs.objective()[both].abs())
    same = both.clone()
    same[both] = gap.abs() < 1e-7
    differences = [
        float((a - b)[same].abs().max()) for a, b in zip(mine.primal, theirs.primal, strict=True)
    ]
    for _ in range(12):  # until the derivatives are recorded
        step(ours, inputs)
    ratio = interleaved_ratios(
        partial(step, ours, inputs),
        {"UNO": partial(uno_loop, declaration, inputs)},
        repeats=REPEATS.get(batch, 3),
        warm=1,
    )["UNO"]
    return Line(
        entry,
        batch,
        ratio,
        asked.get(batch),
        int((~mine.solved).sum()),
        int((~theirs.solved).sum()),
        int((gap > 1e-7).sum()),
        max(differences),
    )


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64, 1024])
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    lines = [measure(entry, batch) for entry in ENTRIES for batch in arguments.batch]
    table = markdown_table(
        ["entry", "batch", "our time / UNO's", "asked", "we fail", "UNO fails", "ours is higher",
         "solutions differ by"],
        [
            (
                line.entry, line.batch, line.ratio,
                "" if line.asked is None else f"{line.asked:.3f}",
                line.our_failures, line.uno_failures, line.higher, f"{line.difference:.0e}",
            )
            for line in lines
        ],
    )  # fmt: skip
    met = all(line.asked is None or line.ratio.median <= line.asked for line in lines)
    text = (
        "Our forward and backward pass over a loop of UNO's forward passes from the same starts. "
        "Ratios are medians over interleaved repeats, with quartiles; below one, ours is faster. "
        "Both use one thread. The last columns "
        "count elements without a solution, and elements where our local solution is worse than "
        "UNO's; solutions are compared where both found the same one.\n\n"
        f"{table}\n\nTargets: {'met' if met else 'NOT met'}."
    )
    save("against_uno", "Batched solves against a loop of UNO", text, lines)


if __name__ == "__main__":
    main()
