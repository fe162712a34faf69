"""Forward and backward pass of one row: values, gradients, times, memory."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from ddn_cvx.comparison.memory import peak_memory
from ddn_cvx.comparison.result import Spread

Layer = Callable[..., tuple[torch.Tensor, ...]]


@dataclass(eq=False)
class Measured:
    """Figures of one layer; the lists grow by one with every timed pass.

    Attributes:
        values: answers of the first pass, detached.
        gradients: of the first pass, one for each parameter.
        peak_memory: of the second pass, in bytes.
        note: first warning of the first pass.
        forward, backward: seconds of each timed pass.
    """

    values: tuple[torch.Tensor, ...] = ()
    gradients: tuple[torch.Tensor, ...] = ()
    peak_memory: int = 0
    note: str | None = None
    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Time spent so far in timed passes."""
        return sum(self.forward) + sum(self.backward)


@dataclass(frozen=True, eq=False)
class Task:
    """One batch and its incoming gradient, the same for all rows.

    Attributes:
        inputs: ``(B, *parameter.shape)`` for each parameter.
        incoming: ``v``, ``(B, *variable.shape)`` for each of the first variables.
    """

    inputs: tuple[torch.Tensor, ...]
    incoming: tuple[torch.Tensor, ...]

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.incoming[0].device

    def warm_up(self, layer: Layer) -> Measured:
        """An untimed pass for values and gradients, and another one for memory."""
        measured = Measured()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            measured.values, measured.gradients, _, _ = self._pass(layer)
        if caught:
            lines = str(caught[0].message).strip().splitlines()
            measured.note = lines[0] if lines else caught[0].category.__name__
        with warnings.catch_warnings(), peak_memory(self.device) as peak:
            warnings.simplefilter("ignore")
            self._pass(layer)
        measured.peak_memory = peak.bytes
        return measured

    def time(self, layer: Layer, measured: Measured) -> None:
        """One timed pass; no garbage is collected within it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.disable()
            try:
                _, _, forward, backward = self._pass(layer)
            finally:
                gc.enable()
        measured.forward.append(forward)
        measured.backward.append(backward)

    def _pass(
        self, layer: Layer
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...], float, float]:
        leaves = [tensor.detach().clone().requires_grad_() for tensor in self.inputs]
        start = self._now()
        values = layer(*leaves)
        middle = self._now()
        gradients: tuple[torch.Tensor, ...] = ()
        if leaves:
            asked = values[: len(self.incoming)]
            gradients = torch.autograd.grad(
                asked, leaves, self.incoming, allow_unused=True, materialize_grads=True
            )
        end = self._now()
        return tuple(value.detach() for value in values), gradients, middle - start, end - middle

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def spread(seconds: Sequence[float]) -> Spread:
    """Median and quartiles."""
    values = torch.tensor(seconds, dtype=torch.float64)
    low, median, high = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    return Spread(float(median), float(low), float(high))
