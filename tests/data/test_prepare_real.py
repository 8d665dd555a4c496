"""Real files, prepared: set RECEXP_DATA to the folder that holds them."""

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recexp.data.cache import prepare, read_meta
from recexp.data.dataset import Dataset
from recexp.data.split import Split
from recexp.data.store import Store
from tests.support.events import P3

DATA = Path(os.environ.get("RECEXP_DATA", ""))
pytestmark = pytest.mark.skipif(
    "RECEXP_DATA" not in os.environ, reason="RECEXP_DATA is not set: no real data"
)
CONF = Path(__file__).parents[2] / "conf" / "dataset"
FINGERPRINTS = {
    "ml_1m": ("ml-1m", {}, (6_040, 3_416, 999_611)),
    "ml_1m, all items": ("ml-1m", {"filters": []}, (6_040, 3_706, 1_000_209)),
    "ml_100k": ("ml-100k", {}, (943, 1_349, 99_287)),
    "sequence_file": (
        "amazon-beauty-bert4rec",
        {"source": {"file": "beauty.txt"}},
        (40_226, 54_542, 353_962),
    ),
    "amazon_beauty_5core": ("amazon-beauty-5core", {}, (22_363, 12_101, 198_502)),
}


def real_dataset(name, **changes):
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    folder, settings, _ = FINGERPRINTS[name]
    config = OmegaConf.merge(
        OmegaConf.load(CONF / f"{name.split(',')[0]}.yaml"),
        settings,
        {"raw_dir": str(DATA / folder)},
        changes,
    )
    return instantiate(config, _recursive_=False)


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_fingerprints(tmp_path, name):
    meta = read_meta(prepare(real_dataset(name), P3, tmp_path))
    users, items, interactions = FINGERPRINTS[name][2]
    assert (meta["users"], meta["items"], meta["interactions"]) == (users, items, interactions)
    assert meta["train"] == interactions - 2 * users  # each user has at least 5


def test_movielens_1m_has_the_order_of_sasrec(tmp_path):
    """For all 6 040 users: ties in time stand in the order of the file."""
    opened = Store.open(prepare(real_dataset("ml_1m"), P3, tmp_path))
    folder = DATA / "ml-1m-sasrec-order"

    def table(name):
        return pl.read_csv(
            folder / name, separator=" ", has_header=False, new_columns=["user", "item"]
        )

    published = table("ml-1m.txt")
    for column in ("user", "item"):
        original = table(f"sas_to_original_{column}s.txt")
        published = published.with_columns(
            pl.col(column).replace_strict(original["user"], original["item"])
        )
    published = published.sort("user", maintain_order=True)
    user, item = (
        pl.read_parquet(opened.folder / f"{c}s.parquet")[c].to_numpy() for c in ("user", "item")
    )
    assert len(user) == 6_040
    assert np.array_equal(user[opened.past.user.numpy()], published["user"].to_numpy())
    assert np.array_equal(item[opened.past.item.numpy() - 1], published["item"].to_numpy())


def test_the_publishers_test_purchases_of_taobao_are_the_targets(tmp_path):
    """A test file without times and behaviors, beside the training events."""
    reader = {
        "_target_": "recexp.data.readers.given.read",
        "_partial_": True,
        "file": "interactions.csv",
        "test": {"file": "test_buy.csv", "timestamp": None, "as_behavior": "buy"},
        "user": "user_id",
        "item": "item_id",
        "behavior": "behavior",
    }
    behaviors = ("fav", "cart", "buy")
    shop = Dataset("taobao", str(DATA / "taobao-31882"), reader, behaviors, behaviors[2:])
    opened = Store.open(prepare(shop, Split(kind="given"), tmp_path))
    published = pl.read_csv(DATA / "taobao-31882" / "test_buy.csv", infer_schema=False)
    users, items = (pl.read_parquet(opened.folder / f"{c}s.parquet")[c] for c in ("user", "item"))
    found = pl.DataFrame(
        {
            "user_id": users.gather(opened.test.user.numpy()),
            "item_id": items.gather(opened.test.item.numpy() - 1),
        }
    )
    assert found.sort("user_id").equals(published.sort("user_id"))
    assert opened.test.n_users == len(published) == 10_000
    assert opened.meta["train"] + len(opened.val) == 357_412
    assert opened.meta["audit"]["repeat_targets"] == 0
