"""Functions that reduce axes: sums, norms, extrema, products, and their running versions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from ddn_cvx.programs.translation.registry import Builder, register, register_functions
from ddn_cvx.programs.translation.tape import Function, Shape, Tape, Value

Dims = tuple[int, ...]


def _axes(atom: Any, ndim: int) -> Dims:
    """The reduced axes as torch numbers them behind the batch dimension."""
    if atom.axis is None:
        return tuple(range(1, ndim + 1))
    axes = (atom.axis,) if isinstance(atom.axis, int | np.integer) else tuple(atom.axis)
    return tuple(int(axis) % ndim + 1 for axis in axes)


def _register(
    build: Callable[[Tape, Any, Function, Value], Value], functions: Mapping[str, Function]
) -> None:
    """Registers atoms that differ in the function of a dimension alone."""

    def builder(function: Function) -> Builder:
        return lambda tape, atom, args: build(tape, atom, function, args[0])

    for name, function in functions.items():
        register(name)(builder(function))


def _reduce(tape: Tape, atom: Any, function: Function, x: Value) -> Value:
    """Calls ``function(x, dim=dims)``."""
    dims = _axes(atom, len(x.shape)) if x.shape else ()
    kept = tuple(size for n, size in enumerate(x.shape, start=1) if n not in dims)
    if not dims:  # torch would take no dimensions for all of them
        x = tape.view(x, (*x.shape, 1))
        dims = (len(x.shape),)
    reduced = tape.call(partial(function, dim=dims), x, shape=kept)
    return tape.view(reduced, tuple(atom.shape))


def safe_sqrt(squares: torch.Tensor) -> torch.Tensor:
    """The square root, with derivatives zero at zero (at a norm's kink they are subgradients)."""
    zero = squares == 0
    return squares.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)


def _one_norm(x: torch.Tensor, *, dim: Dims) -> torch.Tensor:
    return x.abs().sum(dim)


def _two_norm(x: torch.Tensor, *, dim: Dims) -> torch.Tensor:
    return safe_sqrt(torch.square(x).sum(dim))


def _infinity_norm(x: torch.Tensor, *, dim: Dims) -> torch.Tensor:
    return x.abs().amax(dim)


def _sum_of_squares(x: torch.Tensor, *, dim: Dims) -> torch.Tensor:
    return torch.square(x).sum(dim)


_register(
    _reduce,
    {
        "affine.sum.Sum": torch.sum,
        "log_sum_exp.log_sum_exp": torch.logsumexp,
        "max.max": torch.amax,
        "min.min": torch.amin,
        "norm1.norm1": _one_norm,
        "norm_inf.norm_inf": _infinity_norm,
    },
)


@register("quad_over_lin.quad_over_lin")
def _quad_over_lin(tape: Tape, atom: Any, args: list[Value]) -> Value:
    x, y = args
    if x.array is not None:
        squares = np.square(x.array).sum(atom.axis, keepdims=atom.keepdims)
        total = tape.constant(squares.reshape(atom.shape))
    else:
        total = _reduce(tape, atom, _sum_of_squares, x)
    number = y.uniform
    if number is None:
        return tape.call(torch.div, total, tape.view(y, (1,) * len(total.shape)), shape=total.shape)
    if number == 1.0:
        return total
    return tape.call(partial(torch.div, other=number), total, shape=total.shape)


@register("pnorm.Pnorm", "pnorm.PnormApprox")
def _pnorm(tape: Tape, atom: Any, args: list[Value]) -> Value:
    p = float(atom.p)
    if p == 2.0:
        return _reduce(tape, atom, _two_norm, args[0])
    # cvxpy has an axis for p = 2 only
    x = tape.view(args[0], (int(np.prod(args[0].shape)),))
    function = _p_norm if p > 1 else _concave_p_norm
    return tape.view(tape.call(partial(function, p=p), x, shape=()), tuple(atom.shape))


def _p_norm(x: torch.Tensor, *, p: float) -> torch.Tensor:
    powers = (x if p % 2 == 0 else x.abs()).pow(p).sum(-1)
    zero = powers == 0
    return powers.masked_fill(zero, 1.0).pow(1.0 / p).masked_fill(zero, 0.0)


def _concave_p_norm(x: torch.Tensor, *, p: float) -> torch.Tensor:
    """The p-"norm" for p < 1, of nonnegative vectors; -inf elsewhere.

    Where it is zero it is replaced by a linear function above it that touches it there: for
    p > 0 a multiple of the sum, at the origin; for p < 0 the smallest entry.
    """
    least = x.amin(-1)
    if p > 0:
        zero = (x == 0).all(-1)
        touching = x.shape[-1] ** (1.0 / p - 1.0) * x.sum(-1)
    else:
        zero = least == 0
        touching = least
    norm = torch.where(zero.unsqueeze(-1), 1.0, x).pow(p).sum(-1).pow(1.0 / p)
    return torch.where(zero, touching, norm).masked_fill(least < 0, -torch.inf)


def _last(
    tape: Tape, atom: Any, function: Function, x: Value, *others: Value,
    fortran: bool = False,
) -> Value:  # fmt: skip
    """Calls a function of the last dimension, into which the reduced axes have been flattened."""
    dims = _axes(atom, len(x.shape)) if x.shape else ()
    kept = tuple(size for n, size in enumerate(x.shape, start=1) if n not in dims)
    count = int(np.prod([x.shape[d - 1] for d in dims]))
    order = [n for n in range(1, len(x.shape) + 1) if n not in dims]
    order += list(dims[::-1] if fortran else dims)
    if order != list(range(1, len(x.shape) + 1)):
        x = tape.call(
            partial(torch.permute, dims=(0, *order)), x, shape=tuple(x.shape[n - 1] for n in order)
        )
    x = tape.view(x, (*kept, count))
    return tape.view(tape.call(function, x, *others, shape=kept), tuple(atom.shape))


