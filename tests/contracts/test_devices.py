"""Every model and objective on a simulated device, whose tensors cannot be combined with the CPU's.

The data are on the device, beside the model, or on the host.
"""

import copy
import dataclasses

import pytest
import torch

from recexp.data.split import Split
from recexp.errors import RecexpError
from recexp.evaluation.kept import KeptLists, Scorer
from recexp.evaluation.protocol import Candidates, Protocol
from recexp.testing import worlds
from recexp.training.memory import too_large
from recexp.training.module import RecModule
from recexp.types import moved
from tests.contracts.harness import EACH_MODEL, contestant, first_batch
from tests.support.pretend import DEVICE, pretend, values

STORE = worlds.random_store(12, side=True, held_out=[1 + 5 * user % 30 for user in range(12)])
USERS = torch.arange(len(STORE.test))


def tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for f in dataclasses.fields(value):
            yield from tensors(getattr(value, f.name))


def there(model):
    """A copy on the device."""
    return copy.deepcopy(model).to(DEVICE)


@pytest.mark.parametrize("name", EACH_MODEL)
def test_training(name):
    """A batch gathered on the host gives the loss and gradients of the CPU; all tensors of a batch
    gathered on the device are on the device.
    """
    entry = contestant(name, STORE, dropout=False)
    model = entry.model.train()
    if entry.closed_form:
        with pretend():
            far = there(model)
            expected, found = model.fit_pass(STORE), far.fit_pass(STORE.to(DEVICE))
            assert found == pytest.approx(expected, rel=1e-4)
        return
    objective = copy.deepcopy(entry.objective)
    batch = first_batch(objective, STORE, STORE, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    loss = entry.objective.losses(model, batch)["loss"]
    loss.backward()
    with pretend():
        far = there(model)
        torch.manual_seed(0)
        far_loss = objective.losses(far, moved(batch, DEVICE))["loss"]
        far_loss.backward()
        assert far_loss.device == DEVICE
        torch.testing.assert_close(values(far_loss.detach()), loss.detach())
        for (key, here), away in zip(model.named_parameters(), far.parameters(), strict=True):
            if here.grad is not None:
                torch.testing.assert_close(
                    values(away.grad),
                    here.grad,
                    msg=lambda text, key=key: f"{key}: {text}",
                    rtol=1e-4,
                    atol=1e-5,
                )
        gathered = first_batch(objective, STORE.to(DEVICE), STORE, torch.Generator().manual_seed(0))
        assert {x.device for x in tensors(gathered)} == {DEVICE}
        assert torch.isfinite(objective.losses(far, gathered)["loss"])


def test_copies_to_the_cpu_are_waited_for(monkeypatch):
    """Memory of the CPU is read at once; a copy that is not waited for may not be in it yet."""
    waits = []
    to = torch.Tensor.to

    def recorded(tensor, device, non_blocking=False):
        waits.append(not non_blocking)
        return to(tensor, device)

    with pretend():
        far = torch.arange(3).to(DEVICE)
        monkeypatch.setattr(torch.Tensor, "to", recorded)
        near = moved({"item": far}, "cpu")["item"]
    assert near.device.type == "cpu"
    assert near.tolist() == [0, 1, 2]
    assert waits and all(waits)


PROTOCOLS = [
    Protocol("all", candidates=Candidates("all", seen="removed")),
    Protocol("some", candidates=Candidates("uniform", n=3)),
]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: p.name)
@pytest.mark.parametrize("name", EACH_MODEL)
def test_ranks(name, protocol):
    entry = contestant(name, STORE)
    model = entry.model.eval()
    if entry.closed_form:
        model.fit_pass(STORE)
    generator = torch.Generator().manual_seed(1)
    chosen = (
        None
        if protocol.candidates.kind == "all"
        else torch.randint(1, STORE.schema.V, (len(USERS), 3), generator=generator)
    )
    expected = protocol.ranks(STORE, STORE.test, USERS, chosen, model)
    assert len(expected[0]) == 12
    with pretend():
        far, beside = there(model), STORE.to(DEVICE)
        of_device = protocol.ranks(
            beside,
            beside.test,
            USERS.to(DEVICE),
            None if chosen is None else chosen.to(DEVICE),
            far,
        )
        of_host = protocol.ranks(
            STORE, STORE.test, USERS, None if chosen is None else chosen.to(DEVICE), far, DEVICE
        )
        for found in (of_device, of_host):
            for a, b in zip(found, expected, strict=True):
                assert a.device == DEVICE and torch.equal(values(a), b)


def with_several_targets(store):
    """The store with one to three test targets of each user."""
    n_targets = 1 + torch.arange(len(store.test)) % 3
    at = torch.repeat_interleave(torch.arange(len(store.test)), n_targets)
    ordinal = torch.arange(len(at)) - (n_targets.cumsum(0) - n_targets)[at]
    columns = {f.name: getattr(store.test, f.name) for f in dataclasses.fields(store.test)}
    columns = {name: None if x is None else x[at] for name, x in columns.items()}
    columns["item"] = (columns["item"] + 7 * ordinal) % store.schema.n_items + 1
    return dataclasses.replace(store, test=type(store.test)(**columns | {"at": columns["end"]}))


