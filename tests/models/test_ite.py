import itertools
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from recexp.config.build import build
from recexp.contracts import MultiBehavior
from recexp.errors import RecexpError
from recexp.models.ite import ITE, joint_logit
from recexp.testing import toy

SCHEMA = toy.schema()
QUERY = toy.query([0, 3, 6], [[1, 2], [4], []])
FORMS = [
    {},
    {"width": "authors", "init": "authors"},
    {"item_side": "all"},
    {"item_side": "all", "user_side": "all", "side_scale": "half"},
]
EVERY = torch.arange(1, SCHEMA.V).expand(3, -1)


def model(**options):
    return toy.randomise(ITE(SCHEMA, n_factors=8, **options))


def test_logit_of_the_product():
    torch.manual_seed(0)
    a, b = torch.randn(2, 50, dtype=torch.float64) * 3
    expected = torch.logit(a.sigmoid() * b.sigmoid())
    assert torch.allclose(joint_logit(torch.stack([a, b], -1)), expected, atol=1e-10)


def test_saturated_logits_still_rank():
    """Where the product of probabilities is 1 or 0 for all, the logit keeps the order."""
    high = torch.tensor([60.0, 61.0, 90.0, 200.0])
    for z in (torch.stack([high, high + 1], -1), torch.stack([-high, -high], -1).flip(0)):
        assert z.sigmoid().prod(-1).unique().numel() == 1
        s = joint_logit(z)
        assert s.isfinite().all() and (s.diff() > 0).all()


@pytest.mark.parametrize("options", FORMS)
def test_scores_do_not_depend_on_how_they_are_asked(options):
    m = model(**options)
    assert isinstance(m, MultiBehavior) and m.history == 0
    item_BC = torch.tensor([[5, 1, 5], [2, 12, 3], [7, 8, 9]])
    s = m.score(QUERY, item_BC)
    assert torch.allclose(s, joint_logit(m.logits(QUERY, item_BC)))
    assert torch.allclose(m.score(QUERY), m.score(QUERY, EVERY))
    assert torch.allclose(m.score(QUERY).gather(1, item_BC - 1), s)
    assert torch.allclose(m.score(QUERY[1:2], item_BC[1:2]), s[1:2])
    m.chunk = 1
    assert torch.allclose(m.score(QUERY, item_BC), s)


def test_scores_are_single_precision():
    m = ITE(SCHEMA, n_factors=8)
    assert m.score(QUERY).dtype == torch.float32
    assert m.bfloat16().score(QUERY).dtype == torch.float32


@pytest.mark.parametrize("options", FORMS)
def test_gradient_reaches_every_parameter(options):
    torch.manual_seed(0)
    m = ITE(SCHEMA, n_factors=8, **options)
    users = toy.query(list(range(SCHEMA.n_users)), [[] for _ in range(SCHEMA.n_users)])
    item_BC = torch.arange(1, SCHEMA.V).expand(SCHEMA.n_users, -1)
    (m.logits(users, item_BC).square().sum() + m.penalty(users, item_BC)).backward()
    assert toy.without_gradient(m) == []


def test_published_sizes():
    """K=16: phi is K wide in the paper (GMF 8, MLP 2K-K-8), 2K wide in the authors' code."""
    paper, authors = ITE(SCHEMA, n_factors=16), ITE(SCHEMA, n_factors=16, width="authors")

    def shapes(m):
        linears = (*m.tower.layers, *m.head.tower.layers, m.head.explicit)
        return [tuple(linear.weight.shape) for linear in linears]

    assert shapes(paper) == [(16, 32), (8, 16), (8, 16), (1, 8)]
    assert shapes(authors) == [(32, 64), (16, 32), (16, 32), (1, 16)]
    assert paper.users.id.weight.shape == (
        SCHEMA.n_users,
        8 + 16,
    ) and authors.users.id.weight.shape == (SCHEMA.n_users, 16 + 32)


@torch.no_grad()
def test_starting_values():
    torch.manual_seed(0)
    big = toy.schema(2000, 2000, side=False)
    paper, authors = (
        ITE(big, n_factors=32),
        ITE(big, n_factors=32, width="authors", init="authors"),
    )
    assert paper.users.id.weight.std() == pytest.approx(0.01, rel=0.05)
    assert not paper.tower.layers[0].bias.any()
    for table in (authors.users.id.weight, authors.items.id.weight[1:]):
        assert table[:, :32].std() == pytest.approx((2 / 32) ** 0.5, rel=0.05)
        assert table[:, 32:].std() == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    assert authors.tower.layers[0].weight.std() == pytest.approx((1 / 32) ** 0.5, rel=0.1)
    assert authors.tower.layers[1].weight.std() == pytest.approx((2 / 32) ** 0.5, rel=0.1)
    assert (
        authors.tower.layers[0].bias.std() > 0.5 and authors.head.implicit.weight.abs().max() <= 1
    )
    assert not authors.items.id.weight[0].any()


def test_explicit_output_frozen_at_zero_ranks_as_neumf():
    m = model()
    with torch.no_grad():
        m.head.explicit.weight.zero_()
    implicit = m.logits(QUERY, EVERY)[..., 0]
    assert torch.equal(m.score(QUERY).argsort(1), implicit.argsort(1))


def test_penalty_is_the_sum_of_mean_squares():
    m, item_BC = model(), torch.tensor([[1, 2], [3, 4], [5, 6]])
    u, i = m.users.id.weight[QUERY.user_B], m.items.id.weight[item_BC]
    expected = sum(x.square().mean() for v in (u, i) for x in (v[..., :4], v[..., 4:]))
    assert torch.allclose(m.penalty(QUERY, item_BC), expected)


def test_leaving_the_target_out_changes_only_models_with_user_side():
    left = toy.query([0, 3, 6], [[], [], []])
    items = toy.training_items()
    left.without_B = torch.tensor([items[0][0], items[3][0], 0])
    for options, same in (({}, True), ({"item_side": "all"}, True), ({"user_side": "all"}, False)):
        m = model(**options)
        assert torch.allclose(m.score(left), m.score(QUERY)) == same
        assert torch.allclose(m.score(left)[2], m.score(QUERY)[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_factors": 7}, "even"),
        ({"width": "wide"}, "paper, authors"),
        ({"init": "none"}, "paper, authors"),
        ({"item_side": ["color"]}, "color"),
        ({"chunk": 0}, "chunk"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(RecexpError, match=message):
        ITE(SCHEMA, **options)


@pytest.mark.parametrize(
    "options", list(itertools.product(["item_side", "user_side"], ["all", ["category"]]))
)
def test_side_information_needs_features(options):
    with pytest.raises(RecexpError, match="no side features"):
        ITE(toy.schema(side=False), **dict([options]))


CONFIGS = [
    base + form
    for base in ("ite", "bert_ite")
    for form in ("", "_si", "_ossi", "_authors", "_si_authors")
]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_builds_and_side_information_needs_features(name):
    with initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
        config = compose("config", [f"model={name}"]).model
    m = build(config, schema=SCHEMA)
    assert m.score(QUERY).shape == (3, SCHEMA.n_items)
    parts = name.split("_")
    assert bool(m.items.side) == ("si" in parts or "ossi" in parts) and bool(m.users.side) == (
        "si" in parts
    )
    if m.items.side:
        with pytest.raises(RecexpError, match="no side features"):
            build(config, schema=toy.schema(side=False))
