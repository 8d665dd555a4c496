"""Mult-VAE and its objective against numpy in float64, on the same weights."""

import numpy as np
import pytest
import torch

from recexp.models.multvae import MultVAE
from recexp.objectives.autoencode import Autoencode, multinomial, sets_of
from recexp.testing import toy, worlds
from tests.support.numpy_ops import linear, weights

STORE = worlds.random_store()
V = STORE.schema.V
ROWS = [[1, 2, 9, 2, 2, 5, 3], [4], [3, 3, 8], []]


def made(**options):
    return toy.randomise(MultVAE(STORE.schema, n_factors=3, n_inner=5, dropout=0.0, **options))


def encoded(w, items):
    x = np.zeros(V)
    x[list(set(items))] = 1
    x /= max(1, np.linalg.norm(x))
    hidden = np.tanh(x @ w["input.weight"] + w["input_bias"])
    return linear(hidden, w, "posterior")


def decoded(w, z):
    d = np.tanh(linear(z, w, "decoder"))
    return w["output.weight"][1:] @ d + w["output_bias"][1:]


@pytest.mark.parametrize("variational", [True, False])
def test_scores(variational):
    model = made(variational=variational)
    w = weights(model)
    expected = [decoded(w, encoded(w, items)[:3]) for items in ROWS]
    found = model.score(toy.query([0, 1, 2, 3], ROWS)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_only_the_newest_events_are_read():
    model = made(max_len=3)
    whole = model.score(toy.query([0], [ROWS[0]]))
    assert torch.equal(whole, model.score(toy.query([0], [[2, 5, 3]])))
    assert not torch.equal(whole, model.score(toy.query([0], [[5, 3]])))


def test_loss_of_a_step(monkeypatch):
    """With a fixed draw: the likelihood of the whole set and beta times the KL divergence."""
    model = made().train()
    objective = Autoencode(beta=0.2, anneal_steps=10)
    objective.bind(model, STORE)
    objective.load_state({"n_steps": 1})
    rows = objective.rows(STORE)[:6]
    batch = objective.batch(STORE, rows, torch.Generator())
    noise = np.array([0.3, -1.0, 0.7])
    monkeypatch.setattr(
        torch, "randn_like", lambda x: torch.from_numpy(np.tile(noise, (len(x), 1)))
    )
    found = objective.losses(model, batch)
    w = weights(model)
    likelihood, divergence = [], []
    for end in rows.tolist():
        user = int(STORE.train.user[end - 1])
        items = STORE.train.item[int(STORE.train.ptr[user]) : end].tolist()
        mean, log_var = np.split(encoded(w, items), 2)
        score = decoded(w, mean + np.exp(log_var / 2) * noise)
        log_p = score - np.log(np.exp(score).sum())
        likelihood.append(-sum(log_p[i - 1] for i in set(items)))
        divergence.append(-0.5 * (1 + log_var - mean**2 - np.exp(log_var)).sum())
    expected = np.mean(likelihood) + 0.1 * np.mean(divergence)
    assert found["loss"].item() == pytest.approx(expected, rel=1e-10)
    assert found["item_loss"].item() == pytest.approx(np.mean(likelihood), rel=1e-10)
    assert found["divergence"].item() == pytest.approx(np.mean(divergence), rel=1e-10)


def test_beta_grows_to_its_cap_and_goes_on_where_a_checkpoint_left_it():
    model = made().train()
    objective = Autoencode(beta=0.25, anneal_steps=8)
    objective.bind(model, STORE)
    batch = objective.batch(STORE, objective.rows(STORE), torch.Generator())
    betas = [objective.losses(model, batch)["beta"] for _ in range(4)]
    assert betas == [0, 0.125, 0.25, 0.25]
    other = Autoencode(beta=0.25, anneal_steps=8)
    other.bind(model, STORE)
    other.load_state({"n_steps": 1})
    assert other.losses(model, batch)["beta"] == 0.125
    assert Autoencode(beta=0.25, anneal_steps=0)._beta() == 0.25


def test_dropout_thins_out_the_input_alone():
    """In half of the draws an item is missing, in the others it counts twice; on average x."""
    model = made().train()
    model.dropout = 0.5
    torch.manual_seed(0)
    item_BL = torch.tensor([[4]]).expand(2000, 1)
    sums = model._input_sum(item_BL).detach()
    whole = 2 * model.input.weight[4].detach()
    is_there = (sums - whole).abs().amax(1) < 1e-12
    is_gone = sums.abs().amax(1) == 0
    assert (is_there | is_gone).all()
    assert 0.45 < is_there.double().mean() < 0.55


def test_a_set_has_no_copies_and_no_padding():
    score = torch.randn(2, 7, dtype=torch.float64)
    sets = torch.tensor([[0, 3, 3, 1], [0, 0, 0, 0]])
    expected = -score.log_softmax(1)[0, [0, 2]].sum()
    torch.testing.assert_close(
        multinomial(score, sets_of(sets, score)), torch.stack([expected, expected * 0])
    )


def test_a_uniform_model_has_the_constant_loss():
    objective = Autoencode()
    objective.bind(made(), STORE)
    item_BL = objective.batch(STORE, objective.rows(STORE), torch.Generator()).target_BL
    score_BV = torch.zeros(len(item_BL), V - 1, dtype=torch.float64)
    loss = multinomial(score_BV, sets_of(item_BL, score_BV)).mean()
    assert objective.constant_loss(STORE, 500) == pytest.approx(loss.item())
