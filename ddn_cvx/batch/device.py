"""Constants cached on each device, and work without host-device synchronisation.

The host waits for a device whenever it reads a number there: constants are copied once, and work
that a mask limits is done without reading whether the mask is empty.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def perhaps_any(mask: torch.Tensor) -> bool:
    """Whether any element may be set: for work that the mask limits, and that may be left out.

    On the host it is known at no cost; elsewhere the work costs less than the answer.
    """
    return mask.device.type != "cpu" or bool(mask.any())


def read(*numbers: torch.Tensor) -> list[int]:
    """Several integers or truth values, of no dimension, in one visit to the device."""
    if len(numbers) == 1:
        return [int(numbers[0])]
    whole: list[int] = torch.stack([number.to(torch.int64) for number in numbers]).tolist()
    return whole


def places_of(mask: torch.Tensor, count: int) -> torch.Tensor:
    """Where the elements of ``(B,)`` are set, of which the number is known, shape ``(count,)``."""
    places: torch.Tensor = mask.logical_not().to(torch.uint8).argsort(stable=True)[:count]
    return places


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
