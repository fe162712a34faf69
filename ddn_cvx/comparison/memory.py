"""Peak memory of one call."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

_STATM = Path("/proc/self/statm")  # Linux: its second number counts resident pages
# Seconds between two readings of the resident size: a pass of a layer takes milliseconds.
_SAMPLING_SECONDS = 5e-4


@dataclass
class Peak:
    """Bytes above those held before the call; filled in when the call has ended."""

    bytes: int = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the peak within the ``with``.

    On CUDA the allocator's own peak; on Linux the growth of the resident size, read by a thread;
    elsewhere the growth of the process's peak resident size, which misses memory that earlier
    calls needed already. Resident sizes come in pages and count memory that is kept for reuse:
    they are orders of magnitude.
    """
    peak = Peak()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
    elif _STATM.exists():
        _return_free_memory()
        with _sampled(peak):
            yield peak
    else:
        before = _process_peak()
        yield peak
        peak.bytes = _process_peak() - before


@contextmanager
def _sampled(peak: Peak) -> Iterator[None]:
    before = _resident()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_SAMPLING_SECONDS):
            peak.bytes = max(peak.bytes, _resident() - before)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        peak.bytes = max(peak.bytes, _resident() - before)


def _resident() -> int:
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _process_peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _return_free_memory() -> None:
    """Freed memory that the C library keeps would hide the next call's growth."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)
