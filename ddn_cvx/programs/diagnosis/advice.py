"""Reasons and rewrites, and the place in the problem that they are about."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ddn_cvx.programs.diagnosis.wording import brief, joined, options

if TYPE_CHECKING:
    import cvxpy as cp


class Advice(NamedTuple):
    """One sentence with the reason, and a rewrite: a sentence, then lines of code."""

    why: str
    rewrite: str


@dataclass(frozen=True)
class Place:
    """The objective of a problem, or one of its constraints.

    Attributes:
        problem: the user's problem.
        number: the constraint's position, counted from 0; None for the objective.
    """

    problem: cp.Problem
    number: int | None

    @property
    def part(self) -> Any:
        """The objective or the constraint."""
        return (
            self.problem.objective if self.number is None else self.problem.constraints[self.number]
        )

    @property
    def maximises(self) -> bool:
        """The place is an objective to be maximised."""
        return type(self.part).__name__ == "Maximize"

    def fresh(self, *words: str) -> str:
        """A Python name for something new that no variable or parameter has yet."""
        taken = {leaf.name() for leaf in (*self.problem.variables(), *self.problem.parameters())}
        name = re.sub(r"^(?=\d)|\W+", "_", "_".join(words))
        while name in taken:
            name += "_new"
        return name


def new_parameter(place: Place, expression: Any, attribute: str = "") -> str:
    """Advice to compute an expression of parameters in torch."""
    text, leaves = brief(expression), expression.parameters()
    name = place.fresh(*(leaf.name() for leaf in leaves[:2]), "value")
    for known in ("nonneg", "PSD", "NSD"):
        if not attribute and getattr(expression, f"is_{known.lower()}")():
            attribute = f"{known}=True"
    return (
        f"Make it a parameter of its own, computed in torch from {joined(leaves)}; gradients flow "
        "through it as usual:\n"
        f"    {name} = cp.Parameter({options(expression.shape, attribute)})"
        f"    # in place of {text}\n"
        f"    layer(..., {name}_tensor)    # {name}_tensor = {text}, in torch"
    )


def new_variable(place: Place, expression: Any) -> str:
    """Advice to give an affine expression of variables and parameters a variable of its own."""
    name = place.fresh("z")
    return (
        "Give the parametrised part a variable of its own, tied by an equality:\n"
        f"    {name} = cp.Variable({options(expression.shape)})    "
        f"# in place of {brief(expression)}\n"
        f"    constraints += [{name} == {brief(expression)}]"
    )
