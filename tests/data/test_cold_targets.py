"""protocol.split.cold_targets=drop leaves out targets that no model was trained on."""

from dataclasses import asdict

import numpy as np
import pytest

from recexp.data.cache import prepare, read_meta
from recexp.data.split import Split
from recexp.data.store import Store
from recexp.errors import RecexpError
from recexp.evaluation.protocol import Protocol
from tests.support.events import (
    GLOBAL,
    P1,
    P2,
    P2_LATER,
    P3,
    Event,
    dataset,
    held_out,
    listed,
    random_events,
    store,
    without,
    write,
)
from tests.support.running import run_here

SPLITS = [P1, P2, P2_LATER, P3, GLOBAL]
EVENTS = random_events(3, n_items=90)


@pytest.mark.parametrize("split", SPLITS)
def test_only_targets_without_a_training_event_go(tmp_path, split):
    kept = store(tmp_path / "kept", EVENTS, split)
    dropped = store(tmp_path / "dropped", EVENTS, without(split, cold_targets="drop"))
    for name in ("val", "test"):
        before, after = held_out(kept, name), held_out(dropped, name)
        users = list(before)
        warm = [users[q] for q in np.flatnonzero(~kept.targets(name).cold.numpy())]
        assert list(after) == warm and 0 < len(after) < len(before)
        assert all(after[user] == before[user] for user in warm)
        assert not dropped.targets(name).cold.any()
    assert listed(dropped, dropped.train) == listed(kept, kept.train)


@pytest.mark.parametrize("split", SPLITS)
def test_users_left_out_are_counted(tmp_path, split):
    kept = store(tmp_path / "kept", EVENTS, split)
    dropped = store(tmp_path / "dropped", EVENTS, without(split, cold_targets="drop"))
    for words, name in (("tested", "test"), ("validated", "val")):
        reason = f"not {words}: the target's item has no training event (cold)"
        assert dropped.meta["left_out"][reason] == int(kept.targets(name).cold.sum())
        prefix = f"not {words}"
        counts = [n for reason, n in dropped.meta["left_out"].items() if reason.startswith(prefix)]
        assert sum(counts) == dropped.schema.n_users - len(dropped.targets(name))


@pytest.mark.parametrize("split", SPLITS)
def test_both_stages_of_a_refit_test_the_same_users(tmp_path, split):
    """An item that only a validation target holds is trained on in the second stage."""
    split = without(split, cold_targets="drop")
    first = store(tmp_path / "first", EVENTS, split)
    second = store(tmp_path / "second", EVENTS, without(split, merge_val=True))
    assert list(held_out(first, "test")) == list(held_out(second, "test"))
    assert not len(second.val)


def test_off_it_is_no_part_of_any_id(tmp_path):
    assert "cold_targets" not in Split().identity()
    assert asdict(Split())["cold_targets"] is None
    shop = dataset(write(tmp_path / "raw", EVENTS))
    ids = set()
    for split in (P3, without(P3, cold_targets="drop")):
        meta = read_meta(prepare(shop, split, tmp_path / "cache"))
        ids |= {meta["fingerprint"], Protocol("p", split).id(meta)}
    assert len(ids) == 4


def test_nothing_but_cold_targets_is_one_clear_error(tmp_path):
    events = [Event(f"u{u}", f"i{u}-{n}", "buy", n) for u in range(5) for n in range(4)]
    Store.open(prepare(dataset(write(tmp_path / "raw", events)), P3, tmp_path / "cache"))
    with pytest.raises(RecexpError, match=r"cold_targets=null"):
        store(tmp_path, events, without(P3, cold_targets="drop"))


def test_another_word_is_an_error():
    with pytest.raises(RecexpError, match=r"protocol\.split\.cold_targets='keep'"):
        Split(cold_targets="keep")


def test_a_run_tells_the_kinds_of_its_targets(tmp_path, capsys):
    """The simulated shop with single events: users repeat views, and buy what they viewed."""
    words = ("model=pop", "logger=none", "protocol=global_time", "dataset.merge=none")
    result = run_here(tmp_path / "kept", *words)
    metrics = result["metrics"]
    kinds = [metrics[f"test/users/{kind}"] for kind in ("repeat", "seen", "new")]
    assert sum(kinds) == metrics["test/users"] and metrics["test/users/repeat"] > 0
    audit = result["audit"]
    for kind, n in zip(("repeat", "seen", "new"), kinds, strict=True):
        assert audit[f"{kind}_targets"] == pytest.approx(n / metrics["test/users"])
    mean = sum(
        metrics[f"test/users/{kind}"] * metrics.get(f"test/ndcg@10/{kind}", 0)
        for kind in ("repeat", "seen", "new")
    )
    assert mean / metrics["test/users"] == pytest.approx(metrics["test/ndcg@10"])
    assert "repeat a pair of an equal or stronger behavior" in capsys.readouterr().out
    few = "dataset.source.users=60 dataset.source.items=1500 dataset.source.sessions=4"
    words = (*words, *few.split())
    cold = run_here(tmp_path / "cold", *words)["metrics"]
    warm = run_here(tmp_path / "warm", *words, "protocol.split.cold_targets=drop")["metrics"]
    assert cold["test/users/cold"] > 0 and "test/users/cold" not in warm
    assert warm["test/users"] == cold["test/users/warm"]
