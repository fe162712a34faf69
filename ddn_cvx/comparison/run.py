"""Run every solver with every adjoint on the same batch, and compare them with a reference."""

from __future__ import annotations

import gc
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ddn_cvx.batch.inputs import batch_inputs
from ddn_cvx.comparison import words
from ddn_cvx.comparison.candidates import build, candidates
from ddn_cvx.comparison.comparison import Comparison
from ddn_cvx.comparison.environment import environment
from ddn_cvx.comparison.measure import Layer, Tensors, one_pass, peak_memory, spread
from ddn_cvx.comparison.metrics import evaluate, gradient_errors, relative_error, summarize
from ddn_cvx.comparison.reference import Reference, find_reference, with_all_variables
from ddn_cvx.comparison.result import ProblemSummary, Refusal, Row
from ddn_cvx.declaration import Declaration
from ddn_cvx.engine.choose import Extent
from ddn_cvx.errors import DeclarationError
from ddn_cvx.layer import DeclarativeLayer

if TYPE_CHECKING:
    import cvxpy as cp
    from rich.progress import Progress


def compare(
    declaration: Declaration | cp.Problem,
    *tensors: Any,
    solvers: Sequence[str] | None = None,
    adjoints: Sequence[str] | None = None,
    batch: int = 64,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
    repeats: int = 7,
    seconds: float = 4.0,
    tolerance: float = 1e-5,
    progress: bool = False,
) -> Comparison:
    """Compare solvers and adjoints on one problem.

    Each row solves the same batch and pulls back the same random incoming gradient. The timed
    passes of the rows are interleaved, so that a disturbance of the machine hits all of them, after
    a warm-up. A row that raises is a row with its error; a solver that does not take the problem
    has no row, but a reason in ``refusals``.

    Args:
        declaration: a :class:`~ddn_cvx.Declaration`, or a cvxpy problem, whose parameters and
            variables are taken in cvxpy's order.
        *tensors: inputs ``(*batch, *parameter.shape)`` for each parameter; by default the
            declaration's example inputs, else the parameters' own values.
        solvers: names of solvers; None takes all that are installed, and the peer, "cvxpylayers".
        adjoints: names of adjoints; None takes all that go with the solver.
        batch: number of elements of the example inputs.
        seed: of the example inputs, the incoming gradient and the reference's directions.
        device: of the rows' inputs.
        dtype: of the rows' inputs; the reference is float64 at the same (rounded) inputs.
        repeats: number of timed passes for each row.
        seconds: a row that has taken this long in timed passes is not repeated further.
        tolerance: largest relative error of solution and gradient that counts as correct.
        progress: show a progress bar on standard error.

    Raises:
        DeclarationError: the problem cannot become a layer, has no inputs, or a solver is unknown.

    Example:
        >>> import ddn_cvx as ddn
        >>> from ddn_cvx.problems import simplex_projection
        >>> comparison = ddn.compare(simplex_projection(n=3), solvers=["CLARABEL"], batch=4)
        >>> comparison.reference.method
        'closed form'
    """
    if not isinstance(declaration, Declaration):
        declaration = Declaration(declaration, declaration.parameters(), declaration.variables())
    device = torch.device(device)
    inputs, drawn = _inputs(declaration, tensors, batch, seed)
    inputs = tuple(tensor.to(dtype) for tensor in inputs)
    count = len(inputs[0]) if inputs else 1
    generator = torch.Generator().manual_seed(seed + 1)
    incoming = tuple(
        torch.randn((count, *variable.shape), generator=generator, dtype=torch.float64).to(dtype)
        for variable in declaration.variables
    )
    full = with_all_variables(declaration)
    listed = candidates(full, solvers, adjoints, Extent(count, device))
    with (
        _progress_bar(shown=progress) as bar,
        _little_garbage(),
        warnings.catch_warnings(action="ignore"),
    ):
        steps = 1 + len(listed) * (1 + repeats)
        task = bar.add_task("reference", total=steps, title=declaration.name or "compare")
        reference = find_reference(full, _doubles(inputs), _doubles(incoming), seed=seed + 2)
        moved = tuple(tensor.to(device) for tensor in inputs)
        pulled = tuple(v.to(device) for v in incoming)
        runs = [_Run(row, full, moved, pulled) for row in listed]
        for run in runs:
            bar.update(task, description=run.row.label, advance=1)
            run.start()
        for repeat in range(repeats):
            # Each round starts with another row, so that none always follows the same one.
            for run in runs[repeat % len(runs) :] + runs[: repeat % len(runs)]:
                bar.update(task, description=run.row.label, advance=1)
                if sum(run.forward) + sum(run.backward) < seconds:
                    run.repeat()
        bar.update(task, description="figures", advance=1)
        rows = tuple(run.figures(reference) for run in runs if run.refusal is None)
    refused = words.grouped(
        ((run.row.solver, run.refusal), run.row.adjoint) for run in runs if run.refusal is not None
    )
    return Comparison(
        problem=ProblemSummary(
            name=declaration.name or "problem",
            summary=declaration.summary,
            parameters={leaf.name(): tuple(leaf.shape) for leaf in declaration.parameters},
            variables={leaf.name(): tuple(leaf.shape) for leaf in declaration.variables},
            batch=count,
            seed=seed if drawn else None,
            dtype=str(dtype).removeprefix("torch."),
            device=str(device),
        ),
        reference=reference.summary,
        rows=rows,
        environment=environment(device),
        tolerance=tolerance,
        refusals=tuple(
            Refusal(solver, tuple(names), reason) for (solver, reason), names in refused.items()
        ),
    )


