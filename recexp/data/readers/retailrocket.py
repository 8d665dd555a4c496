"""RetailRocket: views, add-to-carts and transactions of a shop over 4.5 months of 2015."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recexp.data.dataset import BadRows
from recexp.data.raw.columns import Column
from recexp.data.raw.folder import Folder
from recexp.data.readers import ItemFeature, Raw
from recexp.errors import RecexpError

ORIGIN = "Kaggle: retailrocket/ecommerce-dataset"
BEHAVIORS = ("view", "addtocart", "transaction")
PROPERTIES = ("item_properties_part1.csv", "item_properties_part2.csv")


def read(raw_dir: str | Path, *, on_bad_rows: BadRows = "error", file: str = "events.csv") -> Raw:
    """Read ``events.csv`` and, where both property files are present, the feature "category".

    Its values have dates, since an item's category changes; its tree is ``category_tree.csv``.
    """
    folder = Folder(raw_dir, ORIGIN, on_bad_rows)
    columns = [
        Column("user", "visitorid", "int"),
        Column("item", "itemid", "int"),
        Column("behavior", "event", choices=BEHAVIORS),
        Column("timestamp", "timestamp", "ms"),
    ]
    events = folder.delimited(file, columns, header=True)
    present = [name for name in PROPERTIES if folder.has(name)]
    if len(present) == 1:
        missing = next(name for name in PROPERTIES if name not in present)
        raise RecexpError(
            f"{folder.path} holds {present[0]} but not {missing}; get both from {ORIGIN}, "
            "or remove it to read no categories."
        )
    features = {"category": _category(folder)} if present else {}
    return Raw(events.lazy(), folder.files, features, folder.dropped)


def _category(folder: Folder) -> ItemFeature:
    columns = [
        Column("item", "itemid", "int"),
        Column("value", "value", "int"),
        Column("timestamp", "timestamp", "ms"),
    ]
    # The values of other properties are hashed and thus no numbers: those rows are passed over.
    only = ("property", "categoryid")
    parts = [folder.delimited(name, columns, header=True, only=only) for name in PROPERTIES]
    tree_columns = [
        Column("value", "categoryid", "int"),
        Column("parent", "parentid", "int", nullable=True),
    ]
    tree = folder.delimited("category_tree.csv", tree_columns, header=True)
    return ItemFeature("multi_label", pl.concat(parts).lazy(), tree.lazy())
