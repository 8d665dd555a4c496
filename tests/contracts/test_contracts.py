"""What every model of conf/model must do, trained by the objective and sampler its YAML names. A new YAML is picked up by itself.

What is asked of a model follows from what it can do (encode, logits, sweep) and from what its objective trains, never from its name.
"""

import dataclasses

import pytest
import torch

from recexp.data.store import Targets
from recexp.objectives.cloze import Cloze
from recexp.objectives.next_item import NextItem
from recexp.objectives.sequence import SequenceObjective
from recexp.objectives.session_parallel import SessionParallel
from recexp.runs.result import scoring_flops
from tests.contracts.harness import MODELS, STORE, bind, contestant, ready
from tests.support import toy

ROWS = torch.cat(
    [STORE.train.ptr[1:11] - 1, STORE.train.ptr[:4], torch.tensor([5, 9, 30])]
)  # last events, first ones (no history), others
EXACT = dict(rtol=1e-8, atol=1e-10)

pytestmark = pytest.mark.parametrize("name", MODELS)


def query_of(model):
    return STORE.query(ROWS, max(model.history, 1))


def candidates(n=9):
    g = torch.Generator().manual_seed(1)
    return torch.stack([torch.randperm(STORE.schema.n_items, generator=g)[:n] + 1 for _ in ROWS])


def test_loss_is_finite_and_reaches_every_parameter(name):
    entry = contestant(name, STORE)
    if entry.closed_form:
        assert not list(entry.model.parameters())
        assert all(torch.isfinite(torch.tensor(v)) for v in entry.model.fit_pass(STORE).values())
        return
    entry.model.train()
    for epoch in range(3):
        for batch in entry.batches(epoch, 32):
            losses = entry.objective.loss(entry.model, batch)
            assert all(x.ndim == 0 and torch.isfinite(x) for x in losses.values())
            losses["loss"].backward()
    assert toy.without_gradient(entry.model) == []


def test_whole_catalogue_equals_all_candidates(name):
    model = ready(name).model
    query = query_of(model)
    everything = torch.arange(1, STORE.schema.V).expand(len(query), -1)
    score = model.score(query)
    assert score.shape == (len(query), STORE.schema.n_items)
    torch.testing.assert_close(model.score(query, everything), score, **EXACT)
    assert len(score[0].unique()) > 4


def test_candidates_are_scored_one_by_one(name):
    model = ready(name).model
    query, item = query_of(model), candidates()
    score = model.score(query, item)
    order = torch.randperm(item.shape[1], generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(model.score(query, item[:, order]), score[:, order], **EXACT)
    torch.testing.assert_close(model.score(query, item[:, :1]), score[:, :1], **EXACT)


def test_more_padding_changes_nothing(name):
    model = ready(name).model
    query, item = query_of(model), candidates()
    torch.testing.assert_close(
        model.score(toy.padded(query, 7), item), model.score(query, item), **EXACT
    )


def test_rows_do_not_see_each_other(name):
    model = ready(name).model
    query, item = query_of(model), candidates()
    score = model.score(query, item)
    for row in (0, 3, 12):
        torch.testing.assert_close(
            model.score(query[row : row + 1], item[row : row + 1]), score[row : row + 1], **EXACT
        )


def test_its_cost_can_be_counted(name):
    model = contestant(name, STORE).model
    bind(model, STORE)
    learned = [p.requires_grad for p in model.parameters()]
    store = dataclasses.replace(
        STORE,
        test=Targets(
            *(torch.tensor([x]) for x in (3, 1, 0, 1, False)),
            STORE.past.ptr[3:4],
            STORE.past.ptr[4:5],
        ),
    )
    assert scoring_flops(model, store, "before_target") >= 0
    assert [p.requires_grad for p in model.parameters()] == learned


def test_loading_a_state_dict_gives_the_same_scores(name):
    entry = ready(name)
    query, item = query_of(entry.model), candidates()
    torch.manual_seed(99)
    fresh = contestant(name, STORE).model.double().eval()
    bind(fresh, STORE)
    fresh.load_state_dict(entry.model.state_dict())
    assert torch.equal(fresh.score(query, item), entry.model.score(query, item))


def test_state_dict_loads_with_weights_only(name, tmp_path):
    state = ready(name).model.state_dict()
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    loaded = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[k], v) for k, v in state.items())


def test_later_events_change_no_earlier_state(name):
    entry = ready(name)
    if not isinstance(entry.objective, NextItem | SessionParallel):
        pytest.skip("not trained to predict the next item at every position")
    query = STORE.query(ROWS[:10], entry.model.history)
    t = query.item_BL.shape[1] // 2
    other = dataclasses.replace(
        query, item_BL=query.item_BL.clone(), time_BL=query.time_BL + 5 * query.mask_BL
    )
    other.item_BL[:, t:] = torch.where(query.mask_BL, 1 + query.item_BL % STORE.schema.n_items, 0)[
        :, t:
    ]
    other.time_BL[:, :t] = query.time_BL[:, :t]
    before, after = entry.model.encode(query), entry.model.encode(other)
    if before.shape[1] > 1:
        torch.testing.assert_close(before[:, :t], after[:, :t], **EXACT)
    assert not torch.allclose(before[:, -1], after[:, -1])


def test_what_is_to_be_predicted_is_not_in_the_input(name):
    """Other items (so other side information), behaviours and values at the events to predict leave what the model reads as it was."""
    entry = ready(name)
    if entry.closed_form:
        pytest.skip("fits without examples")
    rows = STORE.train.ptr[1:11]  # one past every user's last event
    rows = (
        rows
        if isinstance(entry.objective, SequenceObjective)
        and not isinstance(entry.objective, SessionParallel)
        else rows - 1
    )
    before = entry.objective.batch(STORE, rows, torch.Generator().manual_seed(3))
    after = entry.objective.batch(
        other_at(events_to_predict(entry.objective, rows, before)),
        rows,
        torch.Generator().manual_seed(3),
    )
    if isinstance(entry.objective, SessionParallel):
        assert torch.equal(before.item_S, after.item_S)
        assert (before.target_S != after.target_S).all()
        return
    for field in dataclasses.fields(before.query):
        column = getattr(before.query, field.name)
        assert column is None or torch.equal(column, getattr(after.query, field.name)), field.name
    target = next(
        f.name
        for f in dataclasses.fields(before)
        if f.name in ("target_BL", "item_BC", "positive_B")
    )
    assert not torch.equal(getattr(before, target), getattr(after, target))


def events_to_predict(objective, rows, batch):
    """Rows of the store's training events that stand in no input: masked ones, or the last of each row's."""
    if isinstance(objective, Cloze):
        masked_BL = batch.query.item_BL == STORE.schema.V
        assert masked_BL.any()
        length = masked_BL.shape[1]
        return (rows[:, None] - length + torch.arange(length))[masked_BL]
    return rows - 1 if isinstance(objective, NextItem) else rows


def other_at(rows):
    train, n_items = STORE.train, STORE.schema.n_items
    changed = {
        "item": 1 + train.item % n_items,
        "behaviour": 3 - train.behaviour,
        "value": 1 + train.value % 5,
    }
    hit = torch.zeros(len(train), dtype=torch.bool)
    hit[rows] = True
    return dataclasses.replace(
        STORE,
        train=dataclasses.replace(
            train, **{k: torch.where(hit, v, getattr(train, k)) for k, v in changed.items()}
        ),
    )
