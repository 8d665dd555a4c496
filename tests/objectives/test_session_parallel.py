"""Session-parallel batches: the slot of each session, the states carried along, and the
negatives.
"""

import itertools

import pytest
import torch

from recexp.contracts import SampledLoss
from recexp.data.datamodule import RecDataModule
from recexp.errors import RecexpError
from recexp.models import gru4rec
from recexp.models.gru4rec import GRU4Rec
from recexp.objectives import losses, session_parallel
from recexp.objectives.losses import BPR, CE, GBCE, SampledSoftmax
from recexp.objectives.samplers import InBatch, NoSampler, Popularity
from recexp.objectives.session_parallel import SessionParallel, SessionSteps
from recexp.testing import toy, worlds
from tests.objectives.test_next_item import plain_loss
from tests.support.losses import loss, names_of
from tests.support.stub_models import RunningSum

# Losses that do not count their negatives, of which there are as many as sessions.
SAMPLED = [name for name in names_of(SampledLoss) if not loss(name).counts_negatives]
STORE = worlds.random_store(n_users=23, n_items=40)
TARGETS = {r for r in range(1, len(STORE.train)) if STORE.train.user[r] == STORE.train.user[r - 1]}


def objective(sampler=None, **options):
    torch.manual_seed(0)
    task, model = (
        SessionParallel(sampler or InBatch(), **options),
        toy.randomise(GRU4Rec(STORE.schema, n_factors=6, max_len=50)),
    )
    task.bind(model, STORE)
    return task, model


def steps_of(task, slots=5, epoch=0):
    loader = RecDataModule(
        STORE, task, batch_size=slots, eval_batch_size=1, seed=0
    ).train_dataloader()
    loader.sampler.set_epoch(epoch)
    steps = list(loader)
    assert len(steps) == len(loader)
    return steps


@pytest.mark.parametrize("slots", [1, 4, 100])
def test_an_epoch_predicts_every_event_but_the_first_of_each_session_once(slots):
    task, _ = objective()
    steps = steps_of(task, slots)
    rows = [r for step in steps for r in step.tolist() if r]
    assert sorted(rows) == sorted(TARGETS) == task.rows(STORE).tolist()


def test_slots_run_through_their_sessions_event_by_event():
    for slot in torch.stack(steps_of(objective()[0])).T.tolist():
        rows = [r for r in slot if r]
        assert slot[: len(rows)] == rows, "a slot stands empty before its last session"
        for before, after in itertools.pairwise(rows):
            same_session = STORE.train.user[before] == STORE.train.user[after]
            assert (
                after == before + 1
                if same_session
                else after == STORE.train.ptr[STORE.train.user[after]] + 1
            )


def test_slots_last_about_equally_long():
    filled = torch.stack(steps_of(objective()[0])) != 0
    load = filled.sum(0)
    assert int(load.max() - load.min()) <= int((STORE.train.ptr[1:] - STORE.train.ptr[:-1]).max())
    assert len(filled) == int(load.max())


