r"""Functions of a symmetric matrix through its eigenvalues.

For X = V diag(l) V' and a sum F(X) = sum_i f_i(l_i), with g = f':

    dF(X)[H]  = <G, H>,              G = V diag(g(l)) V'
    dG(X)[H]  = V (D o (V' H V)) V', D_ij = (g_i - g_j) / (l_i - l_j),  D_ii = g'(l_i)

(Daleckii and Krein; Horn and Johnson, Topics in Matrix Analysis, 6.6.30.) Differentiating the
eigenvectors instead, as torch does, divides by l_i - l_j also where g_i = g_j, and gives NaN at the
identity matrix for functions that are smooth there. Here gradient and Hessian are right at repeated
eigenvalues; from the third derivative on, torch differentiates D and V, and gives NaN there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from ddn_cvx.translation.elementwise import bounded_log, entropy
from ddn_cvx.translation.registry import register
from ddn_cvx.translation.tape import Tape, Value


class Family(Protocol):
    """A sum of functions of the ascending eigenvalues ``(..., n)``."""

    def total(self, eigenvalues: torch.Tensor) -> torch.Tensor:
        """F, ``(...)``."""

    def slopes(self, eigenvalues: torch.Tensor) -> torch.Tensor:
        """g, ``(..., n)``."""

    def quotients(self, eigenvalues: torch.Tensor) -> torch.Tensor:
        """D, ``(..., n, n)``."""


def _gaps(eigenvalues: torch.Tensor) -> torch.Tensor:
    return eigenvalues.unsqueeze(-1) - eigenvalues.unsqueeze(-2)


@dataclass(frozen=True)
class Weighted:
    """A fixed weight for each place in the order: the largest ones, their sums."""

    weights: tuple[float, ...]

    def _table(self, like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self.weights, dtype=like.dtype, device=like.device)

    def total(self, eigenvalues: torch.Tensor) -> torch.Tensor:
        """The weighted sum."""
        return (eigenvalues * self._table(eigenvalues)).sum(-1)

    def slopes(self, eigenvalues: torch.Tensor) -> torch.Tensor:
        """The weights."""
        return self._table(eigenvalues).expand(eigenvalues.shape)

    def quotients(self, eigenvalues: torch.Tensor) -> torch.Tensor:
        """Zero for equal weights; also for equal eigenvalues, where the function has a kink."""
        weights = self._table(eigenvalues)
        gaps = _gaps(eigenvalues)
        size = eigenvalues.detach().abs().amax(-1)[..., None, None]
        noise = len(self.weights) * torch.finfo(eigenvalues.dtype).eps * size
        tied = gaps.detach().abs() <= noise
        return (_gaps(weights) / gaps.masked_fill(tied, 1.0)).masked_fill(tied, 0.0)


@dataclass(frozen=True)
class Entropy:
    """The sum of -l log l."""

    def total(self, eigenvalues: torch.Tensor) -> torch.Tensor:
        """Eigenvalues that are negative by rounding only count as zero."""
        size = eigenvalues.abs().amax(-1, keepdim=True)
        noise = eigenvalues.shape[-1] * torch.finfo(eigenvalues.dtype).eps * size
        return entropy(torch.where(eigenvalues.abs() <= noise, 0.0, eigenvalues)).sum(-1)

    def slopes(self, eigenvalues: torch.Tensor) -> torch.Tensor:
        """-log l - 1."""
        return -bounded_log(eigenvalues) - 1.0

    def quotients(self, eigenvalues: torch.Tensor) -> torch.Tensor:
        """Near the diagonal by the series of atanh: log a - log b = 2 atanh((a - b) / (a + b))."""
        positive = eigenvalues.clamp_min(torch.finfo(eigenvalues.dtype).tiny)
        logarithms = bounded_log(eigenvalues)
        sums = positive.unsqueeze(-1) + positive.unsqueeze(-2)
        gaps = _gaps(positive)
        ratio = gaps / sums
        near = ratio.detach().abs() < 1e-2
        squared = torch.where(near, ratio, 0.0).square()
        series = 1.0 + squared * (1 / 3 + squared * (1 / 5 + squared * (1 / 7 + squared / 9)))
        far = _gaps(logarithms) / gaps.masked_fill(near, 1.0)
        return -torch.where(near, 2.0 * series / sums, far)


class _Sum(torch.autograd.Function):
    """F(X), with the eigenvalues and eigenvectors for its derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(X: torch.Tensor, family: Family) -> tuple[torch.Tensor, ...]:
        eigenvalues, vectors = torch.linalg.eigh(X)
        return family.total(eigenvalues), eigenvalues, vectors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        X, ctx.family = inputs
        _, eigenvalues, vectors = output
        ctx.mark_non_differentiable(eigenvalues, vectors)
        ctx.save_for_backward(X, eigenvalues, vectors)
        ctx.save_for_forward(X, eigenvalues, vectors)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        slope = _Slope.apply(*ctx.saved_tensors, ctx.family)
        return grads[0][..., None, None] * slope, None

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor, _: None) -> tuple[torch.Tensor | None, ...]:
        slope = _Slope.apply(*ctx.saved_tensors, ctx.family)
        return (slope * tangent).sum((-2, -1)), None, None


