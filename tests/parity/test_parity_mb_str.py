"""MB-STR against loops over pairs of events, in numpy float64."""

import math

import numpy as np
import pytest
import torch

from recexp.models.mb_str import MBSTR
from recexp.nn.behavior_attention import position_buckets
from recexp.testing import toy
from recexp.types import Query, Schema
from tests.config.test_check import composed
from tests.support.numpy_ops import layer_norm, linear, softmax, weights

K, D, HEADS, N, EPS = 3, 8, 2, 6, 1e-5
SCHEMA = Schema(7, 12, ("view", "cart", "buy"), (False, False, True))
ROWS = [[1, 2, 9, 4, 7, 5, 3], [4], [3, 3, 8], []]
CODES = [[1, 3, 2, 1, 1, 3, 2], [0], [2, 1, 3], []]  # 0: a real event of unknown behavior


def bucket(distance):
    """T5's: earlier keys 0 to 15, later ones 16 to 31; exact below 8, then logarithmic up to 40."""
    far = abs(distance)
    if far >= 8:
        far = min(15, 8 + int(math.log(far / 8) / math.log(40 / 8) * 8))
    return far + (16 if distance < 0 else 0)


def pair_attention(x, codes, w, name):
    d = D // HEADS
    out = np.zeros_like(x)
    for head in range(HEADS):
        cut = slice(head * d, (head + 1) * d)
        q, k, v = (
            [(row @ w[f"{name}.{map}"][b])[cut] for row, b in zip(x, codes, strict=True)]
            for map in ("query", "key", "value")
        )
        for i, a in enumerate(codes):
            scores, carried = [], []
            for j, b in enumerate(codes):
                pair = (a - 1) * K + b if a and b else 0
                mix = softmax(w[f"{name}.match_mix"][pair, :, head])
                match = sum(mix[m] * w[f"{name}.match"][m, head] for m in range(K))
                bias = w[f"{name}.position"][pair, bucket(i - j), head]
                scores.append(q[i] @ match @ k[j] / math.sqrt(d) + bias)
                mix = softmax(w[f"{name}.carry_mix"][pair, :, head])
                carried.append(v[j] @ sum(mix[m] * w[f"{name}.carry"][m, head] for m in range(K)))
            out[i, cut] = softmax(np.array(scores)) @ np.array(carried)
    return out


def layer(x, codes, w, name):
    y = layer_norm(x + pair_attention(x, codes, w, f"{name}.attention"), w, f"{name}.norm1", EPS)
    z = np.zeros_like(y)
    for i, b in enumerate(codes):
        if b:
            inner = np.maximum(linear(y[i], w, f"{name}.inner.{b - 1}"), 0)
            z[i] = linear(inner, w, f"{name}.outer.{b - 1}")
    return layer_norm(y + z, w, f"{name}.norm2", EPS)


def experts(h, b, w, n_shared, n_own):
    shared = linear(h, w, "experts.shared").reshape(n_shared, D)
    own = linear(h, w, "experts.own").reshape(K, n_own, D)[b - 1]
    gate = softmax(h @ w["experts.gate"][b - 1])
    return h + layer_norm(gate @ np.concatenate([shared, own]), w, "experts.norm", EPS)


def query():
    length = max(map(len, ROWS))
    item, code = (
        torch.tensor([[0] * (length - len(row)) + row for row in rows]) for rows in (ROWS, CODES)
    )
    return Query(torch.arange(4), item, code, torch.zeros_like(item))


@pytest.mark.parametrize(("asked", "b"), [("cart", 2), ("strongest", 3)])
@pytest.mark.parametrize("own", [1, 2])
def test_scores_follow_the_formulas(asked, b, own):
    options = {"n_factors": D, "n_heads": HEADS, "max_len": N, "n_shared": 3, "n_own": own}
    model = MBSTR(SCHEMA, n_layers=2, **options, asked_behavior=asked)
    w = weights(toy.randomise(model))
    expected = []
    for items, codes in zip(ROWS, CODES, strict=True):
        events = [*items[-(N - 1) :], SCHEMA.V]
        read = [*codes[-(N - 1) :], b]
        h = w["item.weight"][events]
        for i in range(2):
            h = layer(h, read, w, f"layers.{i}")
        expected.append(w["item.weight"][1:-1] @ experts(h[-1], b, w, 3, own))
    found = model.score(query()).detach().numpy()
    assert np.allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_codes_that_the_data_do_not_have_are_unknown():
    model = toy.randomise(MBSTR(SCHEMA, n_factors=D, max_len=N))
    other = query()
    expected = model.score(other)
    other.behavior_BL[1, -1] = K + 1
    assert torch.equal(model.score(other), expected)


def test_states_at_wanted_places_are_those_among_all():
    model = toy.randomise(MBSTR(SCHEMA, n_factors=D, max_len=N))
    asked = query()
    wanted = torch.zeros_like(asked.item_BL, dtype=torch.bool)
    wanted[0, [2, 5]] = True
    wanted[2, -1] = True
    every = model.encode(asked)
    at = wanted[:, -N:]
    assert torch.allclose(model.encode_at(asked, wanted), every[at], atol=1e-12)


def test_distances_have_the_buckets_of_t5():
    distance = torch.arange(-60, 61)
    assert position_buckets(distance).tolist() == [bucket(x) for x in distance.tolist()]


def test_the_configuration_is_the_authors():
    cfg = composed("model=mb_str", "dataset=table")
    assert (cfg.model.n_layers, cfg.model.n_heads, cfg.model.max_len) == (2, 2, 50)
    assert (cfg.model.n_shared, cfg.model.n_own, cfg.model.dropout) == (3, 1, 0.1)
    assert (cfg.objective.mask_prob, cfg.objective.last_prob) == (0.2, 0.0)
    assert (cfg.batch_size, cfg.optimizer.lr, cfg.optimizer.weight_decay) == (128, 1e-3, 1e-6)
