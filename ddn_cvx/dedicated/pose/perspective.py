"""The perspective-n-point node: weighted, robust, batched, with its exact derivative."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.batch.elements import where
from ddn_cvx.dedicated.common import (
    attached,
    isolated,
    matvec,
    nondifferentiable,
    outside_transforms,
    restored,
)
from ddn_cvx.dedicated.pose.damped_newton import moved
from ddn_cvx.dedicated.pose.inputs import checked
from ddn_cvx.dedicated.pose.multistart import least_cost
from ddn_cvx.dedicated.pose.objective import Objective, Pose
from ddn_cvx.dedicated.pose.rotations import cross_matrix
from ddn_cvx.status import Status


class PoseSolution(NamedTuple):
    """The result of :func:`solve_pose`; elements without a pose are NaN in all but the status.

    Attributes:
        R: rotation, shape ``(*batch, 3, 3)``, differentiable.
        t: translation, shape ``(*batch, 3)``, differentiable.
        cost: the cost at the pose, shape ``(*batch,)``; constant.
        status: a :class:`ddn_cvx.Status`, shape ``(*batch,)``: BAD_INPUT; SOLVED; INACCURATE where
            the gradient does not vanish; FAILED where no pose has all points in front of the
            camera, or where the Hessian is singular, as for points on a line.
        hessian: the Hessian of the cost in ``(omega, tau)``, for the pose ``exp([omega]) R``,
            ``t + tau``, shape ``(*batch, 6, 6)``; constant. It is evaluated before the last Newton
            step, which where SOLVED is no longer than 5e-6 (radians, or relative).
        covariance: first-order covariance of ``(omega, tau)``, shape ``(*batch, 6, 6)``; constant.
            It assumes errors of variance ``1 / w_i`` in each coordinate of the image or bearing;
            for other noise, multiply it by the ratio of the variances.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.pose import PoseSolution, solve_pose
        >>> scene = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 2]])
        >>> placed = scene + torch.tensor([0.0, 0.0, 5.0])
        >>> pose = solve_pose(placed[:, :2] / placed[:, 2:], scene)
        >>> isinstance(pose, PoseSolution), int(pose.status), pose.covariance.shape
        (True, 0, torch.Size([6, 6]))
    """

    R: Tensor
    t: Tensor
    cost: Tensor
    status: Tensor
    hessian: Tensor
    covariance: Tensor

    def to(self, dtype: torch.dtype) -> PoseSolution:
        """The solution in a floating-point dtype; the status stays an integer."""
        fields = [field.to(dtype) if field.is_floating_point() else field for field in self]
        return PoseSolution(*fields)


@isolated
def solve_pose(
    image: Tensor,
    scene: Tensor,
    weights: Tensor | None = None,
    camera: Tensor | None = None,
    *,
    cost: str = "squared",
    scale: Tensor | float = 1.0,
    initial: tuple[Tensor, Tensor] | None = None,
) -> PoseSolution:
    """The perspective-n-point pose: ``(R, t) = argmin sum_i w_i rho(|residual_i|^2)``.

    Starts are the minima of an algebraic error over a grid of rotations and, for robust costs and
    few points, the poses of triples of points; a damped Newton method refines them, and the pose of
    least cost is returned. The derivative is that of the implicit function theorem with the full
    Hessian of the cost, to second order.

    Args:
        image: image points, shape ``(*batch, n, 2)``, float32 or float64; computed in float64.
        scene: scene points, shape ``(*batch, n, 3)``, with ``n`` at least 3.
        weights: nonnegative, shape ``(*batch, n)``; None for ones. A weight of zero is a mask: its
            point may be anything; gradients for the weight and the point are zero.
        camera: ``(fx, fy, cx, cy)``, shape ``(*batch, 4)``, or the camera matrix, upper triangular
            with a last row of ``(0, 0, 1)``, shape ``(*batch, 3, 3)``; None for image points in
            normalised coordinates.
        cost: "squared", "huber", "cauchy", "geman_mcclure" of the distance in the image, or
            "cosine": one minus the cosine between bearings.
        scale: positive scale of the robust costs, in the image's units; a number or ``(*batch,)``.
        initial: a further start, rotation ``(*batch, 3, 3)`` and translation ``(*batch, 3)``.

    Returns:
        Rotation, translation, cost, status, Hessian and covariance of each element.

    Raises:
        TypeError: ``image`` or ``scene`` is not floating-point.
        ValueError: an unknown cost, a shape that does not fit, a scale that is a number and not
            positive.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.pose import solve_pose
        >>> corners = [[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 2], [2, 1, 0]]
        >>> scene = torch.tensor(corners)
        >>> placed = scene + torch.tensor([0.1, -0.2, 5.0])
        >>> solve_pose(placed[:, :2] / placed[:, 2:], scene).t
        tensor([ 0.1000, -0.2000,  5.0000])
    """
    objective, valid, batch = checked(image, scene, weights, camera, cost, scale)
    start = None
    if initial is not None:
        R, t = (tensor.to(objective.scene) for tensor in initial)
        start = Pose(R.expand(*batch, 3, 3).reshape(-1, 3, 3), t.expand(*batch, 3).reshape(-1, 3))
    return solved(objective, valid, batch, image.dtype, start)


def solved(
    objective: Objective,
    valid: Tensor,
    batch: torch.Size,
    dtype: torch.dtype,
    start: Pose | None = None,
    search: bool = True,
) -> PoseSolution:
    """The solution ``(*batch, ...)`` of a checked objective ``(B, ...)``, in ``dtype``.

    Args:
        objective: as :func:`ddn_cvx.dedicated.pose.inputs.checked` returns it.
        valid: valid elements, shape ``(B,)``.
        start: a further start, ``(B, ...)``.
        search: whether to use other starts than ``start``.
    """
    cost, (objective, centre) = objective.cost, about_centre(objective)
    starts = () if start is None else (start.R, start.t + matvec(start.R, centre))

    def solve(*tensors: Tensor) -> tuple[Tensor, ...]:
        x, X, w, A, sigma, *others = tensors
        return least_cost(Objective(x, X, w, A, sigma, cost), tuple(others), search)

    R, t, value, H, inverse, status = nondifferentiable(
        solve, *objective[:5], *starts, chunked=False
    )
    status = torch.where(valid, status, float(Status.BAD_INPUT)).long()
    good = (status == int(Status.SOLVED)) | (status == int(Status.INACCURATE))
    all_good = outside_transforms() and bool(good.all())
    if not all_good:
        # Elements without a pose get scene points on the optical axis: their derivatives, which are
        # not used, are finite.
        identity, ahead = torch.eye(3).to(R), t.new_tensor([0.0, 0.0, 1.0])
        R, t, scene, inverse = where(
            good,
            (R, t, objective.scene, inverse),
            (identity, ahead, objective.scene.new_zeros(()), inverse.new_zeros(())),
        )
        objective = objective._replace(scene=scene)
    pose, still = Pose(R, t), torch.zeros_like(t).repeat(1, 2)
    # Where SOLVED, the first chord step is also a last Newton step on the remaining gradient.
    step = attached(
        still,
        lambda step: objective.gradient(pose if step is still else moved(pose, step)),
        inverse,
        *objective[:5],
        inexact=(status == int(Status.SOLVED)).unsqueeze(-1),
    )
    if step is not still:
        R, t = moved(pose, step)
    turned = torch.bmm(R, centre.unsqueeze(-1)).squeeze(-1)
    H, covariance = _about_the_origin(H, inverse, turned.detach())
    if cost != "cosine":
        covariance = 2 * covariance
    R, t, value, H, covariance = (
        restored(field, batch, dtype, None if all_good else good)
        for field in (R, t - turned, value, H, covariance)
    )
    return PoseSolution(R, t, value, status.reshape(batch), H, covariance)


def about_centre(objective: Objective) -> tuple[Objective, Tensor]:
    """The objective with the origin at the weighted mean of the scene, and that mean ``(B, 3)``."""
    w = objective.weights.detach()
    total = w.sum(-1, keepdim=True)
    w = w / torch.where(total > 0, total, 1.0)
    centre = objective.scene.detach() @ w.unsqueeze(-1)
    return objective._replace(scene=objective.scene - centre), centre.squeeze(-1)


def _about_the_origin(H: Tensor, inverse: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
    """Hessian and inverse for rotations about the scene's origin, from those about its centre.

    Args:
        turned: ``R`` times the centre, shape ``(B, 3)``.
    """
    arm = cross_matrix(turned)
    identity = torch.eye(6, dtype=H.dtype, device=H.device)
    shift = torch.nn.functional.pad(arm, (0, 3, 3, 0))  # [0, 0; arm, 0]
    back, forth = identity - shift, identity + shift
    return back.mT @ H @ back, forth @ inverse @ forth.mT
