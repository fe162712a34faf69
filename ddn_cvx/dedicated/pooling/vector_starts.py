"""Starts of the descent for nonconvex penalties, at ``alpha = 1`` and for centred points.

The weighted mean, the coordinatewise weighted median, both followed by graduated nonconvexity
(Yang, Antonante, Tzoumas and Carlone, "Graduated non-convexity for robust spatial perception",
2020), and places of low objective that lie apart from each other. No choice depends on the
points' order, except between exact ties.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.batch.elements import chunks
from ddn_cvx.dedicated.pooling.penalties import Penalty
from ddn_cvx.dedicated.pooling.vector_descent import Descent, descend
from ddn_cvx.linalg.products import matvec

# Graduated nonconvexity: stages from a nearly convex problem to the given one, steps at each.
_STAGES = 24
_STEPS_PER_STAGE = 2

# Control value of the truncated quadratic's surrogate at which it stands for the penalty itself.
_LAST_CONTROL = 1e3

# Distance in alpha within which starts mostly lead to the same minimum.
_DISTINCT_DISTANCE = 0.7

# Numbers of points in the neighbourhoods whose means are starts, in Fibonacci's growth.
_NEIGHBOURHOOD_SIZES = (2, 3, 5, 8, 13, 21)

# Exchanges: minima improved, points nearest to the boundary that are tried for each, rounds.
_IMPROVED_MINIMA = 20
_TRIED_POINTS = 32
_EXCHANGE_ROUNDS = 20

# Points that one round of exchanges holds at once, per batch element.
EXCHANGES = _IMPROVED_MINIMA * _TRIED_POINTS

# Numbers in one chunk of pairwise distances: 32 MiB of float64 bound the memory.
_MEMORY_NUMBERS = 2**22

# Relative decrease of the objective below which an exchange is rounding.
_LEAST_DECREASE = 1e-12


def weighted_median(y: Tensor, w: Tensor) -> Tensor:
    """Coordinatewise lower weighted median of points ``(B, n, m)``; shape ``(B, m)``."""
    ordered, order = y.sort(1)
    mass = w.unsqueeze(-1).expand_as(y).gather(1, order).cumsum(1)
    place = (mass >= mass[:, -1:] / 2).to(torch.int8).argmax(1, keepdim=True)
    return ordered.gather(1, place).squeeze(1)


def graduated(y: Tensor, w: Tensor, penalty: Penalty, u: Tensor) -> Tensor:
    """Follow the minimiser from ``u`` ``(B, m)`` while the penalty goes from convex to itself."""
    far = ((u.unsqueeze(1) - y).square().sum(-1) * (w > 0)).amax(1, keepdim=True).clamp(min=1)
    for stage in range(_STAGES + 1):
        share = stage / _STAGES
        for _ in range(_STEPS_PER_STAGE):
            s = (u.unsqueeze(1) - y).square().sum(-1)
            if penalty.kinked:
                # The surrogate of the truncated quadratic (Yang et al. 2020, equation 14).
                control = (1 / (2 * far - 1)) ** (1 - share) * _LAST_CONTROL**share
                psi = (control * (control + 1)).sqrt() * s.clamp(min=1e-300).rsqrt() - control
                psi = psi.clamp(0, 1)
            else:
                psi = penalty.weight(s, far ** ((1 - share) / 2))
            pull = w * psi
            total = pull.sum(1, keepdim=True)
            mean = matvec(y.mT, pull) / torch.where(total > 0, total, 1.0)
            u = torch.where(total > 0, mean, u)
    return u


def low_points(y: Tensor, w: Tensor, penalty: Penalty, count: int) -> Tensor:
    """Places of low objective, apart from each other, shape ``(B, count, m)``.

    Data points, and the means of their neighbourhoods: in many dimensions a point of a cluster may
    have no other one within ``alpha``, where the cluster's mean has all.
    """
    places, weights = y, w
    if y.shape[1] > 1:
        around = _neighbourhoods(y, w)
        places = torch.cat([y, around.flatten(1, 2)], 1)
        weights = torch.cat([w, w.repeat_interleave(around.shape[2], 1)], 1)
    values = []
    for part in chunks(places.shape[1], y.shape[0] * y.shape[1], _MEMORY_NUMBERS):
        s = torch.cdist(places[:, part], y, compute_mode="donot_use_mm_for_euclid_dist").square()
        values.append((w.unsqueeze(1) * penalty.of_square(s)).sum(-1))
    score = torch.cat(values, 1)
    later = 2 * score.amax(1, keepdim=True) + 1
    score = torch.where(weights > 0, score, torch.inf)
    chosen = []
    for _ in range(min(count, places.shape[1])):
        place = score.argmin(1)[:, None, None].expand(-1, 1, y.shape[-1])
        point = places.gather(1, place)
        chosen.append(point)
        near = (places - point).square().sum(-1) <= _DISTINCT_DISTANCE**2
        score = torch.where(near & (score < later), score + later, score)
        score = score.scatter(1, place[..., 0], torch.inf)
    return torch.cat(chosen, 1)


def _neighbourhoods(y: Tensor, w: Tensor) -> Tensor:
    """Weighted means of each point's nearest neighbours, shape ``(B, n, sizes, m)``."""
    n = y.shape[1]
    sizes = [size for size in _NEIGHBOURHOOD_SIZES if size <= n] or [n]
    means = []
    for part in chunks(n, y.shape[0] * max(n, sizes[-1] * y.shape[2]), _MEMORY_NUMBERS):
        some = y[:, part]
        s = torch.cdist(some, y, compute_mode="donot_use_mm_for_euclid_dist")
        # Points of weight zero are in no neighbourhood.
        s = torch.where(w.unsqueeze(1) > 0, s, torch.inf)
        nearest = s.topk(sizes[-1], dim=-1, largest=False).indices.flatten(1)
        mass = w.gather(1, nearest).unsqueeze(-1)
        points = y.gather(1, nearest.unsqueeze(-1).expand(-1, -1, y.shape[-1]))
        shape = (some.shape[1], sizes[-1])
        total = (mass * points).unflatten(1, shape).cumsum(2)
        weight = mass.unflatten(1, shape).cumsum(2)
        means.append((total / torch.where(weight > 0, weight, 1.0))[:, :, [k - 1 for k in sizes]])
    return torch.cat(means, 1)