def _largest(x: torch.Tensor, *, k: float) -> torch.Tensor:
    n = x.shape[-1]
    whole, part = int(k), k - int(k)
    if whole >= n:
        return x.sum(-1)
    if part == 0:
        return x.topk(whole, sorted=False).values.sum(-1)
    top = x.topk(whole + 1).values
    return top[..., :whole].sum(-1) + part * top[..., whole]


def _product(x: torch.Tensor) -> torch.Tensor:
    """Halves are multiplied: torch.prod looks for zeros in the data to differentiate itself."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        pairs = x[..., :half] * x[..., half : 2 * half]
        x = torch.cat([pairs, x[..., 2 * half :]], -1) if x.shape[-1] % 2 else pairs
    return x.squeeze(-1)


@register("sum_largest.sum_largest")
def _sum_largest(tape: Tape, atom: Any, args: list[Value]) -> Value:
    return _last(tape, atom, partial(_largest, k=float(atom.k)), args[0])


_register(_last, {"prod.Prod": _product})


@register("geo_mean.GeoMean", "geo_mean.GeoMeanApprox")
def _build_geo_mean(tape: Tape, atom: Any, args: list[Value]) -> Value:
    weights = np.zeros(len(atom._keep))
    weights[atom._keep] = [float(w) for w in atom.w]
    (only,) = np.nonzero(weights) if np.count_nonzero(weights) == 1 else (None,)
    if only is not None:
        chosen = partial(_entry, number=int(only[0]))
        return _last(tape, atom, chosen, args[0], fortran=True)
    used = None if weights.all() else tape.raw(np.flatnonzero(weights).astype(np.int64))
    table = tape.raw(weights[weights > 0])
    others = [table] if used is None else [table, used]
    return _last(tape, atom, _geo_mean, args[0], *others, fortran=True)


def _entry(x: torch.Tensor, *, number: int) -> torch.Tensor:
    return x[..., number]


def _geo_mean(
    x: torch.Tensor, weights: torch.Tensor, used: torch.Tensor | None = None
) -> torch.Tensor:
    """exp of the mean logarithm; at the origin the arithmetic mean, which is above and touches."""
    if used is not None:
        x = x.index_select(-1, used)
    origin = (x == 0).all(-1)
    logarithms = torch.where(origin.unsqueeze(-1), 1.0, x).log()
    return torch.where(origin, (x * weights).sum(-1), (logarithms * weights).sum(-1).exp())


def _running(tape: Tape, atom: Any, function: Function, x: Value) -> Value:
    shape: Shape = tuple(atom.shape)
    if atom.axis is None or not x.shape:
        x = tape.view(x, (int(np.prod(x.shape)),))
        return tape.view(tape.call(partial(function, dim=1), x, shape=x.shape), shape)
    dim = atom.axis % len(x.shape) + 1
    return tape.call(partial(function, dim=dim), x, shape=shape)


def _cumprod(x: torch.Tensor, *, dim: int) -> torch.Tensor:
    """By doubling: torch.cumprod looks for zeros in the data to differentiate itself."""
    length, step = x.shape[dim], 1
    while step < length:
        shifted = x.narrow(dim, 0, length - step)
        multiplied = x.narrow(dim, step, length - step) * shifted
        x = torch.cat([x.narrow(dim, 0, step), multiplied], dim)
        step *= 2
    return x


def _cummax(x: torch.Tensor, *, dim: int) -> torch.Tensor:
    # Gathered by index: torch.cummax itself has no forward-mode derivative under every transform.
    return x.gather(dim, torch.cummax(x.detach(), dim).indices)


_register(
    _running,
    {
        "affine.cumsum.cumsum": torch.cumsum,
        "cumprod.cumprod": _cumprod,
        "cummax.cummax": _cummax,
    },
)


@register("dotsort.dotsort")
def _dotsort(tape: Tape, atom: Any, args: list[Value]) -> Value:
    x, weights = (tape.view(value, (int(np.prod(value.shape)),)) for value in args)
    padding = (0, x.shape[0] - weights.shape[0])
    if weights.array is not None:
        ordered = tape.constant(np.sort(np.pad(weights.array, padding)))
    else:
        ordered = tape.call(partial(_sorted, padding=padding), weights, shape=x.shape)
    return tape.call(_sorted_product, x, ordered, shape=())


def _sorted(weights: torch.Tensor, *, padding: tuple[int, int]) -> torch.Tensor:
    return torch.nn.functional.pad(weights, padding).sort(-1).values


def _sorted_product(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (x.sort(-1).values * weights).sum(-1)


def _dist_ratio(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    near, far = (torch.square(x - point).flatten(1).sum(-1) for point in (a, b))
    return safe_sqrt(near) / safe_sqrt(far)


register_functions({"dist_ratio.dist_ratio": _dist_ratio})


@register("length.length")
def _build_length(tape: Tape, atom: Any, args: list[Value]) -> Value:
    from cvxpy import settings

    x = tape.view(args[0], (int(np.prod(args[0].shape)),))
    numbers = tape.raw(np.arange(1.0, x.shape[0] + 1.0))
    tolerance = float(settings.ATOM_EVAL_TOL)
    return tape.call(partial(_length, tolerance=tolerance), x, numbers, shape=())


def _length(x: torch.Tensor, numbers: torch.Tensor, *, tolerance: float) -> torch.Tensor:
    # Through sign, not a mask: the result stays a function of x, with derivative zero.
    return ((x.abs() - tolerance).sign().clamp_min(0.0) * numbers).amax(-1)
