"""Eigenvectors as the answer of an optimization problem."""

from functools import partial

import torch

from ddn_cvx.declaration import Declaration
from ddn_cvx.problems._entry import check_size, entry
from ddn_cvx.problems._sampling import Tensors, normal, uniform


@entry(n=1)
def smallest_eigenvectors(n: int = 6, k: int = 1) -> Declaration:
    """Eigenvectors of the ``k`` smallest eigenvalues: minimize ``trace(U' M U)``, ``U' U = I``.

    The parameter is ``M`` ``(n, n)``, symmetric; the answer is ``U`` ``(n, k)``. The problem is not
    convex. The start fixes what it leaves open: the signs of ``U``, and for ``k > 1`` its rotation;
    the layer starts from ``torch.linalg.eigh``'s columns, each with a nonnegative sum.

    For ``k = 1`` the answer is isolated if the smallest eigenvalue is simple. For ``k > 1`` it
    never is: every ``U R`` with a rotation ``R`` is optimal, solutions carry
    ``Degeneracy.NO_CURVATURE``, and the derivative of least norm is taken, which moves the subspace
    and does not rotate within it. So a loss has a well-defined gradient if it is a function of
    the projector ``U U'`` and there is a gap after the k-th eigenvalue; eigenvalues within either
    group may repeat, where the derivative of ``eigh`` does not exist.

    Args:
        n: size of the matrix.
        k: number of eigenvectors, at most ``n``.

    Example:
        >>> import torch
        >>> from ddn_cvx.problems import smallest_eigenvectors
        >>> M = torch.diag(torch.tensor([3.0, 1.0, 2.0])).unsqueeze(0)
        >>> smallest_eigenvectors(n=3).closed_form(M)[0].mT
        tensor([[[0., 1., 0.]]])
    """
    import cvxpy as cp
    import numpy as np

    check_size("k", k, maximum=n)
    M = cp.Parameter((n, n), symmetric=True, name="M")
    U = cp.Variable((n, k), name="U")
    orthonormal = U.T @ U - np.eye(k) == 0
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum(cp.multiply(U, M @ U))), [orthonormal]),
        parameters=(M,),
        variables=(U,),
        summary="orthonormal eigenvectors of a symmetric matrix's smallest eigenvalues",
        citation="Fan (1949), On a theorem of Weyl concerning eigenvalues of linear "
        "transformations; as a declarative node: Gould, Hartley and Campbell (2022), Deep "
        "declarative networks",
        example=partial(_example, n, k),
        # For k > 1 autograd of eigh fixes a rotation of its own, where the layer fixes none.
        closed_form=partial(_eigenvectors, 1) if k == 1 else None,
        start=partial(_eigenvectors, k),
    )


def _eigenvectors(k: int, M: torch.Tensor) -> Tensors:
    U = torch.linalg.eigh((M + M.mT) / 2).eigenvectors[..., :k]
    return (torch.where(U.sum(dim=-2, keepdim=True) < 0, -U, U),)


def _example(n: int, k: int, batch: int, generator: torch.Generator) -> Tensors:
    """Eigenvalues at least half apart; the vectors' sums are away from zero, so signs are safe."""
    gaps = uniform(generator, batch, n)
    V = torch.linalg.qr(normal(generator, batch, n, n)).Q
    # A reflection that takes the columns' sums from V' 1 to sqrt(n) times a vector of even length.
    ones = torch.full((batch, n, 1), n**-0.5, dtype=torch.float64)
    away = V.mT @ ones - ones
    length = away.square().sum(dim=1, keepdim=True).clamp_min(1e-12)
    V = V - 2 * V @ away @ away.mT / length
    return (V @ (gaps.cumsum(dim=1).unsqueeze(2) * V.mT),)
