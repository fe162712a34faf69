"""Peak memory of one call."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch

_STATM = Path("/proc/self/statm")  # Linux: its second number counts resident pages
# Seconds between two readings of the resident size: a pass of a layer takes milliseconds.
_SAMPLING_SECONDS = 5e-4


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Largest number of bytes that a call held above those held before it.

    On CUDA the allocator's own peak; on Linux the growth of the resident size, read by a thread;
    elsewhere the growth of the process's peak resident size, which misses memory that earlier
    calls needed already. Resident sizes come in pages and count memory that is kept for reuse:
    they are orders of magnitude.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # Freed memory that the C library keeps would hide the growth; only glibc gives it back.
    getattr(ctypes.CDLL(None), "malloc_trim", lambda kept: None)(0)
    before = peak = _resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(_SAMPLING_SECONDS):
            peak = max(peak, _resident())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        call()
    finally:
        done.set()
        thread.join()
    return max(peak, _resident()) - before


def _resident() -> int:
    """Resident size of the process in bytes; where the system does not tell, its peak so far."""
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
