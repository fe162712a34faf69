"""A batch as the method wants it: dense and without defined variables, or sparse; equilibrated."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ddn_cvx.conic.interior_point.dense import DenseMatrices
from ddn_cvx.conic.interior_point.equilibrate import Program, Scales, equilibrated
from ddn_cvx.conic.interior_point.reduction import reduction_of
from ddn_cvx.conic.interior_point.scaling import SymmetricCones
from ddn_cvx.conic.interior_point.sparse import SparseMatrices
from ddn_cvx.conic.interior_point.structure import sparse_structure
from ddn_cvx.conic.program import ConeData, ConeProgram


class Prepared:
    """A batch, and the way to its own units and back.

    Args:
        program: of zero, nonnegative and second-order cones.
        data: of the batch.
        scale: equilibrate; else the scales are one.

    Attributes:
        program: matrices and vectors.
        scales: of the equilibration.
        cones: of the rows that are left.
    """

    def __init__(self, program: ConeProgram, data: ConeData, *, scale: bool = True) -> None:
        self._data = data
        structure = sparse_structure(program)
        self._reduction = reduction_of(program) if structure is None else None
        if structure is not None:
            (self._order,) = structure.order(data.b.device)
            P, b = data.P.expand(data.batch, -1), data.b[:, self._order]
            whole = Program(SparseMatrices(structure, P, data.A), data.q, b)
            zero = program.cones.zero
        else:
            assert self._reduction is not None
            self._blocks = self._reduction.matrices(data.P, data.A)
            q, b = self._reduction.reduced(self._blocks, data.q, data.b)
            whole = Program(DenseMatrices(self._blocks.P, self._blocks.A), q, b)
            zero = self._reduction.zero
        self.cones = SymmetricCones(program.cones, zero, data.q)
        if scale:
            self.program, self.scales = equilibrated(whole, self.cones.groups)
        else:
            self.program = whole
            self.scales = Scales(*(torch.ones_like(v[:, :1]) for v in (whole.q, whole.q, whole.q)))

    def inside(
        self, x: torch.Tensor, y: torch.Tensor, s: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A point of the program in these units, without what is defined."""
        if self._reduction is None:
            y, s = y[:, self._order], s[:, self._order]
        else:
            x, y, s = self._reduction.kept(x, y, s)
        columns, rows, cost = self.scales
        return x / columns, y * cost / rows, s * rows * self.cones.inner

    def outside(
        self, x: torch.Tensor, z: torch.Tensor, proof: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``x`` and ``y`` of the program.

        Args:
            x, z: in these units.
            proof: which elements' are certificates, shape ``(B, 1)``: their program has neither
                ``q`` nor ``b``.
        """
        columns, rows, cost = self.scales
        x, y = x * columns, z * rows / cost
        if self._reduction is None:
            whole = torch.empty_like(y)
            whole[:, self._order] = y
            return x, whole
        q, b = self._data.q, self._data.b
        if proof is not None:
            q, b = torch.where(proof, 0.0, q), torch.where(proof, 0.0, b)
        return self._reduction.restored(self._blocks, q, b, x, y)


def by_parts(
    program: ConeProgram,
    batch: int,
    work: Callable[[slice], tuple[torch.Tensor, ...]],
) -> tuple[torch.Tensor, ...]:
    """What ``work`` returns for so many elements at a time that their matrices fit."""
    size = max(1, _TOGETHER // _entries(program))
    done = [work(slice(start, start + size)) for start in range(0, max(batch, 1), size)]
    return done[0] if len(done) == 1 else tuple(map(torch.cat, zip(*done, strict=True)))


def _entries(program: ConeProgram) -> int:
    """Numbers of one element's matrices."""
    structure = sparse_structure(program)
    if structure is not None:
        return max(structure.elimination.stored, structure.elimination.widest)
    columns, rows, _ = reduction_of(program).size
    return max(1, columns * (columns + rows))


def is_light(program: ConeProgram) -> bool:
    """Newton steps and derivatives without inactive rows are worth it.

    That is for cones with known eigenvectors, sparse or not too large.
    """
    if not program.cones.is_quadratic:
        return False
    return sparse_structure(program) is not None or reduction_of(program).size[0] <= _COLUMNS


# Entries of all elements' matrices that are worked on at a time.
_TOGETHER = 1 << 25
# More columns than this are not factored dense for a few digits.
_COLUMNS = 500
