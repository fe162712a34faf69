r"""Functions of a symmetric matrix through its eigenvalues.

Torch differentiates eigenvectors, dividing by differences of eigenvalues: at the identity matrix it
gives NaN even for functions that are smooth there. Here instead X0 = V diag(l) V' is decomposed
without derivatives, and the function is written as an explicit perturbation of it, in

    E = V' (X - X0) V,

which is zero and carries all derivatives. Nothing but sums and products is differentiated, so every
transform of torch applies. The expansions end; beyond their order the derivatives are NaN, by
``_end``, rather than wrong.
"""

from __future__ import annotations

from functools import partial

import torch

from ddn_cvx.programs.translation.elementwise import entropy
from ddn_cvx.programs.translation.matrix import identity_like, positive_definite
from ddn_cvx.programs.translation.registry import register_functions
from ddn_cvx.programs.translation.shapes import trace


def _symmetric_part(X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The symmetric part, and where it is finite.

    An element of the batch that is not is replaced by zeros: torch.linalg would raise for all.
    """
    finite = X.isfinite().flatten(-2).all(-1)
    X = torch.where(finite[..., None, None], X, 0.0)
    return 0.5 * (X + X.mT), finite


def _perturbed(X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ascending eigenvalues l ``(..., n)`` and eigenvectors V, without derivatives, and E."""
    fixed = X.detach()
    eigenvalues, V = torch.linalg.eigh(fixed)
    return eigenvalues, V, V.mT @ (X - fixed) @ V


def _end(E: torch.Tensor, order: int) -> torch.Tensor:
    """Zero with its derivatives up to the order, and NaN in the next one."""
    return E.abs().pow(order + 0.5).sum((-2, -1))


def largest_eigenvalues(X: torch.Tensor, *, k: float) -> torch.Tensor:
    """Sum of the k largest eigenvalues of the symmetric part, with a fraction of the next one.

    NaN where X is not finite.
    """
    X, finite = _symmetric_part(X)
    whole, part, n = int(k), float(k) - int(k), X.shape[-1]
    if whole >= n:
        total = trace(X)
    else:
        eigenvalues, _, E = _perturbed(X)
        total = torch.zeros_like(eigenvalues[..., 0])
        if part < 1 and whole > 0:
            total = total + (1 - part) * _top(eigenvalues, E, whole)
        if part > 0:
            total = total + part * (trace(X) if whole + 1 == n else _top(eigenvalues, E, whole + 1))
    return torch.where(finite, total, torch.nan)


def _top(eigenvalues: torch.Tensor, E: torch.Tensor, k: int) -> torch.Tensor:
    """The sum of the k largest eigenvalues of diag(l) + E, for k < n, up to the fifth order.

    The trace of the Rayleigh quotient of the subspace [P; I] (bottom; top coordinates), maximal at
    the invariant subspace. That one solves the Riccati equation

        P_ij (t_j - b_i) = (E_bt + E_bb P - P E_tt - P E_tb P)_ij,

    (Stewart and Sun, Matrix Perturbation Theory, V.2) of which two fixed-point steps are right up
    to the second order; the quotient then is up to the fifth. Equal t_j = b_i are a kink: P_ij = 0.
    """
    b = eigenvalues.shape[-1] - k
    bottom, top = eigenvalues[..., :b], eigenvalues[..., b:]
    Ebb, Ebt = E[..., :b, :b], E[..., :b, b:]
    Etb, Ett = E[..., b:, :b], E[..., b:, b:]
    gaps = top.unsqueeze(-2) - bottom.unsqueeze(-1)
    size = eigenvalues.abs().amax(-1)[..., None, None]
    tied = gaps <= eigenvalues.shape[-1] * torch.finfo(E.dtype).eps * size
    weights = gaps.masked_fill(tied, torch.inf).reciprocal()
    P = Ebt * weights
    P = (Ebt + Ebb @ P - P @ Ett - P @ Etb @ P) * weights
    PP = P.mT @ P
    # E is symmetric, and the zeroth order of the quotient is sum(top).
    quotient = Ett + 2.0 * Etb @ P + P.mT @ (Ebb @ P + bottom.unsqueeze(-1) * P)
    quotient = quotient - PP * top.unsqueeze(-2)
    metric = PP - PP @ PP  # I - inv(I + P'P), up to the fourth order
    total = top.sum(-1) + trace(quotient) - (metric * quotient.mT).sum((-2, -1))
    return total + _end(E, 5)


def _log_quotients(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(log x - log y) / (x - y), the reciprocal of the logarithmic mean."""
    ratio = (x - y) / (x + y)
    near = ratio.abs() < 1e-2
    squared = ratio.square()
    # log x - log y = 2 atanh(ratio)
    series = 1.0 + squared * (1 / 3 + squared * (1 / 5 + squared * (1 / 7 + squared / 9)))
    far = (x.log() - y.log()) / (x - y).masked_fill(near, 1.0)
    return torch.where(near, 2.0 * series / (x + y), far)


def _second_log_quotients(eigenvalues: torch.Tensor) -> torch.Tensor:
    """The divided differences log[l_i, l_j, l_k], ``(..., n, n, n)``."""
    n = eigenvalues.shape[-1]
    axes = [eigenvalues[..., :, None, None], eigenvalues[..., None, :, None]]
    axes.append(eigenvalues[..., None, None, :])
    shape = (*eigenvalues.shape[:-1], n, n, n)
    low, middle, high = torch.stack([a.expand(shape) for a in axes]).sort(0).values.unbind(0)
    r, s = low / middle - 1.0, high / middle - 1.0
    near = torch.maximum(-r, s) < 2e-2
    # log1p[r, 0, s] = sum_k (-1)^(k+1) / (k+2) h_k(r, s), h_k the sum of all monomials of degree k
    h = power = torch.ones_like(r)
    series = -0.5 * h
    for k in range(1, 9):
        power = power * r
        h = s * h + power
        series = series + (-1) ** (k + 1) / (k + 2) * h
    difference = _log_quotients(high, middle) - _log_quotients(middle, low)
    far = difference / (high - low).masked_fill(near, 1.0)
    return torch.where(near, series / middle.square(), far)


def _kept_positive(eigenvalues: torch.Tensor) -> torch.Tensor:
    """So that logarithm and reciprocal stay finite, and products of them in float too."""
    return eigenvalues.clamp_min(torch.finfo(eigenvalues.dtype).tiny ** 0.5)


def matrix_entropy(X: torch.Tensor) -> torch.Tensor:
    """-tr X log X of the symmetric part; -inf where an eigenvalue is negative, up to rounding.

    Up to the third order, with g = -log - 1 (Daleckii and Krein),

        sum g(l_i) E_ii + 1/2 sum g[l_i, l_j] E_ij^2 + 1/3 sum g[l_i, l_j, l_k] E_ij E_jk E_ki.
    """
    X, finite = _symmetric_part(X)
    eigenvalues, _, E = _perturbed(X)
    noise = X.shape[-1] * torch.finfo(X.dtype).eps * eigenvalues.abs().amax(-1, keepdim=True)
    value = entropy(eigenvalues.masked_fill(eigenvalues.abs() <= noise, 0.0)).sum(-1)
    positive = _kept_positive(eigenvalues)
    first = ((positive.log() + 1.0) * torch.diagonal(E, dim1=-2, dim2=-1)).sum(-1)
    quotients = _log_quotients(positive.unsqueeze(-1), positive.unsqueeze(-2))
    second = 0.5 * (quotients * E.square()).sum((-2, -1))
    triples = E.unsqueeze(-1) * E.unsqueeze(-3) * E.unsqueeze(-2)  # E_ij E_jk E_ik
    third = (_second_log_quotients(positive) * triples).sum((-3, -2, -1)) / 3.0
    return torch.where(finite, value - first - second - third + _end(E, 3), torch.nan)


def _log_product(X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """tr X log Y, up to the second order in Y.

    log(Y)_ij = log(l_i) [i = j] + log[l_i, l_j] E_ij + sum_k log[l_i, l_k, l_j] E_ik E_kj in the
    basis of eigenvectors.
    """
    eigenvalues, V, E = _perturbed(Y)
    positive = _kept_positive(eigenvalues)
    rotated = V.mT @ X @ V
    logarithm = torch.diag_embed(positive.log())
    logarithm = logarithm + E * _log_quotients(positive.unsqueeze(-1), positive.unsqueeze(-2))
    pairs = E.unsqueeze(-1) * E.unsqueeze(-3)  # E_ik E_kj, at (i, k, j)
    logarithm = logarithm + (_second_log_quotients(positive) * pairs).sum(-2)
    value = (rotated * logarithm).sum((-2, -1)) + _end(E, 2)
    return value.masked_fill((eigenvalues < _OUTSIDE).any(-1), -torch.inf)


# cvxpy's tolerance in quantum_rel_entr
_OUTSIDE = -1e-6


def _condition_number(X: torch.Tensor) -> torch.Tensor:
    return largest_eigenvalues(X, k=1) / -largest_eigenvalues(-X, k=1)


def _gen_lambda_max(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """The largest eigenvalue of inv(L) A inv(L)' for B = L L'; NaN where B is not positive."""
    B, positive = positive_definite(_symmetric_part(B)[0])
    factor = torch.linalg.cholesky_ex(B).L
    half = torch.linalg.solve_triangular(factor, A, upper=False)
    both = torch.linalg.solve_triangular(factor, half.mT, upper=False)
    value = largest_eigenvalues(both, k=1)
    return torch.where(positive, value, torch.nan)


def _dilation(X: torch.Tensor) -> torch.Tensor:
    """[[0, X], [X', 0]], whose eigenvalues are the singular values, their negatives and zeros."""
    m, n = X.shape[-2:]
    above = torch.nn.functional.pad(X, (m, 0))
    below = torch.nn.functional.pad(X.mT, (0, n))
    return torch.cat([above, below], -2)


def _spectral_norm(X: torch.Tensor) -> torch.Tensor:
    return largest_eigenvalues(_dilation(X), k=1)


def _nuclear_norm(X: torch.Tensor) -> torch.Tensor:
    return largest_eigenvalues(_dilation(X), k=min(X.shape[-2:]))


def _quantum_relative_entropy(X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """tr X (log X - log Y), as the atom's documentation says and as its problems minimise it.

    cvxpy's own value differs from it where tr X is not one: it takes scipy's entropy, which
    divides by the sum.
    """
    Y, finite = _symmetric_part(Y)
    value = -matrix_entropy(X) - _log_product(0.5 * (X + X.mT), Y)
    return torch.where(finite, value, torch.nan)


def _pf_eigenvalue(X: torch.Tensor) -> torch.Tensor:
    """The eigenvalue of largest modulus, real and simple for a positive matrix.

    It is the root in r of the last entry s of the solution of [[X - r I, v], [v', 0]] (x, s) =
    (0, 1), which is zero where X - r I is singular. From the root found without derivatives,
    each Newton step doubles the number of derivatives in X that are right: three give 7. Where it
    is not simple, v' X v.
    """
    finite = X.isfinite().flatten(-2).all(-1)
    X = torch.where(finite[..., None, None], X, 1.0)
    fixed = X.detach()
    eigenvalues, vectors = torch.linalg.eig(fixed)
    place = eigenvalues.abs().argmax(-1, keepdim=True)
    root = eigenvalues.gather(-1, place).squeeze(-1).real
    v = vectors.gather(-1, place.unsqueeze(-2).expand(*vectors.shape[:-1], 1)).real
    simple = torch.linalg.inv_ex(_bordered(fixed, root, v)).info == 0
    fallback = root + (v * ((X - fixed) @ v)).sum((-2, -1))
    # the matrix of ones has one simple eigenvalue, n
    n = X.shape[-1]
    wide = simple[..., None, None]
    X, v = torch.where(wide, X, 1.0), torch.where(wide, v, 1.0)
    root = torch.where(simple, root, float(n))
    for _ in range(3):
        inverse = torch.linalg.inv_ex(_bordered(X, root, v)).inverse
        slope = (inverse[..., n, :n] * inverse[..., :n, n]).sum(-1)
        root = root - inverse[..., n, n] / slope
    root = torch.where(simple, root + _end(X - X.detach(), 7), fallback)
    return torch.where(finite, root, torch.nan)


def _bordered(X: torch.Tensor, root: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    above = torch.cat([X - root[..., None, None] * identity_like(X), v], -1)
    return torch.cat([above, torch.nn.functional.pad(v.mT, (0, 1))], -2)


register_functions(
    {
        "condition_number.condition_number": _condition_number,
        "norm_nuc.normNuc": _nuclear_norm,
        "gen_lambda_max.gen_lambda_max": _gen_lambda_max,
        "lambda_max.lambda_max": partial(largest_eigenvalues, k=1),
        "pf_eigenvalue.pf_eigenvalue": _pf_eigenvalue,
        "quantum_rel_entr.quantum_rel_entr": _quantum_relative_entropy,
        "sigma_max.sigma_max": _spectral_norm,
        "von_neumann_entr.von_neumann_entr": matrix_entropy,
    }
)
register_functions({"lambda_sum_largest.lambda_sum_largest": largest_eigenvalues}, k="k")
