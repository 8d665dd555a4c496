"""Every model and objective on an NVIDIA GPU: losses, gradients and ranks are those of the CPU."""

from __future__ import annotations

import copy

import pytest
import torch

from recexp.evaluation.protocol import Candidates, Protocol
from recexp.testing import worlds
from recexp.types import moved
from tests.contracts.harness import MODELS, contestant, first_batch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

GPU = torch.device("cuda", 0)
STORE = worlds.random_store(12, side=True, held_out=[1 + 5 * user % 30 for user in range(12)])
USERS = torch.arange(len(STORE.test))
PROTOCOLS = [
    Protocol("all", candidates=Candidates("all", seen="removed")),
    Protocol("some", candidates=Candidates("uniform", n=3)),
]
# Models that add up similarities of neighbors. A GPU adds them in another order, so scores that are
# equal on the CPU may differ in the last bit.
SUMS = {"v_sknn", "s_sknn", "stan", "item_knn"}


@pytest.fixture(autouse=True)
def noise_of_the_cpu(monkeypatch):
    """Draw the noise of the autoencoders on the CPU: the generators of a GPU are others."""
    draw = torch.randn_like
    monkeypatch.setattr(torch, "randn_like", lambda x: draw(x.cpu()).to(x.device))


@pytest.mark.parametrize("name", MODELS)
def test_training(name):
    entry = contestant(name, STORE, dropout=False)
    near = entry.model.train()
    far = copy.deepcopy(near).to(GPU)
    if entry.closed_form:
        expected, found = near.fit_pass(STORE), far.fit_pass(STORE.to(GPU))
        assert found == pytest.approx(expected, rel=1e-4)
        return
    objective = copy.deepcopy(entry.objective)
    batch = first_batch(objective, STORE, STORE, torch.Generator().manual_seed(0))
    losses = {}
    for model, given in ((near, batch), (far, moved(batch, GPU))):
        torch.manual_seed(0)
        loss = copy.deepcopy(objective).losses(model, given)["loss"]
        loss.backward()
        losses[model] = loss.detach().cpu()
    torch.testing.assert_close(losses[far], losses[near], rtol=1e-4, atol=1e-6)
    for (key, here), away in zip(near.named_parameters(), far.parameters(), strict=True):
        if here.grad is not None:
            torch.testing.assert_close(
                away.grad.to_dense().cpu(),
                here.grad.to_dense(),
                msg=lambda text, key=key: f"{key}: {text}",
                rtol=1e-3,
                atol=1e-5,
            )


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_is_gathered_on_the_gpu(name):
    entry = contestant(name, STORE, dropout=False)
    if entry.closed_form:
        pytest.skip("this model takes no batches")
    far = entry.model.train().to(GPU)
    generator = torch.Generator(GPU).manual_seed(0)
    batch = first_batch(entry.objective, STORE.to(GPU), STORE, generator)
    loss = entry.objective.losses(far, batch)["loss"]
    loss.backward()
    assert loss.device == GPU
    assert torch.isfinite(loss)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: p.name)
@pytest.mark.parametrize("name", MODELS)
def test_ranks(name, protocol):
    """Of data on the GPU, and of data in main memory."""
    entry = contestant(name, STORE)
    model = entry.model.eval()
    if entry.closed_form:
        model.fit_pass(STORE)
    drawn = torch.randint(1, STORE.schema.V, (len(USERS), 3), generator=torch.Generator())
    chosen = None if protocol.candidates.kind == "all" else drawn
    expected = protocol.ranks(STORE, STORE.test, USERS, chosen, model)
    far = copy.deepcopy(model).to(GPU)
    beside = STORE.to(GPU)
    given = None if chosen is None else chosen.to(GPU)
    of_gpu = protocol.ranks(beside, beside.test, USERS.to(GPU), given, far)
    of_host = protocol.ranks(STORE, STORE.test, USERS, given, far, GPU)
    for found in (of_gpu, of_host):
        for a, b in zip(found, expected, strict=True):
            assert a.device == GPU
            assert a.dtype == b.dtype
        if name in SUMS:
            assert (rank(found) - rank(expected)).abs().max() <= 1
            query = STORE.query_held_out(STORE.test, USERS, model.history, protocol.history)
            near, away = model.score(query), far.score(moved(query, GPU))
            torch.testing.assert_close(away.cpu(), near, rtol=1e-5, atol=1e-6)
        else:
            assert [a.cpu().tolist() for a in found] == [b.tolist() for b in expected]


def rank(found):
    """The mean rank of each target, between the items of equal score."""
    better, tied, _ = (x.cpu().double() for x in found)
    return better + tied / 2
