import numpy as np
import pytest

from recexp.models.nova import SideBERT
from recexp.testing import toy
from tests.support.numpy_ops import bert_layer, gelu, layer_norm, linear, sigmoid, softmax, weights

ROWS = [[1, 2, 9, 4, 7, 5, 3], [4], [3, 3, 8], []]
SCHEMA, N, EPS = toy.schema(), 5, 1e-12
NAMES = ["genres", "price", "value", "behavior"]


def item_feature(v, feature, table):
    """Rows of the table: 0 padding, the values, absent, [MASK]."""
    if v == SCHEMA.V:
        return table[feature.cardinality + 1]
    ids = feature.id_VM[v].tolist()
    if not any(ids):
        return table[feature.cardinality]
    return sum(
        weight * table[i]
        for i, weight in zip(ids, feature.weight_VM[v].double().numpy(), strict=True)
        if i
    )


def fuse(features, w, name, kind, gate):
    out = []
    for f in np.stack(features, 1):  # [L, F, D]
        if kind == "add":
            out.append(f.sum(0))
        elif kind == "concat":
            out.append(linear(f.reshape(-1), w, f"{name}.mix"))
        else:
            g = (softmax if gate == "softmax" else sigmoid)(f @ w[f"{name}.mix.weight"][0])
            out.append(g @ f)
    return np.stack(out)


def scores(query, b, w, *, fusion, gate, invasive, shared, position_in_sides):
    L = query.item_BL.shape[1]
    events = [i for i in range(L) if query.item_BL[b, i] != 0][-(N - 1) :]
    items = [*query.item_BL[b, events].tolist(), SCHEMA.V]
    h = np.stack([w["item.weight"][v] for v in items])
    position = w["position.table.weight"][: len(items)]
    sides = []
    for i, name in enumerate(NAMES[:2]):
        sides.append(
            np.stack(
                [
                    item_feature(v, SCHEMA.item_features[name], w[f"side.items.{i}.table.weight"])
                    for v in items
                ]
            )
        )
    for i, (column, n) in enumerate((("value_BL", 5), ("behavior_BL", 2))):
        codes = [*getattr(query, column)[b, events].tolist(), n + 2]
        sides.append(w[f"side.events.{i}.table.weight"][codes])
    if invasive:
        h = layer_norm(
            fuse([h, *sides, position], w, "fusions.0", fusion, gate), w, "input_norm", EPS
        )
    else:
        if position_in_sides:
            sides.append(position)
        else:
            h = h + position
        h = layer_norm(h, w, "input_norm", EPS)
        sides = [layer_norm(f, w, "side_norm", EPS) for f in sides]
    for i in range(2):
        r = (
            None
            if invasive
            else fuse([h, *sides], w, f"fusions.{0 if shared else i}", fusion, gate)
        )
        h = bert_layer(h, w, f"layers.{i}", 2, r)
    out = layer_norm(gelu(linear(h[-1], w, "projection")), w, "head_norm", EPS)
    return w["item.weight"][1:-1] @ out + w["output_bias"][1:]


@pytest.mark.parametrize(
    "fusion, gate",
    [("add", "softmax"), ("concat", "softmax"), ("gating", "softmax"), ("gating", "sigmoid")],
)
@pytest.mark.parametrize(
    "where",
    [
        {"invasive": True},
        {"invasive": False},
        {"invasive": False, "shared_fusion": True},
        {"invasive": False, "position_in_sides": False},
    ],
)
def test_scores_follow_the_formulas(fusion, gate, where):
    options = dict(
        fusion=fusion, gate=gate, side=NAMES, n_factors=8, n_layers=2, n_heads=2, max_len=N
    )
    model = toy.randomise(SideBERT(SCHEMA, **options, **where))
    query = toy.query([0, 1, 2, 3], ROWS)
    choice = dict(
        shared=where.get("shared_fusion", False),
        position_in_sides=where.get("position_in_sides", True),
    )
    w = weights(model)
    expected = [
        scores(query, b, w, fusion=fusion, gate=gate, invasive=where["invasive"], **choice)
        for b in range(4)
    ]
    assert np.allclose(model.score(query).detach().numpy(), expected, rtol=1e-9, atol=1e-9)
