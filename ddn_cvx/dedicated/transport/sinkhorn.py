"""Entropy-regularised optimal transport, to the last digits, with the gradient of the plan.

    P = argmin  sum_ij C_ij P_ij + 1/gamma sum_ij P_ij (log P_ij - 1)
        subject to  P 1 = a,  P' 1 = b.

Cuturi, "Sinkhorn distances" (2013), solves it by scaling rows and columns in turn, which takes more
and more rounds as ``gamma`` grows. With the rows' multipliers eliminated,

    P_ij = a_i softmax_j(g_j - gamma C_ij),

what is left is convex in the columns' multipliers ``g``, and its Hessian is the Schur complement
``S = diag(P' 1) - P' diag(1/a) P`` (Cuturi and Peyre, "A smoothed dual approach for variational
Wasserstein problems", 2016; Brauer, Clason, Lorenz and Wirth, "A Sinkhorn-Newton method for
entropic optimal transport", 2017). A few rounds of scaling start Newton's method at each of a
sequence of growing ``gamma``. One Cholesky factor of ``S`` at the solution gives all derivatives.
"""

from __future__ import annotations

import torch

from ddn_cvx.dedicated.constants import constant, eager, is_plain

# Rounds of scaling before Newton's method, and how many to a look at the error.
_ROUNDS = 50
_ROUND = 5
_STEPS = 300
_HALVINGS = 30
# From one gamma to the next, once the marginals are so near.
_GROWTH = 4.0
_NEAR = 1e-2
_TOLERANCE = 1e-14
# Total masses that differ by more than this, relatively, cannot be transported.
_MASS = 1e-5
# Chord steps: each makes one more order of derivatives right.
_ORDERS = 2


