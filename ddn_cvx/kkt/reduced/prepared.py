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
from ddn_cvx.kkt.reduced.substitution import Permutation, Substitution, reduction_of
from ddn_cvx.programs.cone.program import ConeData, ConeProgram

# Entries of the matrices of a chunk of elements: 256 MB in double precision.
_CHUNK_ENTRIES = 1 << 25
# With more columns a dense factorisation costs more than the last digits are worth.
_MOST_COLUMNS = 500


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
        structure, zero = sparse_structure(program), program.cones.zero
        self.frame: Permutation | Substitution
        if structure is not None:
            self.frame = Permutation(*structure.order(data.b.device))
            P = data.P.expand(data.batch, -1)
            matrices: DenseMatrices | SparseMatrices = SparseMatrices(structure, P, data.A)
        else:
            reduction = reduction_of(program)
            reduced, A, self.frame = reduction.matrices(data.P, data.A)
            matrices, zero = DenseMatrices(reduced, A), reduction.zero
        self.program = ReducedData(matrices, *self.frame.vectors(data.q, data.b))
        self.cones = ConeProduct(program.cones, zero, data.q)


def in_chunks(
    program: ConeProgram, batch: int, work: Callable[[slice], tuple[torch.Tensor, ...]]
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
