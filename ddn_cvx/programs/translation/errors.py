"""Errors of a translation, and the refusal that an atom's builder raises."""

from __future__ import annotations


class TranslationError(ValueError):
    """An expression has no torch function; names the atom and its place, and says the remedy."""


class Refusal(Exception):
    """Raised by an atom's builder; the compiler adds the place and makes a `TranslationError`.

    Args:
        reason: why not, as the end of the sentence "<atom> ...".
        advice: the remedy, a sentence.
    """

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason, advice)
        self.reason, self.advice = reason, advice
