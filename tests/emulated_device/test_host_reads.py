"""A batched call reads the host's answers, never a device's data, and few of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import pytest
import torch
from emulated import reads_of

import ddn_cvx as ddn
from ddn_cvx.problems import quadratic_program

pytest_plugins = ["emulated_fixture"]


def _quadratic(batch: int) -> tuple[ddn.DeclarativeLayer, list[torch.Tensor]]:
    declaration = quadratic_program(n=20, m=25, p=4)
    generator = torch.Generator().manual_seed(0)
    assert declaration.example is not None
    return ddn.DeclarativeLayer(declaration, solver="INTERIOR"), list(
        declaration.example(batch, generator)
    )


def _second_order(batch: int) -> tuple[ddn.DeclarativeLayer, list[torch.Tensor]]:
    x, c, r = cp.Variable(5), cp.Parameter(5), cp.Parameter(nonneg=True)
    a = cp.Parameter(5)
    problem = cp.Problem(
        cp.Minimize(cp.sum_squares(x - c) + cp.norm(x)), [cp.norm(x - 1) <= r, a @ (x - 1) <= 0.5]
    )
    generator = torch.Generator().manual_seed(1)
    centre = torch.randn(batch, 5, generator=generator, dtype=torch.float64)
    radius = 1 + torch.rand(batch, generator=generator, dtype=torch.float64)
    row = torch.randn(batch, 5, generator=generator, dtype=torch.float64)
    layer = ddn.DeclarativeLayer(problem, [c, r, a], [x], solver="INTERIOR")
    return layer, [centre, radius, row]


def _matrices(batch: int) -> tuple[ddn.DeclarativeLayer, list[torch.Tensor]]:
    X, C = cp.Variable((4, 4), symmetric=True), cp.Parameter((4, 4))
    t, a = cp.Parameter(nonneg=True), cp.Parameter(4)
    constraints = [X >> 0, cp.diag(X) == t, a[1:] @ X[0, 1:] <= 1]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - C)), constraints)
    generator = torch.Generator().manual_seed(2)
    target = torch.randn(batch, 4, 4, generator=generator, dtype=torch.float64)
    size = 1 + torch.rand(batch, generator=generator, dtype=torch.float64)
    row = torch.randn(batch, 4, generator=generator, dtype=torch.float64)
    return ddn.DeclarativeLayer(problem, [C, t, a], [X], solver="INTERIOR"), [target, size, row]


def _entropies(batch: int) -> tuple[ddn.DeclarativeLayer, list[torch.Tensor]]:
    u, c, s = cp.Variable(5), cp.Parameter(5), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Maximize(c @ u + cp.sum(cp.entr(u))), [cp.sum(u) == s])
    generator = torch.Generator().manual_seed(3)
    slope = torch.randn(batch, 5, generator=generator, dtype=torch.float64)
    total = 0.5 + torch.rand(batch, generator=generator, dtype=torch.float64)
    return ddn.DeclarativeLayer(problem, [c, s], [u], solver="INTERIOR"), [slope, total]


CASES = [_quadratic, _second_order, _matrices, _entropies]


def _gradients(layer: ddn.DeclarativeLayer, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    values = layer(*leaves)
    sum(value.square().sum() for value in values).backward()
    return [*(value.detach() for value in values), *(leaf.grad for leaf in leaves)]


def test_one_read_for_each_step_of_a_quadratic_program(device: torch.device) -> None:
    layer, tensors = _quadratic(64)
    tensors = [tensor.to(device) for tensor in tensors]
    steps = int(layer.solve(*tensors).iterations.max())
    reads = reads_of(lambda: _gradients(layer, tensors))
    # The steps' convergence; and bad input, a curved objective, the size of the first guess, what
    # settled, what is solved, twice, and the residual of the backward pass.
    assert len(reads) <= steps + 7, reads


@pytest.mark.parametrize("made", [_second_order, _matrices, _entropies])
def test_few_reads_for_each_step_of_an_interior_point(
    made: Callable[[int], Any], device: torch.device
) -> None:
    """But for those of torch's own eigenvalues, which may fail."""
    layer, tensors = made(64)
    tensors = [tensor.to(device) for tensor in tensors]
    steps = int(layer.solve(*tensors).iterations.max())
    reads = reads_of(lambda: _gradients(layer, tensors))
    # Three times the interior point's and Newton's, and the ladder's.
    assert len(reads) <= steps + 20, reads


@pytest.mark.parametrize("made", CASES)
def test_no_more_reads_for_more_elements(made: Callable[[int], Any], device: torch.device) -> None:
    layer, tensors = made(256)
    tensors = [tensor.to(device) for tensor in tensors]
    many = len(reads_of(lambda: _gradients(layer, tensors)))
    alone = 0
    for number in range(0, 256, 32):
        one = [tensor[number : number + 1] for tensor in tensors]
        alone = max(alone, len(reads_of(functools.partial(_gradients, layer, one))))
    assert many <= alone + 12


@pytest.mark.parametrize("made", CASES)
def test_work_that_a_mask_limits_changes_nothing(
    made: Callable[[int], Any], device: torch.device
) -> None:
    layer, tensors = made(32)
    tensors[0][3] = torch.nan
    tensors[1][5] *= 1e-9
    tensors[-1][7] *= 1e6
    layer.on_failure = "nan"
    asked = _gradients(layer, tensors)
    unasked = _gradients(layer, [tensor.to(device) for tensor in tensors])
    for given, found in zip(asked, unasked, strict=True):
        torch.testing.assert_close(found.cpu(), given, rtol=1e-9, atol=1e-12, equal_nan=True)
