"""A small table data set with features of items, users and events on disk, and a schema of them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import torch

from recexp.data.store import Events, Store
from recexp.testing import toy, worlds
from recexp.types import EventFeature, Feature, Query, Schema

N_USERS = 30
N_ITEMS = 24
DEVICES = ("phone", "web", None)
FEATURES = (
    "{items: ["
    "{file: items.csv, item: item, columns:"
    " {brand: categorical, tags: multi_label, price: numeric}},"
    "{file: texts.parquet, item: item, columns: {text: vector, labels: multi_label}},"
    "{file: images.npy, item: ids.txt, columns: {image: vector}}],"
    "users: {file: users.parquet, user: user, columns:"
    " {city: categorical, age: numeric, profile: vector, hobbies: multi_label}},"
    "events: {device: categorical, dwell: numeric}}"
)
TABLE = (
    "dataset=table",
    "dataset.name=featured",
    "dataset.source.behavior=behavior",
    "dataset.behaviors=[view,buy]",
    "dataset.explicit=[buy]",
    "dataset.source.value=rating",
    f"dataset.source.features={FEATURES}",
    "protocol=full_unseen",
    "logger=none",
    "trainer.max_epochs=1",
    "batch_size=64",
    "threads=1",
)


def events(n_users: int = N_USERS, n_items: int = N_ITEMS, *, first_item: int = 0) -> pl.DataFrame:
    """Six events of every user, on distinct items."""
    chance = random.Random(0)
    rows = []
    for user in range(n_users):
        time = 1_700_000_000 + chance.randrange(10**6)
        for item in chance.sample(range(first_item, first_item + n_items), 6):
            time += chance.choice([1, 30, 4000, 10**6])
            extra = (chance.choice(DEVICES), chance.choice([1.5, 2.0, None]))
            rating = chance.randint(1, 5)
            behavior = chance.choice(["view", "buy"])
            rows.append((f"u{user}", f"i{item}", time, behavior, rating, *extra))
    names = ["user", "item", "timestamp", "behavior", "rating", "device", "dwell"]
    return pl.DataFrame(rows, schema=names, orient="row")


def write(folder: Path, *, n_users: int = N_USERS, n_items: int = N_ITEMS) -> Path:
    """Write the events and the tables of features."""
    folder.mkdir(parents=True, exist_ok=True)
    events(n_users, n_items).write_csv(folder / "events.csv")
    ids = [f"i{i}" for i in range(n_items)]
    columns = {
        "item": ids,
        "brand": [f"b{i % 4}" if i % 5 else None for i in range(n_items)],
        "tags": ["a|b" if i % 2 else "c" for i in range(n_items)],
        "price": [float(i) for i in range(n_items)],
    }
    pl.DataFrame(columns).write_csv(folder / "items.csv")
    draw = np.random.default_rng(0)
    texts = {
        "item": ids,
        "text": draw.normal(size=(n_items, 5)).tolist(),
        "labels": [["x", "y"][: 1 + i % 2] for i in range(n_items)],
    }
    pl.DataFrame(texts).write_parquet(folder / "texts.parquet")
    np.save(folder / "images.npy", draw.normal(size=(n_items, 3)).astype(np.float32))
    (folder / "ids.txt").write_text("\n".join(ids) + "\n")
    users = {
        "user": [f"u{u}" for u in range(n_users)],
        "city": [f"c{u % 3}" if u % 4 else None for u in range(n_users)],
        "age": [20.0 + u for u in range(n_users)],
        "profile": draw.normal(size=(n_users, 4)).tolist(),
        "hobbies": [["chess"], ["chess", "music"], []] * (n_users // 3),
    }
    pl.DataFrame(users).write_parquet(folder / "users.parquet")
    return folder


def schema(seed: int = 0) -> Schema:
    """The toy schema with vectors of items, attributes of users and features of events."""
    plain = toy.schema(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    vector_VW = torch.randn(plain.V, 3, generator=generator)
    vector_VW[[0, 4]] = 0
    known_V1 = (vector_VW != 0).any(1, keepdim=True).long()
    city_U1 = torch.randint(0, 4, (plain.n_users, 1), generator=generator)
    profile_UW = torch.randn(plain.n_users, 2, generator=generator)
    attributes = {
        "city": Feature("categorical", 4, city_U1, (city_U1 > 0).float()),
        "profile": Feature("vector", 3, torch.ones_like(city_U1), profile_UW),
    }
    return replace(
        plain,
        item_features={**plain.item_features, "text": Feature("vector", 4, known_V1, vector_VW)},
        user_attributes=attributes,
        event_features={
            "device": EventFeature("categorical", 4),
            "dwell": EventFeature("numeric", 2),
        },
    )


def query(users: list[int], histories: list[list[int]]) -> Query:
    """``toy.query`` with columns of the event features; code 0 (unknown) occurs."""
    plain = toy.query(users, histories)
    real_BL = plain.mask_BL
    place_L = torch.arange(plain.item_BL.shape[1])
    time_BL = 1_000 * (plain.item_BL * 3).cumsum(1) * real_BL
    features_BL = {
        "device": (plain.item_BL + place_L) % 4 * real_BL,
        "dwell": torch.where(real_BL, plain.item_BL / 3 - place_L, 0.0),
    }
    return replace(plain, time_BL=time_BL, features_BL=features_BL)


def store(n_users: int = 12, **how) -> Store:
    """``worlds.random_store`` with the features of ``schema``, drawn for its sizes."""
    plain = worlds.random_store(n_users, side=True, **how)
    generator = torch.Generator().manual_seed(0)
    vector_VW = torch.randn(plain.schema.V, 3, generator=generator)
    vector_VW[0] = 0
    known_V1 = (vector_VW != 0).any(1, keepdim=True).long()
    city_U1 = torch.randint(0, 4, (n_users, 1), generator=generator)
    text = Feature("vector", 4, known_V1, vector_VW)
    wider = replace(
        plain.schema,
        item_features={**plain.schema.item_features, "text": text},
        user_attributes={"city": Feature("categorical", 4, city_U1, (city_U1 > 0).float())},
        event_features={
            "device": EventFeature("categorical", 4),
            "dwell": EventFeature("numeric", 2),
        },
    )

    def with_columns(events: Events) -> Events:
        columns = {
            "device": torch.randint(0, 4, (len(events),), generator=generator).int(),
            "dwell": torch.randn(len(events), generator=generator),
        }
        return replace(events, features=columns)

    train, past = with_columns(plain.train), with_columns(plain.past)
    return replace(plain, schema=wider, train=train, past=past)
