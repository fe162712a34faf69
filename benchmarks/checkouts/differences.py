"""Differences between the records of two checkouts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

# Numbers of one element that are all below this are measured against it: they are sums of numbers
# of size one that cancel, and differ by rounding.
_FLOOR = 1e-6
# Measures of quality, which are relative already, are compared as they are.
_QUALITIES = (
    "residual",
    "stationarity",
    "complementarity",
    "violation",
    "certificate residual",
    "runner_up",
)


@dataclass(frozen=True)
class Difference:
    """One kind of one case.

    Attributes:
        case: the problem and the pair of solver and adjoint.
        mark: the batch, "bad", "warm", ...
        kind: "primal", "gradient", ...
        size: the largest relative difference over the elements; infinity where something that is
            not a floating-point number differs, or where only one of the two is a number.
        text: for people.
    """

    case: str
    mark: str
    kind: str
    size: float
    text: str = ""

    @property
    def problem(self) -> str:
        """The problem alone."""
        return self.case.split(" | ")[0]


def differences(first: dict[str, Any], second: dict[str, Any]) -> Iterator[Difference]:
    """All kinds of all cases, differing or not, in the order of the first."""
    for case in [*first, *(name for name in second if name not in first)]:
        if case not in first or case not in second:
            yield Difference(case, "", "case", math.inf, f"only in the {_side(case in first)}")
            continue
        one, other = first[case], second[case]
        for name in [*one, *(name for name in other if name not in one)]:
            mark, _, kind = name.rpartition(" | ")
            if name not in one or name not in other:
                text = f"only in the {_side(name in one)}"
                yield Difference(case, mark, kind, math.inf, text)
            else:
                size, text = _compared(one[name], other[name], kind)
                yield Difference(case, mark, kind, size, text)


def _side(is_first: bool) -> str:
    return "first" if is_first else "second"


def _compared(first: Any, second: Any, kind: str) -> tuple[float, str]:
    """Relative difference, and a text where it is no number."""
    tensors = _are_tensors(first) and _are_tensors(second)
    if not tensors:
        return (0.0, "") if _plain(first) == _plain(second) else (math.inf, _told(first, second))
    shapes = [tuple(part.shape) for part in first], [tuple(part.shape) for part in second]
    kinds = [part.dtype for part in first], [part.dtype for part in second]
    if shapes[0] != shapes[1] or kinds[0] != kinds[1]:
        return math.inf, f"shapes or dtypes {first} and {second}"[:200]
    if not first:
        return 0.0, ""
    one, other = _by_element(first), _by_element(second)
    if not all(part.dtype.is_floating_point for part in first):
        differing = (one != other).any(1).nonzero()[:, 0].tolist()
        if not differing:
            return 0.0, ""
        worst = differing[0]
        shown = f"element {worst}: {one[worst].tolist()[:4]} and {other[worst].tolist()[:4]}"
        return math.inf, f"{len(differing)} of {len(one)} elements, {shown}"
    unequal = (one != other) & ~(one.isnan() & other.isnan())
    gap = torch.where(unequal, (one - other).abs(), 0.0).nan_to_num(math.inf, math.inf)
    sizes = torch.maximum(one.abs(), other.abs())
    size = torch.where(sizes.isfinite(), sizes, 0.0).amax(1).clamp_min(_FLOOR)
    if kind in _QUALITIES:
        size = size.clamp_min(1.0)
    relative = gap.amax(1) / size if gap.shape[1] else torch.zeros(len(gap))
    if not len(relative):
        return 0.0, ""
    worst = int(relative.argmax())
    return float(relative[worst]), f"element {worst} of {len(relative)}"


def _by_element(tensors: list[torch.Tensor]) -> torch.Tensor:
    """All numbers of an element side by side, shape ``(B, k)``."""
    batch = len(tensors[0]) if tensors[0].ndim else 1
    parts = []
    for tensor in tensors:
        shared = tensor.ndim > 0 and len(tensor) == batch
        parts.append(
            tensor.reshape(batch, -1) if shared else tensor.reshape(1, -1).expand(batch, -1)
        )
    return torch.cat([part.double() if part.is_floating_point() else part for part in parts], 1)


def _are_tensors(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, torch.Tensor) for part in value)


def _plain(value: Any) -> Any:
    return "tensors" if _are_tensors(value) and value else value


def _told(first: Any, second: Any) -> str:
    """Both, and of lists only the entries that one of them has."""
    if isinstance(first, list) and isinstance(second, list):
        lost = [part for part in first if part not in second]
        won = [part for part in second if part not in first]
        if lost or won:
            return f"only in the first {lost}, only in the second {won}"[:400]
    return f"{str(_plain(first))[:200]} and {str(_plain(second))[:200]}"
