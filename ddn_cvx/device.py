"""Constant arrays as tensors, copied to each device once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


class OnDevice:
    """Numpy arrays that become tensors on the device that asks, and stay there.

    Args:
        *arrays: the constants; a pickle holds them once, without the copies.
    """

    def __init__(self, *arrays: np.ndarray) -> None:
        self.arrays = arrays
        self._copies: dict[torch.device, tuple[torch.Tensor, ...]] = {}

    def __call__(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """One tensor for each array, on ``device``."""
        if device not in self._copies:
            # Made in inference mode, they could never be used by autograd again; made inside a
            # transform of torch.func, never outside of it.
            with torch.inference_mode(False), torch._C._DisableFuncTorch():
                copies = tuple(torch.from_numpy(array).to(device) for array in self.arrays)
            self._copies[device] = copies
        return self._copies[device]

    def __getstate__(self) -> dict[str, Any]:
        return {"arrays": self.arrays, "_copies": {}}
