import pytest
import torch

from recexp.contracts import MultiBehavior
from recexp.errors import RecexpError
from recexp.models.bert_ite import BertITE
from recexp.models.ite import joint_logit
from recexp.testing import toy
from tests.config.test_check import composed

SCHEMA = toy.schema()
QUERY = toy.query([0, 3, 6, 5], [[1, 2, 9, 4, 7], [4], [], [3, 3, 8]])
EVERY = torch.arange(1, SCHEMA.V).expand(4, -1)
FORMS = [
    {"n_layers": 1},
    {"n_layers": 2},
    {"n_layers": 3, "norm": "pre"},
    {"n_layers": 2, "target_in_sequence": False},
    {
        "n_layers": 1,
        "target_in_sequence": False,
        "norm": "pre",
        "tower": "authors",
        "init": "authors",
    },
    {"n_layers": 2, "pad": "random"},
    {"n_layers": 2, "item_side": "all", "user_side": "all"},
    {"n_layers": 2, "positions": "right"},
    {"n_layers": 1, "positions": "left", "target_in_sequence": False},
]


def model(**options):
    return toy.randomise(BertITE(SCHEMA, **({"n_factors": 8, "max_len": 6} | options)))


@pytest.mark.parametrize("options", FORMS)
def test_scores_do_not_depend_on_how_they_are_asked(options):
    m = model(**options)
    assert isinstance(m, MultiBehavior) and m.history == 6
    item_BC = torch.tensor([[5, 1, 5], [2, 12, 3], [7, 8, 9], [3, 1, 10]])
    s = m.score(QUERY, item_BC)
    assert torch.allclose(s, joint_logit(m.logits(QUERY, item_BC)))
    assert torch.allclose(m.score(QUERY), m.score(QUERY, EVERY))
    assert torch.allclose(m.score(QUERY).gather(1, item_BC - 1), s)
    assert torch.allclose(m.score(QUERY[1:2], item_BC[1:2]), s[1:2])
    for m.chunk in (1, 150, 1000):
        assert torch.allclose(m.score(QUERY, item_BC), s)
        assert torch.allclose(m.score(QUERY).gather(1, item_BC - 1), s)
    assert m.score(QUERY[:0]).shape == (0, SCHEMA.n_items)


@pytest.mark.parametrize("options", FORMS)
def test_extra_padding_changes_nothing(options):
    m = model(**options)
    assert torch.allclose(m.score(toy.padded(QUERY, 3)), m.score(QUERY), atol=1e-12)
    alone = toy.query([6], [[]])
    assert torch.allclose(m.score(alone), m.score(QUERY)[2:3], atol=1e-12)


@pytest.mark.parametrize("options", FORMS)
def test_the_order_of_the_history_matters_only_with_positions(options):
    m = model(**options)
    shuffled = toy.query([0, 3, 6, 5], [[7, 4, 1, 9, 2], [4], [], [8, 3, 3]])
    if m.position is not None:
        several_B = QUERY.mask_BL.sum(1) > 1
        changed_B = (m.score(shuffled) - m.score(QUERY)).abs().amax(1) > 1e-6
        assert torch.equal(changed_B, several_B)
    elif not m.random_pad:  # slots of filler move against each other only as a set
        assert torch.allclose(m.score(shuffled), m.score(QUERY), atol=1e-12)
    other = toy.query([0, 3, 6, 5], [[1, 2, 9, 4, 11], [4], [], [3, 3, 8]])
    assert not torch.allclose(m.score(other)[0], m.score(QUERY)[0])
    assert torch.allclose(m.score(other)[1:], m.score(QUERY)[1:])


