"""Why a problem cannot become a layer, in words, and what to write instead."""

from ddn_cvx.programs.diagnosis.leaves import refused_leaf
from ddn_cvx.programs.diagnosis.memory import available, estimate, refuse_if_too_large
from ddn_cvx.programs.diagnosis.rules import explain

__all__ = ["available", "estimate", "explain", "refuse_if_too_large", "refused_leaf"]