class _Slope(torch.autograd.Function):
    """G(X) = V diag(g(l)) V', its eigenvalues and eigenvectors given."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        X: torch.Tensor, eigenvalues: torch.Tensor, vectors: torch.Tensor, family: Family
    ) -> torch.Tensor:
        return (vectors * family.slopes(eigenvalues).unsqueeze(-2)) @ vectors.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        X, _, _, ctx.family = inputs
        ctx.save_for_backward(X)
        ctx.save_for_forward(X)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (X,) = ctx.saved_tensors
        return _slope_derivative(X, grad, ctx.family), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor, *_: None) -> torch.Tensor:
        (X,) = ctx.saved_tensors
        return _slope_derivative(X, tangent, ctx.family)


def _slope_derivative(X: torch.Tensor, H: torch.Tensor, family: Family) -> torch.Tensor:
    eigenvalues, V = torch.linalg.eigh(X)
    return V @ (family.quotients(eigenvalues) * (V.mT @ H @ V)) @ V.mT


def _symmetric_part(X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The symmetric part, and where it is finite.

    An element of the batch that is not is replaced by zeros: torch.linalg would raise for all.
    """
    finite = X.isfinite().flatten(-2).all(-1)
    X = torch.where(finite[..., None, None], X, 0.0)
    return 0.5 * (X + X.mT), finite


def spectral_sum(X: torch.Tensor, *, family: Family) -> torch.Tensor:
    """F of the symmetric part of ``(..., n, n)``; NaN where X is not finite."""
    X, finite = _symmetric_part(X)
    return torch.where(finite, _Sum.apply(X, family)[0], torch.nan)


def largest(n: int, k: float) -> Weighted:
    """The sum of the k largest of n eigenvalues, with a part of the next one."""
    whole = min(int(k), n)
    weights = [0.0] * (n - whole) + [1.0] * whole
    if whole < n:
        weights[n - whole - 1] = k - int(k)
    return Weighted(tuple(weights))


@register("lambda_max.lambda_max")
def _lambda_max(tape: Tape, atom: Any, args: list[Value]) -> Value:
    family = largest(args[0].shape[-1], 1)
    return tape.call(partial(spectral_sum, family=family), args[0], shape=atom.shape)


@register("lambda_sum_largest.lambda_sum_largest")
def _lambda_sum_largest(tape: Tape, atom: Any, args: list[Value]) -> Value:
    family = largest(args[0].shape[-1], float(atom.k))
    return tape.call(partial(spectral_sum, family=family), args[0], shape=atom.shape)


@register("condition_number.condition_number")
def _build_condition_number(tape: Tape, atom: Any, args: list[Value]) -> Value:
    return tape.call(_condition_number, args[0], shape=())


def _condition_number(X: torch.Tensor) -> torch.Tensor:
    top = largest(X.shape[-1], 1)
    return spectral_sum(X, family=top) / -spectral_sum(-X, family=top)


@register("gen_lambda_max.gen_lambda_max")
def _build_gen_lambda_max(tape: Tape, atom: Any, args: list[Value]) -> Value:
    return tape.call(_gen_lambda_max, *args, shape=())


