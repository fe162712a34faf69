"""Projections of rows: the projected dimension, the data of a set, and bad rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddn_cvx.dedicated.common import check_floating, flattened, isolated, outside_transforms
from ddn_cvx.dedicated.projections.kernels import Kernel, attach_kernel


class Datum(NamedTuple):
    """A datum of a set, such as its radius.

    Attributes:
        name: the argument's name, for error messages.
        value: a number or a tensor.
        vector: its last dimension is that of the set; otherwise it is a scalar for each point.
        nonnegative: the set is empty where the datum is negative.
        infinite: infinite values are allowed.
    """

    name: str
    value: Tensor | float
    vector: bool = False
    nonnegative: bool = False
    infinite: bool = False


@isolated
def project_rows(
    project: Callable[..., Tensor],
    x: Tensor,
    *data: Datum,
    dim: int = -1,
    kernel: Kernel | None = None,
) -> Tensor:
    """Project the rows of ``x`` in float64; the result has the shape and dtype of ``x``.

    A row with a number that is not finite, or with a negative datum that must not be, is NaN, with
    gradient zero; no row depends on another.

    Args:
        project: takes points ``(R, n)`` and the data, ``(R, n)`` or ``(R, 1)``, all finite.
        x: points along ``dim``, float32 or float64.
        data: scalars broadcast with the shape of ``x`` without ``dim``, vectors with ``x`` after
            ``dim`` has been moved to the end.
        dim: the projected dimension.
        kernel: a faster implementation of ``project`` for data that all rows share.

    Raises:
        TypeError: ``x`` is not a real floating-point tensor.
        ValueError: a datum does not broadcast, or is a number that must not be negative.
    """
    check_floating("x", x)
    if x.ndim == 0:
        raise ValueError("x must have a dimension to project; got a scalar.")
    last = dim in (-1, x.ndim - 1)
    points = x if last else x.movedim(dim, -1)
    n = points.shape[-1]
    if n == 0:
        raise ValueError(f"dim={dim} of x, of shape {tuple(x.shape)}, is empty.")
    if kernel is not None:
        projected = _by_kernel(kernel, project, points, data)
        if projected is not None:
            return projected if last else projected.movedim(-1, dim)
    arguments: list[tuple[str, Tensor | float, int]] = [("x", points, 1)]
    for name, value, vector, nonnegative, _ in data:
        if nonnegative and not isinstance(value, Tensor) and not value >= 0:
            raise ValueError(f"{name} must not be negative; got {value!r}.")
        if vector:
            value = torch.as_tensor(value, dtype=torch.float64, device=x.device)
            if value.ndim and value.shape[-1] not in (1, n):
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}; its last dimension must be {n}."
                )
            value = value.expand(*value.shape[:-1], n)
        arguments.append((name, value, int(vector)))
    (rows, *values), batch = flattened(*arguments)
    bad = ~rows.detach().sum(1, keepdim=True).isfinite()
    values = [value if value.ndim == 2 else value.unsqueeze(1) for value in values]
    for datum, given in zip(data, values, strict=True):
        value = given.detach()
        usable = ~value.isnan() if datum.infinite else value.isfinite()
        if datum.nonnegative:
            usable = usable & (value >= 0)
        bad = bad | ~usable.all(1, keepdim=True)
    # Where every row is good, copies are saved; `vmap` cannot ask.
    clean = not torch._C._are_functorch_transforms_active() and not bool(bad.any())
    if not clean:
        rows = torch.where(bad, 0.0, rows)
        values = [torch.where(bad, 1.0, value) for value in values]
    u = project(rows, *values)
    if not clean:
        u = torch.where(bad, torch.nan, u)
    return u.to(x.dtype).reshape(*batch, n).movedim(-1, dim)


def project_matrices(project: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """As :func:`project_rows`, for matrices ``(..., n, n)``; ``project`` takes ``(R, n, n)``.

    Raises:
        TypeError: ``x`` is not a real floating-point tensor.
        ValueError: the last two dimensions differ.
    """
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise ValueError(f"Expected matrices of shape (..., n, n); got {tuple(x.shape)}.")
    square = x.shape[-2:]

    def of_rows(rows: Tensor) -> Tensor:
        return project(rows.unflatten(1, square)).flatten(1)

    return project_rows(of_rows, x.flatten(-2)).reshape(x.shape)


def _by_kernel(
    kernel: Kernel, project: Callable[..., Tensor], x: Tensor, data: Sequence[Datum]
) -> Tensor | None:
    """The projection of points ``(..., n)``, or None if the kernel does not take them.

    The last datum is a scalar, the others are vectors.
    """
    *given, number = (datum.value for datum in data)
    vectors = [value for value in given if isinstance(value, Tensor)]
    learned = isinstance(number, Tensor) and number.requires_grad
    if (
        x.dtype not in (torch.float32, torch.float64)
        or not outside_transforms()
        or (isinstance(number, Tensor) and number.ndim)
        or len(vectors) < len(given)
        or any(value.shape != x.shape[-1:] or value.requires_grad for value in vectors)
    ):
        return None
    rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    plain = float(number.detach() if isinstance(number, Tensor) else number)
    result = kernel.value(rows.detach(), plain, *vectors)
    if result is None:
        return None
    u = result[0]
    if (x.requires_grad or learned) and torch.is_grad_enabled():

        def formula(rows: Tensor, number: Any) -> Tensor:
            values = [vector.double().expand(rows.shape) for vector in vectors]
            scalar = torch.as_tensor(number, dtype=torch.float64, device=rows.device)
            return project(rows.double(), *values, scalar.expand(len(rows), 1)).to(rows.dtype)

        u = attach_kernel(kernel, formula, result, plain, rows, number)  # type: ignore[no-untyped-call]
    return u if x.ndim == 2 else u.reshape(x.shape)
