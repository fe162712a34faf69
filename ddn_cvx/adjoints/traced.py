"""Derivatives by autograd of how the solution was computed, instead of what it satisfies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Traced:
    """A solve that autograd follows; its point is checked, but left as it is.

    Attributes:
        name: under which users ask for it: "unrolled", or a dedicated solver's "native".
        solve: maps an instance and a start, shape ``(B, n)``, to ``u`` and ``y``, shapes ``(B, n)``
            and ``(B, m)``.
    """

    name: str
    solve: Callable[[Any, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