def test_only_the_most_recent_events_are_read():
    m = model(max_len=2)
    assert torch.allclose(
        m.score(QUERY), m.score(toy.query([0, 3, 6, 5], [[4, 7], [4], [], [3, 8]]))
    )
    users = model(max_len=0)
    assert torch.allclose(
        users.score(QUERY), users.score(toy.query([0, 3, 6, 5], [[], [], [], []]))
    )


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize(("n_heads", "positions"), [(1, "none"), (2, "right"), (4, "left")])
def test_shared_context_equals_brute_force(n_layers, norm, n_heads, positions):
    """Scores and every gradient, in float64, by chunks of a few rows."""
    options = {"n_layers": n_layers, "norm": norm, "n_heads": n_heads, "positions": positions}
    fast = model(**options, chunk=1500)
    slow = model(**options, brute_force=True)
    for m in (fast, slow):
        m.score(QUERY).sin().sum().backward()
    assert torch.allclose(fast.score(QUERY), slow.score(QUERY), atol=1e-10)
    for (name, a), b in zip(fast.named_parameters(), slow.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-9), name


def test_shared_context_equals_brute_force_in_single_precision_with_extreme_attention():
    fast, slow = model(n_layers=2), model(n_layers=2, brute_force=True)
    for m in (fast, slow):
        m.float()
        with torch.no_grad():
            for layer in m.transformer.layers:
                layer.query.weight.mul_(
                    30
                )  # logits in the hundreds: exponentials alone would overflow
    s = fast.score(QUERY)
    assert s.isfinite().all() and torch.allclose(s, slow.score(QUERY), atol=1e-3)


def test_repeating_the_candidate_in_the_history_matters_only_inside_the_sequence():
    inside, outside = model(), model(target_in_sequence=False)
    item = torch.tensor([[7]] * 4)
    x, e = inside._context(QUERY, item, 6)[0], inside.items(item)
    assert inside.transformer(x, torch.ones(x.shape[:2], dtype=torch.bool), e).shape == (4, 1, 8)
    states = [
        m.transformer(
            *m._context(QUERY, EVERY, 6), m.items(EVERY) if m.target_in_sequence else None
        )
        for m in (inside, outside)
    ]
    assert states[0].shape == (4, 12, 8) and states[0].std(1).max() > 1e-3  # a state per candidate
    assert states[1].shape == (4, 1, 8)  # one for all


@pytest.mark.parametrize("options", FORMS)
def test_gradient_reaches_every_parameter(options):
    torch.manual_seed(0)
    m = BertITE(SCHEMA, n_factors=8, max_len=6, **options).train()
    users = toy.query(
        list(range(SCHEMA.n_users)), [[1, 2, 3], [4], [], [5, 6], [7, 8, 9], [10], [11, 12]]
    )
    item_BC = torch.arange(1, SCHEMA.V).expand(SCHEMA.n_users, -1)
    (m.logits(users, item_BC).square().sum() + m.penalty(users, item_BC)).backward()
    assert toy.without_gradient(m) == []


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    m = BertITE(SCHEMA, n_factors=8, dropout=0.5, attention_dropout=0.5)
    assert not torch.equal(m.logits(QUERY, EVERY), m.logits(QUERY, EVERY))
    m.eval()
    assert torch.equal(m.logits(QUERY, EVERY), m.logits(QUERY, EVERY))


@pytest.mark.parametrize("n_layers", [1, 2])
def test_shared_attention_dropout_has_the_mean_of_plain_dropout(n_layers):
    """Value projections pass straight through: without norm and nonlinearity the expectation is the
    undropped output.
    """
    torch.manual_seed(0)
    m = model(n_layers=n_layers, attention_dropout=0.4, dropout=0.0)
    layer = m.transformer.layers[0]
    layer._finish = lambda x, attended: attended
    x, e, mask = (
        torch.randn(1, 5, 8).double(),
        torch.randn(1, 2, 8).double(),
        torch.ones(1, 5, dtype=torch.bool),
    )
    part = layer.read_shared if n_layers == 1 else layer.expand
    expected = part(x, mask, e)
    m.train()
    with torch.no_grad():
        mean = part(x.expand(6000, -1, -1), mask.expand(6000, -1), e.expand(6000, -1, -1)).mean(
            0, keepdim=True
        )
    assert torch.allclose(mean, expected, atol=0.12)