@eager
def sinkhorn(
    C: torch.Tensor,
    a: torch.Tensor | None = None,
    b: torch.Tensor | None = None,
    gamma: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """The regularised transport plan ``P``, differentiable in all arguments, to any order.

    A forbidden pair has infinite cost: its entry is zero, as are those of zero marginals, and so
    are their gradients.

    Args:
        C: costs, shape ``(*batch, n, m)``, float32 or float64; computed in float64.
        a, b: marginals, nonnegative, of equal sum, broadcasting with ``(*batch, n)`` and ``(*batch,
            m)``; None for uniform ones of sum one. ``b`` is scaled to the sum of ``a``.
        gamma: positive, a number or broadcasting with ``(*batch,)``: the larger, the sharper.

    Returns:
        Shape ``(*batch, n, m)``, dtype of ``C``. Columns have their sums to ``1e-14 + 1e-15 s`` of
        the mass, times the root of ``n``, with ``s`` the range of ``gamma C``: at 1e9 and more
        that is a loss, which no status tells. An element is NaN, with gradient zero, where an
        input is NaN, a marginal negative or infinite, the sums differ by more than 1e-5 of them,
        ``gamma`` is not positive, or the pairs that are not forbidden cannot carry the marginals.

    Raises:
        TypeError: ``C`` is not floating-point.
        ValueError: a shape does not fit; ``gamma`` is a number that is not positive.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.transport.sinkhorn import sinkhorn
        >>> sinkhorn(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), gamma=3.0)
        tensor([[0.4763, 0.0237],
                [0.0237, 0.4763]])
    """
    costs, rows, columns, sharpness, valid, batch = _checked(C, a, b, gamma)
    possible = costs.detach() < torch.inf  # infinity times the gradient's zero is no number
    scaled = torch.where(possible, sharpness * torch.where(possible, costs, 0.0), torch.inf)
    scores, present = _scores(scaled, rows, columns)
    g, inverse, found = constant(_solve, scores, present, rows, columns, in_parts=False)
    valid = valid & found
    g = torch.where(valid.unsqueeze(-1), g, 0.0)
    weights = torch.where(present, rows, 0.0)
    differentiated = (scores, weights, columns)
    constants = is_plain() and not any(tensor.requires_grad for tensor in differentiated)
    for _ in range(0 if constants else _ORDERS):
        excess = _plan(g, scores, weights).sum(-2) - columns
        excess = excess - excess.detach()
        g = g - _times(inverse, excess)
    P = _plan(g, scores, weights)
    P = torch.where(valid[:, None, None], P, torch.nan)
    return P.reshape(*batch, *C.shape[-2:]).to(C.dtype)


def _checked(
    C: torch.Tensor,
    a: torch.Tensor | None,
    b: torch.Tensor | None,
    gamma: torch.Tensor | float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Size]:
    """Costs, marginals and ``gamma`` ``(B, 1, 1)`` in float64, good elements, the batch shape.

    Bad elements get numbers that are good, without gradient.
    """
    if not C.is_floating_point():
        raise TypeError(f"C must be floating-point; got {C.dtype}.")
    if C.ndim < 2 or 0 in C.shape[-2:]:
        raise ValueError(f"C must have shape (*batch, n, m); got {tuple(C.shape)}.")
    if not isinstance(gamma, torch.Tensor) and not gamma > 0:
        raise ValueError(f"gamma must be positive; got {gamma!r}.")
    n, m = C.shape[-2:]
    double, device = torch.float64, C.device
    marginals = []
    for name, given, size in (("a", a, n), ("b", b, m)):
        if given is None:
            value = torch.full((size,), 1 / size, dtype=double, device=device)
        else:
            value = given.to(double)
        if value.ndim == 0 or value.shape[-1] != size:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; it must end in {size}.")
        marginals.append(value)
    sharpness = torch.as_tensor(gamma, dtype=double, device=device)
    try:
        batch = torch.broadcast_shapes(
            C.shape[:-2], *(value.shape[:-1] for value in marginals), sharpness.shape
        )
    except RuntimeError:
        shapes = [tuple(value.shape) for value in (C, *marginals, sharpness)]
        raise ValueError(f"C, a, b and gamma of shapes {shapes} do not broadcast.") from None
    costs = C.to(torch.float64).expand(*batch, n, m).reshape(-1, n, m)
    rows = marginals[0].expand(*batch, n).reshape(-1, n)
    columns = marginals[1].expand(*batch, m).reshape(-1, m)
    sharpness = sharpness.expand(batch).reshape(-1, 1, 1)
    valid = ~(costs.detach().isnan() | (costs.detach() == -torch.inf)).any(-1).any(-1)
    totals = []
    for value in (rows.detach(), columns.detach()):
        valid = valid & ((value >= 0) & value.isfinite()).all(-1)
        totals.append(value.sum(-1))
    valid = valid & ((totals[0] - totals[1]).abs() <= _MASS * totals[0]) & (totals[0] > 0)
    valid = valid & (sharpness.detach() > 0).flatten() & sharpness.detach().isfinite().flatten()
    columns = columns * torch.where(valid, totals[0] / totals[1], 1.0).unsqueeze(-1)
    keep = valid.unsqueeze(-1)
    rows = torch.where(keep, rows, 1.0 / n)
    columns = torch.where(keep, columns, 1.0 / m)
    costs = torch.where(keep.unsqueeze(-1), costs, 0.0)
    return costs, rows, columns, torch.where(keep.unsqueeze(-1), sharpness, 1.0), valid, batch


def _times(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = (matrix @ vector.unsqueeze(-1)).squeeze(-1)
    return product


def _scores(
    costs: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``-C_ij``, minus infinity where the plan is zero, and rows ``(B, n)`` that have an entry.

    The others are zero throughout, for numbers to come out. ``costs`` are times ``gamma``.
    """
    allowed = (costs.detach() < torch.inf) & (columns.detach() > 0).unsqueeze(-2)
    allowed = allowed & (rows.detach() > 0).unsqueeze(-1)
    present = allowed.any(-1)
    # Forbidden costs are replaced before anything is computed of them: no gradient of infinity.
    scores = torch.where(allowed, -torch.where(allowed, costs, 0.0), -torch.inf)
    return torch.where(present.unsqueeze(-1), scores, 0.0), present


def _plan(g: torch.Tensor, scores: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """``a_i softmax_j(g_j - C_ij)``, for rows' weights ``a``."""
    return weights.unsqueeze(-1) * torch.softmax(g.unsqueeze(-2) + scores, -1)


def _solve(
    scores: torch.Tensor, present: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``g`` ``(B, m)``, the inverse of the Schur complement ``(B, m, m)``, and where it was found.

    Args:
        scores: what :func:`_scores` makes, as is ``present``.
        rows: marginals ``(B, n)``.
        columns: marginals ``(B, m)``.
    """
    weights = torch.where(present, rows, 0.0)
    finite = torch.where(scores > -torch.inf, scores, 0.0)
    size = (finite.amax((-1, -2)) - finite.amin((-1, -2))).clamp_min(1.0)
    total = rows.sum(-1)
    # Exponents lose digits as gamma grows.
    tolerance = (_TOLERANCE + 1e-15 * size) * total * rows.shape[-1] ** 0.5
    g, error = _scaled(scores, weights, columns, tolerance)
    near = error <= _NEAR * total
    g = torch.where(near.unsqueeze(-1), g, 0.0)
    scale = torch.where(near, 1.0, 1 / size)
    done = error <= tolerance
    live = (~done).nonzero().squeeze(1)
    for _ in range(_STEPS):
        if len(live) == 0:
            break
        C, a, b, at = scale[live, None, None] * scores[live], weights[live], columns[live], g[live]
        P = _plan(at, C, a)
        excess = P.sum(-2) - b
        error = excess.abs().amax(-1)
        final = scale[live] == 1
        done[live] = final & (error <= tolerance[live])
        ahead = ~final & (error <= _NEAR * total[live])
        further = torch.where(ahead, (_GROWTH * scale[live]).clamp_max(1.0), scale[live])
        step = -_times(_inverse(P, a, b), excess)
        moved = at + _length(C, a, b, at, step, excess) * step
        # A round of scaling does what Newton's step cannot: it fills what is empty.
        reached = _plan(moved, C, a).sum(-2)
        scaled = moved + torch.where((b > 0) & (reached > 0), (b / reached).log(), 0.0)
        better = (_plan(scaled, C, a).sum(-2) - b).abs().sum(-1) < (reached - b).abs().sum(-1)
        moved = torch.where(better.unsqueeze(-1), scaled, moved)
        moved = torch.where(ahead.unsqueeze(-1), at, moved) * (further / scale[live]).unsqueeze(-1)
        scale[live] = further
        g[live] = torch.where(done[live].unsqueeze(-1), at, moved)
        live = live[~done[live]]
    return g, _inverse(_plan(g, scores, weights), weights, columns), done


def _scaled(
    scores: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, tolerance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``g`` after some rounds of scaling rows and columns, and the error of the columns' sums.

    In products, not in logarithms: where these leave the range of numbers, the error is infinite.
    """
    K = (scores - scores.amax(-1, keepdim=True)).exp()
    v = torch.ones_like(columns)
    for number in range(_ROUNDS):
        # Empty rows and columns scale to nothing.
        u = rows / _times(K, v).clamp_min(1e-300)
        sums = _times(K.mT, u)
        error = (v * sums - columns).abs().amax(-1)
        if number % _ROUND == 0 and bool((error <= tolerance).all()):
            break
        v = columns / sums.clamp_min(1e-300)
    usable = u.isfinite().all(-1) & v.isfinite().all(-1) & ((v > 0) | (columns == 0)).all(-1)
    g = torch.where(columns > 0, v, 1.0).log()
    return torch.where(usable.unsqueeze(-1), g, 0.0), torch.where(usable, error, torch.inf)


def _inverse(P: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Of the Schur complement on sums of zero, ``(B, m, m)``; zero for empty columns."""
    m = P.shape[-1]
    weight = torch.where(rows > 0, 1 / torch.where(rows > 0, rows, 1.0), 0.0)
    present = columns > 0
    sums = P.sum(-2)
    S = torch.diag_embed(torch.where(present, sums, 1.0)) - P.mT @ (weight.unsqueeze(-1) * P)
    # Scaled to a unit diagonal; constant g is in the null space.
    root = torch.where(present, sums, 1.0).clamp_min(1e-300).sqrt()
    S = S / (root.unsqueeze(-1) * root.unsqueeze(-2))
    null = torch.where(present, root, 0.0)
    null = null / null.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    identity = torch.eye(m, dtype=P.dtype, device=P.device)
    S = S + null.unsqueeze(-1) * null.unsqueeze(-2)
    factor = torch.linalg.cholesky_ex(S + 1e-13 * identity).L
    inverse = torch.cholesky_inverse(torch.where(factor.isfinite(), factor, identity))
    inverse = inverse / (root.unsqueeze(-1) * root.unsqueeze(-2))
    both = present.unsqueeze(-1) & present.unsqueeze(-2)
    return torch.where(both, inverse, 0.0)


def _length(
    C: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    g: torch.Tensor,
    step: torch.Tensor,
    excess: torch.Tensor,
) -> torch.Tensor:
    """Halved until the dual falls or its gradient does; ``(B, 1)``."""
    slope = (excess * step).sum(-1)
    norm = excess.abs().sum(-1)
    # No entry of the plan grows by more than a factor of e^4 in one step.
    length = (4 / step.abs().amax(-1).clamp_min(1e-300)).clamp_max(1.0)
    here = _dual(g, C, a, b)
    for _ in range(_HALVINGS):
        trial = g + length.unsqueeze(-1) * step
        fallen = _dual(trial, C, a, b) <= here + 1e-4 * length * slope
        nearer = (_plan(trial, C, a).sum(-2) - b).abs().sum(-1) < norm
        short = ~(fallen | nearer)
        if not bool(short.any()):
            break
        length = torch.where(short, 0.5 * length, length)
    return length.unsqueeze(-1)


def _dual(g: torch.Tensor, C: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``sum_i a_i logsumexp_j(g_j + C_ij) - b' g``, convex, shape ``(B,)``."""
    height = torch.logsumexp(g.unsqueeze(-2) + C, -1)
    return (a * height).sum(-1) - (b * g).sum(-1)
