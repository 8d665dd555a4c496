"""Collaborative and several-behavior models against their formulas, term by term, on the same
weights in float64.
"""

import math

import numpy as np
import pytest
import torch

from recexp.errors import RecexpError
from recexp.models.fpmc import FPMC
from recexp.models.mf import MF
from recexp.models.mfpr import MFPR
from recexp.models.mmlp import MMLP
from recexp.models.mtmf import MTMF
from recexp.models.neumf import NeuMF
from recexp.models.nmtr import NMTR
from recexp.testing import toy
from tests.models.test_collaborative import SCHEMA, STORE

QUERY = toy.query([0, 4, 3], [[1, 2, 5], [], [3, 9, 4]])
ITEMS = torch.tensor([[1, 2, 12], [5, 7, 1], [8, 3, 3]])
PAIRS = [(b, c, int(QUERY.user_B[b]), int(ITEMS[b, c])) for b in range(3) for c in range(3)]


def weights(model):
    return {name: p.detach().numpy() for name, p in model.named_parameters()}


def check(got, formula):
    expected = torch.empty(got.shape, dtype=torch.float64)
    for b, c, u, i in PAIRS:
        expected[b, c] = torch.as_tensor(formula(b, u, i))
    torch.testing.assert_close(got.detach(), expected, rtol=1e-10, atol=1e-10)


def relu(x):
    return np.maximum(x, 0)


def tower(w, prefix, x):
    layer = 0
    while f"{prefix}.layers.{layer}.weight" in w:
        x = relu(w[f"{prefix}.layers.{layer}.weight"] @ x + w[f"{prefix}.layers.{layer}.bias"])
        layer += 1
    assert layer > 1
    return x


def interaction(w, prefix, u, i):
    parts = []
    if "user.gmf.weight" in w:
        parts.append(w["user.gmf.weight"][u] * w["item.gmf.weight"][i])
    if "user.mlp.weight" in w:
        parts.append(
            tower(
                w,
                f"{prefix}.tower",
                np.concatenate([w["user.mlp.weight"][u], w["item.mlp.weight"][i]]),
            )
        )
    return float(w[f"{prefix}.head.weight"][0] @ np.concatenate(parts))


@pytest.mark.parametrize("bias", [False, True])
def test_mf(bias):
    model = toy.randomise(MF(SCHEMA, n_factors=3, item_bias=bias))
    w = weights(model)
    check(
        model.score(QUERY, ITEMS),
        lambda b, u, i: (
            w["user.weight"][u] @ w["item.weight"][i] + (w["item_bias"][i] if bias else 0)
        ),
    )


@pytest.mark.parametrize("kind", ["gmf", "mlp", "neumf"])
def test_neumf(kind):
    model = toy.randomise(NeuMF(SCHEMA, interaction=kind, n_factors=2))
    w = weights(model)
    check(
        model.score(QUERY, ITEMS),
        lambda b, u, i: interaction(w, "interact", u, i) + w["interact.head.bias"][0],
    )


def test_neumf_has_the_published_layout():
    shapes = {
        name: tuple(p.shape)
        for name, p in NeuMF(SCHEMA, n_factors=8, n_layers=3).named_parameters()
    }
    assert shapes["user.gmf.weight"] == (SCHEMA.n_users, 8) and shapes["item.mlp.weight"] == (
        SCHEMA.V,
        32,
    )
    assert [shapes[f"interact.tower.layers.{k}.weight"] for k in range(3)] == [
        (32, 64),
        (16, 32),
        (8, 16),
    ]
    assert shapes["interact.head.weight"] == (1, 16)


def test_neumf_starts():
    torch.manual_seed(0)
    model = NeuMF(toy.schema(400, 400, side=False), n_factors=16)
    assert model.user["mlp"].weight.std().item() == pytest.approx(0.01, rel=0.05)
    bound = math.sqrt(3 / 32)  # LeCun uniform
    assert 0.7 * bound < model.interact.head.weight.abs().max() <= bound
    first = model.interact.tower.layers[0].weight
    assert (
        0.9 * math.sqrt(6 / (128 + 64)) < first.abs().max() <= math.sqrt(6 / (128 + 64))
    )  # Glorot uniform


