"""Variables and parameters that no layer over cone programs can have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ddn_cvx.programs.diagnosis.wording import shape_argument

if TYPE_CHECKING:
    import cvxpy as cp


def refused_leaf(problem: cp.Problem) -> str | None:
    """The reason against the first variable or parameter that is refused; None if none is."""
    messages = [
        *map(_refused_variable, problem.variables()),
        *map(_refused_parameter, problem.parameters()),
    ]
    return next((message for message in messages if message is not None), None)


def _refused_variable(variable: Any) -> str | None:
    name, shape = variable.name(), shape_argument(variable.shape)
    attributes = variable.attributes
    if attributes["boolean"] or attributes["integer"]:
        bounds = "\n    constraints += [0 <= " + name + ", " + name + " <= 1]"
        return (
            f"Variable {name} is {'boolean' if attributes['boolean'] else 'integer'}. The solution "
            "of a mixed-integer program is piecewise constant in the parameters: its derivative "
            "is zero or does not exist, so that no layer can learn through it.\n"
            f"Rewrite: relax it, and round outside of the layer:\n"
            f"    {name} = cp.Variable({shape}){bounds if attributes['boolean'] else ''}\n"
            "A small quadratic term, such as 1e-2 * cp.sum_squares("
            f"{name}), makes the relaxed solution vary smoothly with the parameters."
        )
    if variable.is_complex():
        return (
            f"Variable {name} is complex; cvxpylayers does not compile complex variables.\n"
            "Rewrite: two real variables, and constraints on real and imaginary parts:\n"
            f"    {name}_real, {name}_imag = cp.Variable({shape}), cp.Variable({shape})"
        )
    return None


def _refused_parameter(parameter: Any) -> str | None:
    name, shape = parameter.name(), parameter.shape
    attributes = parameter.attributes
    if attributes["complex"] or attributes["imag"] or attributes["hermitian"]:
        return (
            f"Parameter {name} is complex; cvxpylayers does not compile complex parameters.\n"
            "Rewrite: symmetric=True in place of hermitian=True if it is real; else two real "
            "parameters, for real and imaginary part:\n"
            f"    {name}_real = cp.Parameter({shape_argument(shape)})\n"
            f"    {name}_imag = cp.Parameter({shape_argument(shape)})"
        )
    if attributes["diag"]:
        return (
            f"Parameter {name} is declared diag=True, which cvxpylayers does not compile.\n"
            "Rewrite: declare the diagonal, and let cvxpy build the matrix:\n"
            f"    {name}_diagonal = cp.Parameter({shape[0]})\n"
            f"    {name} = cp.diag({name}_diagonal)"
            f"    # or cp.multiply({name}_diagonal, x) in place of {name} @ x\n"
            f"    layer(..., {name}_tensor.diagonal(dim1=-2, dim2=-1))"
        )
    if attributes["sparsity"]:
        count = len(attributes["sparsity"][0])
        return (
            f"Parameter {name} is declared with a sparsity pattern, which cvxpylayers does not "
            "compile.\n"
            "Rewrite: declare its nonzeros, and spread them with a constant sparse matrix:\n"
            f"    {name}_values = cp.Parameter({count})\n"
            f"    spread = scipy.sparse.csr_array((np.ones({count}), (rows + columns * {shape[0]}, "
            f"np.arange({count}))), shape=({parameter.size}, {count}))\n"
            f"    {name} = cp.reshape(spread @ {name}_values, {shape}, order='F')"
        )
    return None
