"""From a cvxpy expression to a batched torch function of its leaves."""

from ddn_cvx.translation.errors import TranslationError
from ddn_cvx.translation.function import TorchFunction, translate

__all__ = ["TorchFunction", "TranslationError", "translate"]