def test_neumf_from_two_pretrained_parts_averages_their_logits(tmp_path):
    parts = {
        k: toy.randomise(NeuMF(SCHEMA, interaction=k, n_factors=2), seed=s)
        for s, k in enumerate(("gmf", "mlp"))
    }
    torch.save(
        {"state_dict": {f"model.{n}": x for n, x in parts["gmf"].state_dict().items()}, "epoch": 3},
        tmp_path / "gmf.ckpt",
    )
    torch.save(parts["mlp"].state_dict(), tmp_path / "mlp.pt")
    paths = {"gmf": str(tmp_path / "gmf.ckpt"), "mlp": str(tmp_path / "mlp.pt")}
    joined = NeuMF(SCHEMA, n_factors=2, pretrained=paths, alpha=0.3).eval()
    expected = 0.3 * parts["gmf"].score(QUERY) + 0.7 * parts["mlp"].score(QUERY)
    torch.testing.assert_close(joined.score(QUERY), expected.float(), rtol=1e-5, atol=1e-5)
    with pytest.raises(RecexpError, match=r"mlp\.pt.*does not fit"):
        NeuMF(SCHEMA, n_factors=2, n_layers=2, pretrained=paths)
    with pytest.raises(RecexpError, match="one checkpoint for each"):
        NeuMF(SCHEMA, n_factors=2, pretrained={"gmf": paths["gmf"]})
    with pytest.raises(RecexpError, match="no such checkpoint"):
        NeuMF(SCHEMA, n_factors=2, pretrained={**paths, "mlp": "missing.pt"})


def test_fpmc():
    model = toy.randomise(FPMC(SCHEMA, n_factors=3))
    w = weights(model)
    last = [5, 0, 4]

    def formula(b, u, i):
        s = w["user_item.weight"][u] @ w["item_user.weight"][i]
        return s + (w["item_last.weight"][i] @ w["last_item.weight"][last[b]] if last[b] else 0)

    check(model.score(QUERY, ITEMS), formula)


def test_fpmc_without_transitions_is_bpr_mf_without_bias():
    model, mf = toy.randomise(FPMC(SCHEMA, n_factors=3)), MF(SCHEMA, n_factors=3).double()
    with torch.no_grad():
        model.item_last.weight.zero_()
        mf.user.weight.copy_(model.user_item.weight)
        mf.item.weight.copy_(model.item_user.weight)
    torch.testing.assert_close(model.score(QUERY), mf.score(QUERY), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mf_part", [False, True])
def test_mmlp(mf_part):
    model = toy.randomise(MMLP(SCHEMA, n_factors=4, mf_part=mf_part))
    w = weights(model)

    def formula(b, u, i):
        x = np.concatenate([w["user.weight"][u], w["item.weight"][i]])
        phi = (
            w["fusion.weight"] @ np.concatenate([tower(w, f"branches.{t}", x) for t in range(2)])
            + w["fusion.bias"]
        )
        if not mf_part:
            return phi[0]
        phi = np.concatenate([w["mf_user.weight"][u] * w["mf_item.weight"][i], phi])
        return (w["head.weight"] @ phi + w["head.bias"])[0]

    check(model.score(QUERY, ITEMS), formula)
    assert [tuple(layer.weight.shape) for layer in model.branches[0].layers] == [
        (8, 8),
        (4, 8),
    ]  # 2d -> 2d -> d


@pytest.mark.parametrize("mf_part", [False, True])
def test_mmlp_supportive_branch_learns_only_from_its_own_pairs(mf_part):
    model = toy.randomise(MMLP(SCHEMA, n_factors=4, mf_part=mf_part))
    mask = torch.tensor(
        [[[1, 1], [0, 1], [1, 0]], [[0, 0], [1, 1], [0, 1]], [[1, 0], [0, 0], [1, 1]]]
    )
    share = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def gradients(z_BC, keep):
        model.zero_grad()
        (z_BC * share * keep).sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters()}

    masked = model.logits(QUERY, ITEMS, mask)[..., 0]
    assert torch.equal(masked, model.logits(QUERY, ITEMS)[..., 0])  # the mask never changes a value
    got = gradients(masked, 1.0)
    all_pairs = gradients(model.score(QUERY, ITEMS), 1.0)
    own_pairs = gradients(model.score(QUERY, ITEMS), mask[..., 0].double())
    for name, gradient in got.items():
        if name.startswith(
            "branches.0."
        ):  # the weaker behavior's branch: as if only its own pairs existed
            torch.testing.assert_close(gradient, own_pairs[name])
        elif name.startswith("branches.1.") or name.split(".")[0] in (
            "fusion",
            "head",
            "mf_user",
            "mf_item",
        ):
            torch.testing.assert_close(
                gradient, all_pairs[name]
            )  # even where the pair lacks the target behavior
        else:
            assert not torch.allclose(gradient, all_pairs[name]) and gradient.any()


