"""A small simulated stand-in for a data set: the simulated shop's events under another data set's behaviours (``scale=smoke``).

It has the form of the data it stands for, so that every experiment runs anywhere; its numbers say nothing about that data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from recexp.data.readers import ItemFeature, Raw, simulated_shop
from recexp.data.readers.retailrocket import BEHAVIOURS
from recexp.errors import RecexpError


def read(
    raw_dir: str | Path,
    *,
    on_bad_rows: str = "error",
    behaviours: Sequence[str],
    users: int = 150,
    items: int = 200,
    categories: int = 10,
    sessions: float = 6.0,
    session_length: float = 5.0,
    cart_rate: float = 0.4,
    purchase_rate: float = 0.5,
    seed: int = 0,
) -> Raw:
    """Simulate a shop (options as in ``recexp.data.simulation.simulator.simulate``) and call its events by ``behaviours``, weak to strong.

    One behaviour: the first event of every user and item. Two: views and the rest. Three: views, carts, purchases. Four: every second cart becomes
    the second. Events called "rating" have a value, how often the user met the item (1 to 5), and the items a year and genres, as films have;
    otherwise they have the shop's category tree. Raises RecexpError for more than four behaviours.
    """
    setting = {
        k: v for k, v in locals().items() if k not in ("raw_dir", "on_bad_rows", "behaviours")
    }
    names = list(behaviours)
    if not 1 <= len(names) <= 4:
        raise RecexpError(
            f"A simulated stand-in has 1 to 4 behaviours, dataset.behaviours names {len(names)}: {names}."
        )
    raw = simulated_shop.read(raw_dir, on_bad_rows=on_bad_rows, **setting)
    view, cart, purchase = (pl.col("behavior") == name for name in BEHAVIOURS)
    weak, strong = pl.lit(names[0]), pl.lit(names[-1])
    if len(names) == 1:
        pair = ["user", "item"]
        raw.events = raw.events.with_columns(
            behavior=strong, value=pl.len().over(pair).clip(1, 5).cast(pl.Float32)
        )
        raw.events = raw.events.unique(pair, keep="first", maintain_order=True)
    elif len(names) == 2:
        raw.events = raw.events.with_columns(behavior=pl.when(view).then(weak).otherwise(strong))
    else:
        middle = (
            pl.when(cart & (cart.cum_sum() % 2 == 0))
            .then(pl.lit(names[1]))
            .otherwise(pl.lit(names[-2]))
        )
        raw.events = raw.events.with_columns(
            behavior=pl.when(view).then(weak).when(purchase).then(strong).otherwise(middle)
        )
    if "rating" in names:
        raw.item_features = _film_features(raw.item_features["category"])
    elif len(names) == 1:
        raw.events = raw.events.drop("value")
    return raw


def _film_features(category: ItemFeature) -> dict[str, ItemFeature]:
    """Genres: the item's leaf categories. Year: any, for a shop plants none."""
    leaves = category.frame.select("item", "value").unique(maintain_order=True)
    years = leaves.select("item", value=1980 + pl.col("item") % 25).unique(maintain_order=True)
    return {"year": ItemFeature("categorical", years), "genres": ItemFeature("multi_label", leaves)}
