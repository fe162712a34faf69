"""The fixture ``device``; test modules of this folder name this file in ``pytest_plugins``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import emulated
import pytest
import torch


@pytest.fixture(scope="session")
def _loaded(pytestconfig: pytest.Config) -> torch.device:
    reason = emulated.why_not()
    if reason is not None:
        pytest.skip(reason)
    cache = pytestconfig.cache
    folder = Path(tempfile.gettempdir()) if cache is None else cache.mkdir("emulated_device")
    return emulated.load(folder)


@pytest.fixture
def device(_loaded: torch.device) -> Iterator[torch.device]:
    """The emulated accelerator, with nothing read from it yet."""
    emulated.take_reads()
    # Autograd starts one thread for each device at its first backward pass in the process, which
    # may have been before this device was there: its backward passes stay in the caller's thread.
    with torch.autograd.set_multithreading_enabled(False):
        yield _loaded
