"""Entropy-regularised transport: marginals, optimality, derivatives, empty rows, bad input."""

import pytest
import torch
from helpers import assert_derivatives, draw

from ddn_cvx.dedicated.transport import sinkhorn
from ddn_cvx.nn import Sinkhorn

DOUBLE = torch.float64
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def draws(batch: int, n: int, m: int, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    C, a, b = (
        0.01 + torch.rand(shape, dtype=DOUBLE, generator=generator)
        for shape in ((batch, n, m), (batch, n), (batch, m))
    )
    return C, a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)


def unrolled(C: torch.Tensor, a: torch.Tensor, b: torch.Tensor, gamma: float) -> torch.Tensor:
    """Scaling rows and columns in turn, in logarithms, until nothing changes."""
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    for _ in range(3000):
        f = a.log() - torch.logsumexp(g.unsqueeze(-2) - gamma * C, -1)
        g = b.log() - torch.logsumexp(f.unsqueeze(-1) - gamma * C, -2)
    return (f.unsqueeze(-1) + g.unsqueeze(-2) - gamma * C).exp()


@pytest.mark.parametrize("gamma", [0.01, 1.0, 30.0, 1e3, 1e5])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (3, 1), (4, 7), (40, 30)])
def test_marginals_and_optimality(n: int, m: int, gamma: float) -> None:
    C, a, b = draws(6, n, m)
    P = sinkhorn(C, a, b, gamma)
    tolerance = max(1e-10, 1e-14 * gamma)  # a double's digits of gamma C
    torch.testing.assert_close(P.sum(-1), a, rtol=0, atol=tolerance)
    torch.testing.assert_close(P.sum(-2), b, rtol=0, atol=tolerance)
    # log P + gamma C is a sum of a function of the row and one of the column.
    if gamma <= 100:
        potential = P.log() + gamma * C
        rest = potential - potential[:, :1] - potential[:, :, :1] + potential[:, :1, :1]
        assert float(rest.abs().max()) < 1e-8 * (1 + gamma)


@pytest.mark.parametrize("gamma", [1.0, 10.0, 40.0])
def test_plan_and_gradients_are_those_of_unrolled_iterations(gamma: float) -> None:
    inputs = C, a, b = draws(3, 4, 5)
    for leaf in inputs:
        leaf.requires_grad_()
    P, expected = sinkhorn(C, a, b, gamma), unrolled(C, a, b, gamma)
    torch.testing.assert_close(P, expected, rtol=0, atol=1e-11)
    incoming = draw(*P.shape, seed=1)
    found = torch.autograd.grad(P, inputs, incoming)
    known = torch.autograd.grad(expected, inputs, incoming)
    torch.testing.assert_close(found[0], known[0], rtol=0, atol=1e-9)
    for ours, theirs in zip(found[1:], known[1:], strict=True):
        # Only changes that keep the sum of a marginal are meant.
        ours, theirs = (t - t.mean(-1, keepdim=True) for t in (ours, theirs))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_derivatives_of_both_orders() -> None:
    C, a, b = (t.requires_grad_() for t in draws(2, 3, 4))
    gamma = torch.tensor([2.0, 20.0], dtype=DOUBLE, requires_grad=True)

    def plan(
        C: torch.Tensor, a: torch.Tensor, b: torch.Tensor, gamma: torch.Tensor
    ) -> torch.Tensor:
        return sinkhorn(C, a / a.sum(-1, True), b / b.sum(-1, True), gamma)

    assert_derivatives(plan, (C, a, b, gamma))
    mapped = torch.func.vmap(lambda C, a, b: sinkhorn(C, a, b, 3.0))(C, a, b)
    torch.testing.assert_close(mapped, sinkhorn(C, a, b, 3.0))


