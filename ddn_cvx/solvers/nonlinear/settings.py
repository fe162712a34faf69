"""Names and settings of the solvers of nonlinear programs."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from ddn_cvx.errors import DeclarationError

TORCH, UNO, IPOPT, DEDICATED = "TORCH", "UNO", "IPOPT", "DEDICATED"
# Solvers that cvxpy reaches, one problem at a time.
EXTERNAL = (UNO, IPOPT)


@dataclass(frozen=True)
class Settings:
    """Settings of the nonlinear path; the names are those of ``solver_args``.

    Attributes:
        solver: "TORCH", batched; or "UNO" or "IPOPT", through cvxpy, one element at a time.
        method: None chooses; "interior point", "newton", "levenberg marquardt" or "newton cg".
        max_iterations: of the batched solver; None for the method's own limit.
        tolerance: of the batched solver's optimality error; None for the method's own.
        starts: number of starts for each element; the lowest solution is kept.
        seed: of the starts after the first.
        fallback: None, "UNO" or "IPOPT": who retries elements that the batched solver could not
            solve.
    """

    solver: str = TORCH
    method: str | None = None
    max_iterations: int | None = None
    tolerance: float | None = None
    starts: int = 1
    seed: int = 0
    fallback: str | None = None

    def __post_init__(self) -> None:
        if self.starts < 1:
            raise DeclarationError(f"starts must be at least 1; got {self.starts!r}.")
        if self.fallback not in (None, *EXTERNAL):
            raise DeclarationError(
                f"fallback must be one of {', '.join(map(repr, EXTERNAL))}, or None; "
                f"got {self.fallback!r}."
            )


def settings_from(base: Settings, changes: dict[str, Any]) -> Settings:
    """``base`` with ``solver_args`` over it.

    Raises:
        DeclarationError: an unknown name; the message lists the known ones.
    """
    known = {field.name for field in fields(Settings)} - {"solver"}
    unknown = changes.keys() - known
    if unknown:
        raise DeclarationError(
            f"Unknown settings {', '.join(sorted(map(repr, unknown)))} for the solver "
            f"{base.solver!r}; known are {', '.join(sorted(known))}."
        )
    return replace(base, **changes) if changes else base


def installed_nonlinear_solvers() -> tuple[str, ...]:
    """Names of the external solvers that can be used here."""
    import cvxpy as cp

    installed = cp.installed_solvers()
    return tuple(name for name in EXTERNAL if name in installed)