@pytest.mark.parametrize("training", [False, True])
def test_mfpr(training):
    model = toy.randomise(MFPR(SCHEMA, n_factors=3)).train(training)
    model.bind(STORE)
    w = weights(model)
    pairs = STORE.train_pairs
    sets = [[set(), set()] for _ in range(SCHEMA.n_users)]
    for u, i, mask in zip(
        pairs.user.tolist(), pairs.item.tolist(), pairs.mask.tolist(), strict=True
    ):
        for t in range(2):
            if mask >> t & 1:
                sets[u][t].add(i)

    def formula(b, u, i):
        z = w["user.weight"][u].copy()
        for t in range(2):
            members = sets[u][t] - ({i} if training else set())
            y = sum((w["implicit.weight"][t * SCHEMA.V + j] for j in members), np.zeros(3))
            z += w["weight_T"][t] * y / math.sqrt(max(1, len(members)))
        return w["item_bias"][i] + w["item.weight"][i] @ z

    assert any(
        i in sets[u][t] for _, _, u, i in PAIRS for t in range(2)
    )  # the exclusion has something to exclude
    check(model.score(QUERY, ITEMS), formula)


@pytest.mark.parametrize("carry", ["logit", "prob"])
@pytest.mark.parametrize("kind", ["gmf", "mlp", "neumf"])
def test_nmtr(carry, kind):
    model = toy.randomise(NMTR(SCHEMA, n_behaviors=3, interaction=kind, carry=carry, n_factors=4))
    w = weights(model)

    def formula(b, u, i):
        z = []
        for r in range(3):
            before = 0 if not z else z[-1] if carry == "logit" else 1 / (1 + math.exp(-z[-1]))
            z.append(before + interaction(w, f"levels.{r}", u, i) + w["item_bias"][i, r])
        return z

    check(model.logits(QUERY, ITEMS), formula)


def test_nmtr_num_factors_is_the_width_read_by_each_level():
    for kind in ("gmf", "mlp", "neumf"):
        assert NMTR(SCHEMA, interaction=kind, n_factors=8).levels[0].head.in_features == 8


def test_mtmf():
    model = toy.randomise(MTMF(SCHEMA, n_factors=3))
    w = weights(model)

    def formula(b, u, i):
        return [
            w["user.weight"][u] @ w[f"items.{t}.weight"][i]
            + w["user_bias"][u, t]
            + w["item_bias"][i, t]
            for t in range(2)
        ]

    check(model.logits(QUERY, ITEMS), formula)
    both = MTMF(SCHEMA, n_factors=3, score_by="sum", implicit_share=0.25).double()
    both.load_state_dict(model.state_dict())
    check(
        both.score(QUERY, ITEMS), lambda b, u, i: formula(b, u, i)[1] + 0.25 * formula(b, u, i)[0]
    )
