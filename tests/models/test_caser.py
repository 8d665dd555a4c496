import torch

from recexp.models.caser import Caser
from recexp.testing import toy

SCHEMA = toy.schema()


def model(**options):
    return toy.randomise(
        Caser(
            SCHEMA,
            **({"n_factors": 4, "max_len": 3, "n_horizontal": 2, "n_vertical": 2} | options),
        )
    )


def test_one_state_serves_all_targets():
    m = model()
    query = toy.query([0, 3], [[1, 2, 9, 4], [4]])
    h = m.encode(query)
    assert h.shape == (2, 1, 8) and m.item_vectors()[0].shape == (SCHEMA.n_items, 8)
    assert torch.equal(h[:, 0, 4:], m.user.weight[[0, 3]])


def test_the_user_counts():
    m = model()
    a, b = m.score(toy.query([0, 1], [[1, 2, 9], [1, 2, 9]]))
    assert not torch.allclose(a, b)


def test_size_is_that_of_the_authors():
    d, L, horizontal, vertical = 4, 3, 2, 2
    filters = sum(horizontal * (h * d + 1) for h in range(1, L + 1)) + vertical * (L + 1)
    inner = (vertical * d + horizontal * L) * d + d
    tables = SCHEMA.n_users * d + SCHEMA.V * d + SCHEMA.V * (2 * d + 1)
    assert sum(p.numel() for p in model().parameters()) == filters + inner + tables


def test_starting_deviations_are_the_inverse_widths():
    torch.manual_seed(0)
    m = Caser(toy.schema(300, 400, side=False), n_factors=20)
    for table, std in ((m.user, 1 / 20), (m.item, 1 / 20), (m.output, 1 / 40)):
        assert 0.97 * std < table.weight.std() < 1.03 * std
    assert not m.output_bias.any()


def test_dropout_acts_in_training_only():
    query = toy.query([0], [[1, 2, 9]])
    torch.manual_seed(0)
    m = model(dropout=0.5)
    assert torch.equal(m.score(query), m.score(query))
    assert not torch.allclose(m.train().score(query), m.score(query))
