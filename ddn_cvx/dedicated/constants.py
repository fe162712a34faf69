"""What a dedicated solver finds without derivatives, under ``vmap`` and ``torch.compile`` too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch.autograd import forward_ad

from ddn_cvx.batch.inputs import fold_mapped, unfold_mapped

# Numbers that are worked on at a time, so that what an iteration touches stays in the cache.
_PART = 1 << 17

P = ParamSpec("P")
R = TypeVar("R")


def eager(function: Callable[P, R]) -> Callable[P, R]:
    """``torch.compile`` breaks its graph at ``function``, whose loops run until they converge."""

    @functools.wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            found: R = torch.compiler.disable(function)(*args, **options)
            return found
        return function(*args, **options)

    return run


def in_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Autocast, of the device of the first tensor, is off in ``function``."""

    @functools.wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> R:
        given = (*args, *options.values())
        kinds = [value.device.type for value in given if isinstance(value, torch.Tensor)]
        if not kinds or not torch.is_autocast_enabled(kinds[0]):
            return function(*args, **options)
        with torch.autocast(kinds[0], enabled=False):
            return function(*args, **options)

    return run


def table(function: Callable[P, R]) -> Callable[P, R]:
    """Tensors that do not depend on data: ``function`` is called once for each of its arguments.

    It makes them on the CPU, and moves them; wherever the first call stands, they are as good as
    any others. Those that are made in inference mode could never be used to train.
    """

    @functools.wraps(function)
    def made(*args: P.args, **options: P.kwargs) -> R:
        with torch.inference_mode(False), torch.device("cpu"):
            return function(*args, **options)

    return cast("Callable[P, R]", functools.cache(made))


def is_plain() -> bool:
    """No ``torch.func`` transform and no forward mode is active."""
    return not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0


def constant(find: Callable[..., Any], *tensors: torch.Tensor, in_parts: bool = True) -> Any:
    """``find(*tensors)``, of which nothing is differentiated, also under ``vmap``.

    Which entries are active, tied or fused does not change in a neighbourhood of a regular point;
    given that, a projection is a formula, which autograd differentiates to any order.

    Args:
        find: takes tensors ``(R, ...)`` to a tensor ``(R, ...)``, or to a tuple of them; rows must
            not matter to one another.
        tensors: with the same number of rows.
        in_parts: call it on so many rows at a time as the processor's cache holds.
    """
    detached = tuple(tensor.detach() for tensor in tensors)
    found = _Constant.apply(find, in_parts, *detached)  # type: ignore[no-untyped-call]
    return found[0] if len(found) == 1 else found


class _Constant(torch.autograd.Function):
    """Runs without derivatives; a mapped dimension becomes rows."""

    @staticmethod
    def forward(
        find: Callable[..., Any], in_parts: bool, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        rows, n = len(tensors[0]), max(1, tensors[0][0].numel() if len(tensors[0]) else 1)
        size = max(1, _PART // n)
        if not in_parts or rows <= size or tensors[0].device.type != "cpu":
            return _as_tuple(find(*tensors))
        parts = [
            _as_tuple(find(*(tensor[start : start + size] for tensor in tensors)))
            for start in range(0, rows, size)
        ]
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, find: Any, in_parts: bool, *tensors: Any) -> Any:
        folded = fold_mapped(info.batch_size, in_dims[2:], tensors)
        found = _Constant.apply(find, in_parts, *folded)  # type: ignore[no-untyped-call]
        return unfold_mapped(info.batch_size, found)


def _as_tuple(found: Any) -> tuple[torch.Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)
