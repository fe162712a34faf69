"""Forward and backward pass of the layer against cvxpylayers', at equal accuracy of the gradient.

Both layers take the same quadratic program (10 variables, 5 inequalities, 2 equalities). For
cvxpylayers, every solver and adjoint mode is tried with ever tighter tolerances until its gradient
is as accurate as the bar asks; of those that reach it, the fastest is compared. There are two bars:
this package's own accuracy at its default, and 1e-5, the accuracy that this package promises.

Run: ``python benchmarks/forward_backward.py [--batch 1 64 1024] [--threads 1 0]``
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from common import (
    Layer,
    QuadraticProgram,
    Ratio,
    Reference,
    Tensors,
    batch_errors,
    exact_reference,
    gradients,
    interleaved_ratios,
    markdown_table,
    save,
)

PROGRAM = QuadraticProgram(10, 5, 2)
PROMISE = 1e-5
TARGET = 1.1
REPEATS = {1: 201, 64: 41, 1024: 7}

# Elements on which the gradient's error is measured, whatever the batch that is timed.
JUDGED = 64

Settings = dict[str, Any]


@dataclass
class Contender:
    """cvxpylayers with some settings, and the worst gradient error that they give."""

    name: str
    settings: Settings
    error: float


@dataclass
class Line:
    """One row of the table."""

    batch: int
    threads: int
    against: str
    settings: Settings
    our_error: float
    their_error: float
    ratio: Ratio = field(repr=False)


def candidates() -> Iterator[list[tuple[str, Settings]]]:
    """For each solver and mode, its settings from loose to tight."""
    for mode in ("lsqr", "lsmr", "dense"):
        yield [
            (
                f"SCS, eps {eps:.0e}, {mode}",
                {"solve_method": "SCS", "eps": eps, "max_iters": 100_000, "mode": mode},
            )
            for eps in (1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11, 1e-12)
        ]
        yield [
            (
                f"Clarabel, tolerances {tolerance:.0e}, {mode}",
                {
                    "solve_method": "Clarabel",
                    "mode": mode,
                    **dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), tolerance),
                },
            )
            for tolerance in (1e-6, 1e-8, 1e-10, 1e-12)
        ]


class Judge:
    """Measures gradient errors against the exact derivative of the regular elements."""

    def __init__(self, seed: int) -> None:
        self.data = PROGRAM.draw(JUDGED, seed)
        self.weights = weights(JUDGED)
        self.references: list[Reference] = [
            exact_reference([tensor[e].numpy() for tensor in self.data], self.weights[e].numpy())
            for e in range(JUDGED)
        ]

    def worst(self, layer: Layer, settings: Settings) -> float:
        """Worst relative gradient error; infinity where the layer raises."""
        call = {"solver_args": settings} if settings else {}
        try:
            found = gradients(layer, self.data, self.weights, **call)
        except Exception:  # a setting that cannot solve the batch is no candidate
            return float("inf")
        errors = batch_errors(found, self.references)
        pairs = zip(errors, self.references, strict=True)
        return max(error for error, reference in pairs if reference.is_regular)


def weights(batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, PROGRAM.n, dtype=torch.float64, generator=generator)


def loosest(peer: Layer, judge: Judge, bar: float) -> list[Contender]:
    """For each solver and mode, its loosest settings whose error is at most ``bar``."""
    reached = []
    for ladder in candidates():
        for name, settings in ladder:
            error = judge.worst(peer, settings)
            if error <= bar:
                reached.append(Contender(name, settings, error))
                break
    return reached


def fastest(peer: Layer, contenders: list[Contender], data: Tensors, w: torch.Tensor) -> Contender:
    """The contender with the smallest median time over a few interleaved runs."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _ in range(3):
        for contender in contenders:
            start = time.perf_counter()
            gradients(peer, data, w, solver_args=contender.settings)
            seconds[contender.name].append(time.perf_counter() - start)
    return min(contenders, key=lambda contender: statistics.median(seconds[contender.name]))


def measure(batches: list[int], threads: list[int]) -> list[Line]:
    """Every batch size with every number of torch threads."""
    from cvxpylayers.torch import CvxpyLayer

    import ddn_cvx

    problem, parameters, variables = PROGRAM.problem()
    ours: Layer = ddn_cvx.DeclarativeLayer(problem, parameters, variables)
    peer: Layer = CvxpyLayer(problem, parameters, variables)
    judge = Judge(seed=0)
    our_error = judge.worst(ours, {})
    default = Contender("its default", {}, judge.worst(peer, {}))
    as_good = loosest(peer, judge, max(our_error, 1e-10))
    promised = loosest(peer, judge, PROMISE)
    available = torch.get_num_threads()
    lines = []
    for count in threads:
        torch.set_num_threads(count or available)
        for batch in batches:
            data, w = PROGRAM.draw(batch, seed=0), weights(batch)
            chosen = {"its default": default}
            chosen["1e-5"] = fastest(peer, promised, data, w)
            if as_good:
                chosen["as accurate as ours"] = fastest(peer, as_good, data, w)
            runs: dict[str, Callable[[], object]] = {
                name: partial(gradients, peer, data, w, solver_args=contender.settings)
                for name, contender in chosen.items()
            }
            ratios = interleaved_ratios(
                partial(gradients, ours, data, w), runs, repeats=REPEATS.get(batch, 15)
            )
            lines += [
                Line(
                    batch,
                    torch.get_num_threads(),
                    f"{name}: {contender.name}" if contender.settings else name,
                    contender.settings,
                    our_error,
                    contender.error,
                    ratios[name],
                )
                for name, contender in chosen.items()
            ]
    torch.set_num_threads(available)
    return lines


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64, 1024])
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 0], help="torch threads; 0: torch's default"
    )
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    lines = measure(arguments.batch, arguments.threads)
    table = markdown_table(
        ["batch", "torch threads", "cvxpylayers with", "its error", "our time / its time"],
        [
            (line.batch, line.threads, line.against, f"{line.their_error:.0e}", line.ratio)
            for line in lines
        ],
    )
    equal = [line for line in lines if line.against.startswith("as accurate")]
    met = all(line.ratio.median <= TARGET for line in equal)
    text = (
        f"Forward and backward pass of a quadratic program with {PROGRAM.n} variables, {PROGRAM.m} "
        f"inequalities and {PROGRAM.p} equalities, in every parameter. Our worst relative gradient "
        f"error at the default is {lines[0].our_error:.0e}. Ratios are medians over interleaved "
        "repeats, with quartiles; below one, ours is faster. cvxpylayers' diffcp uses threads of "
        f"its own in every row.\n\n{table}\n\n"
        f"Target, at most {TARGET} at equal accuracy: {'met' if met else 'NOT met'}."
    )
    save("forward_backward", "Forward and backward pass against cvxpylayers", text, lines)


if __name__ == "__main__":
    main()
