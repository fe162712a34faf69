"""Elements of a batch: some of them, their results put back, a choice of two, a chunk at a time.

A *tree* is a tensor, or a tuple, NamedTuple or dataclass of trees. Every tensor of a tree has the
batch as its first dimension; what is not a tensor (None, a number, a function) belongs to all
elements and is handed on as it is.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch

Tree = TypeVar("Tree")
Key = TypeVar("Key")
Value = TypeVar("Value")


def mapped(function: Callable[..., torch.Tensor], tree: Tree, *others: Tree) -> Tree:
    """A tree of ``function(tensor, *tensors of the other trees)``.

    Example:
        >>> mapped(torch.neg, (torch.ones(1), None))
        (tensor([-1.]), None)
    """
    result: Any = tree
    if isinstance(tree, torch.Tensor):
        result = function(tree, *others)
    elif isinstance(tree, tuple):
        values = [mapped(function, *leaves) for leaves in zip(tree, *others, strict=True)]
        result = type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)
    elif is_dataclass(tree) and not isinstance(tree, type):
        names = [field.name for field in fields(tree) if field.init]
        values = [mapped(function, *(getattr(t, name) for t in (tree, *others))) for name in names]
        result = replace(tree, **dict(zip(names, values, strict=True)))
    return cast(Tree, result)


def select(tree: Tree, elements: torch.Tensor | slice) -> Tree:
    """Some elements of a batch.

    Args:
        elements: their indices ``(k,)``, a mask ``(B,)``, or a slice.

    Example:
        >>> select((torch.arange(3), None), torch.tensor([2, 0]))
        (tensor([2, 0]), None)
    """
    return mapped(lambda tensor: tensor[elements], tree)


def put(tree: Tree, elements: torch.Tensor, part: Tree) -> Tree:
    """A batch in which some elements are those of ``part``; ``tree`` itself does not change.

    Args:
        elements: their indices ``(k,)``, all different.
        part: a tree like ``tree``, of ``k`` elements.

    Example:
        >>> put(torch.zeros(3), torch.tensor([1]), torch.ones(1))
        tensor([0., 1., 0.])
    """
    return mapped(lambda whole, some: whole.index_copy(0, elements, some), tree, part)


def where(mask: torch.Tensor, yes: Tree, no: Tree) -> Tree:
    """For each element that of ``yes`` where ``mask`` ``(B,)`` is set, that of ``no`` elsewhere.

    Example:
        >>> where(torch.tensor([True, False]), torch.ones(2, 2), torch.zeros(2, 2))
        tensor([[1., 1.],
                [0., 0.]])
    """

    def choose(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return torch.where(mask.reshape(-1, *[1] * (one.ndim - 1)), one, other)

    return mapped(choose, yes, no)


def chunks(batch: int, entries: int, limit: int) -> Iterator[slice]:
    """Slices of the batch in each of which at most ``limit`` numbers are worked on together.

    Args:
        entries: numbers that the work on one element holds; a slice has at least one element.

    Example:
        >>> list(chunks(5, entries=10, limit=25))
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    size = max(1, limit // max(1, entries))
    return (slice(start, min(start + size, batch)) for start in range(0, batch, size))


def per_program(function: Callable[[Key], Value]) -> Callable[[Key], Value]:
    """Compute a function of a program (or another object that lives long) once for each.

    The result lives as long as the program; a result must not refer to its program strongly.
    """
    results: weakref.WeakKeyDictionary[Key, Value] = weakref.WeakKeyDictionary()

    @functools.wraps(function)
    def once(program: Key) -> Value:
        if program not in results:
            results[program] = function(program)
        return results[program]

    return once
