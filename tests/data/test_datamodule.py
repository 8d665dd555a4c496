"""Rows dealt out to processes: each exactly once, in an order that (seed, epoch) decides."""

from types import SimpleNamespace

import pytest
import torch

from recexp.data import datamodule
from recexp.data.datamodule import RecDataModule, RowBatches


@pytest.fixture
def world(monkeypatch):
    """``world(rank, size)`` pretends to be that process."""

    def pretend(rank, size):
        monkeypatch.setattr(datamodule, "rank_and_world", lambda: (rank, size))

    return pretend


def epoch(world, size, n_rows, batch_size, seed=0, number=0):
    """Batches per process."""
    out = []
    for rank in range(size):
        world(rank, size)
        batches = RowBatches(n_rows, batch_size, seed)
        batches.set_epoch(number)
        out.append([batch.tolist() for batch in batches])
        assert len(out[-1]) == len(batches)
    return out


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(
    ("n_rows", "batch_size"), [(100, 10), (101, 10), (99, 7), (10, 64), (29, 5), (1000, 3)]
)
def test_every_row_once_per_epoch(world, size, n_rows, batch_size):
    dealt = epoch(world, size, n_rows, batch_size)
    assert sorted(row for own in dealt for batch in own for row in batch) == list(range(n_rows))
    assert {len(own) for own in dealt} == {
        -(-n_rows // (batch_size * size))
    }  # the same number of batches everywhere
    sizes = [len(batch) for own in dealt for batch in own]
    assert max(sizes) <= batch_size and min(sizes) >= 1 and max(sizes) - min(sizes) <= 2


def test_epochs_differ_and_seeds_repeat(world):
    first = epoch(world, 1, 200, 16, seed=3, number=0)
    assert epoch(world, 1, 200, 16, seed=3, number=0) == first
    others = [
        epoch(world, 1, 200, 16, seed=3, number=1),
        epoch(world, 1, 200, 16, seed=4, number=0),
    ]
    assert first not in others and others[0] != others[1]
    assert first[0][0] != list(range(len(first[0][0])))  # shuffled from the first epoch on


def test_processes_share_one_order(world):
    """The batches of two processes together are those of one process with batches of twice the
    size.
    """
    one, two = epoch(world, 1, 90, 16), epoch(world, 2, 90, 8)
    assert [a + b for a, b in zip(*two, strict=True)] == one[0]


class Objective:
    independent_rows = True

    def rows(self, store):
        return torch.arange(0, 50, 5)


def module(n_val=11, n_test=17, **changes):
    n_users = {"val": n_val, "test": n_test}
    store = SimpleNamespace(targets=lambda split: SimpleNamespace(n_users=n_users[split]))
    return RecDataModule(
        store, Objective(), **({"batch_size": 4, "eval_batch_size": 3, "seed": 0} | changes)
    )


def test_training_batches_are_the_objectives_rows(world):
    world(0, 1)
    loader = module().train_dataloader()
    batches = list(loader)
    assert all(isinstance(batch, torch.Tensor) and batch.dtype == torch.int64 for batch in batches)
    assert (
        sorted(torch.cat(batches).tolist()) == list(range(0, 50, 5))
        and len(batches) == len(loader) == 3
    )
    loader.sampler.set_epoch(1)
    assert torch.cat(list(loader)).tolist() != torch.cat(batches).tolist()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_held_out_rows_are_a_partition(world, size):
    found = {"val": [], "test": []}
    for rank in range(size):
        world(rank, size)
        data = module(splits=("val", "test"))
        val, test = data.val_dataloader()
        assert [b.tolist() for b in test] == [b.tolist() for b in data.test_dataloader()]
        for name, loader in (("val", val), ("test", test)):
            batches = list(loader)
            assert all(len(batch) <= 3 for batch in batches)
            assert len(batches) == -(-{"val": 11, "test": 17}[name] // (3 * size)), (
                "as many in every process: they agree after each whether to go on"
            )
            found[name].append(torch.cat(batches).tolist())
    assert {name: sorted(row for own in rows for row in own) for name, rows in found.items()} == {
        "val": list(range(11)),
        "test": list(range(17)),
    }
    assert found["val"] == [list(range(rank, 11, size)) for rank in range(size)]


def test_only_the_splits_that_select_are_validated(world):
    world(0, 1)
    assert len(module().val_dataloader()) == 1 and module(splits=()).val_dataloader() == []


def test_more_processes_than_users(world):
    world(2, 3)
    assert [batch.tolist() for batch in module(n_val=2).val_dataloader()[0]] in ([], [[]])
