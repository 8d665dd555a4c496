"""A positive left out of its user's side features, against bags made without it."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from recexp.data.features import build_features
from recexp.data.readers import ItemFeature
from recexp.nn.embeddings import UserBag
from recexp.objectives.pointwise import Pointwise
from recexp.objectives.samplers import Uniform
from recexp.types import Bag, Feature
from tests.support.events import P1, P3, random_events, store
from tests.support.stub_models import PairScores

FEATURES = {"genres": "multi_label", "brand": "categorical"}


def shares(opened, name, user_B, without_B):
    """Weight of each value in the users' vectors, float64 [B, cardinality]."""
    bag = UserBag(opened.schema.user_features[name], opened.schema.item_features[name], 1).double()
    bag.table.weight = torch.nn.Parameter(
        torch.eye(opened.schema.user_features[name].cardinality, dtype=torch.float64)
    )
    return bag(user_B, without_B).detach()


def rebuilt(opened, folder, raw, skipped):
    """The same of all users without the pairs skipped, per feature [U, cardinality]."""
    pairs = opened.train_pairs
    keep = [
        pair not in skipped for pair in zip(pairs.user.tolist(), pairs.item.tolist(), strict=True)
    ]
    train_pairs = {"user": pairs.user.numpy()[keep], "item": pairs.item.numpy()[keep]}
    items = pl.read_parquet(opened.folder / "items.parquet")
    folder.mkdir(exist_ok=True)
    described = build_features(
        raw, items, train_pairs, int(opened.train.time.max()), opened.schema.n_users, folder, []
    )
    out = {}
    for feature in described:
        ptr, value, count = (
            np.load(folder / f"bag_{feature['name']}_{x}.npy") for x in ("ptr", "id", "count")
        )
        total = torch.zeros(opened.schema.n_users, feature["cardinality"], dtype=torch.float64)
        for user, (a, b) in enumerate(pairwise(ptr)):
            count_v = torch.from_numpy(count[a:b]).double()
            total[user, torch.from_numpy(value[a:b])] = count_v / count_v.sum()
        out[feature["name"]] = total
    return out


def by_brute_force(opened, folder, raw, user_B, item_B):
    """Rows' shares without their items, one pair per user at a time; [B, cardinality] each."""
    found, left = {}, torch.arange(len(user_B))
    while len(left):
        user = user_B[left].tolist()
        first = torch.tensor([n == user.index(u) for n, u in enumerate(user)])
        now = left[first]
        skipped = set(zip(user_B[now].tolist(), item_B[now].tolist(), strict=True))
        for name, share in rebuilt(opened, folder, raw, skipped).items():
            out = found.setdefault(name, share.new_zeros(len(user_B), share.shape[1]))
            out[now] = share[user_B[now]]
        left = left[~first]
    return found


def batch_of(opened, rows=None, **options):
    task = Pointwise(Uniform(), n_negatives=1, leave_target_out=True, **options)
    task.bind(
        PairScores(opened.schema.n_users, opened.schema.V, len(opened.schema.behaviors)), opened
    )
    rows = task.rows(opened) if rows is None else rows
    return task.batch(opened, rows, torch.Generator().manual_seed(0))


def shop(folder, split=P1, **changes):
    """Repeated pairs of three behaviors; items with up to three genres, some without a brand."""
    genres = {f"i{n}": [f"g{n % 3}", f"g{n % 5}", f"g{n % 7}"] for n in range(10)}
    (folder / "raw").mkdir(parents=True)
    lines = [
        f"{item},{'|'.join(values)},{'' if item == 'i3' else item[1:]}"
        for item, values in genres.items()
    ]
    (folder / "raw" / "items.csv").write_text("item,genres,brand\n" + "\n".join(lines) + "\n")
    features = {"file": "items.csv", "item": "item", "columns": FEATURES}
    opened = store(folder, random_events(3), split, features=features, **changes)
    frames = {
        "genres": pl.DataFrame(
            [(i, g) for i, of in genres.items() for g in of], schema=["item", "value"], orient="row"
        ),
        "brand": pl.DataFrame(
            [(i, i[1:]) for i in genres if i != "i3"], schema=["item", "value"], orient="row"
        ),
    }
    return opened, {
        name: ItemFeature(FEATURES[name], frame.lazy()) for name, frame in frames.items()
    }


