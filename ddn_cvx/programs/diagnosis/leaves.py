"""Variables and parameters that no layer can have, or none over cone programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ddn_cvx.programs.diagnosis.wording import options

if TYPE_CHECKING:
    import cvxpy as cp

_MIXED_INTEGER = (
    "{kind} {name} is {attribute}. The solution of a mixed-integer program is piecewise constant "
    "in the parameters: its derivative is zero or does not exist, so that no layer can learn "
    "through it.\nRewrite: relax it, and round outside of the layer:\n"
    "    {name} = cp.Variable({size}){bounds}\n"
    "A small quadratic term, such as 1e-2 * cp.sum_squares({name}), makes the relaxed solution "
    "vary smoothly with the parameters."
)
_COMPLEX = (
    "{kind} {name} is complex, and no layer takes complex numbers.\n"
    "Rewrite: symmetric=True in place of hermitian=True if it is real; else one {kind} each for "
    "real and imaginary part:\n"
    "    {name}_real = cp.{kind}({size})\n    {name}_imag = cp.{kind}({size})"
)
_STRUCTURED = (
    "Parameter {name} is declared with {attribute}, which cvxpylayers does not compile.\n"
    "Rewrite: make its nonzeros a parameter, and build the matrix from them (cp.diag, or a "
    "constant sparse matrix and cp.reshape):\n"
    "    {name}_values = cp.Parameter(...)"
)


def refused_leaf(problem: cp.Problem) -> str | None:
    """The reason against the first variable or parameter that is refused; None if none is.

    A layer over nonlinear programs refuses the variables alone, :func:`refused_variable`.
    """
    unstored = dict.fromkeys(("diag", "sparsity"), _STRUCTURED)
    found = (_refused(parameter, unstored) for parameter in problem.parameters())
    return refused_variable(problem) or next(filter(None, found), None)


def refused_variable(problem: cp.Problem) -> str | None:
    """The reason against the first integer or complex variable; None if there is none."""
    discrete = dict.fromkeys(("boolean", "integer"), _MIXED_INTEGER)
    found = (_refused(variable, discrete) for variable in problem.variables())
    return next(filter(None, found), None)


def _refused(leaf: Any, templates: dict[str, str]) -> str | None:
    attribute = next((name for name in templates if leaf.attributes[name]), None)
    if attribute is None and not leaf.is_complex():
        return None
    name = leaf.name()
    return templates.get(attribute or "", _COMPLEX).format(
        kind="Variable" if leaf.variables() else "Parameter",
        name=name,
        attribute=attribute,
        bounds=f"\n    constraints += [0 <= {name}, {name} <= 1]" if attribute == "boolean" else "",
        size=options(leaf.shape),
    )