def _progress_bar(*, shown: bool) -> Progress:
    """A bar on standard error; silent unless ``shown`` and standard error is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    hidden = not (shown and sys.stderr.isatty())
    return Progress(
        TextColumn("{task.fields[title]}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.description}"),
        console=Console(stderr=True, quiet=hidden),
        transient=True,
        disable=hidden,
    )


@contextmanager
def _little_garbage() -> Iterator[None]:
    """Set aside the living objects, so that the collections between the rows take no time."""
    frozen = gc.get_freeze_count()
    if not frozen:  # else the user has done so, and unfreezing would undo it
        gc.collect()
        gc.freeze()
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()


def _inputs(
    declaration: Declaration, tensors: Sequence[Any], batch: int, seed: int
) -> tuple[Tensors, bool]:
    """One tensor ``(B, *parameter.shape)`` for each parameter, float64, and whether drawn."""
    drawn = not tensors and declaration.example is not None
    if drawn:
        tensors = declaration.inputs(batch, seed=seed)
    elif not tensors and declaration.parameters:
        tensors = [parameter.value for parameter in declaration.parameters]
        if any(value is None for value in tensors):
            raise DeclarationError(
                "There are no inputs to compare on: pass tensors, give the Declaration an "
                "example=, or set every parameter's value."
            )
        tensors = [torch.as_tensor(value, dtype=torch.float64) for value in tensors]
    batched = batch_inputs(tuple(tensors), declaration.parameters, gp=declaration.gp)
    return tuple(tensor.detach().cpu() for tensor in batched.tensors), drawn


class _Run:
    """A row while it is being measured."""

    def __init__(
        self, row: Row, declaration: Declaration, inputs: Tensors, incoming: Tensors
    ) -> None:
        self.row, self.declaration = row, declaration
        self.inputs, self.incoming = inputs, incoming
        self.forward: list[float] = []  # seconds of each timed pass
        self.backward: list[float] = []
        self.solvers: tuple[str, ...] = ()  # the solver that answers each element
        self.refusal: str | None = None
        self._layer: Layer | None = None

    def start(self) -> None:
        """Build the layer, and warm up unless its solver or adjoint does not take the problem."""
        try:
            start = time.perf_counter()
            layer = build(self.row, self.declaration)
            self.row = replace(self.row, compile_seconds=time.perf_counter() - start)
            with warnings.catch_warnings(record=True, action="always") as caught:
                self.first = one_pass(layer, self.inputs, self.incoming)
            notes = [words.first_line(str(w.message)) or w.category.__name__ for w in caught]
            self.note = notes[0] if notes else None
            self.peak_memory = peak_memory(
                lambda: one_pass(layer, self.inputs, self.incoming), self.incoming[0].device
            )
            if isinstance(layer, DeclarativeLayer):
                # A ladder hands elements on to other solvers, whose answers say nothing about this
                # one. DIFFCP is SCS: the row's name stands for that of the layer's own solver.
                names = {layer._engine.solver_name: self.row.solver}
                self.solvers = tuple(names.get(s, s) for s in layer.solve(*self.inputs).solver)
            self._layer = layer
        except DeclarationError as error:
            self.refusal = getattr(error, "reason", words.first_line(str(error)))
        except Exception as error:  # any error of a solver is this row's result
            self.row = replace(self.row, error=words.failure(error))

    def repeat(self) -> None:
        """One timed pass; no garbage is collected within it."""
        if self._layer is None:
            return
        gc.disable()
        try:
            timed = one_pass(self._layer, self.inputs, self.incoming)
        except Exception as error:
            self.row, self._layer = replace(self.row, error=words.failure(error)), None
        else:
            self.forward.append(timed.forward)
            self.backward.append(timed.backward)
        finally:
            gc.enable()

    def figures(self, reference: Reference) -> Row:
        """The row with its figures, against the reference; as it is where an error was raised."""
        if self.row.error is not None:
            return self.row
        count = len(reference.solved)
        values = [
            value.reshape(count, *variable.shape)  # without parameters, no batch dimension
            for value, variable in zip(
                _doubles(self.first.values), self.declaration.variables, strict=True
            )
        ]
        gradients = _doubles(self.first.gradients)
        finite = torch.ones_like(reference.solved)
        for tensor in (*values, *gradients):
            finite &= tensor.reshape(count, -1).isfinite().all(1)
        counted = reference.solved & finite
        answered = zip(self.solvers, counted.tolist(), strict=bool(self.solvers))
        objective, violation = evaluate(self.declaration, _doubles(self.inputs), values, counted)
        gap = (objective - reference.objective).abs() / (1 + reference.objective.abs())
        solution = torch.stack(
            [
                relative_error(value, wanted, reference.solved)
                for value, wanted in zip(values, reference.solution, strict=False)
            ]
        ).amax(0)
        return replace(
            self.row,
            answers=dict(Counter(name for name, counts in answered if counts)),
            failures=int((reference.solved & ~finite).sum()),
            objective=summarize(gap, counted),
            violation=summarize(violation, counted),
            solution=summarize(solution, counted),
            gradients=gradient_errors(
                self.declaration.parameters,
                gradients,
                reference.gradients,
                counted & reference.confirmed,
                reference.confirmed,
            ),
            forward=spread(self.forward),
            backward=spread(self.backward),
            total=spread([f + b for f, b in zip(self.forward, self.backward, strict=True)]),
            repeats=len(self.forward),
            peak_memory=self.peak_memory,
            note=self.note,
        )


def _doubles(tensors: Tensors) -> Tensors:
    """In float64, in host memory."""
    return tuple(tensor.detach().cpu().double() for tensor in tensors)
