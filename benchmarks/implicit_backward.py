"""The backward pass against forming the Hessian row by row and the mixed Hessian whole.

Ridge logistic regression, every datum an input. Ours solves one KKT system for the incoming
gradient and takes one reverse pass through the Lagrangian's gradient. The other way, which is how
the ``ddn`` library differentiates a node (``AbstractDeclarativeNode.gradient``), takes one reverse
pass for each of the m rows of the Hessian and of the mixed Hessian, whose size is m times that of
the inputs.

Run: ``python benchmarks/implicit_backward.py [--threads 1]``
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass

import torch
from common import Ratio, Tensors, interleaved_ratios, markdown_table, save

from ddn_cvx.comparison.measure import peak_memory

# (batch, samples n, variables m) and the ratio that is asked for, ours over the other's.
CASES = {(32, 200, 50): 1 / 5, (1024, 200, 32): 1 / 10}
REPEATS = {32: 15, 1024: 5}
CPU = torch.device("cpu")


@dataclass
class Line:
    """One row of the table."""

    batch: int
    samples: int
    variables: int
    ratio: Ratio
    our_memory: float
    their_memory: float
    input_bytes: int
    difference: float
    target: float


def row_by_row(u: torch.Tensor, inputs: Tensors, v: torch.Tensor) -> Tensors:
    """Gradients of ``<v, u*>`` by the whole Hessian and the whole mixed Hessian."""
    A, ridge = (tensor.detach().requires_grad_() for tensor in inputs)
    u = u.detach().requires_grad_()
    margin = (A @ u.unsqueeze(2)).squeeze(2)
    loss = torch.nn.functional.softplus(-margin).sum(1) + 0.5 * ridge * (u * u).sum(1)
    (gradient,) = torch.autograd.grad(loss.sum(), u, create_graph=True)
    hessian, of_A, of_ridge = [], [], []
    for row in range(u.shape[1]):
        parts = torch.autograd.grad(gradient[:, row].sum(), (u, A, ridge), retain_graph=True)
        hessian.append(parts[0])
        of_A.append(parts[1])
        of_ridge.append(parts[2])
    factor = torch.linalg.cholesky(torch.stack(hessian, 1))
    w = -torch.cholesky_solve(v.unsqueeze(2), factor).squeeze(2)  # (B, m)
    mixed = torch.stack(of_A, 1)  # (B, m, n, m)
    return torch.einsum("bi,bijk->bjk", w, mixed), (w * torch.stack(of_ridge, 1)).sum(1)


def measure(batch: int, samples: int, variables: int, target: float) -> Line:
    """One size."""
    import ddn_cvx
    from ddn_cvx.problems import ridge_logistic_regression

    declaration = ridge_logistic_regression(samples, variables)
    layer = ddn_cvx.DeclarativeLayer(declaration, solver="TORCH")
    inputs = tuple(tensor.requires_grad_() for tensor in declaration.inputs(batch, seed=0))
    (u,) = layer(*inputs)
    v = torch.randn(u.shape, dtype=u.dtype, generator=torch.Generator().manual_seed(1))

    def ours() -> Tensors:
        return torch.autograd.grad(u, inputs, v, retain_graph=True)

    def theirs() -> Tensors:
        return row_by_row(u, inputs, v)

    pairs = zip(ours(), theirs(), strict=True)
    difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    ratio = interleaved_ratios(ours, {"whole": theirs}, repeats=REPEATS[batch], warm=15)["whole"]
    memory = [float(peak_memory(run, CPU)) for run in (ours, theirs)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in inputs)
    return Line(batch, samples, variables, ratio, *memory, size, difference, target)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    torch.set_num_threads(parser.parse_args().threads)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    lines = [measure(*case, target) for case, target in CASES.items()]
    # Memory: twice the variables at a fixed size of the inputs.
    more = [measure(32, samples, variables, 0.0) for samples, variables in ((400, 25), (100, 100))]
    table = markdown_table(
        ["batch", "samples", "variables", "our time / its time", "asked",
         "our peak memory / inputs", "its peak memory / inputs", "gradients differ by"],
        [
            (
                line.batch, line.samples, line.variables, line.ratio,
                f"{line.target:.2f}" if line.target else "",
                f"{line.our_memory / line.input_bytes:.1f}",
                f"{line.their_memory / line.input_bytes:.1f}",
                f"{line.difference:.0e}",
            )
            for line in [*lines, *more]
        ],
    )  # fmt: skip
    met = all(line.ratio.median <= line.target for line in lines)
    text = (
        "Backward pass of ridge logistic regression, all data inputs. Ratios are medians over "
        "interleaved repeats, with quartiles; below one, ours is faster. The last two rows have "
        f"inputs of the same size.\n\n{table}\n\nTargets: {'met' if met else 'NOT met'}."
    )
    save("implicit_backward", "The backward pass against whole Hessians", text, [*lines, *more])


if __name__ == "__main__":
    main()
