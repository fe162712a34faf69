"""MINRES for a batch of symmetric systems that are only multiplied, never formed."""

from __future__ import annotations

from collections.abc import Callable

import torch

Multiply = Callable[[torch.Tensor], torch.Tensor]

# Krylov spaces built one after the other: the first solves, the others refine.
_CYCLES = 4
# Iterations of one cycle: N + 1 are enough without rounding, and rounding is made up for by more.
_ITERATIONS_PER_UNKNOWN = 5
_FURTHER_ITERATIONS = 20
# Entries of Lanczos vectors kept per element: all the vectors up to N = 512, the first ones beyond.
_KEPT_ENTRIES = 1 << 18
# |K r| / (|K| |r|) below this is rounding of a sum of some hundred terms: the residual is
# orthogonal to the range of K, and no further step makes it smaller.
_ORTHOGONAL_TO_RANGE = 1e-13


def minres(
    apply: Multiply, right: torch.Tensor, *, tolerance: float = 1e-10
) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve ``K z = right`` for symmetric ``K``, definite or not, singular or not.

    The method of Paige and Saunders, "Solution of sparse indefinite systems of linear equations"
    (SIAM J. Numer. Anal., 1975): the residual's length is minimal over the Krylov space. As many
    Lanczos vectors as two megabytes per element hold are kept, and new ones made orthogonal to
    them, without which an ill-conditioned system takes many times ``N`` products. A solution whose
    true residual misses the tolerance is refined: the method starts again on the residual.

    Each element stops by itself and is frozen from then on, so that its solution does not depend on
    its neighbours. A singular consistent system gets its minimum-length solution, an inconsistent
    one a least-squares solution.

    Args:
        apply: multiplies by ``K``, ``(B, N) -> (B, N)``, each element by its own; called with
            the whole batch each time, and with finite vectors as long as its values are finite.
        right: shape ``(B, N)``.
        tolerance: for ``|K z - right| / |right|`` in the infinity norm.

    Returns:
        ``z``, shape ``(B, N)``, and the true ``|K z - right| / |right|``, shape ``(B,)``; zero for
        a right-hand side of zero.
    """
    solution, rest = torch.zeros_like(right), right
    if not right.numel():
        return solution, right.new_zeros(right.shape[0])
    size = _largest(right).clamp_min(torch.finfo(right.dtype).tiny)  # (B,)
    residual = _largest(right) / size
    active = residual > tolerance  # false for NaN
    norm = torch.zeros_like(size)
    for _ in range(_CYCLES):
        if not bool(active.any()):
            break
        # A length that makes the infinity norm small enough, with a margin for rounding.
        goal = 0.5 * tolerance / residual * _largest(rest)
        change, norm = _cycle(apply, rest, goal, active, norm)
        candidate = solution + change
        candidate_rest = right - apply(candidate)
        candidate_residual = _largest(candidate_rest) / size
        better = active & (candidate_residual < residual)
        solution = torch.where(better.unsqueeze(1), candidate, solution)
        rest = torch.where(better.unsqueeze(1), candidate_rest, rest)
        # Refinement that does not even halve the residual has reached what rounding, or an
        # inconsistent right-hand side, allows.
        active = better & (candidate_residual > tolerance) & (candidate_residual < 0.5 * residual)
        residual = torch.where(better, candidate_residual, residual)
    return solution, residual


def _cycle(
    apply: Multiply, right: torch.Tensor, goal: torch.Tensor, active: torch.Tensor,
    norm: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """MINRES from zero until ``|right - K z|_2 <= goal``.

    With ``V_k`` the Lanczos vectors and ``T_k`` the tridiagonal matrix of ``alpha`` and ``beta``,
    plane rotations ``(c, s)`` turn ``T_k`` into upper-triangular ``R_k`` with the diagonals
    ``gamma, delta, epsilon``; the directions are the columns of ``V_k R_k^-1``.

    Args:
        right: shape ``(B, N)``.
        goal, active: shape ``(B,)``; inactive elements return zero.
        norm: a lower bound of ``|K|``, which the Krylov space of ``right`` alone may not tell.

    Returns:
        The solution and a larger lower bound of ``|K|``.
    """
    precision = torch.finfo(right.dtype).eps
    length = right.norm(dim=1)  # (B,), the residual's from here on
    running = active & (length > goal)
    zero = torch.zeros_like(length)
    v_before = torch.zeros_like(right)
    v = right * torch.where(running, 1 / length, 0.0).unsqueeze(1)
    solution, direction, direction_before = v_before, v_before, v_before
    size = right.shape[1]
    iterations = _ITERATIONS_PER_UNKNOWN * size + _FURTHER_ITERATIONS
    kept = min(size, max(2, _KEPT_ENTRIES // size))
    basis = right.new_zeros(right.shape[0], min(kept, 16), size)  # (B, k, N), grows up to kept
    beta, epsilon, delta_bar = zero, zero, zero
    cosine, sine = zero - 1, zero
    for iteration in range(iterations):
        if not bool(running.any()):
            break
        product = apply(v) - beta.unsqueeze(1) * v_before
        alpha = (product * v).sum(1)
        product = product - alpha.unsqueeze(1) * v
        if iteration < kept:
            if iteration == basis.shape[1]:
                basis = torch.cat([basis, torch.zeros_like(basis)], 1)[:, :kept]
            basis[:, iteration] = v
        # Once is enough: the recurrence above has left a component of rounding size to remove.
        component = basis @ product.unsqueeze(2)  # (B, k, 1)
        product = product - (basis.mT @ component).squeeze(2)
        beta_next = product.norm(dim=1)
        norm = torch.maximum(norm, (alpha**2 + beta**2 + beta_next**2).sqrt())

        delta = cosine * delta_bar + sine * alpha
        gamma_bar = sine * delta_bar - cosine * alpha
        epsilon_next = sine * beta_next
        delta_bar = -cosine * beta_next
        # |K r| = |r| |(gamma_bar, delta_bar)| for the residual r before this step. A step from a
        # least-squares solution would divide by gamma = 0.
        running = running & (torch.hypot(gamma_bar, delta_bar) > _ORTHOGONAL_TO_RANGE * norm)
        gamma = torch.hypot(gamma_bar, beta_next)
        gamma = torch.where(running & (gamma > 0), gamma, 1.0)
        cosine, sine = gamma_bar / gamma, beta_next / gamma

        moved = v - epsilon.unsqueeze(1) * direction_before - delta.unsqueeze(1) * direction
        direction_before, direction = direction, moved / gamma.unsqueeze(1)
        advanced = solution + (cosine * length).unsqueeze(1) * direction
        solution = torch.where(running.unsqueeze(1), advanced, solution)
        length = torch.where(running, sine * length, length)
        # beta = 0: the Krylov space is exhausted.
        exhausted = beta_next <= 10 * precision * norm
        running = running & (length > goal) & ~exhausted
        # Stopped elements go on with zeros: no overflow, no NaN.
        keep = running.unsqueeze(1)
        inverse = torch.where(running, 1 / beta_next, 0.0).unsqueeze(1)
        v_before, v = torch.where(keep, v, 0.0), torch.where(keep, product * inverse, 0.0)
        direction = torch.where(keep, direction, 0.0)
        direction_before = torch.where(keep, direction_before, 0.0)
        beta, epsilon = torch.where(running, beta_next, 0.0), epsilon_next
        cosine, sine = torch.where(running, cosine, 0.0), torch.where(running, sine, 0.0)
        delta_bar, epsilon = torch.where(running, delta_bar, 0.0), torch.where(running, epsilon, 0)
    return solution, norm


def _largest(vector: torch.Tensor) -> torch.Tensor:
    """Infinity norm, ``(B, N) -> (B,)``."""
    return vector.abs().amax(-1)
