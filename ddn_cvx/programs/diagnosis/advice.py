"""What a rule says: why an expression is refused, and what to write instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddn_cvx.programs.diagnosis.wording import identifier, joined, options, shape_argument, shorten

if TYPE_CHECKING:
    import cvxpy as cp


@dataclass(frozen=True)
class Advice:
    """Attributes:
    why: one sentence, without the expression, which is printed above it.
    rewrite: what to do, then lines of code in the user's own names.
    """

    why: str
    rewrite: str


@dataclass(frozen=True)
class Place:
    """Where an offender stands.

    Attributes:
        problem: the user's problem.
        constraint: None in the objective.
        quadratic_allowed: a parametric matrix of a ``quad_form`` may stand here.
    """

    problem: cp.Problem
    constraint: Any
    quadratic_allowed: bool

    @property
    def maximises(self) -> bool:
        """The place is an objective to be maximised."""
        return self.constraint is None and type(self.problem.objective).__name__ == "Maximize"

    def fresh(self, *words: str) -> str:
        """A Python name for something new that no variable or parameter has yet."""
        taken = {leaf.name() for leaf in (*self.problem.variables(), *self.problem.parameters())}
        name = identifier(*words)
        while name in taken:
            name += "_new"
        return name


def new_parameter(place: Place, expression: Any, *, attribute: str = "") -> str:
    """Advice to compute an expression of parameters in torch."""
    text = shorten(expression, 80)
    leaves = expression.parameters()
    name = place.fresh(*(leaf.name() for leaf in leaves[:2]), "value")
    if not attribute and expression.is_nonneg():
        attribute = "nonneg=True"
    tensors = "tensor" if len(leaves) == 1 else "tensors"
    return (
        f"Make it a parameter of its own, and compute it in torch from the {tensors} of "
        f"{joined(leaves)}; gradients flow through it as usual:\n"
        f"    {name} = cp.Parameter({options(expression.shape, attribute)})"
        f"    # in place of {text}\n"
        f"    layer = DeclarativeLayer(problem, parameters=[..., {name}], variables=[...])\n"
        f"    layer(..., {name}_tensor)    # {name}_tensor = {text}, in torch"
    )


def new_variable(place: Place, expression: Any, sketch: str) -> str:
    """Advice to give an affine expression a variable of its own.

    Args:
        place: where the expression stands.
        expression: affine, in variables and parameters.
        sketch: what the new expression looks like, with ``{z}`` for the variable.
    """
    name = place.fresh("z")
    return (
        "Give the parametrised part a variable of its own, tied by an equality:\n"
        f"    {name} = cp.Variable({shape_argument(expression.shape)})\n"
        f"    constraints += [{name} == {shorten(expression, 80)}]\n"
        f"    {sketch.format(z=name)}"
    )