def test_random_fill_is_fixed_per_user_and_avoids_the_positive_in_training():
    m = model(pad="random", max_len=50)
    first = m._context(QUERY, EVERY, 50)[0]
    assert first.shape[1] == 51
    assert torch.equal(first, m._context(toy.padded(QUERY, 4), EVERY.flip(1), 50)[0])
    assert torch.equal(first[2], m._context(QUERY[2:3], EVERY[:1], 50)[0][0])
    fill = m._filler(QUERY.user_B)
    assert fill.min() >= 1 and fill.max() <= SCHEMA.n_items and len(fill.unique()) == SCHEMA.n_items
    assert not torch.equal(fill[0], fill[1])
    m.train()
    for positive in range(1, SCHEMA.V):
        x = m._context(QUERY[2:3], torch.tensor([[positive, 1]]), 50)[0][:, 1:]
        assert not (x == m.items.id.weight[positive]).all(-1).any()


def test_penalty_counts_real_history_only():
    m, item_BC = model(), torch.tensor([[1, 2]] * 4)
    events = QUERY.item_BL[QUERY.item_BL != 0]
    parts = (m.users.id.weight[QUERY.user_B], m.items.id.weight[events], m.items.id.weight[item_BC])
    assert torch.allclose(m.penalty(QUERY, item_BC), sum(p.square().mean() for p in parts))
    assert m.penalty(toy.query([1], [[]]), item_BC[:1]).isfinite()


@pytest.mark.parametrize(
    "side", [{}, {"item_side": "all", "user_side": "all", "side_scale": "half"}]
)
def test_the_authors_penalty_counts_padding_and_no_candidates(side):
    """mean(square(users)) + mean(square(sequences)), max_len places per row whatever is read."""
    m, item_BC = model(penalty="authors", max_len=5, **side), torch.tensor([[1, 2]] * 4)
    places = torch.zeros(4, 5, m.items.id.weight.shape[1], dtype=torch.float64)
    for row, items in enumerate(QUERY.item_BL.tolist()):
        events = [i for i in items if i][-5:]
        places[row, : len(events)] = m.items.id.weight[events]
    expected = m.users.id.weight[QUERY.user_B].square().mean() + places.square().mean()
    assert torch.allclose(m.penalty(QUERY, item_BC), expected)
    assert torch.equal(m.penalty(QUERY, item_BC), m.penalty(QUERY, item_BC + 3))
    assert torch.allclose(m.penalty(toy.padded(QUERY, 3), item_BC), expected)
    assert m.penalty(toy.query([1], [[]]), item_BC[:1]) == m.users.id.weight[1].square().mean()
    none = model(penalty="authors", max_len=0)
    assert none.penalty(QUERY, item_BC) == none.users.id.weight[QUERY.user_B].square().mean()


def test_only_the_authors_configurations_take_their_penalty():
    for name in ("bert_ite", "bert_ite_si", "bert_ite_ossi"):
        assert composed(f"model={name}", "dataset=table").model.penalty == "paper"
    for name in ("bert_ite_authors", "bert_ite_si_authors"):
        cfg = composed(f"model={name}", "dataset=table")
        assert cfg.model.penalty == "authors" and cfg.objective.l2 == 0.005


def test_starting_values_are_finite_and_scores_single_precision():
    for options in FORMS:
        s = BertITE(SCHEMA, n_factors=8, **options).score(QUERY)
        assert s.isfinite().all() and s.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_factors": 9}, "n_factors=9.*n_heads=2"),
        ({"n_heads": 0}, "n_heads=0"),
        ({"n_layers": 0}, "n_layers=0"),
        ({"norm": "both"}, "norm"),
        ({"pad": "zeros"}, "pad"),
        ({"tower": "high"}, "tower"),
        ({"penalty": "both"}, "penalty"),
        ({"max_len": -1}, "max_len"),
        ({"chunk": 0}, "chunk"),
        ({"user_side": ["price"]}, "price"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(RecexpError, match=message):
        BertITE(SCHEMA, **options)


def test_side_information_needs_features():
    with pytest.raises(RecexpError, match="no side features"):
        BertITE(toy.schema(side=False), item_side="all")
