"""A batch as the method wants it: dense and without defined variables, or sparse; equilibrated."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ddn_cvx.cones.scaling import ConeProduct
from ddn_cvx.kkt.reduced.dense import DenseMatrices
from ddn_cvx.kkt.reduced.equilibrate import Program
from ddn_cvx.kkt.reduced.sparse import SparseMatrices
from ddn_cvx.kkt.reduced.structure import sparse_structure
from ddn_cvx.kkt.reduced.substitution import Reduction, Substitution, reduction_of
from ddn_cvx.programs.cone.program import ConeData, ConeProgram


class Frame:
    """The way to a batch without what is defined, and back.

    Args:
        order: the program's rows in the order of a sparse system's; None where it is dense.
        reduction, known: of a dense one; attributes, too.
    """

    def __init__(
        self,
        order: torch.Tensor | None,
        reduction: Reduction | None,
        known: Substitution | None,
    ) -> None:
        self._order, self.reduction, self.known = order, reduction, known

    def vectors(self, q: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``q`` and ``b`` of a program with the same matrices."""
        if self.reduction is None:
            return q, b[:, self._order]
        assert self.known is not None
        return self.reduction.reduced(self.known, q, b)

    def inside(
        self, x: torch.Tensor, y: torch.Tensor, s: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What of a point is left."""
        if self.reduction is None:
            return x, y[:, self._order], s[:, self._order]
        return self.reduction.kept(x, y, s)

    def outside(
        self, x: torch.Tensor, z: torch.Tensor, q: torch.Tensor, b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``x`` and ``y`` of the program.

        Args:
            x, z: of what is left.
            q, b: the program's; certificates are solutions of one with zeros.
        """
        if self.reduction is None:
            whole = torch.empty_like(z)
            whole[:, self._order] = z
            return x, whole
        assert self.known is not None
        return self.reduction.restored(self.known, q, b, x, z)

    def products(
        self, matrices: DenseMatrices | SparseMatrices, x: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """``A x`` and ``A' y`` of the program by the matrices of what is left, or None."""
        if self.reduction is None or not isinstance(matrices, DenseMatrices):
            return None
        assert self.known is not None
        return self.reduction.products(self.known, matrices.A, x, y)


class Prepared:
    """A batch without what is defined.

    Args:
        program: of the batch.
        data: its data.

    Attributes:
        program: matrices and vectors.
        frame: the way to them and back.
        cones: of the rows that are left.
    """

    def __init__(self, program: ConeProgram, data: ConeData) -> None:
        structure = sparse_structure(program)
        if structure is not None:
            (order,) = structure.order(data.b.device)
            self.frame = Frame(order, None, None)
            P = data.P.expand(data.batch, -1)
            matrices: DenseMatrices | SparseMatrices = SparseMatrices(structure, P, data.A)
            zero = program.cones.zero
        else:
            reduction = reduction_of(program)
            reduced, A, known = reduction.matrices(data.P, data.A)
            self.frame, matrices = Frame(None, reduction, known), DenseMatrices(reduced, A)
            zero = reduction.zero
        self.program = Program(matrices, *self.frame.vectors(data.q, data.b))
        self.cones = ConeProduct(program.cones, zero, data.q)


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
    """Newton steps and derivatives without inactive rows are worth it: sparse or not too large."""
    return sparse_structure(program) is not None or reduction_of(program).size[0] <= _COLUMNS


# Entries of all elements' matrices that are worked on at a time.
_TOGETHER = 1 << 25
# More columns than this are not factored dense for a few digits.
_COLUMNS = 500
