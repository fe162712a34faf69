"""Matrix products and other bilinear functions."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from ddn_cvx.programs.translation import affine
from ddn_cvx.programs.translation.registry import register, register_functions
from ddn_cvx.programs.translation.shapes import reshape_fortran
from ddn_cvx.programs.translation.tape import Shape, Tape, Value

# A convolution with a constant becomes one product with its Toeplitz matrix, up to this size.
_LARGEST_TOEPLITZ = 4_000_000


@register("affine.binary_operators.MulExpression")
def _matmul(tape: Tape, atom: Any, args: list[Value]) -> Value:
    left, right = args
    shape = tuple(atom.shape)
    if left.shape == () or right.shape == ():
        return affine.multiply(tape, atom, args)
    small = len(left.shape) <= 2 and len(right.shape) <= 2
    if left.array is not None and small:
        if len(right.shape) == 1:
            if len(left.shape) == 1:
                return tape.call(torch.matmul, right, tape.raw(left.array), shape=shape)
            # (B, n) times the transpose: one product for the whole batch
            matrix = tape.raw(left.array)
            return tape.call(torch.nn.functional.linear, right, matrix, shape=shape)
        return tape.call(torch.matmul, tape.raw(left.array), right, shape=shape)
    if right.array is not None and small:
        return tape.call(torch.matmul, left, tape.raw(right.array), shape=shape)
    if len(left.shape) == 1 and len(right.shape) == 1:
        return tape.call(_dot, left, right, shape=shape)
    if len(right.shape) == 1:
        return tape.call(_matrix_vector, left, right, shape=shape)
    if len(left.shape) == 1:
        return tape.call(_vector_matrix, left, right, shape=shape)
    ndim = max(len(left.shape), len(right.shape))
    return tape.call(torch.matmul, tape.aligned(left, ndim), tape.aligned(right, ndim), shape=shape)


def _dot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x * y).sum(-1)


def _matrix_vector(A: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.matmul(A, x.unsqueeze(-1)).squeeze(-1)


def _vector_matrix(x: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    return torch.matmul(x.unsqueeze(-2), A).squeeze(-2)


def _kronecker(A: torch.Tensor, B: torch.Tensor, *, shape: Shape) -> torch.Tensor:
    product = A[:, :, None, :, None] * B[:, None, :, None, :]  # (B, m, p, n, q)
    return product.reshape(product.shape[0], *shape)


register_functions({"affine.kron.kron": _kronecker}, shape="shape")


@register("affine.conv.conv", "affine.conv.convolve")
def _convolve(tape: Tape, atom: Any, args: list[Value]) -> Value:
    left, right = (tape.view(value, (int(np.prod(value.shape)),)) for value in args)
    if right.array is not None:
        left, right = right, left
    length = left.shape[0] + right.shape[0] - 1
    if left.array is not None and length * right.shape[0] <= _LARGEST_TOEPLITZ:
        toeplitz = np.zeros((length, right.shape[0]))
        for column in range(right.shape[0]):
            toeplitz[column : column + left.shape[0], column] = left.array
        result = tape.call(torch.nn.functional.linear, right, tape.raw(toeplitz), shape=(length,))
    else:
        n = left.shape[0]
        window = np.arange(length)[:, None] + np.arange(n)
        index = tape.raw(window.reshape(-1).astype(np.int64))
        result = tape.call(_windows, left, right, index, shape=(length,))
    return tape.view(result, tuple(atom.shape))


def _windows(kernel: torch.Tensor, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Full convolution of ``(B, n)`` with ``(B, m)``, each output a product with a window of x."""
    n = kernel.shape[-1]
    padded = torch.nn.functional.pad(x, (n - 1, n - 1))
    windows = padded.index_select(1, index).reshape(x.shape[0], -1, n)  # (B, n + m - 1, n)
    return torch.matmul(windows, kernel.flip(-1).unsqueeze(-1)).squeeze(-1)


@register("quad_form.QuadForm")
def _quad_form(tape: Tape, atom: Any, args: list[Value]) -> Value:
    x, P = args
    x = tape.view(x, (P.shape[0],))
    return tape.call(_dot, x, _times(tape, P, x), shape=())


def _times(tape: Tape, P: Value, x: Value) -> Value:
    if P.array is not None:
        return tape.call(torch.nn.functional.linear, x, tape.raw(P.array), shape=x.shape)
    return tape.call(_matrix_vector, P, x, shape=x.shape)


@register("quad_form.SymbolicQuadForm")
def _symbolic_quad_form(tape: Tape, atom: Any, args: list[Value]) -> Value:
    """``x * (P x)``, summed over blocks of entries: the form in which cvxpy reduces squares."""
    x, P = args
    size = (int(np.prod(x.shape)),)
    flat = tape.call(partial(reshape_fortran, shape=size), x, shape=size)
    products = tape.call(torch.mul, flat, _times(tape, P, flat), shape=flat.shape)
    shape = tuple(atom.shape)
    if atom.block_indices is not None:
        blocks = np.zeros((len(atom.block_indices), flat.shape[0]))
        for row, block in enumerate(atom.block_indices):
            blocks[row, block] = 1.0
        products = tape.call(
            torch.nn.functional.linear, products, tape.raw(blocks), shape=(len(blocks),)
        )
    elif shape == ():
        return tape.call(partial(torch.sum, dim=-1), products, shape=())
    return tape.call(partial(reshape_fortran, shape=shape), products, shape=shape)


@register("gmatmul.gmatmul", operands=lambda atom: [atom.A, atom.args[0]])
def _geometric_matmul(tape: Tape, atom: Any, args: list[Value]) -> Value:
    exponents, x = args
    logarithm = tape.call(torch.log, x, shape=x.shape)
    product = _matmul(tape, atom, [exponents, logarithm])
    return tape.call(torch.exp, product, shape=atom.shape)
