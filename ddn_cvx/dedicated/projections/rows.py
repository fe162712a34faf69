"""What all projections share: the projected dimension, batches, precision and bad rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ddn_cvx.dedicated.constants import eager, is_plain
from ddn_cvx.dedicated.projections.kernels import Kernel, run_kernel


class Datum(NamedTuple):
    """A datum of a set, beside the point.

    Attributes:
        name: what the caller calls it.
        value: a number or a tensor.
        vector: it has the set's dimension as its last one; else it is a scalar for each point.
        nonnegative: the set is empty where it is negative.
        infinite: it may be infinite.
    """

    name: str
    value: torch.Tensor | float
    vector: bool = False
    nonnegative: bool = False
    infinite: bool = False


@eager
def project_rows(
    project: Callable[..., torch.Tensor],
    x: torch.Tensor,
    *data: Datum,
    dim: int = -1,
    kernel: Kernel | None = None,
) -> torch.Tensor:
    """Call ``project`` on rows in float64, and give its answer the shape and dtype of ``x``.

    A row with a number that is not finite, or with a negative datum that must not be, comes back as
    NaN, with gradient zero; the others are what they would be alone.

    Args:
        project: takes points ``(R, n)`` and the data, ``(R, n)`` or ``(R, 1)``, all finite.
        x: points along ``dim``, float32 or float64.
        data: scalars broadcast with the shape of ``x`` without ``dim``, vectors with ``x`` after
            ``dim`` has been moved to the end.
        dim: the projected dimension.
        kernel: the same by hand, where one scalar serves all rows.

    Raises:
        TypeError: ``x`` is not a real floating-point tensor.
        ValueError: a datum does not broadcast, or is a number that must not be negative.
    """
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
        raise TypeError(f"x must be a tensor of real floating-point numbers; got {kind}.")
    if x.ndim == 0:
        raise ValueError("x must have a dimension to project; got a scalar.")
    last = dim in (-1, x.ndim - 1)
    points = x if last else x.movedim(dim, -1)
    n = points.shape[-1]
    if n == 0:
        raise ValueError(f"dim={dim} of x, of shape {tuple(x.shape)}, is empty.")
    if kernel is not None:
        found = _by_kernel(kernel, project, points, data)
        if found is not None:
            return found if last else found.movedim(-1, dim)
    values = [_as_tensor(datum, points) for datum in data]
    shape = points.shape[:-1]
    for datum, value in zip(data, values, strict=True):
        if datum.vector and value.shape[-1] not in (1, n):
            raise ValueError(
                f"{datum.name} has shape {tuple(value.shape)}; its last dimension must be {n}."
            )
        own = value.shape[:-1] if datum.vector else value.shape
        try:
            shape = torch.broadcast_shapes(shape, own)
        except RuntimeError:
            raise ValueError(
                f"{datum.name} of shape {tuple(value.shape)} does not broadcast with points of "
                f"shape {tuple(points.shape)}."
            ) from None
    rows = points.to(torch.float64).expand(*shape, n).reshape(-1, n)
    tables = [
        (value if datum.vector else value.unsqueeze(-1))
        .expand(*shape, n if datum.vector else 1)
        .reshape(len(rows), n if datum.vector else 1)
        for datum, value in zip(data, values, strict=True)
    ]
    bad = ~rows.detach().sum(1, keepdim=True).isfinite()
    for datum, table in zip(data, tables, strict=True):
        usable = ~table.detach().isnan() if datum.infinite else table.detach().isfinite()
        bad = bad | ~usable.all(1, keepdim=True)
        if datum.nonnegative:
            bad = bad | (table.detach() < 0).any(1, keepdim=True)
    # No copies where all is well, but `vmap` cannot ask.
    clean = not torch._C._are_functorch_transforms_active() and not bool(bad.any())
    if not clean:
        rows = torch.where(bad, 0.0, rows)
        tables = [torch.where(bad, 1.0, table) for table in tables]
    found = project(rows, *tables)
    if not clean:
        found = torch.where(bad, torch.nan, found)
    return found.to(x.dtype).reshape(*shape, n).movedim(-1, dim)


def _by_kernel(
    kernel: Kernel, project: Callable[..., torch.Tensor], x: torch.Tensor, data: Sequence[Datum]
) -> torch.Tensor | None:
    """The projection of points ``(..., n)`` if the kernel takes them and their data."""
    if x.dtype not in (torch.float32, torch.float64) or not is_plain():
        return None
    scalars: list[torch.Tensor | float] = []
    vectors: list[torch.Tensor] = []
    for datum in data:
        value = datum.value
        if datum.vector:
            if not isinstance(value, torch.Tensor) or value.requires_grad:
                return None
            if value.shape != x.shape[-1:]:
                return None
            vectors.append(value)
        elif isinstance(value, torch.Tensor) and value.ndim:
            return None
        else:
            scalars.append(value)
        if datum.nonnegative and not bool(value >= 0):
            return None

    def formula(rows: torch.Tensor, number: Any, *others: torch.Tensor) -> torch.Tensor:
        number = torch.as_tensor(number, dtype=torch.float64, device=rows.device)
        remaining = iter(others)
        tables = [
            next(remaining).double().expand(rows.shape)
            if datum.vector
            else number.expand(len(rows), 1)
            for datum in data
        ]
        return project(rows.double(), *tables).to(rows.dtype)

    rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    found = run_kernel(kernel, formula, rows, scalars[0], *vectors)
    return found if found is None or x.ndim == 2 else found.reshape(x.shape)


def _as_tensor(datum: Datum, points: torch.Tensor) -> torch.Tensor:
    if datum.nonnegative and not isinstance(datum.value, torch.Tensor) and not datum.value >= 0:
        raise ValueError(f"{datum.name} must not be negative; got {datum.value!r}.")
    # A number in float64 from the start: 0.1 is not the nearest float32 to 0.1.
    value = torch.as_tensor(datum.value, dtype=torch.float64, device=points.device)
    return value.unsqueeze(0) if datum.vector and value.ndim == 0 else value
