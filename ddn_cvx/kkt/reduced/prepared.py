"""A batch in the coordinates of its KKT systems: dense without defined variables, or sparse."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ddn_cvx.batch.elements import chunks
from ddn_cvx.cones.scaling import ConeProduct
from ddn_cvx.kkt.reduced.dense import DenseMatrices
from ddn_cvx.kkt.reduced.equilibrate import ReducedData
from ddn_cvx.kkt.reduced.sparse import SparseMatrices
from ddn_cvx.kkt.reduced.structure import sparse_structure
from ddn_cvx.kkt.reduced.substitution import Reduction, Substitution, reduction_of
from ddn_cvx.programs.cone.program import ConeData, ConeProgram

# Entries of the matrices of a chunk of elements: 256 MB in double precision.
_CHUNK_ENTRIES = 1 << 25
# With more columns a dense factorisation costs more than the last digits are worth.
_MOST_COLUMNS = 500


class ReducedCoordinates:
    """Maps points and data to the program with substituted variables removed, and back.

    Args:
        order: order of a sparse system's rows; None where the system is dense.
        reduction, known: of a dense system, with its substituted blocks; attributes, too.
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
        """A point of the program in reduced coordinates."""
        if self.reduction is None:
            return x, y[:, self._order], s[:, self._order]
        return self.reduction.kept(x, y, s)

    def outside(
        self, x: torch.Tensor, z: torch.Tensor, q: torch.Tensor, b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``x`` and ``y`` of the program.

        Args:
            x, z: in reduced coordinates.
            q, b: the program's, or zeros for a certificate.
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
        """``A x`` and ``A' y`` of the program by the reduced matrices, or None."""
        if self.reduction is None or not isinstance(matrices, DenseMatrices):
            return None
        assert self.known is not None
        return self.reduction.products(self.known, matrices.A, x, y)


class ReducedBatch:
    """A batch in reduced coordinates.

    Args:
        program: of the batch.
        data: its data.

    Attributes:
        program: matrices and vectors.
        frame: the coordinates.
        cones: of the remaining rows.
    """

    def __init__(self, program: ConeProgram, data: ConeData) -> None:
        structure = sparse_structure(program)
        if structure is not None:
            (order,) = structure.order(data.b.device)
            self.frame = ReducedCoordinates(order, None, None)
            P = data.P.expand(data.batch, -1)
            matrices: DenseMatrices | SparseMatrices = SparseMatrices(structure, P, data.A)
            zero = program.cones.zero
        else:
            reduction = reduction_of(program)
            reduced, A, known = reduction.matrices(data.P, data.A)
            self.frame, matrices = (
                ReducedCoordinates(None, reduction, known),
                DenseMatrices(reduced, A),
            )
            zero = reduction.zero
        self.program = ReducedData(matrices, *self.frame.vectors(data.q, data.b))
        self.cones = ConeProduct(program.cones, zero, data.q)


def in_chunks(
    program: ConeProgram,
    batch: int,
    work: Callable[[slice], tuple[torch.Tensor, ...]],
) -> tuple[torch.Tensor, ...]:
    """Concatenated results of ``work`` for chunks of elements whose matrices fit in memory."""
    slices = chunks(batch, _entries(program), _CHUNK_ENTRIES) if batch else [slice(0, 0)]
    done = [work(elements) for elements in slices]
    return done[0] if len(done) == 1 else tuple(map(torch.cat, zip(*done, strict=True)))


def _entries(program: ConeProgram) -> int:
    """Numbers of one element's matrices."""
    structure = sparse_structure(program)
    if structure is not None:
        return max(structure.elimination.stored, structure.elimination.widest)
    columns, rows, _ = reduction_of(program).size
    return max(1, columns * (columns + rows))


def has_reduced_kkt(program: ConeProgram) -> bool:
    """Newton steps and derivatives use the reduced KKT system: it is sparse, or not too large."""
    return sparse_structure(program) is not None or reduction_of(program).size[0] <= _MOST_COLUMNS
