"""A flipped bit or a missing end in any file of a run is found: the file is named, and made again
or refused.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from recexp.data.cache import prepare
from recexp.data.store import Store
from recexp.errors import RecexpError
from recexp.evaluation.candidate_store import stored_candidates
from recexp.evaluation.protocol import Candidates, Protocol
from recexp.report.ranks import per_user
from recexp.runs.evaluate import evaluate
from recexp.training.checkpoints import AtomicCheckpointIO
from tests.support.events import P1, dataset, random_events, write
from tests.support.running import run_here

SEEDS = range(12)


def damage(path: Path, rng: random.Random) -> None:
    """Flip a bit; in one of four cases cut the end off instead."""
    data = bytearray(path.read_bytes())
    if rng.random() < 0.25:
        del data[rng.randrange(len(data)) :]
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flips")
    return dataset(write(folder / "raw", random_events(0, n_items=40))), folder / "cache"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("seed", SEEDS)
def test_any_file_of_the_cache_is_made_again(shop, capsys, seed):
    """Arrays, id maps, meta.json and the pointer.

    (A folder made again has lost its candidates, which the next run draws.)
    """
    data, cache = shop
    folder, rng = prepare(data, P1, cache), random.Random(seed)
    before = content(folder)
    victim = rng.choice([*sorted(folder.iterdir()), *cache.glob("*.json")])
    damage(victim, rng)
    capsys.readouterr()
    assert prepare(data, P1, cache) == folder and content(folder) == before, victim
    said = capsys.readouterr().err
    assert "preparing again" in said or victim.suffix == ".json", (
        "what was read wrongly is not used in silence"
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_candidates_are_drawn_again(shop, seed):
    store, rng = Store.open(prepare(shop[0], P1, shop[1])), random.Random(seed)
    protocol = Protocol("p", P1, Candidates(n=6))
    before = stored_candidates(store, protocol, "test")
    damage(rng.choice(sorted(store.folder.glob("candidates-test-*"))), rng)
    assert torch.equal(stored_candidates(store, protocol, "test"), before)
    for path in store.folder.glob("candidates-*"):  # which the other tests do not expect
        path.unlink()


def test_a_checkpoint_is_refused_or_was_not_changed(tmp_path):
    """Some bits of the archive have no meaning (dates, padding): where it loads, every number is
    unchanged.
    """
    io, path, rng = AtomicCheckpointIO(), tmp_path / "last.ckpt", random.Random(0)
    saved = {
        "state_dict": {"item": torch.randn(20, 4), "bias": torch.arange(7)},
        "epoch": 3,
        "callbacks": {"table": {"rows": [{"loss": 0.5}]}},
    }
    io.save_checkpoint(saved, path)
    data, refused = path.read_bytes(), 0
    for _ in range(150):
        path.write_bytes(data)
        damage(path, rng)
        try:
            loaded = io.load_checkpoint(path, weights_only=True)
        except RecexpError as error:
            assert str(path) in str(error)
            refused += 1
            continue
        assert loaded["epoch"] == 3 and loaded["callbacks"] == saved["callbacks"]
        assert all(torch.equal(loaded["state_dict"][k], v) for k, v in saved["state_dict"].items())
    assert refused > 75


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_here(folder, "model=pop", "protocol=full")
    return folder


def test_ranks_are_refused_by_name(run):
    path = run / "ranks.parquet"
    data = path.read_bytes()
    assert len(per_user(run, "mrr")[0]) > 0
    for seed in SEEDS:
        damage(path, random.Random(seed))
        with pytest.raises(RecexpError, match=r"ranks\.parquet is damaged"):
            per_user(run, "mrr")
        path.write_bytes(data)


def test_the_best_checkpoint_is_refused_where_another_protocol_asks_for_it(run):
    path = run / "checkpoints" / "best.ckpt"
    data = bytearray(path.read_bytes())
    at = data.index(b"state_dict")
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(RecexpError, match=r"checkpoint .*best\.ckpt is damaged"):
        evaluate(run, "full", cache_dir=str(run.parent / "cache"))
