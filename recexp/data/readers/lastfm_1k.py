"""Last.fm 1K: all that about 1 000 users listened to until May 2009 (Celma 2010)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import polars as pl

from recexp.data.dataset import BadRows
from recexp.data.raw.columns import Column
from recexp.data.raw.folder import Folder
from recexp.data.readers import ItemFeature, Raw
from recexp.errors import RecexpError

ORIGIN = "O. Celma: Last.fm Dataset - 1K users (lastfm-dataset-1K.tar.gz)"
FILE = "userid-timestamp-artid-artname-traid-traname.tsv"
ITEMS = ("artist", "track")


def read(
    raw_dir: str | Path,
    *,
    on_bad_rows: BadRows = "error",
    file: str = FILE,
    item: Literal["artist", "track"] = "artist",
) -> Raw:
    """Read ``file``, six columns without a header.

    item: "artist" takes the artist's name, since many have no MusicBrainz id; "track" takes
        "<artist> / <track>", and the artist is the item feature "artist".
    """
    if item not in ITEMS:
        raise RecexpError(f"item={item!r} is not known; choose {' or '.join(ITEMS)}")
    folder = Folder(raw_dir, ORIGIN, on_bad_rows)
    columns = [
        Column("user", 0),
        Column("timestamp", 1, "iso"),
        Column("item", 3),
        Column("track", 5),
    ]
    columns = columns if item == "track" else columns[:3]
    # Names hold quotes of all kinds: they are text.
    events = folder.delimited(file, columns, header=False, separator="\t", quote=None)
    events = events.with_columns(behavior=pl.lit("listen"))
    features = {}
    if item == "track":
        title = pl.concat_str("item", "track", separator=" / ")
        events = events.select("user", "timestamp", "behavior", item=title, artist="item")
        artist = events.lazy().select("item", value="artist").unique(maintain_order=True)
        features["artist"] = ItemFeature("categorical", artist)
        events = events.drop("artist")
    return Raw(events.lazy(), folder.files, features, folder.dropped)
