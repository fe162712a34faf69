"""Boxes, halfspaces and hyperplanes."""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.dedicated.projections.kernels import HALFSPACE, HYPERPLANE
from ddn_cvx.dedicated.projections.rows import Datum, project_rows


def box(x: Tensor, lower: Tensor | float, upper: Tensor | float, *, dim: int = -1) -> Tensor:
    """The nearest point of ``{u : lower <= u <= upper}``.

    On a bound the derivative is that of the inside.

    Args:
        x: any shape, float32 or float64; computed in float64.
        lower, upper: numbers, or tensors that broadcast with ``x`` after ``dim`` has been moved to
            the end; infinite where there is no bound; gradients reach them.
        dim: the projected dimension.

    Result and errors as for :func:`hyperplane`; a row with a bound that is NaN, or with a lower
    bound above the upper one, is NaN, too.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.projections import box
        >>> box(torch.tensor([-3.0, 0.5, 3.0]), 0.0, torch.tensor([1.0, 1.0, 2.0]))
        tensor([0.0000, 0.5000, 2.0000])
    """
    bounds = (
        Datum(name, value, vector=True, infinite=True)
        for name, value in (("lower", lower), ("upper", upper))
    )
    return project_rows(_onto_box, x, *bounds, dim=dim)


def hyperplane(x: Tensor, normal: Tensor, offset: Tensor | float, *, dim: int = -1) -> Tensor:
    """The nearest point of ``{u : normal' u = offset}``.

    Args:
        x: any shape, float32 or float64; computed in float64.
        normal: broadcasts with ``x`` after ``dim`` has been moved to the end.
        offset: a number, or a tensor that broadcasts with the shape of ``x`` without ``dim``.
        dim: the projected dimension.

    Returns:
        The shape and dtype of ``x``. Rows with a number that is not finite are NaN and have
        gradient zero. With a normal of zero the set is empty, and the row NaN, or it is the whole
        space, and the row is that of ``x``.

    Raises:
        TypeError: ``x`` is not floating-point.
        ValueError: a shape does not broadcast.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.projections import hyperplane
        >>> hyperplane(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0]), 2.0)
        tensor([2., 0.])
    """
    data = (Datum("normal", normal, vector=True), Datum("offset", offset))
    return project_rows(_onto_hyperplane, x, *data, dim=dim, kernel=HYPERPLANE)


def halfspace(x: Tensor, normal: Tensor, offset: Tensor | float, *, dim: int = -1) -> Tensor:
    """The nearest point of ``{u : normal' u <= offset}``.

    Arguments, result and errors as for :func:`hyperplane`. On the boundary the derivative is that
    of the inside.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.projections import halfspace
        >>> halfspace(torch.tensor([[3.0, 1.0], [0.0, 1.0]]), torch.tensor([1.0, 1.0]), 2.0)
        tensor([[2., 0.],
                [0., 1.]])
    """
    data = (Datum("normal", normal, vector=True), Datum("offset", offset))
    return project_rows(_onto_halfspace, x, *data, dim=dim, kernel=HALFSPACE)


def _onto_box(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    low, high = lower.detach(), upper.detach()
    u = torch.where(x.detach() < low, lower, torch.where(x.detach() > high, upper, x))
    return torch.where((low > high).any(1, keepdim=True), torch.nan, u)


def _onto_hyperplane(x: Tensor, normal: Tensor, offset: Tensor) -> Tensor:
    return _moved(x, normal, offset, torch.ones_like(offset, dtype=torch.bool))


def _onto_halfspace(x: Tensor, normal: Tensor, offset: Tensor) -> Tensor:
    outside = (normal * x).detach().sum(1, keepdim=True) > offset.detach()
    return _moved(x, normal, offset, outside)


def _moved(x: Tensor, normal: Tensor, offset: Tensor, outside: Tensor) -> Tensor:
    """The projection onto the hyperplane of the rows ``outside`` ``(R, 1)``; others stay."""
    # Scaled by the normal's largest entry: squares would overflow and underflow.
    size = normal.detach().abs().amax(1, keepdim=True)
    proper = size > 0
    normal = torch.where(proper, normal / torch.where(proper, size, 1.0), 1.0)
    level = offset / torch.where(proper, size, 1.0)
    excess = (normal * x).sum(1, keepdim=True) - level
    u = x - normal * (excess / normal.square().sum(1, keepdim=True))
    # With a normal of zero the constraint reads 0 = offset, or 0 <= offset.
    impossible = ~proper & outside & (offset.detach() != 0)
    u = torch.where(outside & proper, u, x)
    return torch.where(impossible, torch.nan, u)
