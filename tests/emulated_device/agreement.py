"""The same work on the host and on the emulated device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch

# The device runs the host's kernels, but the library's other ways (no chunks, no questions asked).
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-6}


def assert_same(found: torch.Tensor, expected: torch.Tensor, device: torch.device) -> None:
    """``found`` is on the device, and equal to ``expected`` on the host to rounding."""
    assert found.device == device
    tolerance = _ROUNDING.get(expected.dtype, 0.0)
    torch.testing.assert_close(
        found.cpu(), expected, rtol=tolerance, atol=tolerance, equal_nan=True
    )


def outcome(
    work: Callable[..., object], tensors: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Values of ``work``, and gradients of a fixed linear function of them."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    returned = work(*leaves)
    values = [returned] if isinstance(returned, torch.Tensor) else list(returned)  # type: ignore[call-overload]
    generator = torch.Generator().manual_seed(0)
    incoming = [
        torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        for value in values
    ]
    asked = [*leaves, *parameters]
    gradients = torch.autograd.grad(values, asked, incoming, allow_unused=True)
    kept = [
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(asked, gradients, strict=True)
    ]
    return [value.detach() for value in values], kept


def assert_agrees(
    module: torch.nn.Module, tensors: Sequence[torch.Tensor], device: torch.device
) -> None:
    """Values and gradients on the device are the host's, in its dtypes."""
    there = copy.deepcopy(module).to(device)
    expected = outcome(module, tensors, list(module.parameters()))
    found = outcome(there, [tensor.to(device) for tensor in tensors], list(there.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other, device)
