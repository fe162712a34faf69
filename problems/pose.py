"""Camera pose from points."""

from functools import partial

import torch

from ddn_cvx.declaration import Declaration
from ddn_cvx.dedicated.pose.perspective import solve_pose
from ddn_cvx.dedicated.pose.rotations import exponential
from ddn_cvx.problems._entry import entry
from ddn_cvx.problems._sampling import Tensors, normal, uniform


@entry(n=6)
def perspective_n_point(n: int = 12) -> Declaration:
    """Pose of a calibrated camera: rotation ``R`` and translation ``t`` of least image error.

    ``minimize sum_i weight_i |project(R X_i + t) - x_i|^2`` subject to ``R' R = I``, where
    ``project`` divides by the depth. The parameters are ``x`` ``(n, 2)``, points of the image in
    normalised coordinates, ``X`` ``(n, 3)``, points of the scene, and ``weight`` ``(n,)``,
    nonnegative; the answers are ``R`` ``(3, 3)`` and ``t`` ``(3,)``. The dedicated solver starts
    from the poses of triples of points; others find a local solution near the start: no rotation,
    and the translation that is best for it.

    Args:
        n: number of points, at least 6.

    Example:
        >>> from ddn_cvx.problems import perspective_n_point
        >>> [variable.shape for variable in perspective_n_point(n=8).variables]
        [(3, 3), (3,)]
    """
    import cvxpy as cp
    import numpy as np

    x, X = cp.Parameter((n, 2), name="x"), cp.Parameter((n, 3), name="X")
    weight = cp.Parameter(n, nonneg=True, name="weight")
    R, t = cp.Variable((3, 3), name="R"), cp.Variable(3, name="t")
    seen = X @ R.T + np.ones((n, 1)) @ cp.reshape(t, (1, 3), order="C")  # (n, 3)
    errors = [seen[:, axis] / seen[:, 2] - x[:, axis] for axis in (0, 1)]
    squares = cp.square(errors[0]) + cp.square(errors[1])
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum(cp.multiply(weight, squares))), [np.eye(3) == R.T @ R]),
        parameters=(x, X, weight),
        variables=(R, t),
        summary="pose of a calibrated camera from n points of a known scene",
        citation="Hartley and Zisserman (2004), Multiple View Geometry, section 7.3; as a "
        "declarative node: Campbell, Liu and Gould (2020), Solving the blind perspective-n-point "
        "problem end-to-end with robust differentiable geometric optimization",
        example=partial(_example, n),
        dedicated=_posed,
        start=_start,
    )


def _posed(x: torch.Tensor, X: torch.Tensor, weight: torch.Tensor) -> Tensors:
    R, t, *_ = solve_pose(x, X, weight)
    return R, t


def _start(x: torch.Tensor, X: torch.Tensor, weight: torch.Tensor) -> Tensors:
    """``R = I``, and ``t`` from ``t_a - x_a t_3 = x_a X_3 - X_a``, linear least squares."""
    batch = len(weight)
    one, zero = torch.ones_like(weight), torch.zeros_like(weight)
    rows = [
        torch.stack([one, zero, -x[..., 0]], -1),
        torch.stack([zero, one, -x[..., 1]], -1),
    ]
    right = [x[..., axis] * X[..., 2] - X[..., axis] for axis in (0, 1)]
    A, b = torch.cat(rows, 1), torch.cat(right, 1)  # (B, 2n, 3), (B, 2n)
    root = torch.cat([weight, weight], 1).clamp_min(0.0).sqrt().unsqueeze(2)
    t = torch.linalg.lstsq(root * A, root * b.unsqueeze(2)).solution.squeeze(2)
    # In front of every point, whatever the fit says.
    nearest = 0.1 - X[..., 2].amin(1)
    t = torch.cat([t[:, :2], torch.maximum(t[:, 2], nearest).unsqueeze(1)], 1)
    return torch.eye(3).to(x).expand(batch, 3, 3), t


def _example(n: int, batch: int, generator: torch.Generator) -> Tensors:
    """A rotation of up to half a radian, depths of 4 to 6, and noise of a few pixels in 1000."""
    X = uniform(generator, batch, n, 3, low=-1.0, high=1.0)
    axis = normal(generator, batch, 3)
    angle = uniform(generator, batch, 1, low=0.1, high=0.5)
    vector = angle * axis / axis.norm(dim=1, keepdim=True)
    R = exponential(vector)
    sideways = uniform(generator, batch, 2, low=-0.5, high=0.5)
    t = torch.cat([sideways, uniform(generator, batch, 1, low=4.0, high=6.0)], 1)
    seen = X @ R.mT + t.unsqueeze(1)
    x = seen[..., :2] / seen[..., 2:] + 0.003 * normal(generator, batch, n, 2)
    return x, X, uniform(generator, batch, n)
