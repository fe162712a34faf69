"""Variables read from the primal or dual vector of a program."""

import numpy as np
import torch
from helpers import draw

from ddn_cvx.linalg.triangle import scaled_triangle
from ddn_cvx.programs.recovery import Recovery

VECTOR = torch.arange(12.0, dtype=torch.float64).reshape(2, 6)


def test_entries_in_order_are_a_copy_of_their_columns() -> None:
    value = Recovery.in_order("dual", 1, (2, 2))(torch.zeros(2, 0), VECTOR)
    assert torch.equal(value, VECTOR[:, 1:5].reshape(2, 2, 2))
    value += 1  # the vector is saved for the backward pass
    assert torch.equal(VECTOR, torch.arange(12.0, dtype=torch.float64).reshape(2, 6))


def test_structural_zeros_take_no_gradient_even_an_infinite_one() -> None:
    vector = VECTOR.clone().add(1).requires_grad_()
    diagonal = Recovery.of_variable(4, np.array([0, -1, -1, 1]), (2, 2))
    value = diagonal(vector, vector)
    assert torch.equal(value, torch.diag_embed(vector[:, 4:]))
    (gradient,) = torch.autograd.grad(value.sqrt().sum(), vector)
    expected = torch.zeros_like(vector)
    expected[:, 4:] = 0.5 / vector[:, 4:].sqrt()
    assert torch.equal(gradient, expected)


def test_a_failed_element_stays_apart() -> None:
    vector = torch.stack([VECTOR[0], torch.full((6,), torch.nan, dtype=torch.float64)])
    value = Recovery.of_variable(0, np.array([1, 0, 2]), (3,), exponential=True)(vector, vector)
    assert torch.equal(value[0], vector[0, [1, 0, 2]].exp())
    assert value[1].isnan().all()


def test_a_scaled_triangle_keeps_inner_products() -> None:
    X = draw(3, 3)
    X = X + X.mT
    index, scale = (torch.from_numpy(array) for array in scaled_triangle(3))
    vector = torch.zeros(6, dtype=torch.float64).index_add(0, index, scale * X.reshape(-1))
    assert torch.allclose((scale * vector[index]).reshape(3, 3), X, rtol=1e-15)
    assert torch.allclose(vector @ vector, (X * X).sum(), rtol=1e-14)
