"""The straight-line program that an expression is compiled to, while it is being written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Shape = tuple[int, ...]
Array = npt.NDArray[Any]
Function = Callable[..., torch.Tensor]
Step = tuple[Function, tuple[int, ...]]

_LEAF, _CONSTANT, _STEP = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Value:
    """An intermediate result: a batched tensor ``(B, *shape)``, or an array known at compile time.

    Attributes:
        shape: without the batch dimension.
        array: the constant's value, ``None`` for a batched tensor.
        raw: a constant that steps get as it is, without a leading dimension of one.
        place: kind and number of the tensor, ``None`` for a constant not yet used.
    """

    shape: Shape
    array: Array | None = None
    raw: bool = False
    place: tuple[int, int] | None = None

    @property
    def uniform(self) -> float | None:
        """The number that a constant has in all its entries, if it has.

        Torch multiplies by a Python number faster than by a tensor full of it.
        """
        array = self.array
        if array is None or self.raw or array.size == 0:
            return None
        first = float(array.flat[0])
        return first if np.isfinite(first) and bool((array == first).all()) else None

    def known(self) -> Array:
        """The array of a constant."""
        assert self.array is not None
        return self.array


class Tape:
    """Steps in the order in which they are computed, and the constants that they read.

    Args:
        translate: compiles an expression and its leaves to a function of the leaves' values, for
            atoms that hold an expression of their own.
    """

    def __init__(self, translate: Callable[[Any, Sequence[Any]], Any]) -> None:
        self.translate = translate
        self._constants: list[Array] = []
        self._steps: list[tuple[Function, tuple[tuple[int, int], ...]]] = []
        self._used: dict[int, tuple[Value, tuple[int, int]]] = {}
        self._shared: dict[Any, Value] = {}

    def leaf(self, number: int, shape: Shape) -> Value:
        """The function's argument of that number."""
        return Value(shape, place=(_LEAF, number))

    def constant(self, array: Any) -> Value:
        """A constant that broadcasts against batched tensors."""
        array = np.asarray(array, dtype=np.float64)
        return Value(array.shape, array)

    def raw(self, array: Any) -> Value:
        """A constant that a step reads without a batch dimension: a matrix, or indices."""
        array = np.asarray(array)
        if array.dtype != np.int64:
            array = array.astype(np.float64)
        return Value(array.shape, array, raw=True)

    def call(self, function: Function, *operands: Value, shape: Shape) -> Value:
        """Appends ``function(*operands)``, whose result is ``(B, *shape)``."""
        places = tuple(self._place(operand) for operand in operands)
        self._steps.append((function, places))
        return Value(shape, place=(_STEP, len(self._steps) - 1))

    def shared(self, function: Any, operand: Value) -> Value:
        """As :meth:`call`, but once for equal functions of one operand; any kind of result."""
        key = (function, self._place(operand))
        if key not in self._shared:
            self._shared[key] = self.call(function, operand, shape=operand.shape)
        return self._shared[key]

    def _place(self, value: Value) -> tuple[int, int]:
        if value.place is not None:
            return value.place
        known = self._used.get(id(value))
        if known is not None:
            return known[1]
        array = value.known()
        self._constants.append(array if value.raw else array[None])
        place = (_CONSTANT, len(self._constants) - 1)
        self._used[id(value)] = (value, place)  # the value is kept: its id must stay its own
        return place

    def view(self, value: Value, shape: Shape) -> Value:
        """The same entries, in C order, in another shape."""
        if value.shape == shape:
            return value
        if value.array is not None:
            return self.constant(value.array.reshape(shape))
        return self.call(partial(view, shape=shape), value, shape=shape)

    def aligned(self, value: Value, ndim: int) -> Value:
        """Leading dimensions of one, so that numpy's broadcasting leaves the batch alone."""
        missing = ndim - len(value.shape)
        return value if missing <= 0 else self.view(value, (1,) * missing + value.shape)

    def expanded(self, value: Value, shape: Shape) -> Value:
        """Broadcast to ``shape``."""
        if value.shape == shape:
            return value
        if value.array is not None:
            return self.constant(np.broadcast_to(value.array, shape))
        value = self.aligned(value, len(shape))
        if value.shape == shape:
            return value
        return self.call(partial(expand, shape=shape), value, shape=shape)

    def finish(self, result: Value, leaves: int) -> tuple[list[Array], list[Step], int]:
        """Constants, steps, and the result's number in (constants, leaves, steps' results)."""
        last = self._place(result)
        start = {_CONSTANT: 0, _LEAF: len(self._constants)}
        start[_STEP] = start[_LEAF] + leaves

        def number(place: tuple[int, int]) -> int:
            return start[place[0]] + place[1]

        steps = [(f, tuple(number(p) for p in places)) for f, places in self._steps]
        return self._constants, steps, number(last)


def view(x: torch.Tensor, *, shape: Shape) -> torch.Tensor:
    """Reshapes all but the batch dimension."""
    return x.reshape(x.shape[0], *shape)


def expand(x: torch.Tensor, *, shape: Shape) -> torch.Tensor:
    """Broadcasts all but the batch dimension."""
    return x.expand(x.shape[0], *shape)
