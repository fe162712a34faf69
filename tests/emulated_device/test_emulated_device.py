"""The emulated accelerator itself: what it computes, refuses and counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from emulated import reads_of, take_reads

pytest_plugins = ["emulated_fixture"]


def test_it_computes_views_and_writes_as_the_host(device: torch.device) -> None:
    host = torch.arange(12.0).reshape(3, 4)
    there = host.to(device)
    for tensor in (host, there):
        tensor.mT[1:3].mul_(2)
        tensor[:, 0] = torch.tensor(7.0)
        tensor[tensor > 13] = 0.5
        tensor.view(-1)[5:7].copy_(torch.ones(2))
    assert torch.equal(there.cpu(), host)
    assert there.mT.untyped_storage().data_ptr() == there.untyped_storage().data_ptr()
    grown = torch.empty(0, device=device)
    torch.add(there, there, out=grown.resize_(3, 4))
    torch.testing.assert_close(grown.cpu(), host + host)
    torch.testing.assert_close(
        torch.complex(there, there).conj().mT.cpu(), torch.complex(host, host).conj().mT
    )


def test_it_is_differentiated_and_mapped_as_the_host(device: torch.device) -> None:
    host = torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def work(tensor: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.linalg.solve(tensor + tensor.new_ones(5).diag(), tensor.sin())
        return found.sum()

    expected, found = (
        torch.func.vmap(torch.func.jacrev(torch.func.grad(work)))(tensor)
        for tensor in (host, host.to(device))
    )
    torch.testing.assert_close(found.cpu(), expected)
    forward = [torch.func.jvp(work, (t,), (t,))[1] for t in (host, host.to(device))]
    torch.testing.assert_close(forward[1].cpu(), forward[0])


REFUSED: dict[str, Callable[[torch.Tensor, torch.Tensor], object]] = {
    "add": lambda there, host: there + host,
    "matmul": lambda there, host: there @ host,
    "solve": lambda there, host: torch.linalg.solve(there, host),
    "where": lambda there, host: torch.where(host > 0, there, there),
    "cat": lambda there, host: torch.cat([there, host]),
    "stack of scalars": lambda there, host: torch.stack([there[0, 0], host[0, 0]]),
    "gather": lambda there, host: there.gather(0, host.long()),
    "masked_fill": lambda there, host: there.masked_fill(host > 0, 0.0),
    "values of index_put": lambda there, host: there.index_put((there[0].long(),), host),
    "write to the host": lambda there, host: host.add_(there),
    "write to a scalar of the host": lambda there, host: host.sum().add_(there.sum()),
    "out": lambda there, host: torch.mul(there, there, out=host),
    "numpy": lambda there, host: there.numpy(),
}
ALLOWED: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "a scalar": lambda there, host: there * host.sum(),
    "a scalar first": lambda there, host: host.sum() - there,
    "a scalar in where": lambda there, host: torch.where(there > 0, there, host.sum()),
    "a scalar to fill with": lambda there, host: there.masked_fill(there > 0, host.sum()),
    "indices": lambda there, host: there[host[0].long()],
    "a copy": lambda there, host: there.clone().copy_(host),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_refuses_tensors_of_the_host(name: str, device: torch.device) -> None:
    host = torch.eye(3)
    with pytest.raises((RuntimeError, TypeError), match="device"):
        REFUSED[name](host.to(device), host)


@pytest.mark.parametrize("name", ALLOWED)
def test_it_allows_scalars_and_indices_of_the_host(name: str, device: torch.device) -> None:
    host = torch.eye(3)
    found = ALLOWED[name](host.to(device), host)
    assert found.device == device
    torch.testing.assert_close(found.cpu(), ALLOWED[name](host, host))


READS: dict[str, tuple[int, Callable[[torch.Tensor], object]]] = {
    "item": (1, lambda there: there[0].item()),
    "a truth value": (1, lambda there: bool((there > 0).any())),
    "an integer": (1, lambda there: int(there.sum())),
    "tolist": (1, lambda there: there.tolist()),
    "cpu": (1, lambda there: there.cpu()),
    "copy to the host": (1, lambda there: torch.zeros(4).copy_(there)),
    "equal": (1, lambda there: torch.equal(there, there.clone())),
    "nonzero": (1, lambda there: there.nonzero()),
    "a mask": (1, lambda there: there[there > 1]),
    "writing by a mask": (1, lambda there: there.index_put((there > 1,), there[:1])),
    "two masks": (2, lambda there: there.view(2, 2)[there[2:] > 1, there[2:] > 1]),
    "masked_select": (1, lambda there: there.masked_select(there > 1)),
    "unique": (1, lambda there: there.unique()),
    "an error code": (1, lambda there: torch.linalg.cholesky(there.diag() + 1e3)),
    "an index": (0, lambda there: there[there.long()]),
    "where": (0, lambda there: torch.where(there > 1, there, 0.0)),
    "a copy to the device": (0, lambda there: there.copy_(torch.ones(4))),
    "a copy on the device": (0, lambda there: there.clone().double()),
    "a known size": (0, lambda there: there.repeat_interleave(there.long(), output_size=6)),
    "a checked factorisation": (0, lambda there: torch.linalg.cholesky_ex(there.diag())),
}


@pytest.mark.parametrize("name", READS)
def test_it_counts_what_the_host_reads(name: str, device: torch.device) -> None:
    count, work = READS[name]
    there = torch.arange(4.0).to(device)
    take_reads()
    work(there)
    reads = take_reads()
    assert len(reads) == count, reads


def test_a_read_is_told_by_its_place(device: torch.device) -> None:
    (read,) = reads_of(lambda: torch.ones(1, device=device).item())
    assert read.startswith("aten::_local_scalar_dense in ")
