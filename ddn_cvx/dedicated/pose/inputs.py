"""What a call for a pose is given: checked, in double precision, with one batch dimension."""

from __future__ import annotations

import torch

from ddn_cvx.dedicated.constants import is_plain
from ddn_cvx.dedicated.pose.objective import COSTS, Objective, once


def checked(
    image: torch.Tensor,
    scene: torch.Tensor,
    weights: torch.Tensor | None,
    camera: torch.Tensor | None,
    cost: str,
    scale: torch.Tensor | float,
) -> tuple[Objective, torch.Tensor, torch.Size]:
    """The objective ``(B, ...)``, in float64, which elements are good, and the batch shape."""
    if cost not in COSTS:
        raise ValueError(f"Unknown cost {cost!r}; known are {', '.join(COSTS)}.")
    if not isinstance(scale, torch.Tensor) and not scale > 0:
        raise ValueError(f"scale must be positive; got {scale!r}.")
    for name, tensor, size in (("image", image, 2), ("scene", scene, 3)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating-point; got {tensor.dtype}.")
        if tensor.ndim < 2 or tensor.shape[-1] != size:
            raise ValueError(
                f"{name} must have shape (*batch, n, {size}); got {tuple(tensor.shape)}."
            )
    n = image.shape[-2]
    if scene.shape[-2] != n or n < 3:
        raise ValueError(
            f"image and scene must have the same number of points, at least 3; got {n} and "
            f"{scene.shape[-2]}."
        )
    double, device = torch.float64, image.device
    w = torch.ones(n, dtype=double, device=device) if weights is None else weights.to(double)
    if w.shape[-1:] != (n,):
        raise ValueError(f"weights must end in {n}; got shape {tuple(w.shape)}.")
    A = _camera(camera, device)
    sigma = torch.as_tensor(scale, dtype=double, device=device)
    shapes = (image.shape[:-2], scene.shape[:-2], w.shape[:-1], A.shape[:-2], sigma.shape)
    try:
        batch = torch.broadcast_shapes(*shapes)
    except RuntimeError:
        given = [tuple(shape) for shape in shapes]
        raise ValueError(
            f"Batch shapes of image, scene, weights, camera and scale do not broadcast: {given}."
        ) from None

    def flat(tensor: torch.Tensor, *core: int) -> torch.Tensor:
        return tensor.to(double).expand(*batch, *core).reshape(batch.numel(), *core)

    # Points in the last dimension of memory, too: what works on strides is several times slower.
    points, places = flat(image.mT, 2, n).contiguous(), flat(scene.mT, 3, n).contiguous()
    # What all elements share stays one element in memory, for work on it to be done once.
    w, A, sigma = flat(w, n), flat(A, 2, 3), flat(sigma.unsqueeze(-1), 1)
    valid, keep = _counted(points.detach(), places.detach(), w.detach())
    valid = valid & _proper(A)
    valid = valid & ((sigma.detach() > 0) & (sigma.detach() < torch.inf)).squeeze(-1)
    if keep is None and bool(valid.all()):
        return _shifted(points, places, w, A, sigma, cost), valid, batch
    # A bad element gets harmless numbers.
    used = torch.ones_like(w, dtype=torch.bool) if keep is None else keep
    points, places, w = masked(points, places, w, used, valid)
    known = valid[:, None, None]
    A = torch.where(known, A, torch.eye(2, 3, dtype=double, device=device))
    sigma = torch.where(valid.unsqueeze(-1), sigma, 1.0)
    return _shifted(points, places, w, A, sigma, cost), valid, batch


def masked(
    points: torch.Tensor,
    places: torch.Tensor,
    w: torch.Tensor,
    keep: torch.Tensor,
    valid: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Without the points that are not to be kept, ``(B, n)``, and zeros where all is not ``valid``.

    What does not count must not bring in NaN nor be behind the camera: it is put where the first
    point is that counts.
    """
    keep = keep & valid.unsqueeze(-1)
    first, known, wide = keep.to(torch.uint8).argmax(-1)[:, None, None], valid, keep.unsqueeze(-2)

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        stand_in = tensor.gather(-1, first.expand(-1, tensor.shape[-2], 1))
        return torch.where(wide, tensor, torch.where(known[:, None, None], stand_in, 0.0))

    return kept(points), kept(places), torch.where(keep, w, 0.0)


def _counted(
    points: torch.Tensor, places: torch.Tensor, w: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Elements with at least three good points, and which points count; None for all of them."""
    if is_plain() and w.numel() > 0:
        total = points.sum() + places.sum() + w.sum()
        if bool(total.isfinite() & (w.min() > 0)):
            return torch.ones_like(w[:, 0], dtype=torch.bool), None
    used = w > 0
    finite = (points.sum(-2) + places.sum(-2)).isfinite()
    valid = ((finite | ~used) & (w >= 0) & (w < torch.inf)).all(-1)
    return valid & (used.sum(-1) >= 3), used


def _shifted(
    points: torch.Tensor,
    places: torch.Tensor,
    w: torch.Tensor,
    A: torch.Tensor,
    sigma: torch.Tensor,
    cost: str,
) -> Objective:
    """The objective, with the principal point at the image's origin."""
    points = points - A[..., 2:]
    if cost == "cosine":
        points = torch.linalg.inv_ex(once(A)[..., :2]).inverse @ points
        A = torch.eye(2, 3, dtype=A.dtype, device=A.device).expand_as(A)
    corner = torch.diag(A.new_tensor([0.0, 0, 1]))
    lens = torch.nn.functional.pad(once(A)[..., :2], (0, 1, 0, 1)) + corner
    return Objective(points, places, w, lens.expand(len(A), 3, 3), sigma, cost)


def normalised(image: torch.Tensor, camera: torch.Tensor | None) -> torch.Tensor:
    """Points of the image ``(*batch, n, 2)`` in normalised coordinates, given the camera.

    They are NaN, with gradient zero, of a camera that is not finite or singular.
    """
    A = _camera(camera, image.device)
    proper = _proper(A)[..., None, None]
    A = torch.where(proper, A, torch.eye(2, 3, dtype=A.dtype, device=A.device))
    centred = image - A[..., 2].unsqueeze(-2)
    found = centred @ torch.linalg.inv_ex(A[..., :2]).inverse.mT
    return torch.where(proper, found, torch.nan)


def _proper(A: torch.Tensor) -> torch.Tensor:
    """Which cameras ``(*batch, 2, 3)`` are finite and regular."""
    (a, b, _), (c, d, _) = (row.unbind(-1) for row in A.detach().unbind(-2))
    return A.detach().isfinite().all(-1).all(-1) & (a * d != b * c)


def _camera(camera: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """The first two rows of the matrix, ``(*batch, 2, 3)``."""
    if camera is None:
        return torch.eye(2, 3, dtype=torch.float64, device=device)
    camera = camera.to(torch.float64)
    if camera.shape[-2:] == (3, 3):
        return camera[..., :2, :]
    if camera.shape[-1:] != (4,):
        raise ValueError(
            f"camera must have shape (*batch, 4) or (*batch, 3, 3); got {tuple(camera.shape)}."
        )
    fx, fy, cx, cy = camera.unbind(-1)
    zero = torch.zeros_like(fx)
    return torch.stack([torch.stack([fx, zero, cx], -1), torch.stack([zero, fy, cy], -1)], -2)
