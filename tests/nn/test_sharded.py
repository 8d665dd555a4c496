"""Tables that two processes share out train as whole tables in one process do."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing import get_context

from recexp.contracts import Objective, Recommender
from recexp.errors import RecexpError
from recexp.models.bert4rec import BERT4Rec
from recexp.models.ite import ITE
from recexp.models.mf import MF
from recexp.models.sasrec import SASRec
from recexp.nn.sharded import RowShard
from recexp.objectives.cloze import Cloze
from recexp.objectives.losses import BCE, CE, SampledSoftmax
from recexp.objectives.next_item import NextItem
from recexp.objectives.pairwise import Pairwise
from recexp.objectives.pointwise import Pointwise
from recexp.objectives.samplers import Uniform
from recexp.testing import toy, worlds
from recexp.training.optimizers import GRU4RecAdagrad
from recexp.training.row_optimizers import RowAdam
from recexp.training.shards import Shards

N_USERS = 9
N_ITEMS = 29
# Of each process: different numbers of rows, and so of positions.
ROWS = ([0, 3, 5, 6, 7], [1, 2, 8])
Optimizer = Callable[..., torch.optim.Optimizer]
ADAM: Optimizer = functools.partial(torch.optim.Adam, lr=0.1, fused=True)


def world():
    generator = torch.Generator().manual_seed(1)
    rows = []
    for user in range(N_USERS):
        items = torch.randperm(N_ITEMS, generator=generator)[: 3 + user] + 1
        rows += [(user, int(item), 1 + place % 2) for place, item in enumerate(items)]
    return worlds.store(rows, N_USERS, N_ITEMS)


def cases() -> Iterator[tuple[str, Recommender, Objective, Optimizer]]:
    schema = world().schema
    sizes = {"n_factors": 4, "n_heads": 2, "max_len": 6, "dropout": 0.0}
    sasrec = functools.partial(SASRec, schema, **sizes)
    bert = functools.partial(BERT4Rec, schema, **sizes, attention_dropout=0.0)
    softmax = {"loss": SampledSoftmax(), "n_negatives": 5, "shared": "batch"}
    uniform = Uniform()
    yield "all items", sasrec(), NextItem(uniform, loss=CE()), ADAM
    yield "drawn items", sasrec(), NextItem(uniform, **softmax), ADAM
    yield "rows", sasrec(), NextItem(uniform, loss=BCE()), functools.partial(RowAdam, lr=0.1)
    yield (
        "biases",
        bert(),
        Cloze(uniform, loss=CE()),
        functools.partial(GRU4RecAdagrad, momentum=0.5),
    )
    yield "two tables", bert(tied=False), Cloze(uniform, loss=BCE()), ADAM
    yield "pairs", MF(schema, n_factors=4, item_bias=True), Pairwise(uniform, l2=0.1), ADAM
    yield "behaviors", ITE(schema, n_factors=4), Pointwise(uniform, loss=BCE(), l2=0.1), ADAM


def batches(objective: Objective, model: Recommender) -> list:
    store = world()
    objective.bind(model, store)
    all_rows = objective.rows(store)
    return [
        objective.batch(store, all_rows[rows], torch.Generator().manual_seed(seed))
        for seed, rows in enumerate(ROWS)
    ]


def in_one_process(model: Recommender, objective: Objective, optimizer: Optimizer) -> dict:
    """The weights after two clipped steps on the mean of the two processes' losses."""
    steps = optimizer(model.parameters())
    for _ in range(2):
        losses = [objective.losses(model, batch)["loss"] for batch in batches(objective, model)]
        steps.zero_grad()
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        steps.step()
    return model.state_dict()


def shared_out(model: Recommender, objective: Objective, optimizer: Optimizer) -> dict:
    """The same by two processes; whole weights in the first, and all state of the optimizer."""
    shards = Shards(model, model.row_tables(), dist.group.WORLD, min_rows=1)
    parts = {id(shard.part) for shard in shards.all}
    steps = optimizer(model.parameters())
    rank = dist.get_rank()
    for number in range(2):
        batch = batches(objective, model)[rank]
        steps.zero_grad()
        shards.fetch(batch)
        objective.losses(model, batch)["loss"].backward()
        shards.push()
        for parameter in model.parameters():
            if id(parameter) not in parts and parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= 2
        shards.clip(model.parameters(), 0.1)
        steps.step()
        state = shards.own_state(steps, _sent(shards.whole_state(steps, steps.state_dict())))
        steps.load_state_dict(state)
        if number == 0:  # as around a validation
            shards.gather(drop_gradients=False)
            shards.share_out()
    return {**model.state_dict(), **shards.whole_weights()}


def _sent(state: dict) -> dict:
    """The first process's."""
    values = [state]
    dist.broadcast_object_list(values)
    return values[0]


@contextmanager
def process_group(rank: int, file: str) -> Iterator[None]:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{file}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def all_cases(rank: int, file: str) -> dict[str, dict[str, Tensor]]:
    torch.set_num_threads(1)
    with process_group(rank, file):
        return {name: shared_out(toy.randomise(model), *rest) for name, model, *rest in cases()}


def test_two_processes_train_shares_of_tables_as_one_process_trains_whole_ones(tmp_path: Path):
    file = str(tmp_path / "store")
    other = get_context("spawn").Process(target=all_cases, args=(1, file), daemon=True)
    other.start()
    trained = all_cases(0, file)
    other.join(60)
    assert other.exitcode == 0
    for name, model, *rest in cases():
        toy.randomise(model)
        before = {key: x.clone() for key, x in model.state_dict().items()}
        expected = in_one_process(model, *rest)
        assert trained[name].keys() == expected.keys()
        for key, value in expected.items():
            assert torch.allclose(trained[name][key], value, rtol=1e-9, atol=1e-12), (name, key)
        tables = [f"{key}.weight" for key, x in model.named_modules() if x in _tables(model)]
        assert tables and all(not before[key].equal(expected[key]) for key in tables)


def _tables(model: Recommender) -> tuple:
    tables = model.row_tables()
    return (*tables.items, *tables.users)


@pytest.fixture
def alone(tmp_path):
    """A group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_a_table_that_is_shared_out_cannot_be_read_as_a_whole(alone):
    model = MF(world().schema, n_factors=4)
    shard = RowShard(model.item, alone)
    with pytest.raises(RecexpError, match="reads a whole table in training"):
        model.item_embeddings()
    shard.fetch(torch.tensor([0, 3, 5]))
    with pytest.raises(RecexpError, match="looks up rows that its batch does not name"):
        model.item(torch.tensor([3, 4]))
    shard.gather()
    assert model.item_embeddings().shape == (N_ITEMS, 4)
