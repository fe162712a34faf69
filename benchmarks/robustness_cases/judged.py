"""A drawn case, and the verdict on a layer's answer to it.

The true solution and gradient are known in *base units*, in which all numbers are of ordinary size.
The layer sees the same problem in other units; its solution and gradient are taken back to base
units before they are compared, so that one tolerance holds for all.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

import ddn_cvx as ddn

Tensors = tuple[torch.Tensor, ...]

# Errors in base units: below the first an answer is right, above the second it is wrong.
RIGHT, WRONG = 1e-6, 1e-4


@dataclass(frozen=True)
class Case:
    """A batch of one problem in drawn units.

    Attributes:
        family: name of the problem.
        layer: makes the layer; its first variable is judged.
        base: inputs in base units, each ``(B, ...)``.
        units: an input of the layer is ``base * unit``; broadcastable to ``base``.
        unit: of the variable, broadcastable to ``(B, *shape)``.
        solution: the true solution in base units, a differentiable function of ``base``.
        note: the drawn units of the first element, for the report.
    """

    family: str
    layer: Callable[[], torch.nn.Module]
    base: Tensors
    units: Tensors
    unit: torch.Tensor
    solution: Callable[..., torch.Tensor]
    note: str = ""


@dataclass
class Tally:
    """Verdicts of one family.

    ``right``: solved, solution and gradient within tolerance. ``told``: a status or a flag says
    that something is wrong. ``inexact``: solved, between the two tolerances. ``wrong``: solved,
    without a flag, and neither: a quiet wrong number. ``error``: an exception for the batch.
    """

    counts: Counter[str] = field(default_factory=Counter)
    worst: float = 0.0
    example: str = ""

    def add(self, verdict: str, error: float, example: str) -> None:
        """One element's verdict."""
        self.counts[verdict] += 1
        if verdict == "wrong" and error >= self.worst:
            self.worst, self.example = error, example


def _weights(like: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(int(like.numel()))
    return torch.randn(like.shape, dtype=torch.float64, generator=generator)


def truth(case: Case) -> tuple[torch.Tensor, Tensors]:
    """Solution and gradients in base units."""
    leaves = tuple(tensor.clone().requires_grad_() for tensor in case.base)
    value = case.solution(*leaves)
    gradients = torch.autograd.grad(value, leaves, _weights(value), allow_unused=True)
    return value.detach(), tuple(
        torch.zeros_like(leaf) if g is None else g
        for leaf, g in zip(leaves, gradients, strict=True)
    )


def judge(case: Case, tally: Tally) -> None:
    """Run the layer and add the verdicts of its elements."""
    exact, exact_gradients = truth(case)
    batch = len(exact)
    try:
        status, flagged, value, gradients = _run(case, exact)
    except Exception as error:
        for _ in range(batch):
            tally.add("error", 0.0, "")
        tally.example = tally.example or f"{type(error).__name__}: {str(error)[:100]}"
        return
    off = _distance(value, exact)
    for found, true in zip(gradients, exact_gradients, strict=True):
        off = torch.maximum(off, _distance(found, true))
    for element in range(batch):
        error = float(off[element])
        if int(status[element]) != int(ddn.Status.SOLVED):
            verdict = "told"
        elif error <= RIGHT:
            verdict = "right"
        elif bool(flagged[element]):
            verdict = "told"
        else:
            verdict = "inexact" if error <= WRONG else "wrong"
        tally.add(verdict, error, f"{case.note} element {element} of {batch}")


def _run(case: Case, exact: torch.Tensor) -> tuple[torch.Tensor, ...]:
    layer: Any = case.layer()
    inputs = tuple(b * u for b, u in zip(case.base, case.units, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        solution = layer.solve(*inputs)
        leaves = tuple(tensor.clone().requires_grad_() for tensor in inputs)
        value = layer(*leaves)[0] / case.unit
        gradients = torch.autograd.grad(value, leaves, _weights(exact), allow_unused=True)
    found = tuple(
        torch.zeros_like(leaf) if g is None else g * unit
        for leaf, g, unit in zip(leaves, gradients, case.units, strict=True)
    )
    return solution.status, solution.degenerate, value.detach(), found


def _distance(found: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Largest difference relative to the larger of one and the largest true entry, ``(B,)``."""
    flat, exact = found.reshape(len(found), -1), true.reshape(len(true), -1)
    size = exact.abs().amax(1).clamp_min(1.0)
    return torch.nan_to_num((flat - exact).abs().amax(1) / size, nan=torch.inf)
