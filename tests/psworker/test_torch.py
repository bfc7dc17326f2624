from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from protocol.errors import BadTensor, Fenced, NotFinite, SpecMismatch
from protocol.optimizers import (
    DCSGD,
    FTRL,
    OPTIMIZERS,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Add,
    Momentum,
    Nesterov,
    Optimizer,
    RMSProp,
)
from protocol.tables import Zeros
from psworker.sync import SyncClient, connect
from psworker.torch import ServedEmbedding, ServedModule
from tests.cluster import Elsewhere, cluster_in_thread, put_out

torch.set_num_threads(1)  # what is computed here is too little for more


@pytest.fixture(scope="module")
def cluster() -> Iterator[Elsewhere]:
    with cluster_in_thread(shards=2) as elsewhere:
        yield elsewhere


@pytest.fixture
def job(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


@pytest.fixture
def ps(cluster: Elsewhere, job: str) -> Iterator[SyncClient]:
    with connect(cluster.address, job=job) as client:
        yield client


class Tied(nn.Module):
    """A layer that is used twice, another one, and one that learns nothing."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5, dtype=dtype)
        self.again = self.first
        self.frozen = nn.Linear(5, 5, dtype=dtype)
        self.last = nn.Linear(5, 3, dtype=dtype)
        self.frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.again(torch.tanh(self.first(x))))
        result: torch.Tensor = self.last(self.frozen(x))
        return result


def batch(rows: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(rows, 5)), dtype=torch.float32)
    return x, torch.tensor(rng.integers(3, size=rows))


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return make()


def values(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_same(module: nn.Module, other: nn.Module, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(values(module), values(other), rtol=tolerance, atol=tolerance)


def alone(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Train on whole batches in this process, with torch's own optimizer."""
    x, y = batch()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()


def test_two_synchronous_workers_are_one_process_with_both_batches(cluster: Elsewhere, job: str) -> None:
    x, y = batch()
    modules = [seeded(Tied, seed) for seed in (0, 1)]  # what the first to come begins with is what counts
    begun: list[dict[str, torch.Tensor]] = []

    def work(module: nn.Module, part: slice) -> None:
        with connect(cluster.address, job=job, workers=2, staleness=0) as client:
            served = ServedModule(client, module, SGD(lr=0.5))
            begun.append(values(module))
            for _ in range(10):
                nn.functional.cross_entropy(module(x[part]), y[part]).backward()
                served.step(len(x[part]))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, modules, (slice(0, 9), slice(9, None))))
    single = Tied()
    single.load_state_dict(begun[0])
    alone(single, torch.optim.SGD(single.parameters(), lr=0.5), steps=10)
    assert_same(modules[0], single)
    assert_same(modules[1], single)
    assert not torch.equal(begun[0]["last.weight"], single.last.weight)


