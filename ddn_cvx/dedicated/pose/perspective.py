"""The perspective-n-point node: weighted, robust, batched, with its exact derivative."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from ddn_cvx.dedicated.constants import constant, eager, is_plain
from ddn_cvx.dedicated.pose.collapsed import Starts, collapsed_starts
from ddn_cvx.dedicated.pose.expansion import Expander
from ddn_cvx.dedicated.pose.hypotheses import poses_of_triples, triples
from ddn_cvx.dedicated.pose.objective import COSTS, ROBUST, Objective, Pose
from ddn_cvx.dedicated.pose.refine import Refined, moved, refined
from ddn_cvx.dedicated.pose.rotations import cross_matrix
from ddn_cvx.status import Status

# Triples of points whose poses are starts, and how many starts are refined.
_TRIPLES = 16
_REFINED = 3
# With fewer points than this triples are starts for every cost.
_FEW = 6
_SEED = 0
# Points that are refined together: what they take stays in the processor's cache.
_TOGETHER = 60000
# Chord steps: each makes one more order of derivatives right.
_ORDERS = 2
# A pose is stationary when the last Newton step to it, an angle or relative, is below this: the
# next would be its square.
_STATIONARY = 5e-6
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
        hessian: of the cost in ``(omega, tau)``, for the pose ``exp([omega]) R``, ``t + tau``,
            shape ``(*batch, 6, 6)``; constant.
        covariance: of ``(omega, tau)`` to first order, shape ``(*batch, 6, 6)``; constant. Of
            errors of the image, or of bearings, with the variance ``1 / w_i`` in each coordinate;
            times the noise's variance where weights are not those of the noise.
    """

    R: torch.Tensor
    t: torch.Tensor
    cost: torch.Tensor
    status: torch.Tensor
    hessian: torch.Tensor
    covariance: torch.Tensor


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
    centre = _centre(objective)
    starts = () if initial is None else _flat_start(initial, batch, centre)

    def find(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, X, w, A, sigma, *others = tensors
        return _found(Objective(x, X, w, A, sigma, cost), tuple(others))

    objective = objective._replace(scene=objective.scene - centre.unsqueeze(-1))
    R, t, value, H, inverse, status = constant(find, *objective[:5], *starts, in_parts=False)
    status = torch.where(valid, status, float(Status.BAD_INPUT)).long()
    good = (status == int(Status.SOLVED)) | (status == int(Status.INACCURATE))
    R = torch.where(good[:, None, None], R, torch.eye(3).to(R))
    t = torch.where(good[:, None], t, torch.tensor([0.0, 0.0, 1.0]).to(t))
    # Without a pose, points on the axis: their derivatives are numbers, and not used.
    scene_ahead = torch.where(good[:, None, None], objective.scene, 0.0)
    objective = objective._replace(scene=scene_ahead)
    inverse = torch.where(good[:, None, None], inverse, 0.0)
    pose, step = Pose(R, t), torch.zeros_like(t).repeat(1, 2)
    # A chord step also takes what is left of the gradient where that is Newton's last step.
    solved = (status == int(Status.SOLVED)).unsqueeze(-1)
    constants = is_plain() and not any(tensor.requires_grad for tensor in objective[:5])
    for _ in range(0 if constants else _ORDERS):
        gradient = objective.gradient(moved(pose, step))
        gradient = gradient - torch.where(solved, 0.0, gradient.detach())
        step = step - (inverse @ gradient.unsqueeze(-1)).squeeze(-1)
    if not constants:
        R, t = moved(pose, step)
    t = t - (R @ centre.unsqueeze(-1)).squeeze(-1)
    R = torch.where(good[:, None, None], R, torch.nan)
    t = torch.where(good[:, None], t, torch.nan)
    H, covariance = _about_the_origin(H, inverse, (R @ centre.unsqueeze(-1)).squeeze(-1).detach())
    kind = image.dtype
    return PoseSolution(
        R.reshape(*batch, 3, 3).to(kind),
        t.reshape(*batch, 3).to(kind),
        value.reshape(batch).to(kind),
        status.reshape(batch),
        H.reshape(*batch, 6, 6).to(kind),
        ((1 if cost == "cosine" else 2) * covariance).reshape(*batch, 6, 6).to(kind),
    )


def _centre(objective: Objective) -> torch.Tensor:
    """The scene's weighted mean, about which it turns, ``(B, 3)``; constant."""
    w = objective.weights.detach()
    total = w.sum(-1, keepdim=True)
    w = w / torch.where(total > 0, total, 1.0)
    return (objective.scene.detach() @ w.unsqueeze(-1)).squeeze(-1)


def _about_the_origin(
    H: torch.Tensor, inverse: torch.Tensor, turned: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hessian and inverse for turns about the scene's origin, from those about its centre."""
    arm = cross_matrix(turned)
    change = torch.nn.functional.pad(-arm, (0, 3, 3, 0)) + torch.eye(6).to(H)
    back = torch.nn.functional.pad(arm, (0, 3, 3, 0)) + torch.eye(6).to(H)
    return change.mT @ H @ change, back @ inverse @ back.mT


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

    points, places = flat(image.mT, 2, n), flat(scene.mT, 3, n)
    w, A, sigma = flat(w, n), flat(A, 2, 3), flat(sigma.unsqueeze(-1), 1)
    valid, keep = _counted(points.detach(), places.detach(), w.detach())
    square = A.detach()[..., :2]
    proper = square[..., 0, 0] * square[..., 1, 1] != square[..., 0, 1] * square[..., 1, 0]
    valid = valid & A.detach().isfinite().all(-1).all(-1) & proper
    valid = valid & ((sigma.detach() > 0) & (sigma.detach() < torch.inf)).squeeze(-1)
    if keep is None and bool(valid.all()):
        return _shifted(points, places, w, A, sigma, cost), valid, batch
    # What does not count must not bring in NaN nor be behind: it is put where the first is that
    # counts. A bad element gets harmless numbers.
    used = torch.ones_like(w, dtype=torch.bool) if keep is None else keep
    keep = (used & valid.unsqueeze(-1)).unsqueeze(-2)
    first = used.to(torch.uint8).argmax(-1)[:, None, None]
    known = valid[:, None, None]

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        stand_in = tensor.gather(-1, first.expand(-1, tensor.shape[-2], 1))
        return torch.where(keep, tensor, torch.where(known, stand_in, 0.0))

    points, places = kept(points), kept(places)
    w = torch.where(keep.squeeze(-2), w, 0.0)
    A = torch.where(known, A, torch.eye(2, 3, dtype=double, device=device))
    sigma = torch.where(valid.unsqueeze(-1), sigma, 1.0)
    return _shifted(points, places, w, A, sigma, cost), valid, batch


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
        points = torch.linalg.inv_ex(A[..., :2]).inverse @ points
        A = torch.eye(2, 3, dtype=A.dtype, device=A.device).expand_as(A)
    lens = torch.nn.functional.pad(A[..., :2], (0, 1, 0, 1)) + torch.diag(A.new_tensor([0.0, 0, 1]))
    return Objective(points, places, w, lens, sigma, cost)


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
    initial: tuple[torch.Tensor, torch.Tensor], batch: torch.Size, centre: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    R, t = (tensor.to(centre) for tensor in initial)
    R, t = R.expand(*batch, 3, 3).reshape(-1, 3, 3), t.expand(*batch, 3).reshape(-1, 3)
    return R, t + (R @ centre.unsqueeze(-1)).squeeze(-1)


def _found(objective: Objective, initial: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Pose, cost, Hessian, its inverse and status; all but the status of no interest where bad."""
    if objective.cost in ROBUST or objective.image.shape[2] < _FEW or initial:
        best = _best(objective, _starts_of_triples(objective, initial))
    else:
        best = _best(objective, collapsed_starts(objective))
        lost = best.value.isinf().nonzero().squeeze(1)
        if len(lost) > 0:
            part = objective.rows(lost)
            again = _best(part, _starts_of_triples(part, ()))
            for kept, new in zip(best, again, strict=True):
                kept[lost] = new
    value, H = best.value, best.hessian
    scale = H.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).sqrt()
    unit = H / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    identity = torch.eye(6, dtype=H.dtype, device=H.device)
    regular = torch.linalg.cholesky_ex(unit - _SINGULAR * identity).info == 0
    inverse = torch.linalg.inv_ex(torch.where(regular[:, None, None], unit, identity)).inverse
    inverse = inverse / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    status = torch.full_like(value, float(Status.SOLVED))
    status = torch.where(best.length <= _STATIONARY, status, float(Status.INACCURATE))
    status = torch.where(regular & value.isfinite(), status, float(Status.FAILED))
    return best.R, best.t, value, H, inverse, status


def _best(objective: Objective, starts: Starts) -> Refined:
    """The pose of least cost that the starts lead to."""
    batch, _, n = objective.image.shape
    # The first start of every element, and of the others those that are worth a look.
    starts.usable[:, 0] = True
    which, rows = starts.usable.T.nonzero(as_tuple=True)
    pose = Pose(starts.pose.R[rows, which], starts.pose.t[rows, which])
    count = math.ceil(len(rows) * n / _TOGETHER) if rows.device.type == "cpu" else 1
    size = math.ceil(len(rows) / max(1, count))
    whole, parts = Expander(objective), []
    for begin in range(0, len(rows), max(1, size)):
        part = slice(begin, begin + size)
        expander = whole.part(part if begin + size <= batch else rows[part])
        parts.append(refined(expander, Pose(pose.R[part], pose.t[part])))
    found = parts[0]
    if len(parts) > 1:
        found = Refined(*(torch.cat(field) for field in zip(*parts, strict=True)))
    if len(rows) == batch:
        return found
    value = found.value.new_full(starts.usable.shape, torch.inf)
    value[rows, which] = found.value
    place = which.new_zeros(starts.usable.shape)
    place[rows, which] = torch.arange(len(rows), device=rows.device)
    best = value.argmin(1, keepdim=True)
    return found.picked(place.gather(1, best).squeeze(1))


def _starts_of_triples(objective: Objective, initial: tuple[Any, ...]) -> Starts:
    """The best few of the solutions of triples, of those from moments, and of what is given."""
    generator = torch.Generator().manual_seed(_SEED)
    batch, _, n = objective.image.shape
    count = min(_TRIPLES, n * (n - 1) * (n - 2) // 6)
    poses, good = poses_of_triples(objective, triples(objective.weights, count, generator))
    moment = collapsed_starts(objective)
    rotations, translations = [poses.R, moment.pose.R], [poses.t, moment.pose.t]
    usable = [good, moment.usable]
    if initial:
        rotations.append(initial[0].unsqueeze(1))
        translations.append(initial[1].unsqueeze(1))
        usable.append(torch.ones_like(good[:, :1]))
    every = Pose(torch.cat(rotations, 1), torch.cat(translations, 1))
    cost = torch.where(torch.cat(usable, 1), objective.rows(None).value(every), torch.inf)
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
    each = torch.arange(batch, device=chosen.device).unsqueeze(1)
    return Starts(
        Pose(every.R[each, chosen], every.t[each, chosen]),
        torch.ones_like(chosen, dtype=torch.bool),
    )
