"""Versions, device and threads of a comparison."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import torch

_PACKAGES = (
    *("ddn-cvx", "torch", "cvxpy", "cvxpylayers"),
    *("diffcp", "scs", "clarabel", "moreau", "numpy"),
)


def environment(device: torch.device) -> dict[str, str]:
    """Names and values for the record."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    found["platform"] = f"{platform.system()} {platform.machine()}"
    found["processors"] = str(os.cpu_count())
    found["threads"] = str(torch.get_num_threads())
    found["device"] = device.type
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
    return found
