"""ITE and BERT-ITE against a reference in plain numpy: one user, one candidate, one row, one head
at a time.
"""

import math

import numpy as np
import pytest
import torch

from recexp.models.bert_ite import BertITE
from recexp.models.ite import ITE
from recexp.testing import toy

SCHEMA = toy.schema()
ITEMS = toy.training_items()
USERS = [0, 3, 6, 5]
HISTORIES = [[1, 2, 9, 4, 7], [4], [], [3, 3, 8]]
QUERY = toy.query(USERS, HISTORIES)
CANDIDATES = torch.tensor([[5, 1, 5], [2, 12, 3], [7, 8, 9], [3, 1, 10]])


def weights(module):
    return {name: p.detach().numpy() for name, p in module.named_parameters()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normalized(x, w, name):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * w[name + ".weight"] + w[name + ".bias"]


def linear(x, w, name):
    return w[name + ".weight"] @ x + w.get(name + ".bias", 0)


def gelu(x):
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])


def feature_vector(name, item):
    feature = SCHEMA.item_features[name]
    vector = np.zeros(feature.cardinality)
    for value, weight in zip(
        feature.id_VM[item].tolist(), feature.weight_VM[item].tolist(), strict=True
    ):
        vector[value] += weight
    return vector


def item_vector(w, item, side, half):
    """One-hot of the item and indicators of its features, concatenated, times one matrix."""
    x, matrix = [np.eye(SCHEMA.V)[item]], [w["items.id.weight"]]
    for i, name in enumerate(SCHEMA.item_features if side else ()):
        x.append(feature_vector(name, item))
        matrix.append(w[f"items.side.{i}.table.weight"])
    return np.concatenate(x) @ np.concatenate(matrix) * (0.5 if half else 1)


def user_vector(w, user, side, half):
    out = w["users.id.weight"][user]
    for i, name in enumerate(SCHEMA.user_features if side else ()):
        carried = [feature_vector(name, item) > 0 for item in ITEMS[user]]
        share = sum(carried, np.zeros(SCHEMA.item_features[name].cardinality))
        out = (
            out
            + (share / share.sum() if share.sum() else share) @ w[f"users.side.{i}.table.weight"]
        )
    return out * (0.5 if half else 1)


def outputs(w, phi, activation):
    """Both logits, and the probability of the explicit action."""
    a = linear(phi, w, "head.implicit")[0]
    b = linear(activation(linear(phi, w, "head.tower.layers.0")), w, "head.explicit")[0]
    return a, b, sigmoid(a) * sigmoid(b)


def compare(model, expected):
    expected = np.array(expected)
    z = model.logits(QUERY, CANDIDATES).detach().numpy()
    np.testing.assert_allclose(z, expected[..., :2], atol=1e-6)
    np.testing.assert_allclose(
        torch.sigmoid(model.score(QUERY, CANDIDATES)).detach().numpy(), expected[..., 2], atol=1e-6
    )


@pytest.mark.parametrize("width", ["paper", "authors"])
@pytest.mark.parametrize(
    ("item_side", "user_side", "half"),
    [(False, False, False), (True, False, False), (True, True, True)],
)
def test_ite(width, item_side, user_side, half):
    K = 8
    sides = {
        "item_side": "all" if item_side else (),
        "user_side": "all" if user_side else (),
        "side_scale": "half" if half else "sum",
    }
    model = toy.randomise(ITE(SCHEMA, n_factors=K, width=width, **sides))
    w, f = weights(model), K if width == "authors" else K // 2
    slope = 0.2 if width == "authors" else 0.0
    activation = lambda x: np.where(x > 0, x, slope * x)  # noqa: E731
    expected = []
    for user, row in zip(USERS, CANDIDATES.tolist(), strict=True):
        expected.append([])
        for item in row:
            p, q = user_vector(w, user, user_side, half), item_vector(w, item, item_side, half)
            h = np.concatenate([p[f:], q[f:]])
            for layer in range(2):
                h = activation(linear(h, w, f"tower.layers.{layer}"))
            expected[-1].append(outputs(w, np.concatenate([p[:f] * q[:f], h]), activation))
    compare(model, expected)


def transformer_layer(rows, w, prefix, heads, norm):
    """Every row attends to every row."""
    inputs = [normalized(x, w, prefix + "norm1") if norm == "pre" else x for x in rows]
    q, k, v = ([linear(x, w, prefix + name) for x in inputs] for name in ("query", "key", "value"))
    d, out = len(rows[0]) // heads, []
    for j, x in enumerate(rows):
        attended = []
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            e = np.exp([q[j][part] @ k[i][part] / math.sqrt(d) for i in range(len(rows))])
            attended.append(sum(e[i] / e.sum() * v[i][part] for i in range(len(rows))))
        a = x + linear(np.concatenate(attended), w, prefix + "out")
        if norm == "post":
            a = normalized(a, w, prefix + "norm1")
        ffn = linear(
            gelu(
                linear(
                    normalized(a, w, prefix + "norm2") if norm == "pre" else a, w, prefix + "inner"
                )
            ),
            w,
            prefix + "outer",
        )
        out.append(a + ffn if norm == "pre" else normalized(a + ffn, w, prefix + "norm2"))
    return out


@pytest.mark.parametrize("brute_force", [False, True])
@pytest.mark.parametrize("side", [False, True])
@pytest.mark.parametrize("target_in_sequence", [False, True])
@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_bert_ite(n_layers, norm, target_in_sequence, side, brute_force):
    n, tower = 4, "authors" if norm == "pre" else "paper"
    sides = {"item_side": "all", "user_side": "all"} if side else {}
    model = BertITE(
        SCHEMA,
        n_factors=8,
        n_layers=n_layers,
        max_len=n,
        norm=norm,
        target_in_sequence=target_in_sequence,
        tower=tower,
        brute_force=brute_force,
        **sides,
    )
    w = weights(toy.randomise(model))
    activation = sigmoid if tower == "authors" else lambda x: np.maximum(x, 0)
    expected = []
    for user, history, row in zip(USERS, HISTORIES, CANDIDATES.tolist(), strict=True):
        expected.append([])
        for item in row:
            target = item_vector(w, item, side, False)
            rows = [
                user_vector(w, user, side, False),
                *(item_vector(w, i, side, False) for i in history[-n:]),
            ]
            rows += [target] if target_in_sequence else []
            for layer in range(n_layers):
                rows = transformer_layer(rows, w, f"transformer.layers.{layer}.", 2, norm)
            expected[-1].append(outputs(w, rows[0] * target, activation))
    compare(model, expected)
