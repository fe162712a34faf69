"""Sums, elementwise products and quotients, and atoms that leave real values as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from ddn_cvx.programs.translation.registry import register, register_functions
from ddn_cvx.programs.translation.tape import Function, Tape, Value


def look_through(nodes: Sequence[Any]) -> list[Any]:
    """Operands of an elementwise function, without the broadcasts that torch does on its own.

    Nothing is gained where all operands are broadcast: one of them must be, to the full shape.
    """
    through = [_unbroadcast(node) for node in nodes]
    return list(nodes) if all(a is not b for a, b in zip(nodes, through, strict=True)) else through


def _unbroadcast(node: Any) -> Any:
    if type(node).__name__ not in ("Promote", "broadcast_to"):
        return node
    (inner,) = node.args
    # cvxpy also promotes (1, 1) to (n,), which no broadcast does
    return inner if inner.ndim <= node.ndim else node


def elementwise(
    tape: Tape,
    function: Function,
    *args: Value,
    by_number: Callable[[float], Function] | None = None,
) -> Value:
    """A call that broadcasts its operands.

    Args:
        by_number: the function with a number as its second operand, where torch has a faster one.
    """
    shape = np.broadcast_shapes(*(value.shape for value in args))
    number = args[-1].uniform if by_number is not None and args[0].shape == shape else None
    if by_number is not None and number is not None:
        return tape.call(by_number(number), args[0], shape=shape)
    lifted = [tape.aligned(value, len(shape)) for value in args]
    return tape.call(function, *lifted, shape=shape)


def _terms(atom: Any) -> list[tuple[Any, int]]:
    """Summands with their signs: a difference is one subtraction, not a negation and a sum."""
    signed = [(a.args[0], -1) if type(a).__name__ == "NegExpression" else (a, 1) for a in atom.args]
    nodes = look_through([node for node, _ in signed])
    return [(node, sign) for node, (_, sign) in zip(nodes, signed, strict=True)]


@register("affine.add_expr.AddExpression", operands=lambda atom: [n for n, _ in _terms(atom)])
def _add(tape: Tape, atom: Any, args: list[Value]) -> Value:
    constant = np.zeros(())
    terms: list[tuple[Value, int]] = []
    for value, (_, sign) in zip(args, _terms(atom), strict=True):
        if value.array is not None:
            constant = constant + sign * value.array
        else:
            terms.append((value, sign))
    (total, first), *others = sorted(terms, key=lambda term: -term[1])
    offset = tape.constant(constant)
    # A batched summand of the full shape lets the constant be a single number.
    if offset.uniform is not None and any(value.shape == atom.shape for value, _ in terms):
        offset = tape.constant(offset.uniform)
    needed = constant.any() or np.broadcast_shapes(*(v.shape for v, _ in terms)) != atom.shape
    if first < 0 and not needed:
        total = tape.call(torch.neg, total, shape=total.shape)
    elif first < 0:
        total = elementwise(tape, torch.sub, offset, total)
    elif needed:
        total = elementwise(
            tape,
            torch.add,
            total,
            offset,
            by_number=lambda number: partial(torch.add, other=number),
        )
    for value, sign in others:
        total = elementwise(tape, torch.add if sign > 0 else torch.sub, total, value)
    return tape.expanded(total, atom.shape)


@register("affine.binary_operators.multiply", operands=lambda atom: look_through(atom.args))
def multiply(tape: Tape, atom: Any, args: list[Value]) -> Value:
    """Elementwise product; also the product with a scalar, written ``*`` or ``@``."""
    left, right = args if args[1].array is None else args[::-1]
    number = left.uniform
    if number is not None:
        scaled = right
        if number == -1.0:
            scaled = tape.call(torch.neg, right, shape=right.shape)
        elif number != 1.0:
            scaled = tape.call(partial(torch.mul, other=number), right, shape=right.shape)
        return tape.expanded(scaled, atom.shape)
    return tape.expanded(elementwise(tape, torch.mul, left, right), atom.shape)


@register("affine.binary_operators.DivExpression", operands=lambda atom: look_through(atom.args))
def _divide(tape: Tape, atom: Any, args: list[Value]) -> Value:
    numerator, denominator = args
    number = denominator.uniform
    if number is not None:
        divided = numerator
        if number != 1.0:
            divided = tape.call(partial(torch.div, other=number), numerator, shape=numerator.shape)
        return tape.expanded(divided, atom.shape)
    return tape.expanded(elementwise(tape, torch.div, numerator, denominator), atom.shape)


@register(
    "affine.conj.conj",
    "affine.real.real",
    "affine.wraps.Wrap",
    "affine.wraps.nonneg_wrap",
    "affine.wraps.nonpos_wrap",
    "affine.wraps.psd_wrap",
    "affine.wraps.nsd_wrap",
    "affine.wraps.symmetric_wrap",
    "affine.wraps.hermitian_wrap",
    "affine.wraps.skew_symmetric_wrap",
)
def _same(tape: Tape, atom: Any, args: list[Value]) -> Value:
    return args[0]


register_functions({"affine.imag.imag": torch.zeros_like})


@register("affine.promote.Promote")
def _promote(tape: Tape, atom: Any, args: list[Value]) -> Value:
    return tape.expanded(tape.view(args[0], (1,) * len(atom.shape)), atom.shape)


@register("affine.broadcast_to.broadcast_to")
def _broadcast(tape: Tape, atom: Any, args: list[Value]) -> Value:
    return tape.expanded(args[0], tuple(atom.shape))