def test_empty_rows_and_forbidden_pairs() -> None:
    C, a, b = draws(3, 4, 5)
    C[:, 1, 2] = torch.inf
    a[:, 0] = 0
    b[:, 3] = 0
    a, b = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
    kept = sinkhorn(C[:, 1:][..., [0, 1, 2, 4]], a[:, 1:], b[:, [0, 1, 2, 4]], 50.0)
    leaves = [t.requires_grad_() for t in (C, a, b)]
    P = sinkhorn(C, a, b, 50.0)
    torch.testing.assert_close(P[:, 1:][..., [0, 1, 2, 4]], kept)
    assert bool((P[:, 0] == 0).all())
    assert bool((P[..., 3] == 0).all())
    assert bool((P[:, 1, 2] == 0).all())
    for gradient in torch.autograd.grad(P.square().sum(), leaves):
        assert bool(gradient.isfinite().all())


def test_what_cannot_be_transported_is_nan_and_costs_no_others() -> None:
    C, a, b = draws(7, 3, 3)
    gamma = torch.full((7,), 5.0, dtype=DOUBLE)
    good = sinkhorn(C, a, b, gamma)
    C[1, 0, 0] = torch.nan
    C[2, :2, :2] = torch.inf  # two rows that only have one column between them
    a[2], b[2] = 1 / 3, 1 / 3
    a[3] = 2 * a[3]
    b[4, 0], gamma[5] = -0.1, 0.0
    leaves = [t.requires_grad_() for t in (C, a, b, gamma)]
    P = sinkhorn(C, a, b, gamma)
    assert P.isnan().any(-1).any(-1).tolist() == [False] + 5 * [True] + [False]
    torch.testing.assert_close(P[[0, 6]], good[[0, 6]])
    for gradient in torch.autograd.grad(P.nan_to_num().square().sum(), leaves):
        assert bool(gradient.isfinite().all())
        assert bool((gradient[1:6] == 0).all())


def test_invariances_and_shapes() -> None:
    C, a, b = draws(2, 4, 6)
    P = sinkhorn(C, a, b, 8.0)
    torch.testing.assert_close(sinkhorn(C.mT, b, a, 8.0).mT, P)
    torch.testing.assert_close(sinkhorn(C + 1e3, a, b, 8.0), P, rtol=0, atol=1e-9)
    torch.testing.assert_close(sinkhorn(C, 5 * a, 5 * b, 8.0), 5 * P)
    torch.testing.assert_close(torch.stack([sinkhorn(C[k], a[k], b[k], 8.0) for k in (0, 1)]), P)
    single = sinkhorn(C.float(), None, None, 8.0)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.sum(-1), torch.full((2, 4), 0.25))
    assert sinkhorn(C[:0]).shape == (0, 4, 6)
    assert sinkhorn(C.expand(3, 2, 4, 6), a[0]).shape == (3, 2, 4, 6)


def test_a_sharp_plan_is_an_assignment() -> None:
    from scipy.optimize import linear_sum_assignment

    C, _, _ = draws(5, 6, 6)
    P = sinkhorn(C, gamma=3e3)
    for costs, plan in zip(C, P, strict=True):
        rows, columns = linear_sum_assignment(costs.numpy())
        expected = torch.zeros(6, 6, dtype=DOUBLE)
        expected[rows, columns] = 1 / 6
        torch.testing.assert_close(plan, expected, rtol=0, atol=1e-3)


def test_the_module() -> None:
    C, a, b = draws(2, 3, 4)
    module = Sinkhorn(gamma=7.0, learnable=True)
    assert repr(module) == "Sinkhorn(gamma=7, learnable=True)"
    torch.testing.assert_close(module(C, a, b), sinkhorn(C, a, b, 7.0), rtol=1e-5, atol=1e-7)
    module(C, a, b)[0, 0, 0].backward()
    assert module.log_gamma.grad is not None
    with pytest.raises(ValueError, match="gamma must be positive; got -1"):
        Sinkhorn(gamma=-1.0)
    with pytest.raises(ValueError, match="it must end in 4"):
        module(C, a, a)
    with pytest.raises(ValueError, match="n, m"):
        sinkhorn(C[0, 0])
    with pytest.raises(TypeError, match="floating-point"):
        sinkhorn(torch.ones(2, 2, dtype=torch.long))
