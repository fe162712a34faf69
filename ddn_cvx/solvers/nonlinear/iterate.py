"""What an iterative solver returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Iterate:
    """Where a batched solver stopped.

    Attributes:
        point: ``u``, shape ``(B, n)``.
        dual: multipliers ``y`` in the program's rows, shape ``(B, m)``.
        status: what the solver thinks (:class:`~ddn_cvx.Status`), int64, shape ``(B,)``; whoever
            called it checks.
        iterations: int64, shape ``(B,)``.
        evaluation: what ``BoundProgram.second`` says at ``point`` and ``dual``, where the solver
            knows it already.
    """

    point: torch.Tensor
    dual: torch.Tensor
    status: torch.Tensor
    iterations: torch.Tensor
    evaluation: tuple[torch.Tensor, ...] | None = None
