"""Positive data of modules, learnable or not."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_logarithm(module: torch.nn.Module, name: str, value: Tensor, learnable: bool) -> None:
    """Register the logarithm of a positive ``value`` as ``log_<name>``, a parameter or a buffer.

    Gradient steps on the logarithm keep the value positive.
    """
    if learnable:
        module.register_parameter(f"log_{name}", torch.nn.Parameter(value.log()))
    else:
        module.register_buffer(f"log_{name}", value.log())


def shown(module: torch.nn.Module, name: str) -> str:
    """The part of a module's ``repr`` for the positive datum ``name``."""
    value = getattr(module, name).detach()
    number = f"{float(value):.4g}" if value.ndim == 0 else f"<{len(value)} channels>"
    learnable = ", learnable=True" if f"log_{name}" in module._parameters else ""
    return f"{name}={number}{learnable}"
