"""Exact Euclidean projections in torch, batched over the leading dimensions.

Each takes tensors of shape ``(..., n)`` (a radius: ``(...)``), follows their dtype and device, and
returns a tuple of one tensor ``(..., n)``. Each is right on the set, at its corners and at ties;
where the projection has a kink, autograd gives the derivative of one of its sides.
"""

import torch

Projection = tuple[torch.Tensor]


def orthant(x: torch.Tensor) -> Projection:
    """Onto ``{u : u >= 0}``."""
    return (torch.relu(x),)


def box(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> Projection:
    """Onto ``{u : lower <= u <= upper}``."""
    return (torch.clamp(x, min=lower, max=upper),)


def linf_ball(x: torch.Tensor, radius: torch.Tensor) -> Projection:
    """Onto ``{u : max |u_i| <= radius}``."""
    bound = radius.unsqueeze(-1).expand_as(x)
    return box(x, -bound, bound)


def l2_ball(x: torch.Tensor, radius: torch.Tensor) -> Projection:
    """Onto ``{u : |u| <= radius}``."""
    radius = radius.unsqueeze(-1)
    outside = torch.linalg.vector_norm(x.detach(), dim=-1, keepdim=True) > radius
    # The norm has no derivative at zero; inside the ball it is taken of a constant instead.
    norm = torch.linalg.vector_norm(torch.where(outside, x, 1.0), dim=-1, keepdim=True)
    return (torch.where(outside, x * (radius / norm), x),)


def simplex(x: torch.Tensor, radius: torch.Tensor) -> Projection:
    """Onto ``{u : u >= 0, sum(u) = radius}``, by sorting."""
    return (_onto_simplex(x, radius.unsqueeze(-1)),)


def l1_ball(x: torch.Tensor, radius: torch.Tensor) -> Projection:
    """Onto ``{u : sum |u_i| <= radius}``: outside, the magnitudes go onto the simplex."""
    radius = radius.unsqueeze(-1)
    outside = x.detach().abs().sum(dim=-1, keepdim=True) > radius
    return (torch.where(outside, x.sign() * _onto_simplex(x.abs(), radius), x),)


def _onto_simplex(x: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """``max(x - threshold, 0)``, with the threshold at which it sums to ``radius`` ``(..., 1)``.

    Held, Wolfe and Crowder (1974): the positive entries are the largest ones, and the k-th largest
    is positive if and only if ``(x_(1) - x_(k)) + ... + (x_(k) - x_(k)) < radius``.
    """
    # Measured from the largest entry, so that a large common shift of x costs no digits.
    largest_first = x.detach().sort(dim=-1, descending=True).values
    x = x - largest_first[..., :1]
    largest_first = largest_first - largest_first[..., :1]
    rank = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    positive = largest_first.cumsum(dim=-1) - rank * largest_first < radius.detach()
    # With radius zero none is positive; then the largest entry sets the threshold.
    last = positive.sum(dim=-1, keepdim=True).clamp(min=1) - 1
    active = x.detach() >= largest_first.gather(-1, last)
    threshold = ((x * active).sum(dim=-1, keepdim=True) - radius) / active.sum(-1, keepdim=True)
    return torch.relu(x - threshold)


def sphere(x: torch.Tensor) -> tuple[torch.Tensor]:
    """``x / |x|``."""
    return (x / x.norm(dim=-1, keepdim=True),)
