"""Negatives and held-out pairs: which targets are drawn, and that this does not depend on being
held out.

Every sampler of conf/sampler under every protocol of conf/protocol, and the pairs of lower levels
of MFPR, on prepared data and through an objective's batches.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cache

import pytest
import torch
from omegaconf import OmegaConf

from recexp.config import CONF
from recexp.config.build import build
from recexp.contracts import Recommender
from recexp.data.split import Split
from recexp.objectives.pairwise import Pairwise
from recexp.objectives.samplers import Uniform
from tests.support.events import BEHAVIORS, Event, listed, names, random_events, store, without

# given: the data below name no parts. user_folds: held-out users are not trained on at all.
OTHERS = {"given", "user_folds"}
PROTOCOLS = sorted({path.stem for path in (CONF / "protocol").glob("*.yaml")} - OTHERS)
SAMPLERS = sorted(path.stem for path in (CONF / "sampler").glob("*.yaml") if path.stem != "none")
LEVELS = "lower levels"  # not a sampler: objective.pairs=levels
N_ITEMS, DRAWS = 12, 600
LATE = 10**6
STRONGEST = 1 << (len(BEHAVIORS) - 1)
# Under these no event of a held-out pair stays in training.
WHOLE_PAIR = {"p1_uniform999", "p2_uniform99"}


class Scorer(Recommender):
    def score(self, query, item_BC=None): ...


def split_of(protocol: str) -> Split:
    return build(OmegaConf.load(CONF / "protocol" / f"{protocol}.yaml")).split


def world() -> tuple[list[Event], list[Event]]:
    """Random users, and one user who has an early event on every item and buys two more items at
    the end.
    """
    early = [Event("zz", f"i{n}", "view", n) for n in range(N_ITEMS)]
    late = [Event("zz", f"late{n}", "buy", LATE + n) for n in range(2)]
    return random_events(3, n_users=20, n_items=N_ITEMS, n_events=160) + early, late


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(protocol, merge_val) -> store, prepared once."""
    folder = tmp_path_factory.mktemp("negatives")

    @cache
    def make(protocol: str, merge_val: bool = False):
        early, late = world()
        split = split_of(protocol)
        # The last window ends with the data, and so with the events that are held out.
        split = without(split, merge_val=merge_val, window=split.n_windows - 1)
        return store(folder / f"{protocol}-{merge_val}", early + late, split)

    return make


