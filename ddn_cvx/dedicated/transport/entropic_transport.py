"""Entropy-regularised optimal transport to machine precision, by a Sinkhorn-Newton method.

    P = argmin  sum_ij C_ij P_ij + 1/gamma sum_ij P_ij (log P_ij - 1)
        subject to  P 1 = a,  P' 1 = b.

Cuturi, "Sinkhorn distances" (2013), scales rows and columns in turn, and needs more rounds the
larger ``gamma`` is. With the rows' multipliers eliminated,

    P_ij = a_i softmax_j(g_j - gamma C_ij),

the dual is convex in the columns' multipliers ``g``, and its Hessian is the Schur complement
``S = diag(P' 1) - P' diag(1/a) P`` (Cuturi and Peyre, "A smoothed dual approach for variational
Wasserstein problems", 2016; Brauer, Clason, Lorenz and Wirth, "A Sinkhorn-Newton method for
entropic optimal transport", 2017). Rounds of scaling give Newton's method its start; where they do
not converge, it follows the solution along growing ``gamma``. The inverse of ``S`` at the solution
gives all derivatives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.batch.elements import where
from ddn_cvx.dedicated.common import (
    attached,
    check_floating,
    check_positive,
    flattened,
    isolated,
    matvec,
    nondifferentiable,
    restored,
)

# Rounds of scaling before Newton's method, and rounds between two looks at the error, each of which
# makes the host wait for the device.
_SCALING_ROUNDS = 50
_ROUNDS_BETWEEN_LOOKS = 5
# Limits on Newton steps, beyond which an element is NaN, and on halvings of the step length.
_MAX_STEPS = 300
_MAX_HALVINGS = 30
# Continuation in gamma: it grows by this factor once the error of the marginals, relative to the
# mass, is below this, so that Newton's method starts near the next solution.
_GAMMA_GROWTH = 4.0
_CONTINUATION_ERROR = 1e-2
# Largest error of the columns' sums, relative to the mass.
_MARGINAL_TOLERANCE = 1e-14
# Relative difference of the total masses beyond which marginals are refused: rounding of float32
# marginals is below it.
_MASS_TOLERANCE = 1e-5
# No entry of the plan grows by more than exp(4) in one Newton step.
_MAX_LOGARITHMIC_STEP = 4.0


@isolated
def sinkhorn(
    C: Tensor, a: Tensor | None = None, b: Tensor | None = None, gamma: Tensor | float = 1.0
) -> Tensor:
    """The regularised transport plan ``P``, differentiable in all arguments, to any order.

    An infinite cost forbids a pair. The entries of forbidden pairs and of zero marginals are zero,
    and so are their gradients.

    Args:
        C: costs, shape ``(*batch, n, m)``, float32 or float64; computed in float64.
        a, b: marginals, nonnegative, of equal sum, broadcasting with ``(*batch, n)`` and ``(*batch,
            m)``; None for uniform ones of sum one. ``b`` is scaled to the sum of ``a``.
        gamma: positive, a number or broadcasting with ``(*batch,)``: the larger, the sharper.

    Returns:
        Shape ``(*batch, n, m)``, dtype of ``C``. The error of the columns' sums is at most
        ``sqrt(n) (1e-14 + 1e-15 s)`` of the mass, with ``s`` the range of ``gamma C``; no status
        reports that digits are lost where ``s`` is 1e9 and more. An element is NaN, with gradient
        zero, where an input is NaN, a marginal negative or infinite, the sums differ by more than
        1e-5 of them, ``gamma`` is not positive, or the allowed pairs cannot carry the marginals.

    Raises:
        TypeError: ``C`` is not floating-point.
        ValueError: a shape does not fit; ``gamma`` is a number that is not positive.

    Example:
        >>> import torch
        >>> from ddn_cvx.dedicated.transport import sinkhorn
        >>> sinkhorn(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), gamma=3.0)
        tensor([[0.4763, 0.0237],
                [0.0237, 0.4763]])
    """
    costs, rows, columns, sharpness, valid, batch = _checked(C, a, b, gamma)
    scores, present = _scores(costs, sharpness, rows, columns)
    g, inverse, solved = nondifferentiable(_solve, scores, present, rows, columns, chunked=False)
    valid = valid & solved
    g = torch.where(valid.unsqueeze(-1), g, 0.0)
    weights = torch.where(present, rows, 0.0)

    def excess(g: Tensor) -> Tensor:
        return _plan(g, scores, weights).sum(-2) - columns

    g = attached(g, excess, inverse, scores, weights, columns)
    return restored(_plan(g, scores, weights), batch, C.dtype, valid)


def _checked(
    C: Tensor, a: Tensor | None, b: Tensor | None, gamma: Tensor | float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, torch.Size]:
    """Costs, marginals and ``gamma`` ``(B, 1, 1)`` in float64, valid elements, the batch shape.

    Bad elements get harmless numbers, without gradient.
    """
    check_floating("C", C)
    if C.ndim < 2 or 0 in C.shape[-2:]:
        raise ValueError(f"C must have shape (*batch, n, m); got {tuple(C.shape)}.")
    check_positive("gamma", gamma)
    n, m = C.shape[-2:]
    marginals = []
    for name, given, size in (("a", a, n), ("b", b, m)):
        value = C.new_full((size,), 1 / size, dtype=torch.float64) if given is None else given
        if value.ndim == 0 or value.shape[-1] != size:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; it must end in {size}.")
        marginals.append((name, value, 1))
    (costs, rows, columns, sharpness), batch = flattened(
        ("C", C, 2), *marginals, ("gamma", gamma, 0)
    )
    sharpness = sharpness[:, None, None]
    # Comparisons are false for NaN.
    valid = (costs.detach() > -torch.inf).all(-1).all(-1)
    for value in (rows, columns):
        valid = valid & ((value.detach() >= 0) & (value.detach() < torch.inf)).all(-1)
    mass, other = rows.detach().sum(-1), columns.detach().sum(-1)
    valid = valid & (mass > 0) & ((mass - other).abs() <= _MASS_TOLERANCE * mass)
    valid = valid & ((sharpness.detach() > 0) & (sharpness.detach() < torch.inf)).flatten()
    columns = columns * torch.where(valid, mass / other, 1.0).unsqueeze(-1)
    number = costs.new_tensor
    harmless = (number(0.0), number(1 / n), number(1 / m), number(1.0))
    costs, rows, columns, sharpness = where(valid, (costs, rows, columns, sharpness), harmless)
    return costs, rows, columns, sharpness, valid, batch


def _scores(
    costs: Tensor, sharpness: Tensor, rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    """``-gamma C``, minus infinity where the plan is zero, and rows with an entry, ``(B, n)``.

    Rows without an entry are filled with zeros, so that ``logsumexp`` stays finite.
    """
    finite = sharpness.detach() * costs.detach() < torch.inf
    allowed = finite & (columns.detach() > 0).unsqueeze(-2) & (rows.detach() > 0).unsqueeze(-1)
    present = allowed.any(-1)
    # Infinite costs are replaced before they enter any operation: their gradients would be NaN.
    scores = torch.where(allowed, -sharpness * torch.where(allowed, costs, 0.0), -torch.inf)
    return torch.where(present.unsqueeze(-1), scores, 0.0), present


def _plan(g: Tensor, scores: Tensor, weights: Tensor) -> Tensor:
    """``a_i softmax_j(g_j + scores_ij)``, for rows' weights ``a``."""
    return weights.unsqueeze(-1) * torch.softmax(g.unsqueeze(-2) + scores, -1)


