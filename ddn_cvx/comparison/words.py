"""Numbers and names as people read them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from ddn_cvx.comparison.result import Row

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


def error(value: float | None) -> str:
    """``3e-12``; ``-`` where there is none."""
    if value is None:
        return "-"
    return "0" if value == 0 else f"{value:.0e}"


def ratio(value: float | None) -> str:
    """``0.04``, ``1.0``, ``14``."""
    if value is None:
        return "-"
    if value < 0.095:
        return f"{value:.2f}"
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def span(values: Sequence[float]) -> str:
    """Ratios from the least to the largest: ``5.0 to 22``; ``5.0`` where both read the same."""
    low, high = ratio(min(values)), ratio(max(values))
    return low if low == high else f"{low} to {high}"


def size(count: int | None) -> str:
    """``3.1 MB``."""
    if count is None:
        return "-"
    value = float(max(count, 0))
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def seconds(value: float | None) -> str:
    """``4.2 ms``."""
    if value is None:
        return "-"
    return f"{value:.1f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def grouped(pairs: Iterable[tuple[Key, Value]]) -> dict[Key, list[Value]]:
    """The values of each key, both in the order of the pairs."""
    groups: dict[Key, list[Value]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def labels(rows: Sequence[Row]) -> str:
    """Rows by solver: ``SCS lsqr/lsmr and MOREAU kkt``."""
    adjoints = grouped((row.solver, row.adjoint) for row in rows)
    return listed([f"{solver} {'/'.join(names)}" for solver, names in adjoints.items()])


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def first_line(text: str) -> str:
    """The first line of a message."""
    return text.strip().partition("\n")[0]


def failure(error: Exception) -> str:
    """``ValueError: no``; the error's type alone for an empty message."""
    line = first_line(str(error))
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
