"""Solvers and adjoints side by side on the same batch: accuracy, failures, time and memory.

The package is called ``comparison`` so that ``ddn_cvx.compare`` stays the function: importing a
subpackage would put the module in its place.
"""

from ddn_cvx.comparison.comparison import Comparison
from ddn_cvx.comparison.result import (
    Errors,
    GradientError,
    ProblemSummary,
    ReferenceSummary,
    Refusal,
    Result,
    Row,
    Spread,
)
from ddn_cvx.comparison.run import compare

__all__ = [
    "Comparison",
    "Errors",
    "GradientError",
    "ProblemSummary",
    "ReferenceSummary",
    "Refusal",
    "Result",
    "Row",
    "Spread",
    "compare",
]
