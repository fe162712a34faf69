"""Positive data of modules, learnt or not."""

from __future__ import annotations

import torch


def keep_logarithm(
    module: torch.nn.Module, name: str, value: torch.Tensor, learnable: bool
) -> None:
    """Keep a positive ``value`` as ``log_<name>``, a parameter or a buffer of the module.

    Of the logarithm any value is allowed: gradient steps keep the value positive.
    """
    if learnable:
        module.register_parameter(f"log_{name}", torch.nn.Parameter(value.log()))
    else:
        module.register_buffer(f"log_{name}", value.log())


def shown_learnable(module: torch.nn.Module, name: str) -> str:
    """What ``repr`` adds where the value is a parameter."""
    return ", learnable=True" if f"log_{name}" in module._parameters else ""
