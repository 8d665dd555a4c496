"""Properties of all sequence models, in all their configurations."""

import pytest
import torch
import torch.nn.functional as F

from recexp.contracts import Encoder
from recexp.errors import RecexpError
from recexp.models import common as sequence
from recexp.models.bert4rec import BERT4Rec
from recexp.models.caser import Caser
from recexp.models.common import append_item, latest
from recexp.models.fmlp_rec import FMLPRec
from recexp.models.gru4rec import GRU4Rec
from recexp.models.hstu import HSTU
from recexp.models.mb_str import MBSTR
from recexp.models.nova import SideBERT
from recexp.models.sasrec import SASRec
from recexp.testing import toy

SCHEMA, N = toy.schema(), 6
QUERY = toy.query(
    [0, 3, 6, 5, 2], [[1, 2, 9, 4, 7], [4], [], [3, 3, 8], [5, 6, 1, 2, 10, 11, 12, 9, 1]]
)
SMALL = dict(n_factors=8, n_layers=2, n_heads=2, max_len=N)
PORT = dict(
    norm="pre",
    embedding_norm=False,
    token_type=False,
    projection=False,
    tied=False,
    positions="right",
    layer_norm="std",
    more_dropout=True,
)
FORMS = {
    "sasrec": (SASRec, SMALL),
    "sasrec plain": (SASRec, SMALL | {"residual": "plain"}),
    "sasrec gated": (SASRec, SMALL | {"residual": "gated", "n_inner": 12}),
    "sasrec untied": (SASRec, SMALL | {"tied": False}),
    "hstu": (HSTU, SMALL),
    "hstu right": (HSTU, SMALL | {"positions": "right"}),
    "mb_str": (MBSTR, SMALL),
    "fmlp_rec": (FMLPRec, {"n_factors": 8, "max_len": N}),
    "bert4rec": (BERT4Rec, SMALL),
    "bert4rec right": (BERT4Rec, SMALL | {"positions": "right", "output_bias": False}),
    "bert4rec none": (BERT4Rec, SMALL | {"positions": "none", "ffn": False}),
    "bert4rec no norm": (BERT4Rec, SMALL | {"layer_norm": False}),
    "bert4rec no residual": (BERT4Rec, SMALL | {"residual": False}),
    "bert4rec port": (BERT4Rec, SMALL | PORT),
    "invasive": (SideBERT, SMALL | {"invasive": True}),
    "invasive gating": (
        SideBERT,
        SMALL | {"invasive": True, "fusion": "gating", "positions": "right"},
    ),
    "nova": (SideBERT, SMALL),
    "nova concat": (SideBERT, SMALL | {"fusion": "concat", "positions": "right"}),
    "nova gating": (SideBERT, SMALL | {"fusion": "gating", "shared_fusion": True}),
    "nova no position": (SideBERT, SMALL | {"position_in_sides": False}),
    "caser": (Caser, {"n_factors": 8, "max_len": N}),
    "gru4rec": (GRU4Rec, {"n_factors": 8, "max_len": N}),
    "gru4rec constrained": (
        GRU4Rec,
        {"n_factors": 8, "max_len": N, "n_layers": 2, "input_table": "constrained"},
    ),
    "gru4rec torch": (
        GRU4Rec,
        {
            "n_factors": 8,
            "max_len": N,
            "n_layers": 2,
            "cell": "torch",
            "input_table": "separate",
        },
    ),
}
NEXT_ITEM = [name for name in FORMS if name.startswith(("sasrec", "gru4rec", "hstu"))]
CLOZE = [name for name in FORMS if name.startswith(("bert4rec", "invasive", "nova"))]

every = pytest.mark.parametrize("name", FORMS)


def fresh(name, **more):
    kind, options = FORMS[name]
    return kind(SCHEMA, **(options | more))


def model(name):
    return toy.randomise(fresh(name))


