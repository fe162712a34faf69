"""The registry of the catalogue: ``@entry`` names a problem, checks its sizes and collects it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
from inspect import signature
from typing import Any, ParamSpec

import torch

from ddn_cvx.declaration import Declaration
from ddn_cvx.errors import DeclarationError

Sizes = ParamSpec("Sizes")

# Every entry's constructor by its name, in the order of definition.
ENTRIES: dict[str, Callable[..., Declaration]] = {}

_RAISES = """Raises:
        DeclarationError: a size is not an integer, or out of its range.

    """


def entry(
    *, solution: Callable[..., torch.Tensor] | None = None, **least: int
) -> Callable[[Callable[Sizes, Declaration]], Callable[Sizes, Declaration]]:
    """Put a constructor into the catalogue.

    The declaration gets the function's name, and the docstring the error of a wrong size.

    Args:
        solution: a function of the inputs that returns the answer; it becomes closed form and
            dedicated solver.
        **least: the smallest value of each size; a size whose range depends on another one is
            checked in the function, by :func:`check_size`.

    Example:
        >>> from ddn_cvx.problems import simplex_projection
        >>> simplex_projection(n=0)
        Traceback (most recent call last):
        ddn_cvx.errors.DeclarationError: n must be an integer at least 1; got 0.
    """

    def register(constructor: Callable[Sizes, Declaration]) -> Callable[Sizes, Declaration]:
        known: dict[str, Any] = {"name": constructor.__name__}
        if solution is not None:
            known |= dict.fromkeys(("closed_form", "dedicated"), partial(answer, solution))

        @wraps(constructor)
        def checked(*args: Sizes.args, **kwargs: Sizes.kwargs) -> Declaration:
            sizes = signature(constructor).bind(*args, **kwargs)
            sizes.apply_defaults()
            for argument, minimum in least.items():
                check_size(argument, sizes.arguments[argument], minimum)
            return replace(constructor(*args, **kwargs), **known)

        if checked.__doc__ and "Raises:" not in checked.__doc__:
            checked.__doc__ = checked.__doc__.replace("Example:", _RAISES + "Example:", 1)
        ENTRIES[constructor.__name__] = checked
        return checked

    return register


def answer(
    function: Callable[..., torch.Tensor], *inputs: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """A tuple of ``function``'s one answer; bound with ``functools.partial``, it can be pickled."""
    return (function(*inputs),)


def check_size(argument: str, value: int, minimum: int = 1, maximum: int | None = None) -> None:
    """Raise DeclarationError unless ``value`` is an integer in ``[minimum, maximum]``."""
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if is_integer and minimum <= value and (maximum is None or value <= maximum):
        return
    expected = f"at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
    raise DeclarationError(f"{argument} must be an integer {expected}; got {value!r}.")
