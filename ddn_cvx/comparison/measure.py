"""Forward and backward pass of a layer: values, gradients, times, memory."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ddn_cvx.comparison.result import Spread

Tensors = tuple[torch.Tensor, ...]
Layer = Callable[..., Tensors]

_STATM = Path("/proc/self/statm")  # Linux: its second number counts resident pages
# Seconds between two readings of the resident size: a pass of a layer takes milliseconds.
_SAMPLING_SECONDS = 5e-4


class Pass(NamedTuple):
    """One pass of a layer over a batch.

    Attributes:
        values: the layer's answers, detached.
        gradients: one for each input.
        forward, backward: seconds.
    """

    values: Tensors
    gradients: Tensors
    forward: float
    backward: float


def one_pass(layer: Layer, inputs: Tensors, incoming: Tensors) -> Pass:
    """Solve, and pull back a gradient.

    Args:
        inputs: ``(B, *parameter.shape)`` for each parameter.
        incoming: ``v``, ``(B, *variable.shape)`` for each of the first variables.
    """
    device = incoming[0].device
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    start = _now(device)
    values = layer(*leaves)
    middle = _now(device)
    gradients: Tensors = ()
    if leaves:
        asked = values[: len(incoming)]
        gradients = torch.autograd.grad(
            asked, leaves, incoming, allow_unused=True, materialize_grads=True
        )
    end = _now(device)
    return Pass(tuple(value.detach() for value in values), gradients, middle - start, end - middle)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def spread(seconds: Sequence[float]) -> Spread:
    """Median and quartiles."""
    values = torch.tensor(seconds, dtype=torch.float64)
    low, median, high = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    return Spread(float(median), float(low), float(high))


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
