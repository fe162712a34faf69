"""Arguments of pose problems: checked, in double precision, with one batch dimension."""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.dedicated.common import (
    check_floating,
    check_positive,
    flattened,
    outside_transforms,
    weighted_points,
)
from ddn_cvx.dedicated.pose.objective import COSTS, Objective, collapse_broadcast

# Points with positive weight that an element needs.
_LEAST_POINTS = 3


def checked(
    image: Tensor,
    scene: Tensor,
    weights: Tensor | None,
    camera: Tensor | None,
    cost: str,
    scale: Tensor | float,
) -> tuple[Objective, Tensor, torch.Size]:
    """The objective ``(B, ...)`` in float64, valid elements ``(B,)``, and the batch shape.

    Arguments and errors are those of :func:`ddn_cvx.dedicated.pose.solve_pose`. Invalid elements
    get harmless numbers.
    """
    if cost not in COSTS:
        raise ValueError(f"Unknown cost {cost!r}; known are {', '.join(COSTS)}.")
    check_positive("scale", scale)
    for name, tensor, size in (("image", image, 2), ("scene", scene, 3)):
        check_floating(name, tensor)
        if tensor.ndim < 2 or tensor.shape[-1] != size:
            raise ValueError(
                f"{name} must have shape (*batch, n, {size}); got {tuple(tensor.shape)}."
            )
    n = image.shape[-2]
    if scene.shape[-2] != n or n < _LEAST_POINTS:
        raise ValueError(
            "image and scene must have the same number of points, at least "
            f"{_LEAST_POINTS}; got {n} and {scene.shape[-2]}."
        )
    (points, places, w, A, sigma), batch = flattened(
        ("image", image, 2),
        ("scene", scene, 2),
        ("weights", _weights(weights, image), 1),
        ("camera", _camera(camera, image.device), 2),
        ("scale", scale, 0),
    )
    sigma = sigma.unsqueeze(-1)
    # Points are contiguous in memory: operations on strided ones take several times as long.
    points, places = points.mT.contiguous(), places.mT.contiguous()
    valid, counts = _usable(points.detach(), places.detach(), w.detach())
    valid = valid & _proper(A)
    valid = valid & ((sigma.detach() > 0) & (sigma.detach() < torch.inf)).squeeze(-1)
    objective = Objective(points, places, w, A, sigma, cost)
    if counts is not None or not bool(valid.all()):
        counts = torch.ones_like(w, dtype=torch.bool) if counts is None else counts
        eye = torch.eye(2, 3, dtype=A.dtype, device=A.device)
        objective = objective.masked(counts, valid)._replace(
            lens=torch.where(valid[:, None, None], A, eye),
            scale=torch.where(valid.unsqueeze(-1), sigma, 1.0),
        )
    return _centred(objective), valid, batch


def matched(
    first: Tensor, second: Tensor, weights: Tensor | None, size: int, names: tuple[str, str]
) -> tuple[Tensor, Tensor, Tensor, Tensor, torch.Size]:
    """Matched points of a batch, of which those with a positive weight count.

    Args:
        first, second: shape ``(*batch, n, size)``, called ``names`` in messages.
        weights: shape ``(*batch, n)``; None for ones.

    Returns:
        Points ``(B, n, size)``, on a curve if they do not count; weights ``(B, n)``, zero for
        points that do not count, one in invalid elements; valid elements ``(B,)``, whose points are
        finite and whose weights are nonnegative and not all zero; the batch shape.

    Raises:
        TypeError: points are not floating-point.
        ValueError: a shape does not fit.
    """
    for name, points in zip(names, (first, second), strict=True):
        check_floating(name, points)
    if first.ndim < 2 or first.shape[-1] != size or second.shape[-2:] != first.shape[-2:]:
        raise ValueError(
            f"Expected matched points of shape (*batch, n, {size}), both the same n; got "
            f"{tuple(first.shape)} and {tuple(second.shape)}."
        )
    (x, y, w), batch = flattened(
        (names[0], first, 2), (names[1], second, 2), ("weights", _weights(weights, first), 1)
    )
    finite = (x.detach().isfinite() & y.detach().isfinite()).all(-1)
    valid, counts = weighted_points(finite, w.detach())
    keep = counts & valid.unsqueeze(-1)
    # Points that do not count lie on a curve, in general position: no division by zero, no NaN.
    place = torch.linspace(-1, 1, w.shape[-1], dtype=x.dtype, device=x.device)
    curve = torch.stack([place**power for power in range(1, size + 1)], -1)
    x, y = [torch.where(keep.unsqueeze(-1), points, curve) for points in (x, y)]
    w = torch.where(keep, w, torch.where(valid.unsqueeze(-1), 0.0, 1.0))
    return x, y, w, valid, batch


