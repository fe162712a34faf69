"""Rearranging entries: indexing, reshaping, stacking, diagonals."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from ddn_cvx.programs.translation.registry import register, register_functions
from ddn_cvx.programs.translation.tape import Array, Shape, Tape, Value


def take(tape: Tape, x: Value, numbers: Array) -> Value:
    """Entries of the value by their numbers in C order; the result has the numbers' shape."""
    if np.array_equal(numbers.reshape(-1), _numbers(x.shape).reshape(-1)):
        return tape.view(x, numbers.shape)
    flat = tape.view(x, (int(np.prod(x.shape)),))
    index = tape.raw(numbers.reshape(-1).astype(np.int64))
    taken = tape.call(_select, flat, index, shape=(numbers.size,))
    return tape.view(taken, numbers.shape)


def _select(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return x.index_select(1, index)


def _numbers(shape: Shape) -> Array:
    return np.arange(int(np.prod(shape))).reshape(shape)


def _basic(key: Any) -> tuple[Any, ...] | None:
    """The key as torch takes it, or None if torch has no view for it."""
    parts: list[Any] = []
    for part in key if isinstance(key, tuple) else (key,):
        if part is None or part is Ellipsis:
            parts.append(part)
        elif isinstance(part, slice):
            bounds = [
                None if b is None else operator.index(b) for b in (part.start, part.stop, part.step)
            ]
            if bounds[2] is not None and bounds[2] <= 0:
                return None
            parts.append(slice(*bounds))
        elif isinstance(part, int | np.integer) and not isinstance(part, bool):
            parts.append(int(part))
        else:
            return None
    return tuple(parts)


@register("affine.index.index")
def _index(tape: Tape, atom: Any, args: list[Value]) -> Value:
    (x,) = args
    key = _basic(atom._orig_key)
    if key is None:
        return take(tape, x, _numbers(x.shape)[atom._orig_key])
    single = _single(key, x.shape)
    if single is not None:
        # All entries along an axis at once: the derivative of one selection is a tensor of zeros
        # with one part filled in, that of an unbinding is one stack.
        axis, place = single
        parts = tape.shared(_Unbind(axis + 1), x)
        return tape.call(partial(_item, place=place), parts, shape=atom.shape)
    return tape.call(partial(_slice, key=(slice(None), *key)), x, shape=atom.shape)


# An axis longer than this is not taken apart for the sake of a few of its entries.
_LONGEST_UNBOUND = 16


def _single(key: tuple[Any, ...], shape: Shape) -> tuple[int, int] | None:
    """Axis and place, if the key takes one entry along one short axis and all along the others."""
    ndim = len(shape)
    if len(key) > ndim or any(part is None or part is Ellipsis for part in key):
        return None
    numbers = [axis for axis, part in enumerate(key) if isinstance(part, int)]
    whole = [part for part in key if not isinstance(part, int)]
    if len(numbers) != 1 or ndim < 2 or any(part != slice(None, None, None) for part in whole):
        return None
    axis = numbers[0]
    return (axis, key[axis]) if shape[axis] <= _LONGEST_UNBOUND else None


@dataclass(frozen=True)
class _Unbind:
    """All entries along a dimension; equal calls are one step of the tape."""

    dim: int

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.unbind(self.dim)


def _item(parts: tuple[torch.Tensor, ...], *, place: int) -> torch.Tensor:
    return parts[place]


def _slice(x: torch.Tensor, *, key: tuple[Any, ...]) -> torch.Tensor:
    return x[key]


@register("affine.index.special_index")
def _special_index(tape: Tape, atom: Any, args: list[Value]) -> Value:
    (x,) = args
    return take(tape, x, _numbers(x.shape)[atom.key])


@register("affine.upper_tri.upper_tri")
def _upper_triangle(tape: Tape, atom: Any, args: list[Value]) -> Value:
    (x,) = args
    rows, columns = np.triu_indices(x.shape[-1], k=1)
    return take(tape, x, _numbers(x.shape)[..., rows, columns])


def trace(x: torch.Tensor) -> torch.Tensor:
    """Sum of the diagonals of the last two dimensions."""
    return torch.diagonal(x, dim1=-2, dim2=-1).sum(-1)


register_functions({"affine.trace.Trace": trace})
register_functions({"affine.diag.diag_vec": torch.diag_embed}, offset="k")
register_functions({"affine.diag.diag_mat": partial(torch.diagonal, dim1=-2, dim2=-1)}, offset="k")


@register("affine.transpose.transpose")
def _transpose(tape: Tape, atom: Any, args: list[Value]) -> Value:
    (x,) = args
    ndim = len(x.shape)
    axes = range(ndim - 1, -1, -1) if atom.axes is None else [a % ndim for a in atom.axes]
    if list(axes) == list(range(ndim)):
        return x
    return tape.call(partial(torch.permute, dims=(0, *(a + 1 for a in axes))), x, shape=atom.shape)


@register("affine.reshape.reshape")
def _reshape(tape: Tape, atom: Any, args: list[Value]) -> Value:
    (x,) = args
    new = tuple(atom.shape)
    if atom.order == "C" or (_one_dimensional(x.shape) and _one_dimensional(new)):
        return tape.view(x, new)
    return tape.call(partial(reshape_fortran, shape=new), x, shape=new)


def _one_dimensional(shape: Shape) -> bool:
    """At most one dimension is not one: both orders are the same."""
    return sum(size != 1 for size in shape) <= 1


def reshape_fortran(x: torch.Tensor, *, shape: Shape) -> torch.Tensor:
    """The entries, read and filled in with the first index fastest, in another shape."""
    if x.dim() > 2:
        x = x.permute(0, *range(x.dim() - 1, 0, -1))
    x = x.reshape(x.shape[0], *shape[::-1])
    return x.permute(0, *range(len(shape), 0, -1)) if len(shape) > 1 else x


def _joined(tape: Tape, args: list[Value], axis: int, shape: Shape) -> Value:
    reference = next(n for n, value in enumerate(args) if value.array is None)
    return tape.call(partial(_cat, dim=axis + 1, reference=reference), *args, shape=shape)


def _cat(*parts: torch.Tensor, dim: int, reference: int) -> torch.Tensor:
    """Concatenates; constants among the parts are repeated for each element of the batch."""
    batch = parts[reference].shape[0]
    full = [p if p.shape[0] == batch else p.expand(batch, *p.shape[1:]) for p in parts]
    return torch.cat(full, dim)


@register("affine.concatenate.Concatenate")
def _concatenate(tape: Tape, atom: Any, args: list[Value]) -> Value:
    if atom.axis is None:
        args = [tape.view(value, (int(np.prod(value.shape)),)) for value in args]
        return _joined(tape, args, 0, tuple(atom.shape))
    return _joined(tape, args, atom.axis, tuple(atom.shape))


@register("affine.hstack.Hstack")
def _hstack(tape: Tape, atom: Any, args: list[Value]) -> Value:
    args = [tape.view(value, value.shape or (1,)) for value in args]
    return _joined(tape, args, 0 if len(args[0].shape) == 1 else 1, tuple(atom.shape))


@register("affine.vstack.Vstack")
def _vstack(tape: Tape, atom: Any, args: list[Value]) -> Value:
    args = [
        tape.view(value, (1, *(value.shape or (1,)))) if len(value.shape) < 2 else value
        for value in args
    ]
    return _joined(tape, args, 0, tuple(atom.shape))
