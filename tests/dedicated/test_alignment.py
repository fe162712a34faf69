"""Procrustes, homography and fundamental matrix: closed forms, derivatives, free directions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_derivatives, assert_jacobians, draw

from ddn_cvx.dedicated.pose import exponential, fundamental_matrix, homography, procrustes

DOUBLE = torch.float64


def flat(*parts: torch.Tensor) -> torch.Tensor:
    return torch.cat([part.flatten(1) for part in parts], 1)


@pytest.mark.parametrize("translation", [True, False])
def test_procrustes_finds_and_differentiates_a_motion(translation: bool) -> None:
    x, R = draw(3, 6, 3), exponential(2 * draw(3, 3, seed=1))
    shift = draw(3, 1, 3, seed=2) if translation else 0.0
    w = 0.2 + draw(3, 6, seed=3).abs()
    found, t = procrustes(x, x @ R.mT + shift, w, translation=translation)
    torch.testing.assert_close(found, R)
    torch.testing.assert_close(t.unsqueeze(1), shift + torch.zeros(3, 1, 3, dtype=DOUBLE))
    y = x @ R.mT + shift + 0.2 * draw(3, 6, 3, seed=4)
    inputs = [tensor.requires_grad_() for tensor in (x, y, w)]

    def motion(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return flat(*procrustes(x, y, w, translation=translation))

    assert_jacobians(motion, [value[0] for value in inputs])
    assert_derivatives(motion, inputs, fast=True)
    # No other rotation is better.
    best = procrustes(x, y, w, translation=False)[0]
    for seed in range(20):
        other = best @ exponential(0.3 * draw(3, 3, seed=seed))
        costs = [(w * (x @ Q.mT - y).square().sum(-1)).sum(-1) for Q in (best, other)]
        assert bool((costs[0] <= costs[1]).all())


def test_procrustes_with_repeated_singular_values() -> None:
    x = torch.cat([torch.eye(3), -torch.eye(3)]).to(DOUBLE).unsqueeze(0)
    R = exponential(draw(1, 3))
    inputs = [x.requires_grad_(), (x @ R.mT).detach().requires_grad_()]
    assert_derivatives(lambda x, y: flat(*procrustes(x, y)), inputs)


def test_procrustes_where_the_rotation_is_free_or_mirrored() -> None:
    line = torch.linspace(-1, 1, 5, dtype=DOUBLE).unsqueeze(1) * torch.ones(1, 3, dtype=DOUBLE)
    x = line.unsqueeze(0).requires_grad_()
    R, t = procrustes(x, line.unsqueeze(0))
    torch.testing.assert_close((line @ R[0].mT + t[0]), line)
    (gradient,) = torch.autograd.grad(R.sum(), x)
    assert bool(gradient.isfinite().all())
    mirrored = draw(1, 8, 3)
    R, _ = procrustes(mirrored, mirrored * torch.tensor([1.0, 1.0, -1.0]))
    assert float(torch.linalg.det(R)) == pytest.approx(1.0)


def test_bad_elements_of_procrustes() -> None:
    x, y, w = draw(4, 5, 3), draw(4, 5, 3, seed=1), torch.ones(4, 5, dtype=DOUBLE)
    w[:, 4] = 0
    x[:, 4] = torch.nan
    good, _ = procrustes(x[:, :4], y[:, :4])
    x[1, 0, 0], w[2] = torch.inf, 0.0
    leaves = [tensor.requires_grad_() for tensor in (x, y, w)]
    R, t = procrustes(x, y, w)
    torch.testing.assert_close(R[[0, 3]], good[[0, 3]])
    assert bool(R[[1, 2]].isnan().all())
    assert bool(t[[1, 2]].isnan().all())
    for gradient in torch.autograd.grad(R.nan_to_num().sum(), leaves):
        assert bool(gradient.isfinite().all())
    with pytest.raises(ValueError, match="both the same n"):
        procrustes(x, y[:, :3])
    with pytest.raises(TypeError, match=r"source must be floating-point; got torch\.int64"):
        procrustes(torch.eye(3).long(), torch.eye(3))
    with pytest.raises(TypeError, match=r"target must be floating-point; got torch\.int32"):
        procrustes(torch.eye(3), torch.eye(3).int())


@pytest.mark.parametrize("function", [procrustes, homography])
def test_a_weight_of_zero_is_a_mask_with_gradient_zero(function: Callable[..., Any]) -> None:
    size = 3 if function is procrustes else 2
    x, y, w = draw(2, 9, size), draw(2, 9, size, seed=1), torch.ones(2, 9, dtype=DOUBLE)
    w[:, 4] = 0
    leaves = [tensor.requires_grad_() for tensor in (x, y, w)]
    found = function(*leaves)
    matrix = found[0] if function is procrustes else found
    for gradient in torch.autograd.grad(matrix.sum(), leaves):
        masked = torch.arange(9) == 4
        assert bool((gradient[:, masked] == 0).all())
        assert bool((gradient[:, ~masked] != 0).all())


@pytest.mark.parametrize("function", [homography, fundamental_matrix])
def test_derivatives_of_two_view_matrices(function: Callable[..., Any]) -> None:
    x, w = draw(2, 9, 2), 0.2 + draw(2, 9, seed=1).abs()
    y = x @ draw(2, 2, 2, seed=2) + 0.05 * draw(2, 9, 2, seed=3) + 5
    inputs = [tensor.requires_grad_() for tensor in (x, y, w)]
    assert_jacobians(lambda *at: flat(function(*at)), [value[0] for value in inputs])
    assert_derivatives(function, inputs, fast=True)


def test_homographies_and_epipolar_lines_without_noise() -> None:
    H = torch.tensor([[1.0, 0.2, 3], [-0.1, 0.9, 1], [0.01, 0.02, 1]], dtype=DOUBLE)
    x = draw(5, 7, 2)
    image = torch.cat([x, torch.ones(5, 7, 1, dtype=DOUBLE)], -1) @ H.mT
    y = image[..., :2] / image[..., 2:]
    found = homography(x, y)
    torch.testing.assert_close(found / found[:, 2:, 2:], H.expand(5, 3, 3))
    mapped = torch.func.vmap(homography)(x, y)
    torch.testing.assert_close(mapped, found)
    assert bool(homography(x[:, :3], y[:, :3]).isnan().all())  # three points leave a choice

    scene, R, t = draw(5, 12, 3), exponential(0.3 * draw(5, 3, seed=1)), draw(5, 1, 3, seed=2)
    views = [scene + torch.tensor([0.0, 0, 8]), scene @ R.mT + t + torch.tensor([0.0, 0, 8])]
    first, second = (view / view[..., 2:] for view in views)
    F = fundamental_matrix(first[..., :2], second[..., :2])
    assert float((second.unsqueeze(-2) @ F.unsqueeze(1) @ first.unsqueeze(-1)).abs().max()) < 1e-9
    assert float(torch.linalg.det(F).abs().max()) < 1e-9
    for function in (homography, fundamental_matrix):
        with pytest.raises(TypeError, match=r"second must be floating-point; got torch\.int64"):
            function(x, y.long())
    first[1, 2, 0] = torch.nan
    again = fundamental_matrix(first[..., :2], second[..., :2])
    assert again.isnan().any(-1).any(-1).tolist() == [False, True, False, False, False]
