"""The compiled form of an expression: a straight-line program of batched torch functions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes

from ddn_cvx.programs.translation.tape import Array, Shape, Step


class TorchFunction:
    """A cvxpy expression as a function of tensors, made by :func:`translate`.

    Called with one tensor ``(B, *leaf.shape)`` for each leaf, in the order of the leaves, all of
    one dtype and device, it returns ``(B, *expression.shape)``. It can be differentiated to any
    order, transformed by ``torch.func``, traced, copied and pickled.

    Args:
        shape: of the expression.
        leaf_shapes: of the leaves, in the order in which their values will be given.
        constants: arrays that the steps read.
        steps: functions with their operands' numbers in (constants, leaves, results of steps).
        result: the expression's number in the same order.
    """

    def __init__(
        self,
        shape: Shape,
        leaf_shapes: Sequence[Shape],
        constants: list[Array],
        steps: list[Step],
        result: int,
    ) -> None:
        self.shape, self.leaf_shapes = shape, tuple(leaf_shapes)
        self._steps, self._result = steps, result
        self._constants = [np.ascontiguousarray(a).reshape(a.shape) for a in constants]
        self._constant = result < len(constants)
        self._cache: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Values ``(B, *expression.shape)`` at the leaves' values ``(B, *leaf.shape)``."""
        if len(tensors) != len(self.leaf_shapes):
            raise TypeError(f"{len(self.leaf_shapes)} tensors are expected, got {len(tensors)}")
        for number, (tensor, shape) in enumerate(zip(tensors, self.leaf_shapes, strict=True)):
            if tensor.shape[1:] != shape or tensor.dim() == 0:
                raise ValueError(
                    f"tensor {number} has shape {tuple(tensor.shape)} instead of (B, *{shape})"
                )
        if not tensors:
            raise ValueError("no tensor says the batch size: give translate() at least one leaf")
        first = tensors[0]
        values = [*self._constants_on(first.device, first.dtype), *tensors]
        for function, operands in self._steps:
            values.append(function(*[values[number] for number in operands]))
        result = values[self._result]
        return result.expand(first.shape[0], *self.shape) if self._constant else result

    def _constants_on(self, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
        key = (device, dtype)
        found = self._cache.get(key)
        if found is None:
            with _plain_tensors():
                found = [
                    torch.from_numpy(array.copy()).to(
                        device, dtype if array.dtype == np.float64 else torch.int64
                    )
                    for array in self._constants
                ]
            self._cache[key] = found
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}


@contextlib.contextmanager
def _plain_tensors() -> Iterator[None]:
    """Tensors made here outlive the call: no inference tensor, wrapper or fake among them."""
    with (
        torch.inference_mode(False),
        temporarily_clear_interpreter_stack(),
        _disable_current_modes(),
    ):
        yield