def _weights(weights: Tensor | None, points: Tensor) -> Tensor:
    """Weights ``(*batch, n)`` of points ``(*batch, n, d)``; ones for None."""
    n = points.shape[-2]
    w = points.new_ones(n, dtype=torch.float64) if weights is None else weights
    if w.shape[-1:] != (n,):
        raise ValueError(f"weights must end in {n}; got shape {tuple(w.shape)}.")
    return w


def _usable(points: Tensor, places: Tensor, w: Tensor) -> tuple[Tensor, Tensor | None]:
    """Elements with enough usable points, and the points that count; None if all of them do."""
    if outside_transforms() and w.numel() > 0:
        total = points.sum() + places.sum() + w.sum()
        if bool(total.isfinite() & (w.min() > 0)):
            return torch.ones_like(w[:, 0], dtype=torch.bool), None
    finite = (points.sum(-2) + places.sum(-2)).isfinite()
    return weighted_points(finite, w, _LEAST_POINTS)


def _centred(objective: Objective) -> Objective:
    """The objective with the principal point at the image's origin, for lenses ``(B, 2, 3)``."""
    A = collapse_broadcast(objective.lens)
    corner = torch.diag(A.new_tensor([0.0, 0, 1]))
    lens = torch.nn.functional.pad(A[..., :2], (0, 1, 0, 1)) + corner
    centred = objective._replace(
        image=objective.image - objective.lens[..., 2:],
        lens=lens.expand(len(objective.lens), 3, 3),
    )
    if objective.cost != "cosine":
        return centred
    eye = torch.eye(3, dtype=A.dtype, device=A.device)
    return centred._replace(image=centred.normalised(), lens=eye.expand_as(centred.lens))


def normalised(image: Tensor, camera: Tensor | None) -> Tensor:
    """Image points ``(*batch, n, 2)`` in the normalised coordinates of a camera.

    They are NaN, with gradient zero, for a camera that is singular or not finite.
    """
    A = _camera(camera, image.device)
    proper = _proper(A)[..., None, None]
    A = torch.where(proper, A, torch.eye(2, 3, dtype=A.dtype, device=A.device))
    centred = image - A[..., 2].unsqueeze(-2)
    return torch.where(proper, centred @ torch.linalg.inv_ex(A[..., :2]).inverse.mT, torch.nan)


def _proper(A: Tensor) -> Tensor:
    """Cameras ``(*batch, 2, 3)`` that are finite and regular."""
    (a, b, _), (c, d, _) = [row.unbind(-1) for row in A.detach().unbind(-2)]
    return A.detach().isfinite().all(-1).all(-1) & (a * d != b * c)


def _camera(camera: Tensor | None, device: torch.device) -> Tensor:
    """The first two rows of the camera matrix, ``(*batch, 2, 3)``."""
    if camera is None:
        return torch.eye(2, 3, dtype=torch.float64, device=device)
    camera = camera.to(torch.float64)
    if camera.shape[-2:] == (3, 3):
        return camera[..., :2, :]
    if camera.shape[-1:] != (4,):
        raise ValueError(
            f"camera must have shape (*batch, 4) or (*batch, 3, 3); got {tuple(camera.shape)}."
        )
    return torch.cat([torch.diag_embed(camera[..., :2]), camera[..., 2:, None]], -1)
