"""ddn-cvx: declare an optimization problem in cvxpy, get a checked, differentiable PyTorch layer.

Importing this package costs about what ``import torch`` costs: cvxpy, cvxpylayers, matplotlib and
rich are imported on first use.
"""

from typing import TYPE_CHECKING, Any

from ddn_cvx.declaration import Declaration
from ddn_cvx.errors import (
    AdjointError,
    DdnWarning,
    DeclarationError,
    DegenerateWarning,
    InaccurateWarning,
)
from ddn_cvx.layer import DeclarativeLayer
from ddn_cvx.solution import InfeasibilityCertificate, Solution, SolveError
from ddn_cvx.status import Degeneracy, Status
from ddn_cvx.torch_problem import TorchProblem

if TYPE_CHECKING:
    from ddn_cvx.comparison import Comparison, compare

__version__ = "0.2.0"

__all__ = [
    "AdjointError",
    "Comparison",
    "DdnWarning",
    "Declaration",
    "DeclarationError",
    "DeclarativeLayer",
    "Degeneracy",
    "DegenerateWarning",
    "InaccurateWarning",
    "InfeasibilityCertificate",
    "Solution",
    "SolveError",
    "Status",
    "TorchProblem",
    "compare",
]


def __getattr__(name: str) -> Any:
    if name in ("compare", "Comparison"):
        from ddn_cvx import comparison

        return getattr(comparison, name)
    raise AttributeError(f"module 'ddn_cvx' has no attribute {name!r}")