@every
def test_scores_do_not_depend_on_how_they_are_asked(name):
    m = model(name)
    assert isinstance(m, Encoder)
    all_items = m.score(QUERY)
    assert all_items.shape == (5, SCHEMA.n_items) and all_items.isfinite().all()
    assert torch.allclose(m.score(QUERY, torch.arange(1, SCHEMA.V).expand(5, -1)), all_items)
    item_BC = torch.tensor([[5, 1, 5], [2, 12, 3], [7, 8, 9], [3, 1, 10], [1, 2, 3]])
    assert torch.allclose(m.score(QUERY, item_BC), all_items.gather(1, item_BC - 1))
    assert torch.allclose(m.score(QUERY[1:2]), all_items[1:2])
    assert m.score(QUERY[:0]).shape == (0, SCHEMA.n_items)


@every
def test_extra_padding_changes_nothing(name):
    m = model(name)
    assert torch.allclose(m.score(toy.padded(QUERY, 3)), m.score(QUERY), atol=1e-12)
    assert torch.allclose(m.score(toy.query([6], [[]])), m.score(QUERY)[2:3], atol=1e-12)


@every
def test_only_the_newest_events_are_read(name):
    m = model(name)
    row = [5, 6, 1, 2, 10, 11, 12, 9, 1]
    scores = m.score(toy.query([2], [row]))
    assert torch.allclose(m.score(toy.query([2], [row[-m.history :]])), scores)
    assert not torch.allclose(m.score(toy.query([2], [row[-m.history + 1 :]])), scores)


@every
def test_order_matters_where_there_are_positions(name):
    m = model(name)
    a, b = m.score(toy.query([2, 2], [[5, 6, 1, 2], [6, 1, 5, 2]]))
    assert torch.allclose(a, b) == (name == "bert4rec none")


@every
def test_the_last_state_alone_is_the_last_of_all_states(name):
    m = model(name)
    short = latest(QUERY, N)
    h = m.encode(short)
    last = m.encode(short, last_only=True)
    one_state = name in ("caser", "fmlp_rec")
    assert last.shape[:2] == (5, 1) and h.shape[1] == (1 if one_state else N)
    # An empty history has a last state only where something stands for it.
    rows = [0, 1, 3, 4]
    assert torch.allclose(last[rows], h[rows, -1:])


@every
@pytest.mark.parametrize("group", [1, 2])
def test_rows_grouped_by_length_have_the_same_states(name, group, monkeypatch):
    m = model(name)
    query = latest(QUERY, N)
    h, last = m.encode(query), m.encode(query, last_only=True)
    monkeypatch.setattr(sequence, "group_size", lambda query: group)
    real = query.mask_BL[:, -h.shape[1] :]
    assert torch.allclose(m.encode(query)[real], h[real]) and m.encode(query).shape == h.shape
    rows = [0, 1, 3, 4]  # the empty history has no last state of its own
    assert torch.allclose(m.encode(query, last_only=True)[rows], last[rows])
    scores = m.score(QUERY)
    monkeypatch.setattr(sequence, "group_size", lambda query: 100)
    assert torch.allclose(m.score(QUERY), scores)


@every
@pytest.mark.parametrize("group", [1, 2, 100])
def test_wanted_states_are_those_among_all_states(name, group, monkeypatch):
    m = model(name)
    monkeypatch.setattr(sequence, "group_size", lambda query: group)
    query = latest(QUERY, N)
    h = m.encode(query)
    if h.shape[1] == 1:
        pytest.skip("one state per history")
    for share in (0.0, 0.3, 1.0):
        wanted = query.mask_BL & (
            torch.rand(query.item_BL.shape, generator=torch.Generator().manual_seed(2)) < share
        )
        assert torch.allclose(m.encode_at(query, wanted), h[wanted])


