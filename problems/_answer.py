"""Functions of one answer in the form that a declaration takes them."""

from collections.abc import Callable

import torch


def answer(
    function: Callable[..., torch.Tensor], *inputs: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """A tuple of ``function``'s one answer; bound with ``functools.partial``, it can be pickled."""
    return (function(*inputs),)
