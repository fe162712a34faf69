"""The penalties of robust pooling, and their derivatives.

``phi(z; alpha)`` of a residual ``z``, with ``alpha > 0`` between inliers and outliers (Gould,
Hartley and Campbell, "Deep declarative networks", 2021, section 5.1, figure 2):

    quadratic            z^2 / 2
    pseudo_huber         alpha^2 (sqrt(1 + (z / alpha)^2) - 1)
    huber                z^2 / 2 for |z| <= alpha, else alpha (|z| - alpha / 2)
    welsch               1 - exp(-z^2 / (2 alpha^2))
    truncated_quadratic  min(z^2, alpha^2) / 2
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Penalty(NamedTuple):
    """``phi`` and its derivatives, each a function of ``z`` and ``alpha`` that broadcast.

    Attributes:
        value: ``phi``.
        slope: ``d phi / dz``.
        curvature: ``d^2 phi / dz^2``; at a kink, from inside.
        mixed: ``d^2 phi / dz dalpha``.
    """

    value: Function
    slope: Function
    curvature: Function
    mixed: Function


def _quadratic_value(z: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return z * z / 2 + 0 * alpha


def _quadratic_slope(z: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return z + 0 * alpha


def _quadratic_curvature(z: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(z) + 0 * alpha


def _zero(z: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return 0 * z * alpha


def _stretch(z: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """``sqrt(1 + (z / alpha)^2)``."""
    t = z / alpha
    return (1 + t * t).sqrt()


def _pseudo_huber_value(z: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    # alpha^2 (s - 1) without cancellation
    return z * z / (1 + _stretch(z, alpha))


def _pseudo_huber_slope(z: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return z / _stretch(z, alpha)


def _pseudo_huber_curvature(z: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    t = z / alpha
    r = (1 + t * t).rsqrt()
    return r * r * r


def _pseudo_huber_mixed(z: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    t = z / alpha
    s = (1 + t * t).sqrt()
    return t * t * t / (s * s * s)


def _huber_value(z: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    size = z.abs()
    return torch.where(size <= alpha, z * z / 2, alpha * (size - alpha / 2))


def _huber_slope(z: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return torch.minimum(torch.maximum(z, -alpha), alpha)


def _inside(z: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return (z.abs() <= alpha).to(z.dtype)


def _huber_mixed(z: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return torch.where(z.abs() > alpha, z.sign(), torch.zeros_like(z))


def _welsch_value(z: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    t = z / alpha
    return -torch.expm1(-t * t / 2)


def _welsch_slope(z: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    t = z / alpha
    return t * (-t * t / 2).exp() / alpha


def _welsch_curvature(z: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    t = z / alpha
    return (1 - t * t) * (-t * t / 2).exp() / (alpha * alpha)


def _welsch_mixed(z: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    t = z / alpha
    return t * (t * t - 2) * (-t * t / 2).exp() / (alpha * alpha)


def _truncated_value(z: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return torch.minimum(z * z, alpha * alpha) / 2


def _truncated_slope(z: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return torch.where(z.abs() <= alpha, z, torch.zeros_like(z))


PENALTIES: dict[str, Penalty] = {
    "quadratic": Penalty(_quadratic_value, _quadratic_slope, _quadratic_curvature, _zero),
    "pseudo_huber": Penalty(
        _pseudo_huber_value, _pseudo_huber_slope, _pseudo_huber_curvature, _pseudo_huber_mixed
    ),
    "huber": Penalty(_huber_value, _huber_slope, _inside, _huber_mixed),
    "welsch": Penalty(_welsch_value, _welsch_slope, _welsch_curvature, _welsch_mixed),
    "truncated_quadratic": Penalty(_truncated_value, _truncated_slope, _inside, _zero),
}


def penalty_named(name: str) -> Penalty:
    """The penalty.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if name not in PENALTIES:
        raise ValueError(f"Unknown penalty {name!r}; known are {', '.join(PENALTIES)}.")
    return PENALTIES[name]
