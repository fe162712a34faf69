"""Helpers that tests of several folders share: seeded tensors, and finite differences.

Test modules import it as ``helpers``: pytest puts the folder of ``conftest.py`` on the path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import gradcheck, gradgradcheck

from ddn_cvx import Declaration, DeclarativeLayer

# Beyond so many numbers, second derivatives are compared along random directions only.
FEW = 12


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers in double precision, decided by their shape and seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tensor(*values: float) -> torch.Tensor:
    """A vector in double precision."""
    return torch.tensor(values, dtype=torch.float64)


def row(*entries: float) -> torch.Tensor:
    """A batch of one vector in double precision, shape ``(1, n)``."""
    return tensor(*entries).unsqueeze(0)


def symmetrized(layer: DeclarativeLayer) -> Callable[..., torch.Tensor]:
    """All outputs of a layer, ``(B, m)``, at the symmetric parts of its symmetric parameters.

    The entries of a symmetric parameter are not free: finite differences move one without its
    mirror.
    """
    declaration = layer.declaration
    assert isinstance(declaration, Declaration)
    symmetric = [
        parameter.ndim == 2 and parameter.is_symmetric() for parameter in declaration.parameters
    ]

    def outputs(*tensors: torch.Tensor) -> torch.Tensor:
        parts = (
            (value + value.mT) / 2 if is_symmetric else value
            for value, is_symmetric in zip(tensors, symmetric, strict=True)
        )
        return torch.cat([value.reshape(len(value), -1) for value in layer(*parts)], 1)

    return outputs


def central_difference(along: Callable[[float], Any], step: float, *, order: int = 2) -> Any:
    """The derivative at zero of a function of one number, with an error of ``step ** order``."""
    near = along(step) - along(-step)
    if order == 2:
        return near / (2 * step)
    far = along(2 * step) - along(-2 * step)
    return (8 * near - far) / (12 * step)


def assert_derivatives(
    function: Callable[..., Any],
    inputs: torch.Tensor | Sequence[torch.Tensor],
    *,
    eps: float = 1e-6,
    first: tuple[float, float] = (1e-5, 1e-3),
    second: tuple[float, float] = (1e-5, 1e-3),
    fast: bool = False,
) -> None:
    """Derivatives of both orders, in reverse and forward mode, are central differences.

    ``first`` and ``second`` are the absolute and the relative tolerance of each order. First
    derivatives are compared one by one, or with ``fast`` along random directions; second ones
    along random directions with ``fast`` or beyond ``FEW`` numbers.
    """
    leaves = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
    atol, rtol = first
    assert gradcheck(
        function, leaves, eps=eps, atol=atol, rtol=rtol, check_forward_ad=True, fast_mode=fast
    )
    many = sum(leaf.numel() for leaf in leaves if leaf.requires_grad) > FEW
    atol, rtol = second
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # gradgradcheck draws the incoming gradients
        assert gradgradcheck(
            function, leaves, eps=eps, atol=atol, rtol=rtol, fast_mode=fast or many
        )


def assert_jacobians(
    function: Callable[..., torch.Tensor],
    inputs: Sequence[torch.Tensor],
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
) -> None:
    """First derivatives of ``(B, *shape) each -> (B, m)``, entry by entry, are central differences.

    ``inputs`` are one element, each of shape ``(*shape,)``. All its moves are one batch, and so are
    the incoming gradients of reverse mode and the tangents of forward mode.
    """
    point = [value.detach() for value in inputs]
    sizes = [value.numel() for value in point]
    moves = torch.eye(sum(sizes), dtype=torch.float64)  # (n, n)

    def moved(step: torch.Tensor) -> list[torch.Tensor]:  # (B, n) -> (B, *shape) each
        parts = step.split(sizes, 1)
        return [
            value + part.reshape(-1, *value.shape) for value, part in zip(point, parts, strict=True)
        ]

    with torch.no_grad():
        numeric = central_difference(lambda h: function(*moved(h * moves)), eps).mT  # (m, n)
    m, n = numeric.shape
    leaves = [leaf.requires_grad_() for leaf in moved(moves.new_zeros(m, n))]
    rows = torch.autograd.grad(function(*leaves), leaves, torch.eye(m, dtype=torch.float64))
    reverse = torch.cat([part.reshape(m, -1) for part in rows], 1)
    at, tangents = moved(torch.zeros_like(moves)), moved(moves)
    tangents = [tangent - value for tangent, value in zip(tangents, point, strict=True)]
    forward = torch.func.jvp(function, tuple(at), tuple(tangents))[1].mT
    for found in (reverse, forward):
        torch.testing.assert_close(found, numeric, atol=atol, rtol=rtol)
