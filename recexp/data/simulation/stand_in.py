"""A small simulated stand-in for a data set (``scale=smoke``).

The simulated shop's events get the behaviors of another data set. It has the form of the data it
stands for, so that every experiment runs anywhere; its numbers say nothing about that data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from recexp.data.dataset import BadRows
from recexp.data.readers import ItemFeature, Raw, simulated_shop
from recexp.data.readers.retailrocket import BEHAVIORS
from recexp.data.simulation.simulator import Count, Mean, Rate, Seed
from recexp.errors import RecexpError

MAX_BEHAVIORS = 4


def read(
    raw_dir: str | Path,
    *,
    on_bad_rows: BadRows = "error",
    behaviors: Sequence[str],
    users: Count = 150,
    items: Count = 200,
    categories: Count = 10,
    sessions: Mean = 6.0,
    session_length: Mean = 5.0,
    cart_rate: Rate = 0.4,
    purchase_rate: Rate = 0.5,
    seed: Seed = 0,
) -> Raw:
    """Simulate a shop and name its events by ``behaviors``, weak to strong.

    One behavior: the first event of every user and item. Two: views, and all others. Three: views,
    carts, purchases. Four: every second cart becomes the second behavior.
    Events named "rating" have a value, how often the user met the item (1 to 5), and the items have
    a year and genres, as films have; otherwise items have the shop's category tree.
    The other options are those of ``simulator.simulate``.

    Raises:
        RecexpError: no behavior, or more than four.
    """
    names = list(behaviors)
    if not 1 <= len(names) <= MAX_BEHAVIORS:
        raise RecexpError(
            f"A simulated stand-in has 1 to {MAX_BEHAVIORS} behaviors, dataset.behaviors names "
            f"{len(names)}: {names}."
        )
    raw = simulated_shop.read(
        raw_dir,
        on_bad_rows=on_bad_rows,
        users=users,
        items=items,
        categories=categories,
        sessions=sessions,
        session_length=session_length,
        cart_rate=cart_rate,
        purchase_rate=purchase_rate,
        seed=seed,
    )
    is_rated = "rating" in names
    if len(names) == 1:
        raw.events = _first_events(raw.events, names[0], with_value=is_rated)
    else:
        raw.events = raw.events.with_columns(behavior=_renamed(names))
    if is_rated:
        raw.item_features = _film_features(raw.item_features["category"])
    return raw


def _first_events(events: pl.LazyFrame, name: str, *, with_value: bool) -> pl.LazyFrame:
    """The first event of every user and item; its value is the number of events, 1 to 5."""
    pair = ["user", "item"]
    events = events.with_columns(behavior=pl.lit(name))
    if with_value:
        events = events.with_columns(value=pl.len().over(pair).clip(1, 5).cast(pl.Float32))
    return events.unique(pair, keep="first", maintain_order=True)


def _renamed(names: list[str]) -> pl.Expr:
    """The shop's behaviors under two to four names."""
    is_view, is_cart, is_purchase = (pl.col("behavior") == name for name in BEHAVIORS)
    weakest = pl.lit(names[0])
    strongest = pl.lit(names[-1])
    if len(names) == 2:
        return pl.when(is_view).then(weakest).otherwise(strongest)
    is_second_cart = is_cart & (is_cart.cum_sum() % 2 == 0)
    middle = pl.when(is_second_cart).then(pl.lit(names[1])).otherwise(pl.lit(names[-2]))
    return pl.when(is_view).then(weakest).when(is_purchase).then(strongest).otherwise(middle)


def _film_features(category: ItemFeature) -> dict[str, ItemFeature]:
    """Genres: the item's leaf categories. Year: derived from the item's id, without a meaning."""
    leaves = category.frame.select("item", "value").unique(maintain_order=True)
    years = leaves.select("item", value=1980 + pl.col("item") % 25).unique(maintain_order=True)
    return {"year": ItemFeature("categorical", years), "genres": ItemFeature("multi_label", leaves)}