@pytest.mark.parametrize("merge", ["none", "pairs"])
def test_every_training_event(tmp_path, merge):
    opened, raw = shop(tmp_path, merge=merge)
    batch = batch_of(opened)
    user_B, item_B = batch.query.user_B, batch.item_BC[:, 0]
    assert len(user_B) == len(opened.train)
    expected = by_brute_force(opened, tmp_path / "again", raw, user_B, item_B)
    for name in raw:
        found = shares(opened, name, user_B, batch.query.without_B)
        torch.testing.assert_close(found, expected[name], rtol=0, atol=1e-12)


def test_a_category_with_its_ancestors(tmp_path):
    """Every ancestor of a category counts as much as the category."""
    opened, _ = shop(tmp_path, P3)
    tree = pl.DataFrame({"value": ["a", "b", "c", "d"], "parent": [None, "a", "b", "a"]}).lazy()
    frame = pl.DataFrame(
        [(f"i{n}", "abcd"[n % 4]) for n in range(9)], schema=["item", "value"], orient="row"
    ).lazy()
    raw = {"category": ItemFeature("multi_label", frame, tree)}
    whole = rebuilt(opened, tmp_path / "whole", raw, set())["category"]
    opened = with_feature(opened, tmp_path / "whole", "category", whole.shape[1])
    batch = batch_of(opened)
    user_B, item_B = batch.query.user_B, batch.item_BC[:, 0]
    found = shares(opened, "category", user_B, batch.query.without_B)
    expected = by_brute_force(opened, tmp_path / "again", raw, user_B, item_B)["category"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def with_feature(opened, folder, name, cardinality):
    """The store with one more feature, from files that build_features wrote."""

    def load(file):
        return torch.from_numpy(np.load(folder / f"{file}.npy"))

    feature = Feature(
        "multi_label", cardinality, load(f"feature_{name}_id"), load(f"feature_{name}_weight")
    )
    bag = Bag(cardinality, *(load(f"bag_{name}_{x}") for x in ("ptr", "id", "count")))
    schema = replace(
        opened.schema,
        item_features=opened.schema.item_features | {name: feature},
        user_features=opened.schema.user_features | {name: bag},
    )
    return replace(opened, schema=schema)


def test_only_items_of_the_rows_user_are_left_out(tmp_path):
    """Shuffled targets belong to other users: their items are not in the features of the row's
    user.
    """
    opened, raw = shop(tmp_path)
    batch = batch_of(opened, shuffle_targets=True)
    user_B, item_B, without_B = batch.query.user_B, batch.item_BC[:, 0], batch.query.without_B
    own_B = opened.train_pairs.contain(user_B, item_B)
    assert own_B.any() and not own_B.all()
    assert torch.equal(without_B, torch.where(own_B, item_B, 0))
    for name in raw:
        share = shares(opened, name, user_B, without_B)
        assert share.min() >= 0 and share.sum(1).max() <= 1 + 1e-12


@pytest.mark.skipif("RECEXP_DATA" not in os.environ, reason="RECEXP_DATA is not set: no real data")
def test_genres_of_movielens_1m(tmp_path):
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from recexp.data.cache import prepare
    from recexp.data.readers.movielens import read_1m
    from recexp.data.store import Store

    raw_dir = Path(os.environ["RECEXP_DATA"]) / "ml-1m"
    config = OmegaConf.load(Path(__file__).parents[2] / "conf" / "dataset" / "ml_1m.yaml")
    config.raw_dir = str(raw_dir)
    opened = Store.open(prepare(instantiate(config, _recursive_=False), P3, tmp_path))
    rows = torch.randperm(len(opened.train), generator=torch.Generator().manual_seed(0))[:600]
    batch = batch_of(opened, rows)
    user_B, item_B = batch.query.user_B, batch.item_BC[:, 0]
    found = shares(opened, "genres", user_B, batch.query.without_B)
    raw = {"genres": read_1m(raw_dir).item_features["genres"]}
    expected = by_brute_force(opened, tmp_path / "again", raw, user_B, item_B)["genres"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
