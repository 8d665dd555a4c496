import math

import pytest
import torch

from recexp.errors import RecexpError
from recexp.nn.attention import MultiHeadAttention, attend, causal_mask, key_mask
from recexp.nn.cpu import attention
from recexp.nn.cpu.dropout import byte_mask
from recexp.nn.dropout import Dropout, dropout
from recexp.nn.fusion import Fusion
from recexp.nn.init import bert_init
from recexp.nn.transformer import PositionEmbedding, TransformerLayer
from recexp.testing import toy

REAL = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]).bool()


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(p):
    torch.manual_seed(0)
    x = torch.full((400_003,), 2.0)
    y = dropout(x, p)
    q = round(256 * p) / 256
    error = math.sqrt(q * (1 - q) / len(x))
    assert abs((y == 0).double().mean() - q) < 4 * error
    assert torch.allclose(y[y != 0], torch.tensor(2 / (1 - q)))
    assert abs(y.double().mean() - 2) < 4 * 2 * error / (1 - q)
    assert abs(q - p) <= 1 / 512


def test_dropout_follows_the_seed_and_its_elements_are_independent():
    torch.manual_seed(3)
    first, second = dropout(torch.ones(64, 999), 0.3), dropout(torch.ones(64, 999), 0.3)
    torch.manual_seed(3)
    assert torch.equal(dropout(torch.ones(64, 999), 0.3), first) and not torch.equal(first, second)
    kept = (first != 0).double()
    for lag in (1, 2, 4, 7, 8):  # eight elements share one draw
        a, b = kept[:, :-lag].flatten(), kept[:, lag:].flatten()
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 4 / math.sqrt(len(a))


def test_dropout_has_the_gradient_of_what_it_kept():
    x = torch.ones(1000, requires_grad=True)
    y = dropout(x, 0.4)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_dropout_is_off_in_evaluation_and_for_rate_zero():
    x = torch.randn(50)
    assert torch.equal(Dropout(0.5).eval()(x), x) and torch.equal(Dropout(0.0)(x), x)
    assert byte_mask(torch.Size([0, 3]), 0.5)[0].shape == (0, 3)
    for p in (-0.1, 1.0):
        with pytest.raises(RecexpError, match="not a rate"):
            Dropout(p)


def plain_attention(q, k, v, mask):
    logits = torch.where(mask, q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -math.inf)
    return logits.softmax(-1) @ v