@pytest.mark.parametrize("kind", ["all", "uniform"])
def test_ranks_of_several_targets(kind):
    store = with_several_targets(STORE)
    candidates = Candidates(kind, n=3, seen="removed" if kind == "all" else "ranked")
    protocol = Protocol("several", Split(kind="leave_k_out"), candidates)
    model = contestant("sasrec", STORE).model.eval()
    chosen = None if kind == "all" else torch.tensor([[1, 2, 3]]).expand(len(USERS), 3)
    expected = protocol.ranks(store, store.test, USERS, chosen, model)
    assert len(expected[0]) == len(store.test) > 12
    with pretend():
        far, beside = there(model), store.to(DEVICE)
        drawn = None if chosen is None else chosen.to(DEVICE)
        of_device = protocol.ranks(beside, beside.test, USERS.to(DEVICE), drawn, far)
        of_host = protocol.ranks(store, store.test, USERS, drawn, far, DEVICE)
        for found in (of_device, of_host):
            for a, b in zip(found, expected, strict=True):
                assert a.device == DEVICE
                assert torch.equal(values(a), b)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: p.name)
@pytest.mark.parametrize("name", ["pop", "sasrec"])
def test_kept_lists(name, protocol):
    """Of data beside the model, and of data on the host."""
    entry = contestant(name, STORE)
    model = entry.model.eval()
    if entry.closed_form:
        model.fit_pass(STORE)
    generator = torch.Generator().manual_seed(1)
    drawn = torch.stack([torch.randperm(30, generator=generator)[:3] + 1 for _ in USERS])
    chosen = None if protocol.candidates.kind == "all" else drawn

    def lists(store, scored_by, device):
        kept = KeptLists(5)
        rows = USERS.to(store.device)
        scorer = Scorer(scored_by)
        item_BC = None if chosen is None else chosen.to(device)
        protocol.ranks(store, store.test, rows, item_BC, scorer, device)
        kept.add(protocol, store, store.test, rows, scorer)
        return kept.lists()

    expected = lists(STORE, model, torch.device("cpu"))
    with pretend():
        far = there(model)
        found = [lists(STORE.to(DEVICE), far, DEVICE), lists(STORE, far, DEVICE)]
    for each in found:
        assert each.item_QK.tolist() == expected.item_QK.tolist()
        assert each.number_Q.tolist() == expected.number_Q.tolist()


@pytest.mark.parametrize("name", ["bpr_mf", "sasrec", "bert_ite_si"])
def test_the_module_gathers_on_the_host(name):
    """With store_on=host everything is as on the CPU: the loss of a step, the ranks of a split."""

    def module(store_on):
        entry = contestant(name, STORE, dropout=False)
        return RecModule(
            entry.model.train(), entry.objective, PROTOCOLS[0], STORE, store_on=store_on
        )

    rows = torch.arange(6)
    near = module("auto")
    near.setup("fit")
    loss = near.training_step(rows, 0)
    near._rank("val", USERS)
    with pretend():
        far = module("host").to(DEVICE)
        far.setup("fit")
        assert far.store is STORE
        far_loss = far.training_step(rows, 0)
        far._rank("val", USERS)
        assert far_loss.device == DEVICE
        torch.testing.assert_close(values(far_loss.detach()), loss.detach())
        assert {k: float(v) for k, v in far.metrics["val"].compute().items()} == {
            k: float(v) for k, v in near.metrics["val"].compute().items()
        }


def test_what_is_too_large(monkeypatch):
    free = {}
    monkeypatch.setattr(
        torch.pretend, "mem_get_info", lambda device: (free["bytes"], 10**12), raising=False
    )
    held = sum(
        x.numel() * x.element_size()
        for part in (
            STORE.train,
            STORE.past,
            STORE.train_pairs,
            STORE.all_pairs,
            STORE.val,
            STORE.test,
        )
        for x in tensors(part)
    )
    free["bytes"] = 2 * held
    assert too_large(STORE, DEVICE) and not too_large(STORE, torch.device("cpu"))
    free["bytes"] = 4 * held
    assert not too_large(STORE, DEVICE)
    store_of = contestant("bpr_mf", STORE)
    module = RecModule(store_of.model, store_of.objective, PROTOCOLS[0], STORE)
    free["bytes"] = held
    with pretend():
        module.to(DEVICE).setup("fit")
        assert module.store is STORE


def test_sweeps_over_data_that_do_not_fit():
    entry = contestant("wmf", STORE)
    with pretend():
        module = RecModule(entry.model, entry.objective, PROTOCOLS[0], STORE, store_on="host").to(
            DEVICE
        )
        with pytest.raises(RecexpError, match=r"trainer\.accelerator=cpu"):
            module.setup("fit")
