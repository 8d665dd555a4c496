"""How often items are drawn: every sampler and sharing against its distribution, on prepared
data.
"""

import os
import random
from pathlib import Path

import pytest
import torch
from scipy import stats

from recexp.data.cache import prepare
from recexp.data.datamodule import RecDataModule
from recexp.data.store import Store
from recexp.errors import RecexpError
from recexp.objectives.cloze import Cloze
from recexp.objectives.losses import BCE, CE, SampledSoftmax
from recexp.objectives.next_item import NextItem
from recexp.objectives.samplers import InBatch, Mixed, Popularity, SupportiveOnly, Uniform
from recexp.objectives.session_parallel import SessionParallel
from tests.support.events import BEHAVIORS, P3, Event, store
from tests.support.stub_models import RunningSum

HISTORY = 8
ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("RECEXP_DATA", ""))
needs_data = pytest.mark.skipif("RECEXP_DATA" not in os.environ, reason="RECEXP_DATA is not set")
SAMPLERS = {
    "uniform": Uniform(),
    "popularity": Popularity(),
    "popularity, alpha .5": Popularity(0.5),
    "popularity, one round": Popularity(rounds=1),
    "in_batch": InBatch(),
    "in_batch, one round": InBatch(rounds=1),
    "supportive_only": SupportiveOnly(),
    "mixed": Mixed(Uniform(), Popularity(0.75), share=0.3),
    "mixed with in_batch": Mixed(InBatch(), Uniform(), share=0.6),
}
USERLESS = [name for name in SAMPLERS if name != "supportive_only"]