def _solve(
    scores: Tensor, present: Tensor, rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``g`` ``(B, m)``, the inverse Schur complement ``(B, m, m)``, and converged elements."""
    weights = torch.where(present, rows, 0.0)
    finite = torch.where(scores > -torch.inf, scores, 0.0)
    size = (finite.amax((-1, -2)) - finite.amin((-1, -2))).clamp_min(1.0)
    total = rows.sum(-1)
    # The rounding of the exponents grows with gamma.
    tolerance = (_MARGINAL_TOLERANCE + 1e-15 * size) * total * rows.shape[-1] ** 0.5
    g, error = _scaled(scores, weights, columns, tolerance)
    near = error <= _CONTINUATION_ERROR * total
    g = torch.where(near.unsqueeze(-1), g, 0.0)
    scale = torch.where(near, 1.0, 1 / size)
    done = error <= tolerance
    live = (~done).nonzero().squeeze(1)
    for _ in range(_MAX_STEPS):
        if len(live) == 0:
            break
        C, a, b, at = scale[live, None, None] * scores[live], weights[live], columns[live], g[live]
        P = _plan(at, C, a)
        excess = P.sum(-2) - b
        error = excess.abs().amax(-1)
        final = scale[live] == 1
        done[live] = final & (error <= tolerance[live])
        ahead = ~final & (error <= _CONTINUATION_ERROR * total[live])
        further = torch.where(ahead, (_GAMMA_GROWTH * scale[live]).clamp_max(1.0), scale[live])
        step = -matvec(_inverse(P, a, b), excess)
        moved = at + _length(C, a, b, at, step, excess) * step
        # Newton's step cannot fill columns whose entries underflow; a round of scaling does.
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
    scores: Tensor, rows: Tensor, columns: Tensor, tolerance: Tensor
) -> tuple[Tensor, Tensor]:
    """``g`` after rounds of scaling rows and columns, and the error of the columns' sums.

    In products, not in logarithms: where they overflow or underflow, the error is infinite.
    """
    K = (scores - scores.amax(-1, keepdim=True)).exp()
    v = torch.ones_like(columns)
    for number in range(_SCALING_ROUNDS):
        # The scalings of empty rows and columns are zero.
        u = rows / matvec(K, v).clamp_min(1e-300)
        sums = matvec(K.mT, u)
        error = (v * sums - columns).abs().amax(-1)
        if number % _ROUNDS_BETWEEN_LOOKS == 0 and bool((error <= tolerance).all()):
            break
        v = columns / sums.clamp_min(1e-300)
    usable = u.isfinite().all(-1) & v.isfinite().all(-1) & ((v > 0) | (columns == 0)).all(-1)
    g = torch.where(columns > 0, v, 1.0).log()
    return torch.where(usable.unsqueeze(-1), g, 0.0), torch.where(usable, error, torch.inf)


def _inverse(P: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The inverse of the Schur complement on vectors of sum zero; zero for empty columns."""
    m = P.shape[-1]
    weight = torch.where(rows > 0, 1 / torch.where(rows > 0, rows, 1.0), 0.0)
    present = columns > 0
    sums = P.sum(-2)
    S = torch.diag_embed(torch.where(present, sums, 1.0)) - P.mT @ (weight.unsqueeze(-1) * P)
    # Scaled to a unit diagonal; its null space, constant g, is lifted to the eigenvalue one.
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


def _length(C: Tensor, a: Tensor, b: Tensor, g: Tensor, step: Tensor, excess: Tensor) -> Tensor:
    """Step lengths ``(B, 1)``, halved until the dual or its gradient decreases."""
    slope = (excess * step).sum(-1)
    norm = excess.abs().sum(-1)
    length = (_MAX_LOGARITHMIC_STEP / step.abs().amax(-1).clamp_min(1e-300)).clamp_max(1.0)
    here = _dual(g, C, a, b)
    for _ in range(_MAX_HALVINGS):
        trial = g + length.unsqueeze(-1) * step
        fallen = _dual(trial, C, a, b) <= here + 1e-4 * length * slope
        nearer = (_plan(trial, C, a).sum(-2) - b).abs().sum(-1) < norm
        short = ~(fallen | nearer)
        if not bool(short.any()):
            break
        length = torch.where(short, 0.5 * length, length)
    return length.unsqueeze(-1)


def _dual(g: Tensor, C: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``sum_i a_i logsumexp_j(g_j + C_ij) - b' g``, convex, shape ``(B,)``."""
    height = torch.logsumexp(g.unsqueeze(-2) + C, -1)
    return (a * height).sum(-1) - (b * g).sum(-1)