@pytest.mark.parametrize("make", [key_mask, causal_mask])
@pytest.mark.parametrize("p", [0.0, 1e-4])  # 1e-4 takes the path with dropout and drops nothing
@pytest.mark.parametrize("block", [1, 60, 2**19])
def test_attention_is_the_formula_and_never_nan(make, p, block, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", block)
    q, k, v = torch.randn(
        3, 4, 2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    mask = make(REAL)
    assert mask.any(-1).all()
    assert torch.allclose(attend(q, k, v, mask, p), plain_attention(q, k, v, mask))
    last = mask[..., -1:, :]
    assert torch.allclose(
        attend(q[:, :, -1:], k, v, last, p), plain_attention(q, k, v, mask)[:, :, -1:]
    )


def test_attention_trains_in_half_precision_as_in_full():
    """In half precision, training and evaluation take different code paths; both agree with the
    formula to the three digits of bfloat16.
    """
    mask = key_mask(REAL)
    exact = [
        x.requires_grad_()
        for x in torch.randn(3, 4, 2, 5, 3, generator=torch.Generator().manual_seed(0))
    ]
    half = [x.detach().bfloat16().requires_grad_() for x in exact]
    with torch.no_grad():
        evaluated = attend(*half, mask)
    outputs = [plain_attention(*exact, mask), attend(*half, mask)]
    for output in outputs:
        output.square().sum().backward()
    assert torch.allclose(outputs[1].float(), outputs[0], atol=0.03)
    assert torch.allclose(evaluated.float(), outputs[0], atol=0.03)
    for a, b in zip(half, exact, strict=True):
        assert b.grad.abs().max() > 0.5
        assert torch.allclose(a.grad.float(), b.grad, atol=0.04)


def test_masks_allow_what_they_say():
    keys, causal = key_mask(REAL), causal_mask(REAL)
    assert torch.equal(keys[:, 0, 0], torch.where(REAL.any(1, keepdim=True), REAL, True))
    for b in range(4):
        for i in range(5):
            for j in range(5):
                assert causal[b, 0, i, j] == (i == j or (j < i and bool(REAL[b, j])))


def test_attention_dropout_keeps_the_mean():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 4, 3)
    mask = torch.ones(1, 1, 1, 4, dtype=torch.bool)
    many = attend(*(x.expand(40_000, -1, -1, -1) for x in (q, k, v)), mask, 0.25)
    error = many.std(0) / 200
    assert (error > 0).all()
    assert ((many.mean(0) - attend(q, k, v, mask)[0]).abs() < 5 * error).all()


def test_heads_must_divide_the_width():
    with pytest.raises(RecexpError, match="n_heads=3"):
        MultiHeadAttention(8, 3)


@pytest.mark.parametrize(
    "options",
    [{}, {"norm": "pre"}, {"norm": "none"}, {"residual": False}, {"ffn": False}, {"n_inner": 5}],
)
@pytest.mark.parametrize("two_streams", [False, True])
def test_the_last_row_alone_is_the_last_of_all_rows(options, two_streams):
    layer = toy.randomise(TransformerLayer(8, 2, **options))
    x, other = torch.randn(2, 4, 5, 8, dtype=torch.float64)
    for mask in (key_mask(REAL), causal_mask(REAL)):
        r = other if two_streams else None
        assert torch.allclose(layer(x, mask, r, at=slice(-1, None)), layer(x, mask, r)[:, -1:])
        at = torch.tensor([[0, 2], [4, 4], [1, 3], [2, 4]])
        assert torch.allclose(
            layer(x, mask, r, at=at), layer(x, mask, r)[torch.arange(4)[:, None], at]
        )


def test_a_second_stream_moves_attention_but_not_values():
    layer = toy.randomise(TransformerLayer(8, 2))
    x, other = torch.randn(2, 4, 5, 8, dtype=torch.float64)
    mask = key_mask(REAL)
    assert torch.allclose(layer(x, mask, x), layer(x, mask))
    moved = layer(x, mask, other)
    assert not torch.allclose(moved[1], layer(x, mask)[1])
    # With a single key there is nothing to weigh: only the value path is left.
    assert torch.allclose(moved[3, -1], layer(x, mask)[3, -1])


def test_positions_do_not_see_padding():
    right, left = PositionEmbedding(7, 3, "right"), PositionEmbedding(7, 3, "left")
    assert torch.equal(right(REAL), right.table.weight[2:])
    for b, real in enumerate(REAL.tolist()):
        seen = left(REAL)[b][REAL[b]]
        assert torch.equal(seen, left.table.weight[: sum(real)])
    with pytest.raises(RecexpError, match="positions"):
        PositionEmbedding(7, 3, "middle")


def test_bert_init_is_cut_at_two_deviations():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Embedding(200, 64, padding_idx=0), torch.nn.Linear(64, 64), torch.nn.LayerNorm(64)
    )
    bert_init(net)
    table = net[0].weight[1:]
    assert (
        table.abs().max() <= 0.04 and 0.0165 < table.std() < 0.0187
    )  # a normal cut at 2 sd has 0.88 of its deviation
    assert not net[0].weight[0].any() and not net[1].bias.any() and (net[2].weight == 1).all()


def test_fusions_are_their_formulas():
    f = torch.randn(3, 2, 5, 4)
    assert torch.allclose(Fusion("add", 3, 4)(list(f)), f.sum(0))
    concat = Fusion("concat", 3, 4)
    assert torch.allclose(concat(list(f)), concat.mix(torch.cat(list(f), -1)))
    for gate, start in (("softmax", f.mean(0)), ("sigmoid", f.sum(0) / 2)):
        gating = Fusion("gating", 3, 4, gate=gate)
        assert torch.allclose(gating(list(f)), start, atol=1e-6)  # uniform at first
        torch.nn.init.normal_(gating.mix.weight)
        logits = torch.einsum("fbld,d->fbl", f, gating.mix.weight[0])
        g = logits.softmax(0) if gate == "softmax" else logits.sigmoid()
        assert torch.allclose(gating(list(f)), (g[..., None] * f).sum(0), atol=1e-6)


@pytest.mark.parametrize("kind", ["add", "concat", "gating"])
def test_fusion_broadcasts_its_features(kind):
    fusion = toy.randomise(Fusion(kind, 2, 4))
    x, position = torch.randn(3, 5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    assert torch.allclose(fusion([x, position]), fusion([x, position.expand(3, -1, -1)]))


def test_unknown_choices_are_named():
    for make in (
        lambda: Fusion("sum", 2, 4),
        lambda: Fusion("gating", 2, 4, gate="relu"),
        lambda: TransformerLayer(8, 2, norm="x"),
    ):
        with pytest.raises(RecexpError, match="is not one of"):
            make()
