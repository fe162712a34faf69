"""The perspective-n-point node: weighted, robust, batched, with its exact derivative."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from ddn_cvx.dedicated.constants import constant, eager
from ddn_cvx.dedicated.pose.hypotheses import (
    costs_of,
    linear_pose,
    poses_of_triples,
    triples,
)
from ddn_cvx.dedicated.pose.objective import COSTS, Objective, Pose
from ddn_cvx.dedicated.pose.refine import levenberg_marquardt, moved, newton
from ddn_cvx.status import Status

# Triples of points whose poses are starts, and how many starts are refined.
_TRIPLES = 16
_REFINED = 3
# Points that a linear pose needs.
_LINEAR = 6
_SEED = 0
# Chord steps: each makes one more order of derivatives right.
_ORDERS = 2
# A pose is stationary when the next Newton step, an angle or relative, is below this.
_STATIONARY = 1e-8
# Starts within this angle of each other, in radians, mostly lead to the same pose.
_APART = 0.3
# An eigenvalue of the Hessian, scaled to a unit diagonal, that is below this counts as zero.
_SINGULAR = 1e-10


class PoseSolution(NamedTuple):
    """What :func:`solve_pose` finds, per element.

    Attributes:
        R: rotation, shape ``(*batch, 3, 3)``, differentiable.
        t: translation, shape ``(*batch, 3)``, differentiable.
        cost: at the pose, shape ``(*batch,)``; constant.
        status: a :class:`ddn_cvx.Status`, shape ``(*batch,)``: BAD_INPUT, SOLVED, INACCURATE where
            the gradient does not vanish, FAILED where no pose has all points in front of the
            camera, or no curvature, as for points on a line.
        hessian: of the cost in ``(omega, tau)``, shape ``(*batch, 6, 6)``; constant.
    """

    R: torch.Tensor
    t: torch.Tensor
    cost: torch.Tensor
    status: torch.Tensor
    hessian: torch.Tensor


@eager
def solve_pose(
    image: torch.Tensor,
    scene: torch.Tensor,
    weights: torch.Tensor | None = None,
    camera: torch.Tensor | None = None,
    *,
    cost: str = "squared",
    scale: torch.Tensor | float = 1.0,
    initial: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> PoseSolution:
    """The pose ``(R, t)`` of least ``sum_i w_i rho(residual_i)``.

    Starts are the solutions of triples of points and, for six points and more, the direct linear
    transform; the best few are refined by Levenberg-Marquardt, the best of these by Newton's
    method. The derivative is that of the implicit function theorem with the full Hessian of the
    cost, to second order.

    Args:
        image: points of the image, shape ``(*batch, n, 2)``, float32 or float64; computed in
            float64.
        scene: points of the scene, shape ``(*batch, n, 3)``, with ``n`` at least 3.
        weights: nonnegative, shape ``(*batch, n)``; a mask is a weight of zero. None for ones.
        camera: ``(fx, fy, cx, cy)``, shape ``(*batch, 4)``, or the camera's matrix, upper
            triangular with a last row of ``(0, 0, 1)``, shape ``(*batch, 3, 3)``; None where the
            image has normalised coordinates.
        cost: "squared", "huber", "cauchy", "geman_mcclure" of the distance in the image, or
            "cosine": one minus the cosine between bearings.
        scale: positive, of the robust costs, in the image's units; a number or ``(*batch,)``.
        initial: rotation ``(*batch, 3, 3)`` and translation ``(*batch, 3)``: one more start.

    Raises:
        TypeError: ``image`` or ``scene`` is not floating-point.
        ValueError: an unknown cost, a shape that does not fit, a scale that is a number and not
            positive.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.pose.perspective import solve_pose
        >>> corners = [[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 2], [2, 1, 0]]
        >>> scene = torch.tensor(corners)
        >>> placed = scene + torch.tensor([0.1, -0.2, 5.0])
        >>> solve_pose(placed[:, :2] / placed[:, 2:], scene).t
        tensor([ 0.1000, -0.2000,  5.0000])
    """
    objective, valid, batch = _checked(image, scene, weights, camera, cost, scale)
    starts = () if initial is None else _flat_start(initial, objective, batch)

    def find(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, X, w, A, sigma, *others = tensors
        return _found(Objective(x, X, w, A, sigma, cost), tuple(others))

    R, t, value, H, inverse, status = constant(find, *objective[:5], *starts, in_parts=False)
    status = torch.where(valid, status, float(Status.BAD_INPUT)).long()
    good = (status == int(Status.SOLVED)) | (status == int(Status.INACCURATE))
    pose = Pose(
        torch.where(good[:, None, None], R, torch.eye(3).to(R)),
        torch.where(good[:, None], t, torch.tensor([0.0, 0.0, 1.0]).to(t)),
    )
    step = torch.zeros_like(t).repeat(1, 2)
    inverse = torch.where(good[:, None, None], inverse, 0.0)
    for _ in range(_ORDERS):
        gradient = objective.gradient(moved(pose, step))
        gradient = torch.where(good.unsqueeze(-1), gradient, 0.0)
        change = gradient - gradient.detach()
        step = step - (inverse @ change.unsqueeze(-1)).squeeze(-1)
    R, t = moved(pose, step)
    R = torch.where(good[:, None, None], R, torch.nan)
    t = torch.where(good[:, None], t, torch.nan)
    kind = image.dtype
    return PoseSolution(
        R.reshape(*batch, 3, 3).to(kind),
        t.reshape(*batch, 3).to(kind),
        value.reshape(batch).to(kind),
        status.reshape(batch),
        H.reshape(*batch, 6, 6).to(kind),
    )


def _checked(
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

    points, places, w = flat(image, n, 2), flat(scene, n, 3), flat(w, n)
    A, sigma = flat(A, 2, 3), flat(sigma.unsqueeze(-1), 1)
    used = w.detach() != 0
    finite = points.detach().isfinite().all(-1) & places.detach().isfinite().all(-1)
    valid = (finite | ~used).all(-1) & (w.detach() >= 0).all(-1) & w.detach().isfinite().all(-1)
    valid = valid & ((w.detach() > 0).sum(-1) >= 3) & A.detach().isfinite().all(-1).all(-1)
    valid = valid & (torch.linalg.det(A.detach()[..., :2]) != 0)
    valid = valid & (sigma.detach() > 0).squeeze(-1) & sigma.detach().isfinite().squeeze(-1)
    # What does not count must not bring in NaN; a bad element gets harmless numbers.
    keep = (used & finite & valid.unsqueeze(-1)).unsqueeze(-1)
    points, places = torch.where(keep, points, 0.0), torch.where(keep, places, 0.0)
    w = torch.where(keep.squeeze(-1) & (w > 0), w, 0.0)
    plain = torch.eye(2, 3, dtype=double, device=device)
    A = torch.where(valid[:, None, None], A, plain)
    sigma = torch.where(valid.unsqueeze(-1), sigma, 1.0)
    return Objective(points, places, w, A, sigma, cost), valid, batch


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


def _flat_start(
    initial: tuple[torch.Tensor, torch.Tensor], objective: Objective, batch: torch.Size
) -> tuple[torch.Tensor, torch.Tensor]:
    R, t = (tensor.to(objective.scene) for tensor in initial)
    return R.expand(*batch, 3, 3).reshape(-1, 3, 3), t.expand(*batch, 3).reshape(-1, 3)


def _found(objective: Objective, initial: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Pose, cost, Hessian, its inverse and status; all but the status of no interest where bad."""
    starts = _starts(objective, initial)
    batch, count = starts.t.shape[:2]
    rows = torch.arange(batch, device=starts.t.device).repeat_interleave(count)
    many = objective.rows(rows)
    poses, cost = levenberg_marquardt(many, Pose(starts.R.flatten(0, 1), starts.t.flatten(0, 1)))
    best = cost.reshape(batch, count).argmin(1) + torch.arange(batch, device=rows.device) * count
    pose, H, length = newton(objective, Pose(poses.R[best], poses.t[best]))
    value = objective.value(pose)
    scale = H.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).sqrt()
    unit = H / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    identity = torch.eye(6, dtype=H.dtype, device=H.device)
    regular = torch.linalg.cholesky_ex(unit - _SINGULAR * identity).info == 0
    inverse = torch.linalg.inv_ex(torch.where(regular[:, None, None], unit, identity)).inverse
    inverse = inverse / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    status = torch.full_like(value, float(Status.SOLVED))
    status = torch.where(length <= _STATIONARY, status, float(Status.INACCURATE))
    status = torch.where(regular & value.isfinite(), status, float(Status.FAILED))
    return pose.R, pose.t, value, H, inverse, status