def exchange(y: Tensor, w: Tensor, penalty: Penalty, ends: Descent) -> Descent:
    """Improve the lowest ends of the truncated quadratic by taking one point in or out.

    A local minimum is the mean of its inliers; the mean with one point more, or one less, may lie
    in the region of attraction of a lower one. Repeated until no single exchange helps.
    """
    count = min(_IMPROVED_MINIMA, ends.objective.shape[1])
    value, which = ends.objective.topk(count, largest=False)
    u = ends.u.gather(1, which.unsqueeze(-1).expand(-1, -1, y.shape[-1]))
    converged = ends.converged.gather(1, which)
    row = torch.arange(len(y), device=y.device)
    for _ in range(_EXCHANGE_ROUNDS):
        points, mass, at = y[row], w[row], u[row]
        s = (at.unsqueeze(2) - points.unsqueeze(1)).square().sum(-1)
        inside = s <= 1
        distance = torch.where(mass.unsqueeze(1) > 0, (s.sqrt() - 1).abs(), torch.inf)
        place = distance.topk(min(_TRIED_POINTS, y.shape[1]), dim=-1, largest=False).indices
        gained = (torch.where(inside, -1.0, 1.0) * mass.unsqueeze(1)).gather(2, place)
        moved = points.gather(1, place.flatten(1).unsqueeze(-1).expand(-1, -1, y.shape[-1]))
        moved = moved.unflatten(1, place.shape[1:])
        total = (mass.unsqueeze(1) * inside).sum(-1, keepdim=True) + gained
        # The new mean relative to the present one, without summing again.
        shift = (gained / torch.where(total > 0, total, torch.inf)).unsqueeze(-1)
        trial = at.unsqueeze(2) + shift * (moved - at.unsqueeze(2))
        # Compared after one reweighted step: most exchanges pay only together with others.
        found = descend(points, mass, penalty, trial.flatten(1, 2), steps=1).objective
        best = found.view_as(place).argmin(-1)[..., None, None].expand(-1, -1, 1, y.shape[-1])
        start = trial.gather(2, best)
        then = descend(points, mass, penalty, start.squeeze(2))
        lower = then.objective < value[row] * (1 - _LEAST_DECREASE)
        if not lower.any():
            break
        u[row] = torch.where(lower.unsqueeze(-1), then.u, at)
        value[row] = torch.where(lower, then.objective, value[row])
        converged[row] = torch.where(lower, then.converged, converged[row])
        row = row[lower.any(1)]
    improved = Descent(u, value, converged)
    return Descent(*(torch.cat(pair, 1) for pair in zip(improved, ends, strict=True)))
