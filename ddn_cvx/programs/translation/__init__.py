"""From a cvxpy expression to a batched torch function of its leaves."""

from ddn_cvx.programs.translation.compile import translate
from ddn_cvx.programs.translation.errors import TranslationError
from ddn_cvx.programs.translation.function import TorchFunction

__all__ = ["TorchFunction", "TranslationError", "translate"]