def _starts(objective: Objective, initial: tuple[Any, ...]) -> Pose:
    """The best few starts, ``(B, k, ...)``."""
    generator = torch.Generator().manual_seed(_SEED)
    n = objective.image.shape[1]
    count = min(_TRIPLES, n * (n - 1) * (n - 2) // 6)
    poses, good = poses_of_triples(objective, triples(objective.weights, count, generator))
    rotations, translations, usable = [poses.R], [poses.t], [good]
    if n >= _LINEAR:
        linear = linear_pose(objective)
        rotations.append(linear.R.unsqueeze(1))
        translations.append(linear.t.unsqueeze(1))
        usable.append(linear.t.isfinite().all(-1, keepdim=True))
    if initial:
        rotations.append(initial[0].unsqueeze(1))
        translations.append(initial[1].unsqueeze(1))
        usable.append(torch.ones_like(usable[0][:, :1]))
    every = Pose(torch.cat(rotations, 1), torch.cat(translations, 1))
    cost = torch.where(torch.cat(usable, 1), costs_of(objective, every), torch.inf)
    picked = []
    for _ in range(min(_REFINED, cost.shape[1])):
        best = cost.argmin(1, keepdim=True)
        picked.append(best)
        R = every.R.gather(1, best[..., None, None].expand(-1, -1, 3, 3))
        cosine = ((every.R * R).sum((-1, -2)) - 1) / 2
        # What is near comes after all that is apart.
        cost = torch.where(cosine > math.cos(_APART), cost + 1e6 * (1 + cost.abs()), cost)
        cost = cost.scatter(1, best, torch.inf)
    chosen = torch.cat(picked, 1)
    R = every.R.gather(1, chosen[..., None, None].expand(-1, -1, 3, 3))
    return Pose(R, every.t.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 3)))
