"""Draws shared by the examples: float64, on the CPU, from the given generator.

Where a problem has inequalities, its example draws the answer and the multipliers first, strictly
complementary, and then the data for which they are optimal. So the derivative exists and no
constraint is nearly active.
"""

import torch

Tensors = tuple[torch.Tensor, ...]


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Standard normal draws."""
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def uniform(
    generator: torch.Generator, *shape: int, low: float = 0.5, high: float = 1.5
) -> torch.Tensor:
    """Uniform draws from ``[low, high)``; by default positive and of order one."""
    return low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=generator)


def signs(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Draws from {-1, +1}."""
    return 1.0 - 2.0 * torch.randint(2, shape, generator=generator).to(torch.float64)


def subset(generator: torch.Generator, batch: int, size: int, chosen: int) -> torch.Tensor:
    """Boolean ``(batch, size)``; each row marks ``chosen`` entries, drawn row by row."""
    rank = torch.rand((batch, size), generator=generator).argsort(dim=1).argsort(dim=1)
    return rank < chosen


def alternating(batch: int, even: float, odd: float) -> torch.Tensor:
    """``(batch,)``: ``even`` for the elements 0, 2, ... and ``odd`` for the elements 1, 3, ..."""
    return torch.tensor([even, odd], dtype=torch.float64)[torch.arange(batch) % 2]


def times(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Matrix-vector products: ``(B, m, n)`` and ``(B, n)`` to ``(B, m)``."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