def _gen_lambda_max(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """The largest eigenvalue of inv(L) A inv(L)' for B = L L'; NaN where B is not positive."""
    B, finite = _symmetric_part(B)
    positive = finite & (torch.linalg.cholesky_ex(B.detach()).info == 0)
    identity = torch.eye(B.shape[-1], dtype=B.dtype, device=B.device)
    factor = torch.linalg.cholesky_ex(torch.where(positive[..., None, None], B, identity)).L
    half = torch.linalg.solve_triangular(factor, A, upper=False)
    both = torch.linalg.solve_triangular(factor, half.mT, upper=False)
    value = spectral_sum(both, family=largest(A.shape[-1], 1))
    return torch.where(positive, value, torch.nan)


def _dilation(X: torch.Tensor) -> torch.Tensor:
    """[[0, X], [X', 0]], whose eigenvalues are the singular values, their negatives and zeros."""
    m, n = X.shape[-2:]
    above = torch.nn.functional.pad(X, (m, 0))
    below = torch.nn.functional.pad(X.mT, (0, n))
    return torch.cat([above, below], -2)


@register("sigma_max.sigma_max")
def _sigma_max(tape: Tape, atom: Any, args: list[Value]) -> Value:
    return tape.call(partial(_largest_singular_values, k=1), args[0], shape=())


@register("norm_nuc.normNuc")
def _nuclear_norm(tape: Tape, atom: Any, args: list[Value]) -> Value:
    count = min(args[0].shape)
    return tape.call(partial(_largest_singular_values, k=count), args[0], shape=())


def _largest_singular_values(X: torch.Tensor, *, k: int) -> torch.Tensor:
    return spectral_sum(_dilation(X), family=largest(sum(X.shape[-2:]), k))


@register("von_neumann_entr.von_neumann_entr")
def _von_neumann_entropy(tape: Tape, atom: Any, args: list[Value]) -> Value:
    return tape.call(partial(spectral_sum, family=Entropy()), args[0], shape=())


@register("quantum_rel_entr.quantum_rel_entr")
def _build_quantum_relative_entropy(tape: Tape, atom: Any, args: list[Value]) -> Value:
    return tape.call(_quantum_relative_entropy, *args, shape=())


def _quantum_relative_entropy(X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """tr X (log X - log Y), what the atom's documentation says and what its problems minimise.

    cvxpy's own value differs from it where tr X is not one: it takes scipy's entropy, which
    divides by the sum.
    """
    X, _ = _symmetric_part(X)
    Y, finite = _symmetric_part(Y)
    eigenvalues, vectors = torch.linalg.eigh(Y.detach())
    logarithm = -_Slope.apply(Y, eigenvalues, vectors, Entropy())  # log Y + I
    trace = torch.diagonal(X, dim1=-2, dim2=-1).sum(-1)
    cross = (X * logarithm).sum((-2, -1)) - trace
    outside = (eigenvalues < -1e-6).any(-1)  # cvxpy's tolerance
    value = (-spectral_sum(X, family=Entropy()) - cross).masked_fill(outside, torch.inf)
    return torch.where(finite, value, torch.nan)


@register("pf_eigenvalue.pf_eigenvalue")
def _build_pf_eigenvalue(tape: Tape, atom: Any, args: list[Value]) -> Value:
    return tape.call(_pf_eigenvalue, args[0], shape=())


def _pf_eigenvalue(X: torch.Tensor) -> torch.Tensor:
    """The eigenvalue of largest modulus, real and simple for a positive matrix.

    It is the root in r of the last entry s of the solution of [[X - r I, v], [v', 0]] (x, s) =
    (0, 1), which is zero where X - r I is singular. From the root found without derivatives,
    each Newton step doubles the order up to which the derivatives in X are right: four give 15.
    """
    finite = X.isfinite().flatten(-2).all(-1)
    n = X.shape[-1]
    safe = torch.where(finite[..., None, None], X, 1.0)
    eigenvalues, vectors = torch.linalg.eig(safe.detach())
    place = eigenvalues.abs().argmax(-1, keepdim=True)
    root = eigenvalues.gather(-1, place).squeeze(-1).real
    v = vectors.gather(-1, place.unsqueeze(-2).expand(*place.shape[:-1], n, 1)).real
    identity = torch.eye(n, dtype=X.dtype, device=X.device)
    corner = torch.zeros_like(v[..., :1, :])
    for _ in range(4):
        shifted = safe - root[..., None, None] * identity
        rows = torch.cat([shifted, v], -1)
        bordered = torch.cat([rows, torch.cat([v.mT, corner], -1)], -2)
        inverse = torch.linalg.inv_ex(bordered).inverse
        solution = inverse[..., :n, n]
        slope = (inverse[..., n, :n] * solution).sum(-1)
        root = root - inverse[..., n, n] / slope
    return torch.where(finite, root, torch.nan)
