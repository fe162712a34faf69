"""Why a problem is not a cone program, in words, and what to write instead."""

from ddn_cvx.programs.diagnosis.explain import Explanation, explanation
from ddn_cvx.programs.diagnosis.leaves import refused_leaf, refused_variable
from ddn_cvx.programs.diagnosis.memory import available, estimate, refuse_if_too_large, too_large

__all__ = [
    "Explanation",
    "available",
    "estimate",
    "explanation",
    "refuse_if_too_large",
    "refused_leaf",
    "refused_variable",
    "too_large",
]
