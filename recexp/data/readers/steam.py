"""Steam: reviews of games, 2010 to 2018, as collected for SASRec."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from recexp.data.raw.columns import Column
from recexp.data.raw.folder import Folder, joined, record_row, split_names
from recexp.data.raw.text import Row
from recexp.data.readers import ItemFeature, Raw

ORIGIN = "J. McAuley, UCSD: Steam Video Game and Bundle Data (version 2)"
REVIEWS, GAMES = "steam_reviews.json.gz", "steam_games.json.gz"


def read(raw_dir: str | Path, *, on_bad_rows: str = "error", games: bool = True) -> Raw:
    """``steam_reviews.json.gz``; and ``steam_games.json.gz`` where it is there, for the item feature "genres".

    games: False leaves the feature out. The times are whole days: ties keep the order of the file. Any text is a user's name.
    """
    folder = Folder(raw_dir, ORIGIN, on_bad_rows)
    columns = [
        Column("user", "username", "text"),
        Column("item", "product_id"),
        Column("timestamp", "date", "iso"),
    ]
    events = folder.record_table(REVIEWS, columns).with_columns(behavior=pl.lit("review"))
    features = {"genres": _genres(folder)} if games and folder.has(GAMES) else {}
    return Raw(events.lazy(), folder.files, features, folder.dropped)


def _genres(folder: Folder) -> ItemFeature:
    columns = [Column("item", "id"), Column("value", "genres", "text", nullable=True)]

    def rows() -> Iterator[Row]:
        for line, record in folder.records(GAMES):
            genres = joined(record.get("genres") or [])
            if genres is None:
                yield line, None, "has genres that are not a list of names"
            elif (
                record.get("id") is not None
            ):  # a few entries of the published file have no id: they describe nothing
                yield record_row(line, record, columns[:1], genres)

    return ItemFeature("multi_label", split_names(folder.table(GAMES, columns, rows()), "value"))
