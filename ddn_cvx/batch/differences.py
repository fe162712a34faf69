"""Derivatives of a batched function: by autograd, and by central differences to check them.

The differences are of fourth order, ``(8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h``, so that with
solutions right to 1e-14 the derivative is right to about 1e-9.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from ddn_cvx.batch.elements import chunks

if TYPE_CHECKING:
    import cvxpy as cp

Tensors = tuple[torch.Tensor, ...]
# ``f`` of shifted inputs: tensors ``(K, B, *parameter.shape)`` to values ``(K, B)``.
Function = Callable[[Sequence[torch.Tensor]], torch.Tensor]

# Steps relative to the inputs' size. The long one has less rounding; the short one stays clear of
# kinks.
RELATIVE_STEPS = (1e-4, 1e-6)

# Elements solved in one call: many for the batched solvers, few enough for the memory.
_ELEMENTS_PER_CALL = 4096

# Least size of an element's inputs and of its gradient, as a share of the batch's root mean square:
# an element of zeros is moved and judged as a small one.
_LEAST_SIZE = 1e-3


def pulled(
    function: Callable[..., Tensors], inputs: Tensors, incoming: Sequence[torch.Tensor]
) -> tuple[Tensors, Tensors]:
    """Values and vector-Jacobian product by autograd; an element's NaN stays its own.

    Args:
        function: of the inputs ``(B, ...)`` to values ``(B, ...)``.
        incoming: the vector, in the shapes of the first values; the others are left out.
    """
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    values = function(*leaves)[: len(incoming)]
    gradients: Tensors = ()
    if leaves:
        loss = _inner(incoming, [value.nan_to_num() for value in values], 1).sum()
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return tuple(value.detach() for value in values), gradients


def weighted(layer: Callable[..., Tensors], incoming: Sequence[torch.Tensor]) -> Function:
    """``shifted -> sum v * y(shifted)``, element by element, of the first values of a layer."""

    def function(shifted: Sequence[torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return _inner(incoming, layer(*shifted)[: len(incoming)], 2)

    return function


def _inner(
    left: Sequence[torch.Tensor], right: Sequence[torch.Tensor], leading: int
) -> torch.Tensor:
    """Inner product over all dimensions but the ``leading`` first ones of ``right``."""
    products = [
        (a * b).reshape(*b.shape[:leading], -1).sum(-1) for a, b in zip(left, right, strict=True)
    ]
    return torch.stack(products).sum(0)


def tangential(parameter: cp.Parameter, gradient: torch.Tensor) -> torch.Tensor:
    """The part of a gradient ``(..., *parameter.shape)`` that the parameter's structure allows.

    A symmetric parameter moves only along symmetric matrices, a diagonal one along diagonals;
    layers may spread the rest over the entries as they like.
    """
    attributes = parameter.attributes
    if any(attributes[name] for name in ("symmetric", "PSD", "NSD")):
        gradient = (gradient + gradient.mT) / 2
    if attributes["diag"]:
        gradient = torch.diag_embed(gradient.diagonal(dim1=-2, dim2=-1))
    return gradient


def scales(tensor: torch.Tensor) -> torch.Tensor:
    """Size of the entries of each element's input, ``(B, 1, ..., 1)``, never zero."""
    size = _floored(tensor.square().reshape(len(tensor), -1).mean(1).sqrt())
    return size.reshape(-1, *(1,) * (tensor.ndim - 1))


def _floored(size: torch.Tensor) -> torch.Tensor:
    """Sizes ``(B,)``, at least a share of their root mean square; one where all are zero or NaN."""
    floored = size.clamp_min(_LEAST_SIZE * float(size.nan_to_num().square().mean().sqrt()))
    return torch.where(floored > 0, floored, 1.0)


def disagreement(
    function: Function,
    parameters: Sequence[cp.Parameter],
    tensors: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    *,
    directions: int,
    seed: int,
    least: float = 0.0,
) -> torch.Tensor:
    """Relative disagreement of ``gradients`` with central differences, shape ``(B,)``.

    Along each random direction ``d``, ``|g'd - difference|`` is divided by the standard deviation
    of ``g'd`` over such directions; the worst direction counts, at the better of two steps (an
    element with a kink within the longer one is judged by the shorter). NaN where a neighbour has
    no solution.

    Args:
        function: see :data:`Function`.
        parameters: of the declaration.
        tensors: inputs ``(B, *parameter.shape)``, float64.
        gradients: of the same shapes.
        directions: number of random directions.
        seed: of the directions.
        least: divisor of an element whose gradient is smaller, or zero to rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = [scales(tensor) for tensor in tensors]
    deviation = torch.zeros(len(tensors[0]), dtype=torch.float64, device=tensors[0].device)
    for gradient, size, parameter in zip(gradients, sizes, parameters, strict=True):
        scaled = tangential(parameter, gradient) * size
        deviation += scaled.reshape(len(scaled), -1).square().sum(1)
    unit = _floored(deviation.sqrt()).clamp_min(least)

    worst = torch.zeros_like(unit)
    for _ in range(directions):
        moves, analytic = [], torch.zeros_like(unit)
        for parameter, gradient, size in zip(parameters, gradients, sizes, strict=True):
            drawn = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
            move = tangential(parameter, drawn.to(gradient) * size)
            analytic += (gradient * move).reshape(len(move), -1).sum(1)
            moves.append(move.unsqueeze(0))
        misses = [
            (central_differences(function, tensors, moves, step)[0] - analytic).abs() / unit
            for step in RELATIVE_STEPS
        ]
        # fmin prefers a number to NaN: one of the steps may leave the domain.
        worst = torch.maximum(worst, torch.fmin(*misses))
    return worst


def gradient_by_differences(
    function: Function, parameters: Sequence[cp.Parameter], tensors: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The whole gradient, entry by entry; arguments as for :func:`disagreement`."""
    gradients = []
    for index, (parameter, tensor) in enumerate(zip(parameters, tensors, strict=True)):
        size = scales(tensor)
        entries = tensor[0].numel()
        basis = torch.eye(entries, dtype=torch.float64).reshape(entries, 1, *tensor.shape[1:])
        basis = tangential(parameter, basis) * size  # (N, B, *shape)
        columns = []
        for some in chunks(entries, entries=4 * len(tensor), limit=_ELEMENTS_PER_CALL):
            part = basis[some]
            moves = [
                part if other == index else torch.zeros_like(value).expand(len(part), *value.shape)
                for other, value in enumerate(tensors)
            ]
            columns.append(central_differences(function, tensors, moves, RELATIVE_STEPS[0]))
        gradients.append(torch.cat(columns).mT.reshape(tensor.shape) / size)
    return gradients


def central_differences(
    function: Function,
    tensors: Sequence[torch.Tensor],
    moves: Sequence[torch.Tensor],
    step: float,
) -> torch.Tensor:
    """Derivatives along ``K`` moves ``(K, B, *shape)``, solved in one call; shape ``(K, B)``."""
    count = len(moves[0])
    shifts = (step, -step, 2 * step, -2 * step)
    shifted = [
        torch.cat([tensor + shift * move for shift in shifts])
        for tensor, move in zip(tensors, moves, strict=True)
    ]
    near, back, far, far_back = function(shifted).split(count)
    difference: torch.Tensor = 8 * (near - back) - (far - far_back)
    return difference / (12 * step)
