"""Steam: reviews of games, 2010 to 2018, as collected for SASRec."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from recexp.data.dataset import BadRows
from recexp.data.raw.columns import Column
from recexp.data.raw.folder import Folder
from recexp.data.raw.records import joined, record_row, split_names
from recexp.data.raw.text import Row
from recexp.data.readers import ItemFeature, Raw

ORIGIN = "J. McAuley, UCSD: Steam Video Game and Bundle Data (version 2)"
REVIEWS = "steam_reviews.json.gz"
GAMES = "steam_games.json.gz"


def read(raw_dir: str | Path, *, on_bad_rows: BadRows = "error", games: bool = True) -> Raw:
    """Read ``steam_reviews.json.gz``, and ``steam_games.json.gz`` where it is present.

    The games give the item feature "genres"; games: False leaves it out. Times are whole days: ties
    keep the order of the file. Any text is accepted as a user's name.
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
            elif record.get("id") is not None:  # a few entries of the published file have none
                yield record_row(line, record, columns[:1], genres)

    frame = folder.table(GAMES, columns, rows())
    return ItemFeature("multi_label", split_names(frame, "value"))
