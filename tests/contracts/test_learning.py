"""Every model must be able to learn: reach a training HR@10 above .95, find a planted pattern, and
find nothing in its shuffled control.
"""

from functools import cache

import pytest
import torch

from recexp.testing import worlds
from recexp.training.phases import enter_epoch
from tests.contracts.harness import MODELS, Contestant, contestant

LENGTH = 12
PLANTED = worlds.planted(n_users=50, n_items=200, length=LENGTH)
CHANCE = 10 / (200 - LENGTH)
CHECK_EVERY, MAX_EPOCHS, BATCH_SIZE, LEARNING_RATE = 6, 300, 64, 3e-3

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("name", MODELS)]


def hit_rate(model, query, target_B, k=10) -> float:
    """HR@k of the targets against all items their users do not have in training; ties count as the
    share of their ranks within k.
    """
    pairs = PLANTED.train_pairs
    with torch.no_grad():
        score = model.eval().score(query).clone()
    rows = torch.repeat_interleave(
        torch.arange(len(query)), (pairs.ptr[1:] - pairs.ptr[:-1])[query.user_B]
    )
    own = torch.cat([pairs.item[pairs.ptr[u] : pairs.ptr[u + 1]] for u in query.user_B]).long()
    wanted = score.gather(1, target_B[:, None] - 1)
    score[rows, own - 1] = -torch.inf
    better, tied = (score > wanted).sum(1), 1 + ((score == wanted).sum(1) - 1).clamp(min=0)
    return float(((k - better) / tied).clamp(0, 1).mean())


def train_hit_rate(model) -> float:
    """On what users bought: all of it where the model reads no history, the last thing otherwise,
    from the events before.
    """
    rows = (
        torch.nonzero(PLANTED.train.behavior == 2).flatten()
        if model.history == 0
        else PLANTED.train.ptr[1:] - 1
    )
    return hit_rate(model, PLANTED.query(rows, model.history), PLANTED.train.item[rows].long())


def held_out_hit_rate(model) -> float:
    rows = torch.arange(len(PLANTED.val))
    return hit_rate(
        model, PLANTED.query_held_out(PLANTED.val, rows, model.history), PLANTED.val.item
    )


def fit(entry: Contestant, epochs: int, until=lambda model: False) -> int:
    """Train until ``enough``, at most the given number of epochs; returns the number of epochs."""
    optimizer = torch.optim.Adam(entry.model.parameters(), lr=LEARNING_RATE)
    for epoch in range(epochs):
        entry.model.train()
        enter_epoch(entry.model, epoch)
        for batch in entry.batches(epoch, BATCH_SIZE):
            optimizer.zero_grad()
            entry.objective.losses(entry.model, batch)["loss"].backward()
            optimizer.step()
        if (epoch + 1) % CHECK_EVERY == 0 and until(entry.model):
            return epoch + 1
    return epochs


def enough(model) -> bool:
    """Whether the model fits its training data and, which can take longer, has found the
    pattern.
    """
    return train_hit_rate(model) > 0.95 and held_out_hit_rate(model) > 5 * CHANCE


def in_the_open(name: str, **options) -> Contestant:
    """Without regularization. Negatives that come from the user's own items only come
    from all items here, as those are what the test ranks. Histories are cropped, so
    that no place of the held-out histories is new to a model that learns places.
    """
    own_only = contestant(name, PLANTED).cfg.sampler._target_.endswith("SupportiveOnly")
    sampler = ["sampler=uniform"] if own_only else []
    return contestant(
        name,
        PLANTED,
        *sampler,
        width=32,
        max_len=8,
        most_negatives=4,
        dropout=False,
        l2=0.0,
        **options,
    )


@cache
def trained(name: str) -> tuple[Contestant, int]:
    """The model after training on the planted data, and the epochs it took."""
    entry = in_the_open(name)
    if entry.closed_form:
        for _ in range(entry.model.n_passes or 1):
            entry.model.fit_pass(PLANTED)
        return entry, 0
    return entry, fit(entry, MAX_EPOCHS, until=enough)


def test_fits_its_training_data(name):
    entry, _ = trained(name)
    if entry.closed_form:
        pytest.skip("counts or solves instead of training")
    assert train_hit_rate(entry.model) > 0.95


def test_learns_a_planted_pattern_and_nothing_from_its_shuffled_control(name):
    entry, epochs = trained(name)
    if entry.closed_form and same_for_all(entry.model):
        popularity = torch.bincount(PLANTED.train.item, minlength=PLANTED.schema.V)[1:].double()
        score = entry.model.score(PLANTED.query(PLANTED.train.ptr[1:2], 0))[0].double()
        assert torch.corrcoef(torch.stack([popularity, score]))[0, 1] > 0.999, (
            "neither personal nor popularity"
        )
        return
    control = in_the_open(name, shuffle_targets=True)
    shuffled = worlds.planted(length=LENGTH, shuffled=True)
    # What a model takes of the training data itself must not hold the pattern either.
    control.model.bind(shuffled)
    if entry.closed_form:
        control.model.fit_pass(shuffled)
    else:
        fit(control, epochs)
    learned, nothing = held_out_hit_rate(entry.model), held_out_hit_rate(control.model)
    assert learned > 5 * CHANCE
    assert nothing < 4 * CHANCE, f"the control finds {nothing:.2f}, the model {learned:.2f}"


def same_for_all(model) -> bool:
    """Whether the items that two users both lack have the same order for both."""
    rows = PLANTED.train.ptr[1:3] - 1
    score = model.score(PLANTED.query(rows, model.history))
    own = PLANTED.train_pairs.item[: PLANTED.train_pairs.ptr[2]].long().unique()
    lacking = torch.ones(PLANTED.schema.n_items, dtype=torch.bool)
    lacking[own - 1] = False
    return torch.equal(*score[:, lacking].argsort(dim=1, stable=True))