@every
def test_gradients_reach_every_parameter(name):
    torch.manual_seed(0)
    m = model(name).train()
    F.cross_entropy(m.score(QUERY), torch.tensor([3, 1, 7, 4, 9])).backward()
    without = toy.without_gradient(m)
    if name == "mb_str":  # scores ask for buys: the last layer's net of views is unused
        unused = ("layers.1.inner.0", "layers.1.outer.0")
        without = [key for key in without if not key.startswith(unused)]
    assert not without


@every
def test_starting_scores_are_finite_and_distinguish_items(name):
    torch.manual_seed(0)
    m = fresh(name).eval()
    scores = m.score(QUERY)
    assert scores.dtype == torch.float32 and scores.isfinite().all()
    assert len(scores[0].unique()) == SCHEMA.n_items


@every
def test_scores_are_float32_under_autocast(name):
    torch.manual_seed(0)
    m = fresh(name).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = m.score(QUERY)
    assert half.dtype == torch.float32
    assert torch.allclose(half, m.score(QUERY), atol=0.05 * m.score(QUERY).abs().max().item())


@pytest.mark.parametrize("name", NEXT_ITEM)
def test_states_do_not_see_the_future(name):
    m = model(name)
    row = [1, 2, 9, 4, 7]
    whole = m.encode(toy.query([0], [row]))
    for t in range(5):
        changed = row[: t + 1] + [(v % 12) + 1 for v in row[t + 1 :]]
        assert torch.allclose(m.encode(toy.query([0], [changed]))[0, : t + 1], whole[0, : t + 1])
        if t < 4:
            assert not torch.allclose(
                m.encode(toy.query([0], [changed]))[0, t + 1], whole[0, t + 1]
            )


@pytest.mark.parametrize("name", [name for name in NEXT_ITEM if name.startswith("gru4rec")])
def test_a_state_is_the_score_of_its_prefix(name):
    m = model(name)
    vectors, bias = m.item_vectors()
    row = [1, 2, 9, 4, 7]
    states = m.encode(toy.query([0], [row]))[0]
    for t in range(1, 6):
        assert torch.allclose(
            states[t - 1] @ vectors.T + bias, m.score(toy.query([0], [row[:t]]))[0]
        )


@pytest.mark.parametrize("name", CLOZE)
def test_states_see_both_sides_and_nothing_of_what_is_masked(name):
    m = model(name)
    masked = toy.query([0, 1], [[1, 2, 9, 4, 7], [3, 5]])
    masked.item_BL[0, 2] = SCHEMA.V
    state = m.encode(masked)[0, 2]
    for place in (0, 4):
        other = toy.query([0, 1], [[1, 2, 9, 4, 7], [3, 5]])
        other.item_BL[0, 2] = SCHEMA.V
        other.item_BL[0, place] = 12
        assert not torch.allclose(m.encode(other)[0, 2], state)
    # Codes of behavior and value left at the masked event do not show.
    masked.behavior_BL[0, 2], masked.value_BL[0, 2] = 0, 0
    assert torch.allclose(m.encode(masked)[0, 2], state)


@pytest.mark.parametrize("name", CLOZE)
def test_scoring_reads_a_mask_after_the_history(name):
    m = model(name)
    asked = append_item(latest(QUERY, m.history), SCHEMA.V)
    assert (
        asked.item_BL[:, -1].eq(SCHEMA.V).all()
        and not asked.behavior_BL[:, -1].any()
        and not asked.value_BL[:, -1].any()
    )
    vectors, bias = m.item_vectors()
    expected = m.head(m.encode(asked)[:, -1]) @ vectors.T + (0 if bias is None else bias)
    assert torch.allclose(m.score(QUERY), expected)
    assert vectors.shape == (SCHEMA.n_items, 8)


def test_histories_too_short_to_read_are_refused():
    for kind, least in ((SASRec, 1), (BERT4Rec, 2), (Caser, 1), (GRU4Rec, 1)):
        with pytest.raises(RecexpError, match="max_len"):
            kind(SCHEMA, max_len=least - 1)
