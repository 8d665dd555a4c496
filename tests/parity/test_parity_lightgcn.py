"""LightGCN against dense matrices in float64, on the same weights: scores, loss and gradients."""

import numpy as np
import pytest
import torch

from recexp.contracts import Recommender
from recexp.errors import RecexpError
from recexp.models.lightgcn import LightGCN
from recexp.objectives.pairwise import Pairwise
from recexp.objectives.samplers import Uniform
from recexp.testing import toy, worlds

STORE = worlds.random_store()
U, V, LAYERS = STORE.schema.n_users, STORE.schema.V, 3


def made():
    model = toy.randomise(LightGCN(STORE.schema, n_factors=4, n_layers=LAYERS))
    model.bind(STORE)
    return model


def smoothing():
    """The mean of the powers 0..LAYERS of the normalized adjacency matrix, dense."""
    adjacency = np.zeros((U + V, U + V))
    pairs = STORE.train_pairs
    for user, item in zip(pairs.user.tolist(), pairs.item.tolist(), strict=True):
        adjacency[user, U + item] = 1
        adjacency[U + item, user] = 1
    degree = adjacency.sum(1)
    assert (degree == 0).any()
    root = np.array([0 if d == 0 else d**-0.5 for d in degree])
    normed = root[:, None] * adjacency * root[None, :]
    return sum(np.linalg.matrix_power(normed, k) for k in range(LAYERS + 1)) / (LAYERS + 1)


def vectors(model):
    tables = [model.user.weight, model.item.weight]
    return np.concatenate([table.detach().numpy() for table in tables])


def test_scores_and_item_vectors():
    model = made()
    smooth = smoothing() @ vectors(model)
    user_B = torch.tensor([0, 5, U - 1])
    query = toy.query(user_B.tolist(), [[], [], []])
    expected = smooth[user_B.numpy()] @ smooth[U + 1 :].T
    found = model.score(query).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(
        model.item_embeddings().detach().numpy(), smooth[U + 1 :], rtol=1e-10, atol=1e-12
    )


def test_loss_and_gradient_of_a_step():
    """The gradient passes all layers, on to nodes that are not in the batch."""
    model = made().train()
    objective = Pairwise(Uniform(), l2=0.3)
    objective.bind(model, STORE)
    batch = objective.batch(STORE, torch.arange(9), torch.Generator().manual_seed(0))
    objective.losses(model, batch)["loss"].backward()

    smooth = torch.from_numpy(smoothing())
    plain = torch.from_numpy(vectors(model)).requires_grad_()
    z = smooth @ plain
    user = batch.query.user_B
    positive = U + batch.positive_B
    negative = U + batch.negative_Bn[:, 0]
    margin = (z[user] * (z[positive] - z[negative])).sum(1)
    looked_up = torch.cat([plain[user], plain[positive], plain[negative]])
    loss = -torch.nn.functional.logsigmoid(margin).mean() + 0.3 * looked_up.square().mean()
    loss.backward()

    found = torch.cat([model.user.weight.grad, model.item.weight.grad])
    found[U] = plain.grad[U]  # the row of padding, which no score reads
    torch.testing.assert_close(found, plain.grad, rtol=1e-10, atol=1e-12)
    outside = torch.ones(U, dtype=torch.bool)
    outside[user] = False
    assert model.user.weight.grad[outside].any()


def test_evaluation_computes_the_layers_once(monkeypatch):
    model = made()
    calls = []
    product = model.graph.forward
    monkeypatch.setattr(model.graph, "forward", lambda x: calls.append(1) or product(x))
    query = toy.query([0, 5], [[], []])
    with torch.no_grad():
        first = model.score(query)
        assert torch.equal(model.score(query), first)
        assert len(calls) == LAYERS
        step(model)
        assert not torch.equal(model.eval().score(query), first)
        assert len(calls) == 2 * LAYERS


def test_without_a_graph_nothing_is_scored():
    with pytest.raises(RecexpError, match=r"call bind\(store\)"):
        LightGCN(STORE.schema, n_factors=4).score(toy.query([0], [[]]))


def step(model: Recommender):
    """torch does not count the change of a fused step among those of the tensor."""
    parameters = list(model.train().parameters())
    optimizer = torch.optim.Adam(parameters, lr=0.1, fused=True)
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()


def test_loaded_weights_replace_what_evaluation_kept():
    model = made()
    query = toy.query([0, 5], [[], []])
    with torch.no_grad():
        before = model.score(query)
        model.load_state_dict(toy.randomise(made(), seed=1).state_dict())
        assert not torch.allclose(model.score(query), before)
