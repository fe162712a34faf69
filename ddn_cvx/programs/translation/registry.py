"""The table {atom class -> rule that builds its torch steps}.

Classes are named by module and name, so that filling the table does not import cvxpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddn_cvx.programs.translation.tape import Function, Tape, Value

Builder = Callable[["Tape", Any, "list[Value]"], "Value"]
Operands = Callable[[Any], Sequence[Any]]

_RULES: dict[str, Rule] = {}


def _arguments(atom: Any) -> Sequence[Any]:
    return list(atom.args)


@dataclass(frozen=True)
class Rule:
    """How one atom is translated.

    Attributes:
        build: appends the atom's steps to the tape, given its operands' values.
        operands: the expressions the atom is computed from. More than ``atom.args`` where cvxpy
            keeps a parameter as an attribute (an exponent), other ones where an argument is looked
            through (a negation inside a sum).
    """

    build: Builder
    operands: Operands = _arguments


def register(*names: str, operands: Operands = _arguments) -> Callable[[Builder], Builder]:
    """Registers a builder for the classes ``cvxpy.atoms.<name>``."""

    def record(build: Builder) -> Builder:
        for name in names:
            _RULES[f"cvxpy.atoms.{name}"] = Rule(build, operands)
        return build

    return record


def register_functions(functions: Mapping[str, Function], **attributes: str) -> None:
    """Registers atoms that are one torch function of their arguments.

    Args:
        functions: by the atom's class, as in :func:`register`.
        **attributes: keyword arguments of the functions, as names of the atoms' attributes.
    """

    def builder(function: Function) -> Builder:
        def build(tape: Tape, atom: Any, args: list[Value]) -> Value:
            options = {key: getattr(atom, name) for key, name in attributes.items()}
            step = partial(function, **options) if options else function
            return tape.call(step, *args, shape=tuple(atom.shape))

        return build

    for name, function in functions.items():
        register(name)(builder(function))


def rule_for(atom: Any) -> Rule | None:
    """The rule of the atom's class, or of the base from which it takes its ``numeric``.

    A subclass with a ``numeric`` of its own means something else than its base.
    """
    kind = type(atom)
    for base in kind.__mro__:
        rule = _RULES.get(f"{base.__module__}.{base.__qualname__}")
        if rule is not None:
            same = getattr(base, "numeric", None) is getattr(kind, "numeric", None)
            return rule if same else None
    return None