def test_sessions_come_in_another_order_every_epoch():
    task, _ = objective()
    first, again, second = (torch.stack(steps_of(task, epoch=e)) for e in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_processes_share_the_slots_and_take_equally_many_steps(monkeypatch):
    shares = []
    for rank in range(3):
        monkeypatch.setattr(session_parallel, "rank_and_world", lambda rank=rank: (rank, 3))
        shares.append(list(SessionSteps(STORE.train.ptr, 2, seed=0)))
    assert len({len(share) for share in shares}) == 1
    rows = [r for share in shares for step in share for r in step.tolist() if r]
    assert len(rows) == len(set(rows)) and set(rows) <= TARGETS
    assert len(rows) >= 0.9 * len(TARGETS)
    assert all((step != 0).any() for share in shares for step in share)


def test_states_are_those_of_the_whole_history_so_far():
    task, model = objective(loss=BPR())
    seen = []
    step, model.step = model.step, lambda item, hidden: seen.append(step(item, hidden)) or seen[-1]
    for epoch in range(2):
        for rows in steps_of(task, epoch=epoch):
            batch = task.batch(STORE, rows, torch.Generator().manual_seed(0))
            task.losses(model, batch)
            rows = rows[rows != 0]
            whole = model.encode(STORE.query(rows, 50))[:, -1]
            torch.testing.assert_close(seen[-1][0], whole)
            assert torch.equal(batch.target_S, STORE.train.item[rows].long())
            assert torch.equal(batch.item_S, STORE.train.item[rows - 1].long())


def test_gradients_end_at_the_step():
    task, model = objective()
    for rows in steps_of(task)[:3]:
        loss = task.losses(model, task.batch(STORE, rows, torch.Generator()))["loss"]
        # would fail on the second step if the state carried the first one's graph along
        loss.backward()
        assert not task._hidden.requires_grad


@pytest.mark.parametrize("extra", [0, 7])
@pytest.mark.parametrize("name", SAMPLED)
def test_negatives_are_the_other_targets_and_the_drawn_items(name, extra):
    options = {"bpreg": 0.7} if name == "bpr_max" else {}
    task, model = objective(Popularity(0.75), loss=loss(name, **options), n_negatives=extra)
    rows = next(s for s in steps_of(task) if (s != 0).all())
    batch = task.batch(STORE, rows, torch.Generator().manual_seed(0))
    assert (
        batch.negative_n[:5].tolist() == batch.target_S.tolist()
        and len(batch.negative_n) == 5 + extra
    )
    h = model.step(batch.item_S, model.initial_state(5))[0]
    assert batch.start_S.all()
    vectors, bias = model.item_vectors(torch.arange(STORE.schema.V))
    score = h @ vectors.T + bias
    if name != "sampled_softmax":
        score = model.final_activation(score)
    terms = []
    for row, target in enumerate(batch.target_S.tolist()):
        negative = batch.negative_n[batch.negative_n != target]
        terms.append(
            plain_loss(name, score[row, target], score[row, negative], n_items=0, bpreg=0.7)
        )
    assert task.losses(model, batch)["loss"].item() == pytest.approx(
        torch.stack(terms).mean().item(), rel=1e-7
    )


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("name", SAMPLED)
def test_copies_of_the_target_are_negatives_where_asked_for(name, copies):
    """Two sessions of one target, and drawn items among which are the targets."""
    task, model = objective(Popularity(), loss=loss(name), n_negatives=4, target_copies=copies)
    rows = next(s for s in steps_of(task) if (s != 0).all())
    batch = task.batch(STORE, rows, torch.Generator().manual_seed(0))
    batch.target_S[3] = batch.target_S[1]
    drawn = [batch.target_S[1], batch.target_S[0], batch.target_S[1], 1]
    batch.negative_n = torch.cat([batch.target_S, torch.tensor(drawn)])
    h = model.step(batch.item_S, model.initial_state(5))[0]
    vectors, bias = model.item_vectors(torch.arange(STORE.schema.V))
    score = h @ vectors.T + bias
    if name != "sampled_softmax":
        score = model.final_activation(score)
    terms = []
    for row, target in enumerate(batch.target_S.tolist()):
        others = [i for place, i in enumerate(batch.negative_n.tolist()) if place != row]
        counting = others if copies else [i for i in others if i != target]
        negative = score[row, counting]
        terms.append(plain_loss(name, score[row, target], negative, n_items=0, bpreg=1.0))
    expected = torch.stack(terms).mean().item()
    assert task.losses(model, batch)["loss"].item() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("table", ["one_hot", "separate", "constrained"])
@pytest.mark.parametrize("activation", ["linear", "tanh", "elu"])
@pytest.mark.parametrize("name", SAMPLED)
def test_closed_forms_have_the_gradients_of_the_plain_formulas(
    monkeypatch, name, activation, table, n_layers, dropout
):
    """Over two steps, the second of which has states to read and sessions that start."""
    found = []
    for closed in (False, True):
        for module in (losses, gru4rec, session_parallel):
            monkeypatch.setattr(module, "closed_form_helps", lambda x, closed=closed: closed)
        task = SessionParallel(Popularity(), loss=loss(name), n_negatives=4)
        torch.manual_seed(0)
        model = GRU4Rec(
            STORE.schema,
            n_factors=6,
            n_layers=n_layers,
            input_table=table,
            embedding_dropout=dropout,
            dropout=dropout,
            final_activation=activation,
            elu_alpha=0.5,
        )
        model = toy.randomise(model).train()
        task.bind(model, STORE)
        torch.manual_seed(1)
        for rows in steps_of(task)[2:4]:
            batch = task.batch(STORE, rows, torch.Generator().manual_seed(0))
            value = task.losses(model, batch)["loss"]
            value.backward()
        found.append([value, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-11)


class _Halved(GRU4Rec):
    """Scores otherwise than the class that says how its gradients are computed."""

    def head(self, h):
        return h / 2


class _OwnLoss(losses.BPRMax):
    def of_sampled(self, scores):
        return 2 * super().of_sampled(scores)


@pytest.mark.parametrize("other", [{}, {"model": _Halved}, {"loss": _OwnLoss}, {"cell": "torch"}])
def test_only_what_the_closed_form_computes_is_trained_by_it(monkeypatch, other):
    calls = []
    closed_form = session_parallel.session_step
    monkeypatch.setattr(
        session_parallel, "session_step", lambda *args: calls.append(1) or closed_form(*args)
    )
    task = SessionParallel(InBatch(), loss=other.get("loss", losses.BPRMax)())
    model = other.get("model", GRU4Rec)(
        STORE.schema, n_factors=6, input_table="constrained", cell=other.get("cell", "official")
    )
    task.bind(model, STORE)
    batch = task.batch(STORE, steps_of(task)[0], torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = task.losses(model, batch)["loss"]
    assert not calls
    torch.testing.assert_close(task.losses(model, batch)["loss"], expected)
    assert bool(calls) == (not other)


def test_shuffled_targets_keep_what_is_read():
    tasks = [objective(shuffle_targets=x)[0] for x in (False, True)]
    plain, shuffled = (
        [task.batch(STORE, rows, torch.Generator().manual_seed(0)) for rows in steps_of(task)]
        for task in tasks
    )
    assert all(torch.equal(a.item_S, b.item_S) for a, b in zip(plain, shuffled, strict=True))
    changed = torch.cat([a.target_S != b.target_S for a, b in zip(plain, shuffled, strict=True)])
    assert changed.float().mean() > 0.8
    assert all(torch.equal(b.negative_n, b.target_S) for b in shuffled)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            dict(loss=CE()),
            "SessionParallel cannot train with loss=CE; choose one of BCE, GBCE",
        ),
        (dict(loss=GBCE()), "loss=GBCE counts its negatives"),
        (dict(n_negatives=-1), "n_negatives"),
        (dict(loss=SampledSoftmax(log_q=True)), "log_q"),
    ],
)
def test_wrong_options_are_named(options, text):
    with pytest.raises(RecexpError, match=text):
        objective(**options)