def shop_events(seed: int = 0, n_users: int = 24, n_items: int = 40) -> list[Event]:
    """Skewed popularity; users with 4 to 60 events; the first of them owns the popular half."""
    rng = random.Random(seed)
    weights = [1 / (1 + i) for i in range(n_items)]
    events = [Event("u0", f"i{i}", BEHAVIORS[i % 3], 1000 * i) for i in range(n_items // 2)]
    for user in range(1, n_users):
        for time in range(4 + 7 * user % 57):
            item = rng.choices(range(n_items), weights)[0]
            behavior = rng.choices(BEHAVIORS, (5, 2, 1))[0]
            events.append(Event(f"u{user}", f"i{item}", behavior, 1000 * time))
    events += [Event(f"u{1 + i % 3}", f"i{i}", "view", 0) for i in range(n_items)]
    return events


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Store:
    """Every item has training events."""
    shop = store(tmp_path_factory.mktemp("shop"), shop_events())
    assert (torch.bincount(shop.train.item, minlength=shop.schema.V)[1:] > 0).all()
    return shop


@pytest.fixture(scope="module")
def shop_with_new_items(tmp_path_factory) -> Store:
    """Two items occur only as held-out targets."""
    new = [Event(f"u{user}", f"new{user}", "buy", 10**6) for user in (5, 6)]
    shop = store(tmp_path_factory.mktemp("new"), [*shop_events(), *new])
    assert int((torch.bincount(shop.train.item, minlength=shop.schema.V)[1:] == 0).sum()) == 2
    return shop


@pytest.fixture(scope="module")
def ml_100k(tmp_path_factory) -> Store:
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    config = OmegaConf.load(ROOT / "conf" / "dataset" / "ml_100k.yaml")
    config.raw_dir = str(DATA / "ml-100k")
    folder = tmp_path_factory.mktemp("ml-100k")
    return Store.open(prepare(instantiate(config, _recursive_=False), P3, folder))


def assert_law(count: torch.Tensor, expected: torch.Tensor) -> None:
    """count and expected numbers of draws, of one shape. Cells that expect fewer than 5 are one."""
    assert not count[expected == 0].any(), "an item was drawn that has probability zero"
    assert count.sum().item() == pytest.approx(expected.sum().item(), rel=1e-5)
    large = expected >= 5
    cells = [(count[large] - expected[large]) ** 2 / expected[large]]
    if (rest := expected[~large].sum()) > 5:
        cells.append((count[~large].sum()[None] - rest) ** 2 / rest)
    statistic, freedom = torch.cat(cells).sum().item(), int(large.sum()) - 1
    p = stats.chi2.sf(statistic, freedom)
    assert p > 3e-5, f"chi-square {statistic:.0f} of {freedom} degrees, p {p:.1e}"


def test_the_test_of_laws_rejects_a_wrong_one():
    count = torch.bincount(torch.randint(10, (20_000,), generator=torch.Generator().manual_seed(0)))
    assert_law(count, torch.full((10,), 2_000.0))
    with pytest.raises(AssertionError, match="chi-square"):
        assert_law(count, torch.full((10,), 2_000.0) + 200 * torch.tensor([1, -1] * 5))


def frequency(item: torch.Tensor, V: int) -> torch.Tensor:
    return torch.bincount(item.flatten(), minlength=V).double()


def law(sampler, store: Store, pool: torch.Tensor, user: int | None = None) -> torch.Tensor:
    """Probability [V] of each item; without a user, what ``log_prob`` states and, given the batch,
    the share of its targets. With one, the same over the items that the user has not.
    """
    V = store.schema.V
    if isinstance(sampler, Mixed):
        parts = [law(part, store, pool, user) for part in (sampler.first, sampler.second)]
        return sampler.share * parts[0] + (1 - sampler.share) * parts[1]
    if isinstance(sampler, InBatch):
        weight = frequency(pool[pool != 0], V)
    elif isinstance(sampler, SupportiveOnly):
        weight = torch.zeros(V, dtype=torch.float64)
    else:
        weight = sampler.log_prob(store, torch.arange(V)).double().exp()
        weight[0] = 0
    free = torch.ones(V, dtype=torch.float64)
    free[0] = 0
    if user is not None:
        rows = slice(int(store.train.ptr[user]), int(store.train.ptr[user + 1]))
        item, code = store.train.item[rows].long(), store.train.behavior[rows]
        free[item] = 0
        if isinstance(sampler, SupportiveOnly):
            weight[item] = 1
            weight[item[code == len(store.schema.behaviors)]] = 0
            return weight / weight.sum() if weight.any() else free / free.sum()
    weight = weight * free
    weight = weight if weight.any() else free
    return weight / weight.sum()


@pytest.mark.parametrize("kind", [NextItem, Cloze])
@pytest.mark.parametrize("shared", ["position", "row"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_negatives_of_a_history_follow_its_users_law(shop_with_new_items, name, shared, kind):
    store, n = shop_with_new_items, 300 if shared == "position" else 3_000
    task = kind(SAMPLERS[name], loss=BCE(), n_negatives=n, shared=shared)
    check_users_law(store, task)


def check_users_law(store: Store, task, rows: slice = slice(None)) -> None:
    task.bind(RunningSum(store.schema.V, HISTORY), store)
    batch = task.batch(store, task.rows(store)[rows], torch.Generator().manual_seed(0))
    count, expected = [], []
    for row, user in enumerate(batch.query.user_B.tolist()):
        if task.shared == "row":
            item = batch.negative_Bn[row]
        else:
            item = batch.negative_Nn[(batch.target_BL != 0).nonzero()[:, 0] == row]
        count.append(frequency(item, store.schema.V))
        expected.append(item.numel() * law(task.sampler, store, batch.target_BL, user))
    assert_law(torch.stack(count), torch.stack(expected))


@pytest.mark.parametrize("kind", [NextItem, Cloze])
@pytest.mark.parametrize("name", USERLESS)
def test_negatives_common_to_a_batch_follow_the_samplers_law(shop_with_new_items, name, kind):
    store, n = shop_with_new_items, 50_000
    task = kind(SAMPLERS[name], loss=BCE(), n_negatives=n, shared="batch")
    task.bind(RunningSum(store.schema.V, HISTORY), store)
    batch = task.batch(store, task.rows(store), torch.Generator().manual_seed(0))
    expected = n * law(task.sampler, store, batch.target_BL)
    assert_law(frequency(batch.negative_n, store.schema.V), expected)


def epoch_of_sessions(store: Store, task, batch_size: int, every: int = 1):
    """Per step the batch's targets and the negatives that the sampler drew."""
    data = RecDataModule(store, task, batch_size=batch_size, eval_batch_size=1, seed=0)
    loader = data.train_dataloader()
    generator = torch.Generator().manual_seed(0)
    for step, rows in enumerate(loader):
        if step % every == 0:
            batch = task.batch(store, rows, generator)
            assert torch.equal(batch.negative_n[: len(batch.target_S)], batch.target_S)
            yield batch.target_S, batch.negative_n[len(batch.target_S) :]


@pytest.mark.parametrize("name", USERLESS)
def test_negatives_of_sessions_follow_the_samplers_law(shop_with_new_items, name):
    store, n = shop_with_new_items, 500
    task = SessionParallel(SAMPLERS[name], n_negatives=n)
    count = expected = torch.zeros(store.schema.V, dtype=torch.float64)
    for target_S, drawn in epoch_of_sessions(store, task, batch_size=4):
        count = count + frequency(drawn, store.schema.V)
        expected = expected + n * law(task.sampler, store, target_S)
    assert_law(count, expected)


def test_in_batch_over_an_epoch_is_popularity(shop):
    """Its ``log_prob`` holds on average over batches: a batch has only some items, an epoch every
    target.
    """
    task = SessionParallel(InBatch(), n_negatives=200)
    drawn = torch.cat([drawn for _, drawn in epoch_of_sessions(shop, task, batch_size=4)])
    share = frequency(drawn, shop.schema.V) / len(drawn)
    claimed = InBatch().log_prob(shop, torch.arange(shop.schema.V)).exp()
    assert (share - claimed).abs().sum() < 0.15


@needs_data
@pytest.mark.parametrize("alpha", [0.75, 1.0])
def test_popular_items_of_movielens_are_drawn_as_often_as_stated(ml_100k, alpha):
    n, V = 500, ml_100k.schema.V
    task = SessionParallel(Popularity(alpha), n_negatives=n)
    steps = [drawn for _, drawn in epoch_of_sessions(ml_100k, task, batch_size=50, every=5)]
    count = frequency(torch.cat(steps), V)
    stated = task.sampler.log_prob(ml_100k, torch.arange(V)).double().exp()
    popular = frequency(ml_100k.train.item, V).argsort(descending=True)[:50]
    assert (count[popular].sum() / count.sum() / stated[popular].sum()).item() == pytest.approx(
        1, abs=0.02
    )
    assert_law(count, count.sum() * stated)


@needs_data
@pytest.mark.parametrize("name", ["uniform", "popularity", "in_batch", "mixed"])
def test_laws_of_movielens(ml_100k, name):
    n, V = 100_000, ml_100k.schema.V
    rows = slice(0, 60)  # among them users with half of the catalogue
    check_users_law(
        ml_100k, NextItem(SAMPLERS[name], loss=BCE(), n_negatives=5_000, shared="row"), rows
    )
    task = NextItem(SAMPLERS[name], loss=BCE(), n_negatives=n, shared="batch")
    task.bind(RunningSum(V, 50), ml_100k)
    batch = task.batch(ml_100k, task.rows(ml_100k), torch.Generator().manual_seed(0))
    assert_law(frequency(batch.negative_n, V), n * law(task.sampler, ml_100k, batch.target_BL))


@pytest.mark.parametrize("sampler", [SupportiveOnly(), Mixed(Uniform(), SupportiveOnly())])
def test_supportive_only_cannot_be_common_to_a_batch(sampler):
    for kind in (NextItem, Cloze):
        with pytest.raises(RecexpError, match=r"sampler=supportive_only .* shared"):
            kind(sampler, loss=BCE(), shared="batch")
        kind(sampler, loss=BCE(), shared="row")
        kind(sampler, loss=CE(), shared="batch")
    with pytest.raises(RecexpError, match="sampler=supportive_only"):
        SessionParallel(sampler, n_negatives=1)
    SessionParallel(sampler)


def test_a_user_who_has_every_item_needs_negatives_of_the_batch(tmp_path):
    """Their own distribution is empty."""
    own = [Event("u0", f"i{i}", "view", 1000 * i) for i in range(6)]
    again = [Event("u0", f"i{i}", "view", 10_000 + i) for i in range(2)]
    world = store(tmp_path, [*own, *again, *(Event("u1", f"i{i}", "buy", i) for i in range(4))])
    model = RunningSum(world.schema.V, HISTORY)
    with pytest.raises(RecexpError, match="has all 6 items"):
        NextItem(Uniform(), loss=BCE(), shared="row").bind(model, world)
    task = NextItem(Uniform(), loss=BCE(), shared="batch", n_negatives=3)
    task.bind(model, world)
    batch = task.batch(world, task.rows(world), torch.Generator().manual_seed(0))
    assert task.losses(model, batch)["loss"].isfinite()


LOG_Q = {
    "uniform": Uniform(),
    "popularity": Popularity(),
    "popularity, alpha .5": Popularity(0.5),
    "mixed": Mixed(Uniform(), Popularity(), share=0.4),
}


def task_and_model(store: Store, sampler, n: int, **options) -> tuple[NextItem, RunningSum]:
    """Sampled softmax with corrected negatives, and a model that returns a state per target."""
    options = {"loss": SampledSoftmax(log_q=True), "shared": "batch"} | options
    task = NextItem(sampler, n_negatives=n, **options)
    model = RunningSum(store.schema.V, HISTORY, one_state=task.targets is not None)
    with torch.no_grad():
        model.item *= 0.4
    task.bind(model, store)
    return task, model


def full_softmax(store: Store, task: NextItem, model: RunningSum, rows: torch.Tensor) -> float:
    full = NextItem(task.sampler, windows=task.windows, targets=task.targets)
    full.bind(model, store)
    return full.losses(model, full.batch(store, rows, torch.Generator()))["loss"].item()


def sampled_losses(store: Store, task, model, rows, repeats: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        draws = (task.batch(store, rows, generator) for _ in range(repeats))
        return torch.stack([task.losses(model, batch)["loss"] for batch in draws])


def check_estimate(store: Store, sampler, n: int, repeats: int, rows: slice = slice(None)) -> None:
    task, model = task_and_model(store, sampler, n)
    chosen = task.rows(store)[rows]
    full = full_softmax(store, task, model, chosen)
    mean = sampled_losses(store, task, model, chosen, repeats).mean().item()
    assert full - 0.03 < mean < full + 0.01  # by Jensen's inequality a little below


@pytest.mark.parametrize("name", LOG_Q)
def test_log_q_estimates_the_softmax_over_the_catalogue(shop, name):
    check_estimate(shop, LOG_Q[name], n=500, repeats=40)


@needs_data
@pytest.mark.parametrize("name", ["uniform", "popularity, alpha .5"])
def test_log_q_estimates_the_softmax_over_movielens(ml_100k, name):
    check_estimate(ml_100k, LOG_Q[name], n=2_000, repeats=10, rows=slice(0, 100))


@needs_data
def test_log_q_of_in_batch_estimates_the_softmax_over_the_catalogue_on_average(ml_100k):
    """It cannot hold for single batches, which have only some items."""
    task, model = task_and_model(ml_100k, InBatch(), n=1_000, windows="all")
    generator = torch.Generator().manual_seed(0)
    rows = task.rows(ml_100k)
    excess = []
    for _ in range(30):
        batch_rows = rows[torch.randint(len(rows), (64,), generator=generator)]
        loss = sampled_losses(ml_100k, task, model, batch_rows, repeats=1)
        excess.append(loss.item() - full_softmax(ml_100k, task, model, batch_rows))
    mean = torch.tensor(excess).mean().item()
    assert abs(mean) < 0.15  # three standard errors; by the law given each batch it is -1.3


@pytest.mark.parametrize("name", LOG_Q)
def test_log_q_is_unbiased_for_the_softmax_denominator(shop, name):
    """exp(loss) is the denominator over exp(score of the target): no logarithm, so no bias,
    with however few negatives and though a row's own target does not count among them.
    """
    task, model = task_and_model(shop, LOG_Q[name], n=20, windows="all", targets=1)
    row = task.rows(shop)[-1:]
    full = full_softmax(shop, task, model, row)
    ratio = (sampled_losses(shop, task, model, row, repeats=800) - full).exp()
    error = (ratio.std() / len(ratio) ** 0.5).item()
    assert error < 0.04
    assert ratio.mean().item() == pytest.approx(1, abs=4 * error)
