"""Size arguments of the constructors, checked in one place."""

from ddn_cvx.errors import DeclarationError


def check_size(argument: str, value: int, minimum: int = 1, maximum: int | None = None) -> None:
    """Raise DeclarationError unless ``value`` is an integer in ``[minimum, maximum]``."""
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if is_integer and minimum <= value and (maximum is None or value <= maximum):
        return
    expected = f"at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
    raise DeclarationError(f"{argument} must be an integer {expected}; got {value!r}.")
