"""What translation says when it cannot go on."""

from __future__ import annotations


class TranslationError(ValueError):
    """An expression cannot be had as a torch function: which atom, where, and what to write."""


class Refusal(Exception):
    """Raised by an atom's builder; the compiler adds the place and makes a `TranslationError`.

    Args:
        reason: why not, as the end of the sentence "<atom> ...".
        advice: what to write instead, a sentence.
    """

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason, advice)
        self.reason = reason
        self.advice = advice
