"""RecVAE and its objective against numpy in float64, on the same weights."""

import numpy as np
import pytest
import torch

from recexp.models.recvae import RecVAE
from recexp.objectives.autoencode import Autoencode
from recexp.testing import toy, worlds
from tests.config.test_check import composed
from tests.support.numpy_ops import layer_norm, linear, sigmoid, weights

STORE = worlds.random_store()
V = STORE.schema.V
ROWS = [[1, 2, 9, 2, 2, 5, 3], [4], [3, 3, 8], []]
N, GAMMA = 3, 0.05


def made(**options):
    model = RecVAE(STORE.schema, n_factors=N, n_inner=5, dropout=0.0, **options)
    toy.randomise(model)
    toy.randomise(model.encoder, seed=1)
    model.enter_phase("decoder")  # the prior has these weights
    toy.randomise(model.encoder, seed=2)
    return model


def encoded(w, items, encoder="encoder"):
    """Mean and log variance, layer by layer, with the connections of each to all before."""
    x = np.zeros(V)
    x[list(set(items))] = 1
    x /= max(1, np.linalg.norm(x))
    first = x @ w[f"{encoder}.input.weight"] + w[f"{encoder}.input_bias"]
    h = [layer_norm(first * sigmoid(first), w, f"{encoder}.norms.0", 0.1)]
    for n in range(1, 5):
        a = linear(h[-1], w, f"{encoder}.inner.{n - 1}") + sum(h)
        h.append(layer_norm(a * sigmoid(a), w, f"{encoder}.norms.{n}", 0.1))
    return np.split(linear(h[-1], w, f"{encoder}.posterior"), 2)


def decoded(w, z):
    return w["output.weight"][1:] @ z + w["output_bias"][1:]


def density(z, mean, variance):
    return np.exp(-((z - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


def divergence(w, items, z):
    """log q(z | x) - log p(z | x), number by number, with the mixture as a sum of densities."""
    mean, log_var = encoded(w, items)
    old_mean, old_log_var = encoded(w, items, "old_encoder")
    prior = (
        3 / 20 * density(z, 0, 1)
        + 3 / 4 * density(z, old_mean, np.exp(old_log_var))
        + 1 / 10 * density(z, 0, np.exp(10))
    )
    return np.sum(np.log(density(z, mean, np.exp(log_var))) - np.log(prior))


def test_scores():
    model = made()
    w = weights(model)
    expected = [decoded(w, encoded(w, items)[0]) for items in ROWS]
    found = model.score(toy.query([0, 1, 2, 3], ROWS)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_loss_of_a_step(monkeypatch):
    """With a fixed draw: the likelihood of the set, and its divergence in proportion to its size.

    The gradient of the loss by the encoder is that of the formula, by differences.
    """
    model = made().train()
    objective = Autoencode(gamma=GAMMA)
    objective.bind(model, STORE)
    rows = objective.rows(STORE)[:6]
    batch = objective.batch(STORE, rows, torch.Generator())
    noise = np.array([0.3, -1.0, 0.7])
    monkeypatch.setattr(
        torch, "randn_like", lambda x: torch.from_numpy(np.tile(noise, (len(x), 1)))
    )
    found = objective.losses(model, batch)
    w = weights(model)

    def parts():
        likelihood, weighted, plain = [], [], []
        for end in rows.tolist():
            user = int(STORE.train.user[end - 1])
            items = STORE.train.item[int(STORE.train.ptr[user]) : end].tolist()
            mean, log_var = encoded(w, items)
            z = mean + np.exp(log_var / 2) * noise
            score = decoded(w, z)
            log_p = score - np.log(np.exp(score).sum())
            likelihood.append(-sum(log_p[i - 1] for i in set(items)))
            plain.append(divergence(w, items, z))
            weighted.append(GAMMA * len(set(items)) * plain[-1])
        return np.mean(likelihood), np.mean(weighted), np.mean(plain)

    likelihood, weighted, plain = parts()
    assert abs(weighted) > 0.01
    assert found["loss"].item() == pytest.approx(likelihood + weighted, rel=1e-10)
    assert found["item_loss"].item() == pytest.approx(likelihood, rel=1e-10)
    assert found["divergence"].item() == pytest.approx(plain, rel=1e-10)

    found["loss"].backward()
    bias = w["encoder.posterior.bias"]  # shares its numbers with the model
    for place in (0, N):
        values = []
        for step in (1e-5, -2e-5):
            bias[place] += step
            values.append(sum(parts()[:2]))
        bias[place] += 1e-5
        slope = (values[0] - values[1]) / 2e-5
        assert model.encoder.posterior.bias.grad[place].item() == pytest.approx(slope, rel=1e-5)


def test_the_input_is_thinned_for_the_encoder_and_whole_for_the_decoder(monkeypatch):
    model = made().train()
    model.dropout = 0.5
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    query = toy.query([0, 1, 2, 3], ROWS)
    model.enter_phase("decoder")
    whole, _ = model.encode_set(query)
    assert torch.equal(whole[:, None], model.eval().encode(query))
    model.train().enter_phase("encoder")
    assert not torch.equal(model.encode_set(query)[0], whole)


def test_the_configuration_is_the_authors():
    cfg = composed("model=recvae", "dataset=table")
    assert (cfg.model.n_factors, cfg.model.n_inner, cfg.model.dropout) == (200, 600, 0.5)
    assert (cfg.model.encoder_epochs, cfg.model.decoder_epochs) == (3, 1)
    assert (cfg.batch_size, cfg.optimizer.lr, cfg.objective.gamma) == (500, 5e-4, 0.005)
