"""Forward and backward pass of a layer: values, gradients, times."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from ddn_cvx.comparison.result import Spread

Tensors = tuple[torch.Tensor, ...]
Layer = Callable[..., Tensors]


class Pass(NamedTuple):
    """One pass of a layer over a batch.

    Attributes:
        values: the layer's answers, detached.
        gradients: one for each input.
        forward, backward: seconds.
    """

    values: Tensors
    gradients: Tensors
    forward: float
    backward: float


def one_pass(layer: Layer, inputs: Tensors, incoming: Tensors) -> Pass:
    """Solve, and pull back a gradient.

    Args:
        inputs: ``(B, *parameter.shape)`` for each parameter.
        incoming: ``v``, ``(B, *variable.shape)`` for each of the first variables.
    """
    device = incoming[0].device
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    start = _now(device)
    values = layer(*leaves)
    middle = _now(device)
    gradients: Tensors = ()
    if leaves:
        asked = values[: len(incoming)]
        gradients = torch.autograd.grad(
            asked, leaves, incoming, allow_unused=True, materialize_grads=True
        )
    end = _now(device)
    return Pass(tuple(value.detach() for value in values), gradients, middle - start, end - middle)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def spread(seconds: Sequence[float]) -> Spread:
    """Median and quartiles."""
    values = torch.tensor(seconds, dtype=torch.float64)
    low, median, high = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    return Spread(float(median), float(low), float(high))
