"""The accelerator of ``device.cpp`` as torch's device ``emulated``.

Built on first use, once for each version of its source and of torch, into pytest's cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import rename_privateuse1_backend

NAME = "emulated"
SOURCE = Path(__file__).with_name("device.cpp")


def why_not() -> str | None:
    """The reason for which the device cannot be built here, if there is one."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        return "the emulated device needs a C++ compiler"
    if shutil.which("ninja", path=_path()) is None:
        return "the emulated device needs ninja, of the extra `test`"
    return None


def load(cache: Path) -> torch.device:
    """The device; its library is in ``cache``, or is built there by one of those that ask."""
    if hasattr(torch, NAME):
        return torch.device(NAME, 0)
    key = hashlib.sha256(SOURCE.read_bytes() + f"{torch.__version__} {sys.version}".encode())
    folder = cache / key.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "emulated_device.so"
    with (folder / "held").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # ends with its process, however that ends
        if library.exists():
            torch.ops.load_library(library)
        else:
            _build(library)
    rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _module())
    return torch.device(NAME, 0)


def take_reads() -> list[str]:
    """The operators since the last call for which the host waited, in their order."""
    names: list[str] = torch.ops.emulated_device.take_reads()
    return names


def reads_of(work: Callable[[], object]) -> list[str]:
    """Where the host reads numbers of the device; but for error codes of torch's factorisations."""
    take_reads()
    places = _Places()
    with places:
        work()
    return places.seen


class _Places(TorchDispatchMode):
    """Which line of the package waits."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        outcome = function(*arguments, **(options or {}))
        self.seen += [_place(name) for name in take_reads() if "linalg" not in name]
        return outcome


def _place(name: str) -> str:
    frame = sys._getframe(2)
    while frame.f_back is not None and "ddn_cvx" not in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{name} in {frame.f_code.co_filename}, line {frame.f_lineno}"


def _path() -> str:
    """Where programs are, those of this environment first, be it active or not."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def _build(library: Path) -> None:
    """The library appears whole or not at all.

    Each build has a folder of its own: a builder that is killed leaves a half-written library, its
    linker, which may still run, and torch's lock file, for which ``cpp_extension`` waits forever.
    """
    from torch.utils import cpp_extension

    before = os.environ.get("PATH", "")
    os.environ["PATH"] = _path()
    try:
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            cpp_extension.load(
                library.stem,
                [str(SOURCE)],
                build_directory=folder,
                extra_cflags=["-O1"],
                is_python_module=False,
            )
            (Path(folder) / library.name).replace(library)
    finally:
        os.environ["PATH"] = before


def _module() -> ModuleType:
    """``torch.emulated``, as torch asks for it."""
    module: Any = ModuleType(f"torch.{NAME}")
    module.is_available = module.is_initialized = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.device = lambda index: contextlib.nullcontext()
    module.synchronize = lambda *device: None
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = lambda seed: None  # the host's generator is the device's
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    return module  # type: ignore[no-any-return]
