import pytest
import torch

from recexp.errors import RecexpError
from recexp.models.bert4rec import BERT4Rec
from recexp.testing import toy

SCHEMA, D, N = toy.schema(), 8, 6
V = SCHEMA.V
LAYER = (
    4 * D * D + 3 * D + (8 * D * D + 5 * D) + 4 * D
)  # attention (keys without bias), feed-forward, two norms
FULL = (V + 1) * D + N * D + D + 2 * D + 2 * LAYER + (D * D + D) + 2 * D + V


def size(**options):
    m = BERT4Rec(SCHEMA, **({"n_factors": D, "max_len": N} | options))
    return sum(p.numel() for p in m.parameters())


@pytest.mark.parametrize(
    "options, change",
    [
        ({}, 0),
        ({"positions": "right"}, 0),
        ({"positions": "none"}, -N * D),
        ({"ffn": False}, -2 * (8 * D * D + 5 * D + 2 * D)),
        ({"layer_norm": False}, -2 * (4 * D) - 2 * D - 2 * D),
        ({"residual": False}, 0),
        ({"embedding_norm": False}, -2 * D),
        ({"head_norm": False}, -2 * D),
        ({"token_type": False}, -D),
        ({"projection": False}, -(D * D + D) - 2 * D),
        ({"tied": False}, V * D),
        ({"output_bias": False}, -V),
        ({"n_inner": 2 * D}, -2 * (4 * D * D + 2 * D)),
        ({"n_layers": 3}, LAYER),
        ({"n_heads": 4}, 0),
        ({"layer_norm": "std"}, 0),
        ({"activation": "gelu_tanh"}, 0),
        ({"more_dropout": True}, 0),
    ],
)
def test_every_switch_moves_the_parameters_it_names(options, change):
    assert size(**options) == FULL + change


def test_switches_without_parameters_change_the_scores():
    query = toy.query([0, 1], [[1, 2, 9, 4, 7], [4]])
    plain, *others = (
        toy.randomise(BERT4Rec(SCHEMA, n_factors=D, max_len=N, **options)).score(query)
        for options in (
            {},
            {"residual": False},
            {"norm": "pre"},
            {"n_heads": 1},
            {"positions": "right"},
            {"layer_norm": "std"},
            {"activation": "gelu_tanh"},
        )
    )
    for other in others:
        assert not torch.allclose(other, plain, rtol=1e-7, atol=1e-9)


def test_no_score_is_left_for_padding_and_mask():
    m = toy.randomise(BERT4Rec(SCHEMA, n_factors=D, max_len=N))
    with torch.no_grad():
        before = m.score(toy.query([0], [[1, 2]]))
        m.output_bias[0] = 1e6
        assert torch.equal(m.score(toy.query([0], [[1, 2]])), before)
    assert m.item_vectors()[0].shape == (SCHEMA.n_items, D) and m.item.weight.shape == (V + 1, D)


def test_dropouts_act_in_training_only():
    query = toy.query([0, 1], [[1, 2, 9, 4, 7], [4]])
    for options in (
        {"dropout": 0.5, "attention_dropout": 0.0},
        {"dropout": 0.0, "attention_dropout": 0.5},
    ):
        torch.manual_seed(0)
        m = toy.randomise(BERT4Rec(SCHEMA, n_factors=D, max_len=N, **options))
        assert torch.equal(m.score(query), m.score(query))
        assert not torch.allclose(m.train().score(query), m.score(query))
    m = toy.randomise(BERT4Rec(SCHEMA, n_factors=D, max_len=N, dropout=0.0, attention_dropout=0.0))
    assert torch.equal(m.train().score(query), m.eval().score(query))


def test_bad_options_are_explained():
    for options, message in (
        ({"n_heads": 3}, "n_heads=3"),
        ({"positions": "both"}, "positions"),
        ({"dropout": 1.5}, "dropout"),
        ({"layer_norm": "variances"}, "layer_norm"),
        ({"layer_norm": "std", "n_factors": 1, "n_heads": 1}, "n_factors"),
        ({"activation": "relu"}, "activation"),
        ({"init": "zeros"}, "init"),
    ):
        with pytest.raises(RecexpError, match=message):
            BERT4Rec(SCHEMA, **({"n_factors": D} | options))
