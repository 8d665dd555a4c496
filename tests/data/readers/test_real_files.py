"""Counts of the real files, which lie in the folder that RECEXP_DATA names."""

import os
from pathlib import Path

import polars as pl
import pytest

from recexp.data.readers import (
    attribute_sequence,
    movielens,
    retailrocket,
    sequence_file,
    table,
    taobao,
)

DATA = Path(os.environ.get("RECEXP_DATA", ""))
pytestmark = pytest.mark.skipif(
    "RECEXP_DATA" not in os.environ, reason="RECEXP_DATA is not set: no real data"
)

CASES = {
    "ml-1m": (movielens.read_1m, {}, (1_000_209, 6_040, 3_706), {"rating": 1_000_209}),
    "ml-100k": (movielens.read_100k, {}, (100_000, 943, 1_682), {"rating": 100_000}),
    "amazon-beauty-bert4rec": (
        sequence_file.read,
        {"file": "beauty.txt"},
        (353_962, 40_226, 54_542),
        {"interaction": 353_962},
    ),
    "ml-1m-sasrec-order": (
        sequence_file.read,
        {"file": "ml-1m.txt"},
        (999_611, 6_040, 3_416),
        {"interaction": 999_611},
    ),
    "amazon-beauty-5core": (
        attribute_sequence.read,
        {},
        (198_502, 22_363, 12_101),
        {"interaction": 198_502},
    ),
    "retailrocket-2174": (
        retailrocket.read,
        {},
        (97_381, 2_174, 29_905),
        {"view": 75_374, "addtocart": 12_456, "transaction": 9_551},
    ),
    "retailrocket-2174 sample": (
        retailrocket.read,
        {"file": "sample_events.csv"},
        (9_385, 5_000, 6_610),
        {"view": 9_076, "addtocart": 263, "transaction": 46},
    ),
    "taobao-sample": (
        taobao.read,
        {},
        (10_000, 114, 7_623),
        {"pv": 9_046, "cart": 536, "fav": 212, "buy": 206},
    ),
    "taobao-31882": (
        table.read,
        {"file": "interactions.csv", "user": "user_id", "item": "item_id", "behavior": "behavior"},
        (357_412, 31_882, 30_985),
        {"buy": 167_862, "cart": 140_068, "fav": 49_482},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_fingerprint(name):
    read, options, counts, behaviors = CASES[name]
    raw = read(DATA / name.split()[0], **options)
    events = raw.events.collect()
    assert (events.height, events["user"].n_unique(), events["item"].n_unique()) == counts
    assert dict(events["behavior"].value_counts().rows()) == behaviors
    assert not raw.dropped and all(file.is_file() for file in raw.files)


def test_movielens_1m_has_the_published_order():
    """Items with 5 ratings, sorted stably by (user, time): user by user the sequences that SASRec
    and BERT4Rec trained on.
    """
    events = movielens.read_1m(DATA / "ml-1m").events.collect()
    events = events.filter(pl.len().over("item") >= 5).sort(
        "user", "timestamp", maintain_order=True
    )
    assert (events.height, events["user"].n_unique(), events["item"].n_unique()) == (
        999_611,
        6_040,
        3_416,
    )
    folder = DATA / "ml-1m-sasrec-order"
    published = sequence_file.read(folder, file="ml-1m.txt").events.collect()
    for column in ("user", "item"):
        names = sequence_file.read(folder, file=f"sas_to_original_{column}s.txt").events.collect()
        published = published.with_columns(
            pl.col(column).replace_strict(names["user"], names["item"])
        )
    published = published.sort("user", "timestamp")
    assert events["user"].equals(published["user"]) and events["item"].equals(published["item"])


def test_features_of_the_real_files():
    def distinct(raw):
        return {
            name: feature.frame.collect()["value"].n_unique()
            for name, feature in raw.item_features.items()
        }

    films = movielens.read_1m(DATA / "ml-1m")
    assert distinct(films) == {"year": 81, "genres": 18}
    assert films.item_features["year"].frame.collect().height == 3_883
    assert distinct(taobao.read(DATA / "taobao-sample")) == {"category": 1_096}
    attributes = (
        attribute_sequence.read(DATA / "amazon-beauty-5core")
        .item_features["attribute"]
        .frame.collect()
    )
    assert (attributes["item"].n_unique(), attributes["value"].n_unique()) == (12_101, 637)
    assert round(attributes.height / 12_101, 2) == 3.72