PAIRS: list[tuple[Optimizer, Callable[[Any], torch.optim.Optimizer]]] = [
    (SGD(lr=0.3), lambda p: torch.optim.SGD(p, lr=0.3)),
    (DCSGD(lr=0.3, lam=0.0), lambda p: torch.optim.SGD(p, lr=0.3)),
    (SGD(lr=0.3, l2=0.1), lambda p: torch.optim.SGD(p, lr=0.3, weight_decay=0.1)),
    (Momentum(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    (Nesterov(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True)),
    (Adagrad(lr=0.1), lambda p: torch.optim.Adagrad(p, lr=0.1)),
    (RMSProp(lr=0.01), lambda p: torch.optim.RMSprop(p, lr=0.01)),
    (Adam(lr=0.01), lambda p: torch.optim.Adam(p, lr=0.01)),
    (AdamW(lr=0.01), lambda p: torch.optim.AdamW(p, lr=0.01)),
]


@pytest.mark.parametrize(("optimizer", "of_torch"), PAIRS, ids=[type(one).__name__ for one, _ in PAIRS])
def test_the_optimizers_of_the_servers_are_those_of_torch(
    ps: SyncClient, optimizer: Optimizer, of_torch: Callable[[Any], torch.optim.Optimizer]
) -> None:
    x, y = batch()
    module, single = seeded(Tied), seeded(Tied)
    served = ServedModule(ps, module, optimizer)
    for _ in range(10):
        nn.functional.cross_entropy(module(x), y).backward()
        served.step()
    alone(single, of_torch(single.parameters()), steps=10)
    assert_same(module, single)


def test_the_optimizers_that_torch_has_not(ps: SyncClient) -> None:
    x, y = batch()
    module = seeded(Tied)
    served = ServedModule(ps, module, FTRL(lr=0.1))
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(module(x), y)
        losses.append(loss.item())
        loss.backward()
        served.step()
    assert losses[-1] < losses[1] < 1.2
    assert {type(one) for one, _ in PAIRS} | {FTRL, Add} == set(OPTIMIZERS.values())


def test_add_adds(ps: SyncClient) -> None:
    module = nn.Linear(2, 1)
    before = values(module)
    served = ServedModule(ps, module, Add())
    module(torch.ones(1, 2)).sum().backward()
    served.step()
    torch.testing.assert_close(values(module), {name: value + 1 for name, value in before.items()})


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_what_is_served_and_under_which_name(ps: SyncClient) -> None:
    module = nn.Sequential(seeded(Tied), nn.BatchNorm1d(3), nn.Linear(3, 0))
    ServedModule(ps, module)
    assert set(ps.tensors()) == {
        "0.first.weight", "0.first.bias", "0.frozen.weight", "0.frozen.bias", "0.last.weight", "0.last.bias",
        "1.weight", "1.bias",
    }  # fmt: skip


def test_the_gradient_travels_and_the_values_arrive_in_place(ps: SyncClient) -> None:
    module = seeded(Tied)
    served = ServedModule(ps, module, SGD(lr=1.0))
    places = {name: one.data_ptr() for name, one in module.named_parameters()}
    frozen = module.frozen.weight.clone()
    module(torch.ones(4, 5)).sum().backward()
    kept = module(torch.ones(4, 5)).sum()
    served.step()
    assert places == {name: one.data_ptr() for name, one in module.named_parameters()}
    assert all(one.grad is None for one in module.parameters())
    assert torch.equal(module.frozen.weight, frozen)
    np.testing.assert_array_equal(ps.pull("last.weight"), module.last.weight.detach().numpy())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()  # autograd knows that the values of then have gone


def test_gradients_accumulate_until_the_step(ps: SyncClient) -> None:
    module, single = seeded(Tied), seeded(Tied)
    served = ServedModule(ps, module, SGD(lr=0.1))
    x, y = batch()
    for part in (slice(0, 16), slice(16, 32)):
        (nn.functional.cross_entropy(module(x[part]), y[part]) / 2).backward()
    served.step()
    alone(single, torch.optim.SGD(single.parameters(), lr=0.1), steps=1)
    assert_same(module, single)


class Branches(nn.Module):
    """Has two layers, of which each call uses one."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, x: torch.Tensor, *, left: bool) -> torch.Tensor:
        result: torch.Tensor = self.left(x) if left else self.right(x)
        return result


@pytest.mark.parametrize(("staleness", "moved"), [(0, 0.5), (np.inf, 1.0)])
def test_a_parameter_without_a_gradient(cluster: Elsewhere, job: str, staleness: float, moved: float) -> None:
    modules = [Branches(), Branches()]
    begun: list[dict[str, torch.Tensor]] = []

    def work(module: nn.Module, left: bool) -> None:
        with connect(cluster.address, job=job, workers=2, staleness=staleness) as client:
            served = ServedModule(client, module, SGD(lr=1.0))
            begun.append(values(module))
            module(torch.ones(1, 1), left=left).sum().backward()
            served.step()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, modules, (True, False)))
    with connect(cluster.address, job=job, observe=True) as client:
        for name, value in client.pull(["left.bias", "right.bias"]).items():
            if staleness == 0:
                np.testing.assert_allclose(begun[0][name].numpy() - value, moved, rtol=1e-5)
            else:  # each was pushed by one worker alone
                assert np.isfinite(value).all()


def test_a_step_without_any_gradient_keeps_nobody_waiting(cluster: Elsewhere, job: str) -> None:
    module = nn.Linear(1, 1)
    with connect(cluster.address, job=job, staleness=0) as client:
        served = ServedModule(client, module, Momentum(lr=1.0))
        before = values(module)
        served.step()
        assert client.clock == 1
    torch.testing.assert_close(values(module), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats(ps: SyncClient, dtype: torch.dtype) -> None:
    module = seeded(lambda: Tied(dtype))
    served = ServedModule(ps, module, SGD(lr=0.1))
    x, y = batch()
    before = values(module)
    nn.functional.cross_entropy(module(x.to(dtype)), y).backward()
    gradient = module.last.bias.grad.clone()
    served.step()
    expected = "float64" if dtype == torch.float64 else "float32"
    assert ps.tensors()["last.bias"].spec.dtype == expected
    exact = before["last.bias"].double() - 0.1 * gradient.double()
    np.testing.assert_allclose(ps.pull("last.bias"), exact.numpy(), rtol=1e-6)
    torch.testing.assert_close(module.last.bias.detach(), exact.to(dtype))


def test_what_cannot_be_served_is_named(ps: SyncClient) -> None:
    with pytest.raises(BadTensor, match=r"weight=torch\.complex64: parameters are one of torch\.float32"):
        ServedModule(ps, nn.Linear(1, 1, dtype=torch.complex64))
    with pytest.raises(BadTensor, match=r"0\.weight=.*call the module once"):
        ServedModule(ps, nn.Sequential(nn.LazyLinear(3)))
    embedding = nn.Embedding(4, 2, sparse=True)
    served = ServedModule(ps, embedding)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(BadTensor, match=r"weight=torch\.sparse_coo: its gradient is sparse; make"):
        served.step()


def test_another_module_under_the_same_names_is_refused(ps: SyncClient) -> None:
    ServedModule(ps, nn.Linear(2, 1))
    with pytest.raises(SpecMismatch):
        ServedModule(ps, nn.Linear(3, 1))


def test_nan_is_refused_and_nothing_is_changed(ps: SyncClient) -> None:
    module = nn.Linear(2, 1)
    served = ServedModule(ps, module)
    before = values(module)
    (module(torch.ones(1, 2)).sum() * float("nan")).backward()
    with pytest.raises(NotFinite):
        served.step()
    torch.testing.assert_close(values(module), before)


def test_a_worker_that_was_put_out_loads_and_goes_on(cluster: Elsewhere, ps: SyncClient) -> None:
    module = nn.Linear(2, 1)
    served = ServedModule(ps, module, SGD(lr=1.0))
    before = values(module)
    cluster.run(put_out(cluster.cluster, ps))
    module(torch.ones(1, 2)).sum().backward()
    with pytest.raises(Fenced):
        served.step()
    served.load()
    served.step()
    torch.testing.assert_close(module.bias.detach(), before["bias"] - 1)


class Recommender(nn.Module):
    def __init__(self, users: nn.Module) -> None:
        super().__init__()
        self.users = users
        self.out = nn.Linear(4, 1)

    def forward(self, users: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.out(self.users(users)).squeeze(-1)
        return result


def test_an_embedding_in_a_table_is_as_one_in_the_module(cluster: Elsewhere, job: str) -> None:
    users = torch.tensor([[3, 1], [3, 3], [7, 0], [2, 1], [3, 9]])
    rates = torch.arange(10.0).reshape(5, 2)
    ready: list[dict[str, torch.Tensor]] = []
    tables: list[torch.Tensor] = []

    def work(part: slice) -> None:
        with connect(cluster.address, job=job, workers=2, staleness=0) as client:
            module = Recommender(ServedEmbedding(client, "users", 4, Adagrad(lr=0.5), Zeros()))
            served = ServedModule(client, module, SGD(lr=0.01))
            ready.append(values(module))
            for _ in range(5):
                loss = nn.functional.mse_loss(module(users[part]), rates[part])
                loss.backward()
                served.step(len(users[part]))
            with torch.no_grad():
                tables.append(module.users(torch.arange(10)))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, (slice(0, 2), slice(2, 5))))
    embedding = nn.Embedding(10, 4)
    nn.init.zeros_(embedding.weight)
    single = Recommender(embedding)
    single.load_state_dict(ready[0], strict=False)
    rule = torch.optim.Adagrad(embedding.parameters(), lr=0.5)
    others = torch.optim.SGD(single.out.parameters(), lr=0.01)
    for _ in range(5):
        nn.functional.mse_loss(single(users), rates).backward()
        rule.step()
        others.step()
        single.zero_grad()
    for table in tables:
        torch.testing.assert_close(table, embedding.weight.detach(), rtol=1e-4, atol=1e-5)
    assert tables[0][3].abs().max() > 0.1
    assert not tables[0][4].any()
