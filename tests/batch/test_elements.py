"""Selecting, putting back and choosing elements of trees of tensors."""

import gc
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddn_cvx.batch.elements import chunks, per_program, put, select, where


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor | None


@dataclass(frozen=True)
class Record:
    pair: Pair
    number: int


def record(seed: int, batch: int = 5, second: bool = True) -> Record:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(batch, 2, 3, generator=generator)
    return Record(Pair(first, torch.randn(batch, generator=generator) if second else None), 7)


@given(st.permutations(range(5)), st.integers(0, 5))
def test_what_is_selected_and_put_back_is_the_same(order: list[int], count: int) -> None:
    whole, index = record(0), torch.tensor(order[:count], dtype=torch.int64)
    back = put(whole, index, select(whole, index))
    assert torch.equal(back.pair.first, whole.pair.first)
    assert back.pair.second is not None
    assert whole.pair.second is not None
    assert torch.equal(back.pair.second, whole.pair.second)
    assert back.number == 7


@pytest.mark.parametrize("elements", [slice(1, 3), torch.tensor([1, 2])])
def test_slices_and_indices_select_the_same(elements: slice | torch.Tensor) -> None:
    assert torch.equal(select(record(0), elements).pair.first, record(0).pair.first[1:3])


def test_a_choice_is_made_element_by_element() -> None:
    mask = torch.tensor([True, False, True, False, False])
    chosen = where(mask, record(1), record(2))
    for element, yes in enumerate(mask.tolist()):
        source = record(1 if yes else 2)
        assert torch.equal(chosen.pair.first[element], source.pair.first[element])


def test_none_stays_none() -> None:
    whole = record(0, second=False)
    assert put(whole, torch.tensor([0]), select(whole, torch.tensor([1]))).pair.second is None


def test_put_leaves_the_given_batch_as_it_is() -> None:
    whole = torch.zeros(3)
    put(whole, torch.tensor([1]), torch.ones(1))
    assert not whole.any()


@given(st.integers(0, 50), st.integers(0, 20), st.integers(0, 100))
def test_chunks_cover_the_batch_once(batch: int, entries: int, limit: int) -> None:
    slices = list(chunks(batch, entries, limit))
    assert [place for part in slices for place in range(batch)[part]] == list(range(batch))
    assert all((part.stop - part.start) * entries <= max(limit, entries) for part in slices)


def test_a_function_of_a_program_is_computed_once_and_goes_with_it() -> None:
    class Program:
        pass

    calls = []

    @per_program
    def size(program: Program) -> int:
        calls.append(1)
        return 3

    program = Program()
    assert size(program) == size(program) == 3
    assert len(calls) == 1
    del program
    gc.collect()
    size(Program())
    assert len(calls) == 2
