"""Modules in models: shapes, state, autocast, copies, DDP, compilation."""

import copy
import gc
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from ddn_cvx.dedicated.pooling.penalties import PENALTIES
from ddn_cvx.dedicated.projections.sets import SETS
from ddn_cvx.nn import (
    PolyhedronProjection,
    Projection,
    QuadraticProgram,
    RobustPool1d,
    RobustPool2d,
    RobustVectorPool,
)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_pool_stands_where_average_pooling_stood(penalty: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), RobustPool2d(penalty, learnable=True), nn.Linear(4, 2)
    )
    loss = model(images(5, 3, 8, 8)).square().mean()
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    kept = RobustPool2d(penalty, keepdim=True)(images(5, 3, 8, 8))
    assert kept.shape == nn.AdaptiveAvgPool2d(1)(images(5, 3, 8, 8)).shape
    if penalty == "quadratic":
        torch.testing.assert_close(kept, nn.AdaptiveAvgPool2d(1)(images(5, 3, 8, 8)))


def test_pools_over_points_masks_and_channels() -> None:
    x = images(2, 3, 6)
    pool = RobustPool1d("huber", alpha=torch.tensor([0.5, 1.0, 2.0]))
    assert pool(x).shape == (2, 3)
    assert pool(x[0]).shape == (3,)
    mask = torch.ones(6)
    mask[4:] = 0
    torch.testing.assert_close(pool(x, mask), pool(x[..., :4]))
    with pytest.raises(ValueError, match="3 channels"):
        pool(images(2, 4, 6))
    with pytest.raises(ValueError, match=r"\(B, C, N\)"):
        pool(images(6))
    with pytest.raises(ValueError, match="positive"):
        RobustPool1d("huber", alpha=-1.0)
    with pytest.raises(ValueError, match="Unknown penalty"):
        RobustPool1d("cauchy")


def test_alpha_is_learned_and_stays_positive() -> None:
    pool = RobustPool1d("welsch", alpha=5.0, learnable=True)
    x = torch.tensor([[[0.0, 0.1, 0.2, 6.0]]])
    optimizer = torch.optim.SGD(pool.parameters(), lr=0.5)
    first = float(pool(x).detach())
    for _ in range(40):
        optimizer.zero_grad()
        (pool(x) - 0.1).square().sum().backward()
        optimizer.step()
    assert abs(float(pool(x).detach()) - 0.1) < abs(first - 0.1)
    assert 0 < float(pool.alpha.detach()) < 5


def test_projections_are_told_what_they_need() -> None:
    assert repr(Projection("simplex", dim=0)) == "Projection('simplex', radius=1, dim=0)"
    with pytest.raises(ValueError, match="Unknown set 'cube'; known are l1_ball"):
        Projection("cube")
    with pytest.raises(ValueError, match="box needs lower="):
        Projection("box", upper=1.0)
    with pytest.raises(ValueError, match="simplex has no datum size; its data: radius"):
        Projection("simplex", size=1.0)
    with pytest.raises(ValueError, match="radius must be positive; got 0"):
        Projection("simplex", radius=0.0, learnable=True)
    with pytest.raises(ValueError, match="set of matrices"):
        Projection("birkhoff_polytope", dim=0)
    with pytest.raises(ValueError, match="one positive number"):
        RobustVectorPool("huber", alpha=torch.ones(2))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in SETS if "radius" in SETS[name].data])
def test_a_radius_is_learned(name: str) -> None:
    project = Projection(name, radius=0.5, learnable=True)
    x = 5 * images(6, 5)
    goal = SETS[name].project(x, 2.0)
    optimizer = torch.optim.Adam(project.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        (project(x) - goal).square().sum().backward()
        optimizer.step()
    assert abs(float(project.datum("radius").detach()) - 2.0) < 0.1


def every_module() -> list[tuple[nn.Module, tuple[torch.Tensor, ...]]]:
    generator = torch.Generator().manual_seed(0)
    A, G = torch.randn(4, 1, 3, generator=generator), torch.randn(4, 2, 3, generator=generator)
    point = torch.randn(4, 3, 1, generator=generator)
    b, h = (A @ point).squeeze(2), (G @ point).squeeze(2) + 0.5
    q = torch.randn(4, 3, generator=generator)
    return [
        (RobustPool1d("pseudo_huber", learnable=True), (images(4, 3, 5),)),
        (RobustPool2d("welsch", search="local"), (images(4, 3, 5, 5),)),
        (RobustVectorPool("huber", alpha=0.7, learnable=True), (images(4, 6, 3),)),
        (QuadraticProgram(3, 2, 1), (torch.eye(3), q, A, b, G, h)),
        (PolyhedronProjection(3, 2, 1), (q, G, h, A, b)),
        (Projection("l1_ball", radius=1.5, learnable=True), (images(4, 5),)),
        (Projection("box", lower=-0.5, upper=torch.ones(5), dim=1), (images(4, 5, 2),)),
        (Projection("halfspace", normal=torch.ones(5)), (images(4, 5),)),
        (Projection("monotone_cone"), (images(4, 5),)),
        (Projection("total_variation", weight=0.3), (images(4, 5),)),
        (Projection("exponential_cone"), (images(4, 3),)),
        (Projection("positive_semidefinite_cone"), (images(4, 3, 3),)),
        (Projection("birkhoff_polytope"), (images(4, 3, 3),)),
    ]


MODULES = every_module()


@pytest.mark.parametrize("number", range(len(MODULES)))
class TestEveryModule:
    """What torch expects of any module."""

    def test_copies_pickles_and_state(self, number: int) -> None:
        module, inputs = MODULES[number]
        expected = module(*inputs)
        for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            torch.testing.assert_close(twin(*inputs), expected)
        other = copy.deepcopy(module)
        other.load_state_dict(module.state_dict())
        torch.testing.assert_close(other(*inputs), expected)
        assert type(module).__name__ in repr(module)

    def test_dtypes_and_autocast(self, number: int) -> None:
        module, inputs = MODULES[number]
        single, double = module(*inputs), module(*(t.double() for t in inputs))
        assert single.dtype == torch.float32
        assert double.dtype == torch.float64
        torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(module(*inputs), single)

    # dynamo looks at .grad of tensors that are no leaves
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
    def test_compilation(self, number: int) -> None:
        module, inputs = MODULES[number]
        compiled: Any = torch.compile(module, backend="eager")
        leaf = inputs[1 if len(inputs) > 1 else 0].clone().requires_grad_()
        given = [leaf if t is inputs[1 if len(inputs) > 1 else 0] else t for t in inputs]
        answer = compiled(*given)
        torch.testing.assert_close(answer, module(*inputs))
        (gradient,) = torch.autograd.grad(answer.sum(), leaf)
        (expected,) = torch.autograd.grad(module(*given).sum(), leaf)
        torch.testing.assert_close(gradient, expected)


def test_data_parallel_training(tmp_path: Any) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        model = nn.Sequential(nn.Linear(6, 6), RobustPool1d("huber", learnable=True))
        nn.parallel.DistributedDataParallel(model)(images(4, 3, 6)).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
    finally:
        # The wrapper goes first: the group's threads are joined without the interpreter's lock only
        # where the group's own reference is the last one.
        gc.collect()
        torch.distributed.destroy_process_group()
