"""Costs over all pairs of points of the image and of the scene, collapsed to one term for each.

    sum_ij W_ij rho(r_ij)

has n m terms. Of the cost "cosine" they are linear in the bearings, ``W_ij (1 - b_i' y_j /
|y_j|)``, so that with ``q_j = sum_i W_ij b_i`` they are those of m points that are seen in the
directions ``q_j`` with weights ``|q_j|``, and a constant; squared residuals likewise are those of
weighted means. The gradient with respect to ``W`` has rank 3. Campbell, Liu and Gould, "Solving the
blind perspective-n-point problem end-to-end with robust differentiable geometric optimization"
(2020), equation 10.
"""

from __future__ import annotations

import torch

from ddn_cvx.dedicated.constants import constant

COLLAPSED = ("cosine", "squared")


def collapse_pairs(
    plan: torch.Tensor, image: torch.Tensor, cost: str = "cosine"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Matched points and weights with the same sum of costs, up to a constant.

    Args:
        plan: weights of the pairs, nonnegative, shape ``(*batch, n, m)``.
        image: points of the image, shape ``(*batch, n, 2)``; in normalised coordinates for
            "cosine".
        cost: "cosine" or "squared".

    Returns:
        Points ``(*batch, m, 2)`` and weights ``(*batch, m)`` to go with the points of the scene,
        and the constant, shape ``(*batch,)``. A point is zero where the scene's has no weight.

    Raises:
        ValueError: another cost, or shapes that do not fit.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.pose.pairs import collapse_pairs
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
    # Neither the root nor the quotient has a derivative where there is no weight.
    weights = torch.where(used, torch.where(used, square, 1.0).sqrt(), 0.0)
    z = torch.where(used, q[..., 2], 1.0).unsqueeze(-1)
    points = torch.where(used.unsqueeze(-1), q[..., :2] / z, 0.0)
    return points, weights, (total - weights).sum(-1)


def distances(features: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """``|x_i - y_j|``, of which the derivatives at zero are zero, to second order.

    Their values are those of differences, exact however near features are; the derivatives are
    those of ``|x|^2 + |y|^2 - 2 x y``, which keeps no tensor of all differences.

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
    good = good[:, None, None]
    x, y = torch.where(good, x, 0.0), torch.where(good, y, 0.0)
    centre = x.detach().mean(-2, keepdim=True)
    x, y = x - centre, y - centre
    found = constant(_by_differences, x, y, in_parts=False)
    square = x.square().sum(-1).unsqueeze(-1) + y.square().sum(-1).unsqueeze(-2) - 2 * (x @ y.mT)
    apart = found > 0
    # Of zero neither the root nor its derivatives are formed.
    square = torch.where(apart, found.square() + (square - square.detach()), 1.0)
    found = torch.where(good, torch.where(apart, square.sqrt(), 0.0), torch.nan)
    return found.reshape(*batch, *found.shape[-2:])


def _by_differences(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
