"""The perspective-n-point node: weighted, robust, batched, with its exact derivative."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ddn_cvx.dedicated.constants import constant, eager, in_full_precision, is_plain
from ddn_cvx.dedicated.pose.inputs import checked
from ddn_cvx.dedicated.pose.minimum import least_cost
from ddn_cvx.dedicated.pose.objective import Objective, Pose
from ddn_cvx.dedicated.pose.refine import moved
from ddn_cvx.dedicated.pose.rotations import cross_matrix
from ddn_cvx.status import Status

# Chord steps: each makes one more order of derivatives right.
_ORDERS = 2


class PoseSolution(NamedTuple):
    """What :func:`solve_pose` finds, per element; without a pose, all but the status is NaN.

    Attributes:
        R: rotation, shape ``(*batch, 3, 3)``, differentiable.
        t: translation, shape ``(*batch, 3)``, differentiable.
        cost: at the pose, shape ``(*batch,)``; constant.
        status: a :class:`ddn_cvx.Status`, shape ``(*batch,)``: BAD_INPUT, SOLVED, INACCURATE where
            the gradient does not vanish, FAILED where none was found with all points in front of
            the camera, or without curvature, as for points on a line.
        hessian: of the cost in ``(omega, tau)``, for the pose ``exp([omega]) R``, ``t + tau``,
            shape ``(*batch, 6, 6)``; constant. It is that before the last Newton step, which is no
            longer than 5e-6, an angle or relative, where SOLVED.
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

    def _known(self, good: torch.Tensor) -> PoseSolution:
        """NaN in the place of all that is not good but the status."""
        if is_plain() and bool(good.all()):
            return self
        fields = (
            torch.where(good.view(-1, *[1] * (field.ndim - 1)), field, torch.nan)
            if field.is_floating_point()
            else field
            for field in self
        )
        return PoseSolution(*fields)

    def converted(self, kind: torch.dtype) -> PoseSolution:
        """In a floating-point type."""
        fields = (field.to(kind) if field.is_floating_point() else field for field in self)
        return PoseSolution(*fields)

    def shaped(self, batch: torch.Size, kind: torch.dtype) -> PoseSolution:
        """With a batch's shape in the place of the first dimension, in a floating-point type."""
        fields = (field.reshape((*batch, *field.shape[1:])) for field in self.converted(kind))
        return PoseSolution(*fields)


@eager
@in_full_precision
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

    Starts are the minima of an algebraic error over a grid of rotations and, for robust costs and
    few points, the solutions of triples of points; they are refined by a damped Newton method. The
    derivative is that of the implicit function theorem with the full Hessian of the cost, to second
    order.

    Args:
        image: points of the image, shape ``(*batch, n, 2)``, float32 or float64; computed in
            float64.
        scene: points of the scene, shape ``(*batch, n, 3)``, with ``n`` at least 3.
        weights: nonnegative, shape ``(*batch, n)``; None for ones. A weight of
            zero is a mask: its point may be anything, and is left out; gradients for the weight and
            the point are zero.
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
    objective, valid, batch = checked(image, scene, weights, camera, cost, scale)
    start = None if initial is None else _flat_start(initial, batch, objective)
    return solved(objective, valid, start).shaped(batch, image.dtype)


def solved(
    objective: Objective, valid: torch.Tensor, start: Pose | None = None, search: bool = True
) -> PoseSolution:
    """The solution of a checked objective, ``(B, ...)``.

    Args:
        objective: what :func:`ddn_cvx.dedicated.pose.inputs.checked` returns.
        valid: which elements are good, shape ``(B,)``.
        start: a pose to start from, ``(B, ...)``.
        search: look for other starts, too.
    """
    cost, centre = objective.cost, centre_of(objective)
    starts: tuple[torch.Tensor, ...] = ()
    if start is not None:
        starts = (start.R, start.t + (start.R @ centre.unsqueeze(-1)).squeeze(-1))

    def find(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, X, w, A, sigma, *others = tensors
        return least_cost(Objective(x, X, w, A, sigma, cost), tuple(others), search)

    objective = objective._replace(scene=objective.scene - centre.unsqueeze(-1))
    R, t, value, H, inverse, status = constant(find, *objective[:5], *starts, in_parts=False)
    status = torch.where(valid, status, float(Status.BAD_INPUT)).long()
    good = (status == int(Status.SOLVED)) | (status == int(Status.INACCURATE))
    if not is_plain() or not bool(good.all()):
        R = torch.where(good[:, None, None], R, torch.eye(3, dtype=R.dtype, device=R.device))
        t = torch.where(good[:, None], t, t.new_tensor([0.0, 0.0, 1.0]))
        # Without a pose, points on the axis: their derivatives are numbers, and not used.
        scene_ahead = torch.where(good[:, None, None], objective.scene, 0.0)
        objective = objective._replace(scene=scene_ahead)
        inverse = torch.where(good[:, None, None], inverse, 0.0)
    pose, step = Pose(R, t), torch.zeros_like(t).repeat(1, 2)
    # A chord step also takes what is left of the gradient where that is Newton's last step.
    newton = (status == int(Status.SOLVED)).unsqueeze(-1)
    constants = is_plain() and not any(tensor.requires_grad for tensor in objective[:5])
    for number in range(0 if constants else _ORDERS):
        gradient = objective.gradient(pose if number == 0 else moved(pose, step))
        gradient = gradient - torch.where(newton, 0.0, gradient.detach())
        step = step - torch.bmm(inverse, gradient.unsqueeze(-1)).squeeze(-1)
    if not constants:
        R, t = moved(pose, step)
    turned = torch.bmm(R, centre.unsqueeze(-1)).squeeze(-1)
    t = t - turned
    H, covariance = _about_the_origin(H, inverse, turned.detach())
    if cost != "cosine":
        covariance = 2 * covariance
    return PoseSolution(R, t, value, status, H, covariance)._known(good)


def centre_of(objective: Objective) -> torch.Tensor:
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
    H, inverse = H.clone(), inverse.clone()
    H[..., :3] -= torch.bmm(H[..., 3:], arm)
    H[:, :3] += torch.bmm(arm, H[:, 3:])
    inverse[:, 3:] += torch.bmm(arm, inverse[:, :3])
    inverse[..., 3:] -= torch.bmm(inverse[..., :3], arm)
    return H, inverse


def _flat_start(
    initial: tuple[torch.Tensor, torch.Tensor], batch: torch.Size, objective: Objective
) -> Pose:
    R, t = (tensor.to(objective.scene) for tensor in initial)
    return Pose(R.expand(*batch, 3, 3).reshape(-1, 3, 3), t.expand(*batch, 3).reshape(-1, 3))