def test_a_model_without_steps_is_refused():
    with pytest.raises(
        RecexpError,
        match=r"needs a model that implements SessionState .*, which RunningSum does not",
    ):
        SessionParallel(NoSampler()).bind(RunningSum(STORE.schema.V, 5), STORE)


@pytest.mark.parametrize("n_slots", [4, 16, 64])
def test_long_sessions_do_not_leave_the_other_slots_idle(n_slots):
    """With a few sessions much longer than the others, as real data have them.

    The longest slot is within one session of the mean, unless a single session fills it.
    """
    generator = torch.Generator().manual_seed(0)
    length_U = torch.randint(2, 40, (500,), generator=generator)
    length_U[:5] = torch.tensor([400, 350, 300, 280, 260])
    ptr = torch.cat([torch.zeros(1, dtype=torch.int64), length_U.cumsum(0)])
    n_steps = length_U.sum().item() - len(length_U)
    steps = SessionSteps(ptr, n_slots, seed=0)
    assert len(list(steps)) == len(steps)
    n_sessions = [int((row > 0).sum()) for row in steps]
    assert sum(n_sessions) == n_steps
    assert steps.n_sessions_of_step().tolist() == n_sessions
    assert len(steps) <= max(length_U.max().item() - 1, n_steps / n_slots + 40)