def batches_of(opened, sampler: str, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Users [B] of all training rows, and the objective's n negatives of each [B, n]."""
    if sampler == LEVELS:
        objective = Pairwise(Uniform(), n, pairs="levels")
    else:
        objective = Pairwise(build(OmegaConf.load(CONF / "sampler" / f"{sampler}.yaml")), n)
    objective.bind(Scorer(), opened)
    rows = objective.rows(opened)
    batch = objective.batch(opened, rows, torch.Generator().manual_seed(seed))
    return batch.query.user_B, batch.negative_Bn


@pytest.mark.parametrize("merge_val", [False, True], ids=["", "refit"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_held_out_events_might_as_well_not_be_in_the_raw_data(
    tmp_path, prepared, protocol, merge_val
):
    """Training data and negatives equal those of raw data without the held-out events."""
    opened = prepared(protocol, merge_val)
    trained = [e for own in listed(opened, opened.train).values() for e in own]
    late = world()[1]
    events = [e for e in trained if e.time < LATE] + late
    share = 1 / len(events)  # one event after each cut, and both are of zz
    late_is_trained_on = late[0] in trained
    cut = Split(kind="global_time", test_share=share, val_share=share, merge_val=late_is_trained_on)
    other = store(tmp_path, events, cut)
    assert names(other, "user") == names(opened, "user") and len(other.test) == 1
    assert len(opened.test) > 3 and len(opened.all_pairs) > len(other.all_pairs) - 2
    for part in ("train", "train_pairs"):
        mine, theirs = getattr(opened, part), getattr(other, part)
        for field in fields(mine):
            column = getattr(mine, field.name)
            if field.name == "features":
                assert not column, "the events have no features"
                continue
            assert column is None or torch.equal(column, getattr(theirs, field.name)), field.name
    for sampler in (*SAMPLERS, LEVELS):
        (user, drawn), (also, again) = (batches_of(x, sampler, 5) for x in (opened, other))
        assert torch.equal(user, also) and torch.equal(drawn, again), sampler


@pytest.mark.parametrize("sampler", [*SAMPLERS, LEVELS])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_which_targets_are_drawn_for_their_own_user(prepared, protocol, sampler):
    opened = prepared(protocol)
    user, drawn = batches_of(opened, sampler, DRAWS)
    found = set(zip(user.repeat_interleave(DRAWS).tolist(), drawn.flatten().tolist(), strict=True))
    pairs = opened.train_pairs
    mask = dict(
        zip(
            zip(pairs.user.tolist(), pairs.item.tolist(), strict=True),
            pairs.mask.tolist(),
            strict=True,
        )
    )
    with_weaker = {u for (u, _), m in mask.items() if not m & STRONGEST}
    hit, pool = {}, {}
    for name in ("val", "test"):
        targets = opened.targets(name)
        own = list(zip(targets.user.tolist(), targets.item.tolist(), strict=True))
        weaker = [pair in mask and not mask[pair] & STRONGEST for pair in own]
        hit[name] = [pair in found for pair in own]
        pool[name] = sum(weaker) / len(own)
        for pair, drawable, was_drawn in zip(own, weaker, hit[name], strict=True):
            unseen = pair not in mask
            if sampler == "supportive_only":
                assert was_drawn == (drawable or (unseen and pair[0] not in with_weaker))
            elif sampler in ("uniform", "mixed"):
                assert was_drawn == unseen
            elif (
                sampler != LEVELS
            ):  # popularity: not what never occurs, unless nothing else is left
                assert unseen or not was_drawn
        # What preparation prints is the share that a sampler of weaker items draws from its pool.
        assert opened.meta["audit"][f"{name}_targets_weaker_only"] == pytest.approx(pool[name])
        assert (pool[name] == 0) == (protocol in WHOLE_PAIR)
    line = (
        f"{pool['test']:.1%} of test and {pool['val']:.1%} of validation targets stand in training"
    )
    assert line in opened.meta["report"][-1]


@pytest.mark.parametrize("sampler", ["supportive_only", LEVELS])
def test_a_target_met_before_is_no_negative_once_its_pair_is_purged(tmp_path, sampler):
    """User u puts b into the cart and then buys it. Where the cart event stays in training, b is
    drawn as a negative of u's other purchases; where the whole pair is held out, b is drawn as
    often as e, which u has no event on.
    """
    own = (("a", "view", 1), ("d", "buy", 2), ("c", "buy", 3), ("b", "cart", 4), ("b", "buy", 5))
    others = (
        ("a", "view", 1),
        ("b", "view", 2),
        ("e", "view", 2),
        ("c", "buy", 3),
        ("d", "buy", 4),
    )
    events = [*(Event("u", *e) for e in own), *(Event("v", *e) for e in others)]
    for merge_val in (False, True):
        share = {}
        for protocol in ("p2_uniform99", "p2_uniform99_later"):
            split = without(split_of(protocol), merge_val=merge_val)
            opened = store(tmp_path / f"{protocol}-{merge_val}", events, split)
            user, drawn = batches_of(opened, sampler, 2000)
            mine = drawn[user == names(opened, "user").index("u")]
            items = [names(opened, "item").index(name) for name in ("b", "e")]
            share[protocol] = [(mine == item).float().mean().item() for item in items]
        assert share["p2_uniform99_later"][0] > 0.1
        assert share["p2_uniform99"][0] == pytest.approx(share["p2_uniform99"][1], abs=0.03)
