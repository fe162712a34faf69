"""How far the default layer's gradient is from the exact one, on random dense quadratic programs.

Every element is compared with the derivative that numpy computes from the active set
(:func:`common.exact_reference`). A program is regular when the derivative exists with some room:
strict complementarity and a KKT matrix that is not close to singular.

Run: ``python benchmarks/gradient_accuracy.py [--seeds 32]``
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from dataclasses import dataclass

import torch
from common import (
    QuadraticProgram,
    Tensors,
    batch_errors,
    exact_reference,
    gradients,
    markdown_table,
    save,
)

SIZES = ((5, 3, 1), (10, 5, 2), (20, 40, 5), (50, 50, 10), (100, 100, 20))
TARGET = 1e-5


@dataclass(frozen=True)
class Accuracy:
    """Relative gradient errors of one layer on the regular programs of one size."""

    layer: str
    size: tuple[int, int, int]
    regular: int
    irregular: int
    median: float
    worst: float
    above_target: int


def measure(size: tuple[int, int, int], seeds: int) -> list[Accuracy]:
    """One line for each layer."""
    from cvxpylayers.torch import CvxpyLayer

    import ddn_cvx

    program = QuadraticProgram(*size)
    problem, parameters, variables = program.problem()
    data: Tensors = tuple(
        torch.cat(parts)
        for parts in zip(*(program.draw(1, seed) for seed in range(seeds)), strict=True)
    )
    weights = torch.randn(
        seeds, program.n, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    references = [
        exact_reference([tensor[e].numpy() for tensor in data], weights[e].numpy())
        for e in range(seeds)
    ]
    regular = [e for e, reference in enumerate(references) if reference.is_regular]
    layers = {
        "ddn_cvx, default": ddn_cvx.DeclarativeLayer(problem, parameters, variables),
        "cvxpylayers, default": CvxpyLayer(problem, parameters, variables),
    }
    lines = []
    for name, layer in layers.items():
        found = batch_errors(gradients(layer, data, weights), references)
        errors = [found[e] for e in regular]
        lines.append(
            Accuracy(
                name,
                size,
                len(regular),
                seeds - len(regular),
                statistics.median(errors),
                max(errors),
                sum(error > TARGET for error in errors),
            )
        )
    return lines


def main() -> None:
    """Measure every size, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=32)
    seeds = parser.parse_args().seeds
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    lines = [line for size in SIZES for line in measure(size, seeds)]
    table = markdown_table(
        ["n, m, p", "layer", "regular", "median error", "worst error", f"above {TARGET:.0e}"],
        [
            (
                ", ".join(map(str, line.size)),
                line.layer,
                f"{line.regular} of {seeds}",
                f"{line.median:.1e}",
                f"{line.worst:.1e}",
                line.above_target,
            )
            for line in lines
        ],
    )
    text = (
        f"Random dense quadratic programs with n variables, m inequalities and p equalities, "
        f"{seeds} seeds each. The error is the largest over the parameters of the relative error "
        "of the gradient (Euclidean norm), against the exact derivative from the active set, "
        f"computed in numpy.\n\n{table}"
    )
    save("gradient_accuracy", "Gradient accuracy at the defaults", text, lines)


if __name__ == "__main__":
    main()
