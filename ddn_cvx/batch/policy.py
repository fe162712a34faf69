"""The one failure policy: what is done about elements without a solution or a derivative."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

POLICIES = ("raise", "nan", "warn")


def enforce(
    failed: torch.Tensor,
    on_failure: str,
    error: Callable[[], Exception],
    warning: Callable[[], Warning],
) -> bool:
    """Raise or warn as the user asked; NaN in the place of failed elements is the caller's.

    Args:
        failed: which elements, bool, shape ``(B,)``.
        on_failure: one of :data:`POLICIES`; "nan" does not even look.
        error, warning: make what is raised or warned, where any element failed.

    Returns:
        Whether any element failed, as far as the policy looked.
    """
    if on_failure == "nan" or not bool(failed.any()):
        return False
    if on_failure == "raise":
        raise error()
    warnings.warn(warning(), stacklevel=3)
    return True
