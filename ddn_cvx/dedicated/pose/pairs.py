"""Costs over all pairs of image and scene points, collapsed to one term for each scene point.

    sum_ij W_ij rho(r_ij)

has n m terms. Those of the cost "cosine", ``W_ij (1 - b_i' y_j / |y_j|)``, are linear in the
bearings ``b_i``: with ``q_j = sum_i W_ij b_i`` their sum is, up to a constant, the cost of m points
seen in the directions ``q_j`` with weights ``|q_j|``. Squared residuals likewise collapse to those
of weighted means. The gradient with respect to ``W`` has rank 3. Campbell, Liu and Gould, "Solving
the blind perspective-n-point problem end-to-end with robust differentiable geometric optimization"
(2020), equation 10.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ddn_cvx.dedicated.common import nondifferentiable, restored

COLLAPSED = ("cosine", "squared")

_by_differences = functools.partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")


def collapse_pairs(
    plan: Tensor, image: Tensor, cost: str = "cosine"
) -> tuple[Tensor, Tensor, Tensor]:
    """Matched points and weights of the same total cost, up to a constant.

    Args:
        plan: weights of the pairs, nonnegative, shape ``(*batch, n, m)``.
        image: points of the image, shape ``(*batch, n, 2)``; in normalised coordinates for
            "cosine".
        cost: "cosine" or "squared".

    Returns:
        Points ``(*batch, m, 2)`` and weights ``(*batch, m)``, matched to the points of the scene,
        and the constant, shape ``(*batch,)``. Points of weight zero are zero.

    Raises:
        ValueError: another cost, or shapes that do not fit.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.pose import collapse_pairs
        >>> image = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> collapse_pairs(torch.tensor([[0.5, 0.0], [0.5, 1.0]]), image, "squared")[:2]
        (tensor([[0.5000, 0.0000],
                [1.0000, 0.0000]]), tensor([1., 1.]))
    """
    if cost not in COLLAPSED:
        raise ValueError(f"Only {' and '.join(COLLAPSED)} collapse; got {cost!r}.")
    if image.ndim < 2 or image.shape[-1] != 2 or plan.shape[-2:-1] != image.shape[-2:-1]:
        raise ValueError(
            "plan and image must have shapes (*batch, n, m) and (*batch, n, 2); got "
            f"{tuple(plan.shape)} and {tuple(image.shape)}."
        )
    total = plan.sum(-2)
    if cost == "squared":
        used = (total.detach() > 0).unsqueeze(-1)
        mean = plan.mT @ image / torch.where(used, total.unsqueeze(-1), 1.0)
        points = torch.where(used, mean, 0.0)
        around = (plan * image.square().sum(-1).unsqueeze(-1)).sum((-2, -1))
        return points, total, around - (total * points.square().sum(-1)).sum(-1)
    size = (1 + image.square().sum(-1, keepdim=True)).sqrt()
    q = plan.mT @ torch.cat([image / size, 1 / size], -1)
    square = q.square().sum(-1)
    used = square.detach() > 0
    # At weight zero neither the root nor the quotient has a derivative.
    weights = torch.where(used, torch.where(used, square, 1.0).sqrt(), 0.0)
    z = torch.where(used, q[..., 2], 1.0).unsqueeze(-1)
    points = torch.where(used.unsqueeze(-1), q[..., :2] / z, 0.0)
    return points, weights, (total - weights).sum(-1)


def distances(features: Tensor, others: Tensor) -> Tensor:
    """``|x_i - y_j|``, with derivatives to second order, which at distance zero are zero.

    Values are computed from differences, without cancellation between close features; derivatives
    are those of ``|x|^2 + |y|^2 - 2 x' y``, which needs no tensor of all differences.

    Args:
        features: shape ``(*batch, n, d)``, float64.
        others: shape ``(*batch, m, d)``.

    Returns:
        Shape ``(*batch, n, m)``. Elements with a feature that is not finite are NaN, with gradient
        zero.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.pose.pairs import distances
        >>> distances(torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        tensor([[0., 5.]])
    """
    batch = features.shape[:-2]
    x, y = (tensor.reshape(batch.numel(), *tensor.shape[-2:]) for tensor in (features, others))
    good = x.detach().isfinite().all(-1).all(-1) & y.detach().isfinite().all(-1).all(-1)
    x, y = (torch.where(good[:, None, None], points, 0.0) for points in (x, y))
    centre = x.detach().mean(-2, keepdim=True)
    x, y = x - centre, y - centre
    length = nondifferentiable(_by_differences, x, y, chunked=False)
    square = x.square().sum(-1).unsqueeze(-1) + y.square().sum(-1).unsqueeze(-2) - 2 * (x @ y.mT)
    apart = length > 0
    # At zero the root has no derivative.
    square = torch.where(apart, length.square() + (square - square.detach()), 1.0)
    return restored(torch.where(apart, square.sqrt(), 0.0), batch, features.dtype, good)
